"""Quick max pooling on a CPU: torch's maxima, and its gradients with each rounded once."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from models import native
from models.configuration import Device, parse
from models.max_pool import QuickMaxPool2d, quicken_max_pool
from models.prepare import prepare

CPU = Device("cpu", bf16=True, compiler=True)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((2, 64, 17, 13), (3, 2, 1)),
        ((3, 69, 8, 9), (2, 2, 0)),
        ((1, 130, 7, 7), (3, 1, 1)),
        ((2, 97, 6, 5), (5, 1, 2)),
        ((1, 67, 4, 4), (2, 3, 1)),
        ((1, 66, 16, 20), (16, 1, 0)),
    ],
)
def test_maxima_and_gradients_are_torch_s(
    shape: tuple[int, int, int, int], sides: tuple[int, int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain = nn.MaxPool2d(*sides)
    [quick] = quicken_max_pool(nn.Sequential(copy.deepcopy(plain)))[0]
    assert isinstance(quick, QuickMaxPool2d)
    # Many equal values, as a ReLU leaves them: the gradient goes to the first.
    images = torch.randn(shape).relu().to(dtype).to(memory_format=torch.channels_last)
    exact, ours = images.double().requires_grad_(), images.clone().requires_grad_()
    wanted, found = plain(exact), quick(ours)
    assert "_MaxPool" in found.grad_fn.name()
    assert torch.equal(found.double(), wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)
    coming = torch.randn(wanted.shape).to(dtype)
    wanted.backward(coming.double())
    found.backward(coming)
    assert ours.grad is not None
    assert exact.grad is not None
    assert ours.grad.dtype is dtype
    torch.testing.assert_close(
        ours.grad.double(), exact.grad, atol=1e-6, rtol=2**-8 if dtype is torch.bfloat16 else 1e-6
    )


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_goes_where_torch_lets_it_go(value: float) -> None:
    images = torch.full((1, 64, 6, 6), value).to(memory_format=torch.channels_last)
    images[0, :2, 2:4] = 1.0
    results = []
    for layer in (nn.MaxPool2d(3, 2, 1), QuickMaxPool2d(3, 2, 1)):
        x = images.clone(memory_format=torch.channels_last).requires_grad_()
        found = layer(x)
        found.backward(torch.arange(found.numel(), dtype=torch.float32).view_as(found))
        results.append((found, x.grad))
    for one, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(one, wanted, equal_nan=True)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 2)},
        {"kernel_size": 3, "dilation": 2},
        {"kernel_size": 3, "ceil_mode": True},
        {"kernel_size": 3, "return_indices": True},
        {"kernel_size": 17},
    ],
    ids=str,
)
def test_other_poolings_go_torch_s_way(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.max_pool.call", lambda *words: pytest.fail("called"))
    images = torch.randn(1, 64, 20, 20).to(memory_format=torch.channels_last).requires_grad_()
    wanted = nn.MaxPool2d(**options)(images)  # type: ignore[arg-type]
    found = QuickMaxPool2d(**options)(images)  # type: ignore[arg-type]
    for one, right in zip(found, wanted, strict=True):
        assert torch.equal(one, right)


def test_other_images_go_torch_s_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.max_pool.call", lambda *words: pytest.fail("called"))
    plain, quick = nn.MaxPool2d(2), QuickMaxPool2d(2)
    images = torch.randn(2, 64, 6, 6).to(memory_format=torch.channels_last)
    graded = images.clone().requires_grad_()
    few = graded[:, :63].contiguous(memory_format=torch.channels_last)
    for one in (images, graded.contiguous(), graded.double(), graded[0], few):
        assert torch.equal(quick(one), plain(one))
    with torch.no_grad():
        assert torch.equal(quick(graded), plain(graded))
    assert torch.equal(quick.eval()(graded), plain(graded))
    with pytest.raises(RuntimeError, match="too small"):
        quick.train()(torch.randn(1, 64, 1, 1).to(memory_format=torch.channels_last).requires_grad_())


@needs_compiler
def test_a_network_keeps_its_layers_and_equal_steps_give_equal_bits() -> None:
    torch.manual_seed(0)
    plain = resnet18().to(memory_format=torch.channels_last)
    quick, notes = quicken_max_pool(copy.deepcopy(plain))
    assert notes == ()
    assert list(quick.state_dict()) == list(plain.state_dict())
    images, runs = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last), []
    for model in (plain, quick, quick):
        model.zero_grad()
        logits = model(images)
        logits.sum().backward()
        runs.append((logits, model.conv1.weight.grad))
    torch.testing.assert_close(runs[1][0], runs[0][0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(runs[1][1], runs[0][1], atol=1e-2, rtol=1e-2)
    assert torch.equal(runs[1][1], runs[2][1])


def test_without_a_compiler_nothing_changes_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    native.library.cache_clear()
    plain, ours = parse("naive", CPU, True), parse("fast", CPU, True)
    try:
        [layer], notes = quicken_max_pool(nn.Sequential(nn.MaxPool2d(2)))
        # A network without a normalisation, which would have said so too.
        prepared = [
            prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), one, torch.device("cpu"), True, (1, 3, 8, 8))
            for one in (plain, ours)
        ]
        assert quicken_max_pool(nn.Sequential(nn.ReLU()))[1] == ()
    finally:
        native.library.cache_clear()
    assert type(layer) is nn.MaxPool2d
    assert notes == ("max pooling is torch's own, which is slower: there is no g++",)
    assert [one.notes for one in prepared] == [(), notes]
