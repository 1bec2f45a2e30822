"""Processes that hold what is measured, and the parent that asks them."""
