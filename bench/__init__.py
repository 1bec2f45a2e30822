"""Measures image classifiers: the only package that knows models, loaders, kernels and results."""
