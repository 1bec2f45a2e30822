"""Steps that need no network; those that do are in test_worker.py."""

import pytest
import torch

from bench.errors import WorkloadError
from bench.step import kernel
from bench.workload import Workload


def of(configuration: str) -> Workload:
    return Workload("kernel", "normalize", configuration, 2, 8)


def test_a_kernel_runs_on_its_own_input() -> None:
    step = kernel(of("torch-bfloat16"), torch.device("cpu"))
    assert step.images == 2
    made = step.call()
    assert isinstance(made, torch.Tensor)
    assert (made.shape, made.dtype) == ((2, 3, 8, 8), torch.bfloat16)


@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        ("triton-bfloat16", r"normalize@triton cannot run here: .*(CUDA device|Triton)"),
        ("cuda-bfloat16", "no implementation 'cuda'"),
        ("torch-float64", "not float64"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(configuration: str, reason: str) -> None:
    with pytest.raises(WorkloadError, match=reason):
        kernel(of(configuration), torch.device("cpu"))
