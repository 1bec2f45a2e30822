"""Memory comes back when, and only when, nothing refers to it."""

from collections.abc import Callable

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


VIEWS: dict[str, Callable[[torch.Tensor], object]] = {
    "slice": lambda tensor: tensor[3:4],
    "permute": lambda tensor: tensor.permute(1, 0),
    "element": lambda tensor: tensor.view(-1)[7],
    "detach": lambda tensor: tensor.detach(),
    "numpy": lambda tensor: tensor.numpy(),
}


@pytest.mark.parametrize("derive", VIEWS.values(), ids=VIEWS)
def test_memory_is_used_again_once_no_view_refers_to_it(derive: Callable[[torch.Tensor], object]) -> None:
    buffers = Buffers(torch.float32, 1000)
    first = buffers.take((10, 100))
    address, view = first.data_ptr(), derive(first)
    del first
    assert buffers.take((10, 100)).data_ptr() != address
    del view
    assert buffers.take((5, 100)).data_ptr() == address
