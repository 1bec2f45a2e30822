"""Batch memory that is used again as soon as no tensor refers to it.

A batch of 64 images of 224 pixels in float32 is 38 MB. The C library returns blocks of that size to the system at
once, so that every batch would begin with thousands of page faults.
"""

import weakref

import numpy as np
import torch
from numpy.typing import NDArray


class Buffers:
    """Hands out uninitialised CPU tensors and takes their memory back when the last tensor on it is gone.

    A tensor made from an array keeps that array alive through all its views; the array's end is therefore the moment
    when the memory is free, however the caller sliced, stored or passed on the batch.
    """

    def __init__(self, dtype: torch.dtype, elements: int) -> None:
        # numpy has no bfloat16; any type of the same width does.
        self._dtype = dtype
        self._free: list[NDArray[np.generic]] = []
        self._numpy_dtype = np.dtype(f"u{dtype.itemsize}") if dtype.itemsize < 4 else np.dtype(np.float32)
        self._elements = elements

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """An uninitialised tensor of `shape`, which must not have more than `elements` elements."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._elements, self._numpy_dtype)
        view = memory[: int(np.prod(shape))]
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view).view(self._dtype).view(shape)
