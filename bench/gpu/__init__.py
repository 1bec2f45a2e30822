"""Measures a GPU host for `make gpu`: in parts, each with files of its own, and the table made from them."""
