"""Standardisation of each image, whatever its contents."""

import numpy as np
import pytest
import torch

from loaders.normalization import normalized, standardize
from loaders.options import LoaderOptions


@pytest.mark.parametrize("size", [1, 5, 32])
def test_every_channel_has_mean_0_and_deviation_1(size: int) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, size, size + 1, 3), dtype=np.uint8))
    images = standardize(pixels, torch.float32)
    assert images.shape == (6, 3, size, size + 1)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.mean((2, 3)).abs().max() < 1e-5
    assert (images.std((2, 3), correction=0) - 1).abs().max() < 1e-5


def test_a_single_pixel_off_by_one_level_counts_and_a_flat_image_is_0() -> None:
    pixels = torch.full((2, 32, 32, 3), 200, dtype=torch.uint8)
    pixels[0, 3, 4, :] = 201
    images = standardize(pixels, torch.float32)
    assert (images[0].std((1, 2), correction=0) - 1).abs().max() < 1e-3
    assert images[1].abs().max() == 0


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("normalization", ["fixed", "per_image"])
def test_type_and_order_are_those_asked_for(layout: str, dtype: str, normalization: str) -> None:
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    images = normalized(pixels, LoaderOptions(layout=layout, dtype=dtype, normalization=normalization))
    assert images.dtype == getattr(torch, dtype)
    order = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    assert images.is_contiguous(memory_format=order)
