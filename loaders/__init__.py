"""Loaders bring images to the device; each file is one engine, an iterable of (images, labels)."""
