"""Memory comes back when, and only when, nothing refers to it."""

import gc

import pytest
import torch

from loaders.buffers import Buffers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_type_and_shape(dtype: torch.dtype) -> None:
    tensor = Buffers(dtype, 24).take((2, 3, 4))
    assert tensor.shape == (2, 3, 4)
    assert tensor.dtype == dtype
    tensor.fill_(1.5)
    assert tensor.sum() == 36


def test_memory_is_used_again_once_free() -> None:
    buffers = Buffers(torch.float32, 1000)
    first = buffers.take((10, 100))
    address = first.data_ptr()
    del first
    gc.collect()
    assert buffers.take((5, 100)).data_ptr() == address


@pytest.mark.parametrize(
    "derive",
    [lambda t: t[3:4], lambda t: t.permute(1, 0), lambda t: t.view(-1)[7], lambda t: t.detach(), lambda t: t.numpy()],
)
def test_a_view_keeps_the_memory(derive: object) -> None:
    assert callable(derive)
    buffers = Buffers(torch.float32, 1000)
    first = buffers.take((10, 100))
    address, view = first.data_ptr(), derive(first)
    del first
    gc.collect()
    second = buffers.take((10, 100))
    assert second.data_ptr() != address
    del view
    gc.collect()
    assert buffers.take((10, 100)).data_ptr() == address
