"""Steps that need no network; those that do are in test_worker.py."""

from types import SimpleNamespace

import pytest
import torch
from replayed import Recorder
from workloads import workload_of

from bench.errors import WorkloadError
from bench.timing import step as step_module
from bench.timing.step import build, kernel
from bench.timing.workload import Conditions, Workload


def of(configuration: str) -> Workload:
    return workload_of("kernel", "normalize", configuration, 2, 8)


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
        ("torch-float64", "unknown dtype 'float64'"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(configuration: str, reason: str) -> None:
    with pytest.raises(WorkloadError, match=reason):
        kernel(of(configuration), torch.device("cpu"))


def test_a_captured_answer_is_that_of_the_image_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in replays on the CPU, where memory cannot be pinned and nothing has to be waited for."""
    waits = []
    monkeypatch.setattr(step_module, "capture", Recorder())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **more: empty(*shape, **more))
    stream = SimpleNamespace(synchronize=lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    model = torch.nn.Linear(4, 3)
    images = torch.randn(1, 4)
    given = images.clone()
    call = step_module.answered(images, model)
    # Whoever used the buffer in between: the host's image is copied in with each call.
    images.zero_()
    with torch.no_grad():
        torch.testing.assert_close(call(), model(given))
    assert waits == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("configuration", ["amp-nhwc-graphs", "amp-nhwc-compile"])
def test_an_answer_of_the_device_comes_from_its_image(configuration: str) -> None:
    workload = workload_of("latency", "lenet", configuration, 1, 32, 10, device="cuda")
    [step] = build([workload], Conditions())
    try:
        first = step.call().clone()
        assert first.device.type == "cpu"
        with torch.no_grad():
            expected = step.module(step.inputs[0].float()).float().cpu()
        torch.testing.assert_close(first.float(), expected, rtol=0.05, atol=0.05)
    finally:
        step.close()
