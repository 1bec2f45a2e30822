"""Brings images to the device: one engine a file, each an iterable of (images, labels). Knows no model and no clock."""
