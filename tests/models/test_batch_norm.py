"""Quick batch normalisation on a CPU: the numbers of torch's own, with the addition and the ReLU behind it."""

import copy
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from bench.inspecting.counted import Tallies, WorkCounter, ranges
from bench.inspecting.exact import OperatorCounter
from models import batch_norm, native
from models.batch_norm import QuickBatchNorm2d, quicken_batch_norm
from models.imports import beside
from models.native import library
from results.profile import plain_name

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    # Far from zero, where the square of the mean is larger than the variance.
    values = 3 * torch.randn(shape) + 20
    return values.to(dtype).to(memory_format=torch.channels_last).requires_grad_()


def layers(channels: int, **options: object) -> tuple[nn.BatchNorm2d, QuickBatchNorm2d]:
    plain = nn.BatchNorm2d(channels, **options)  # type: ignore[arg-type]
    if plain.affine:
        nn.init.uniform_(plain.weight, -1, 1)
        nn.init.normal_(plain.bias)
    quick = copy.deepcopy(plain)
    quick.__class__ = QuickBatchNorm2d
    assert isinstance(quick, QuickBatchNorm2d)
    return plain, quick


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (4, 16, 8, 8), (2, 100, 3, 3), (8, 512, 1, 1)])
def test_outputs_gradients_and_statistics_are_torch_s(
    shape: tuple[int, int, int, int], rectify: bool, other: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain, quick = layers(shape[1])
    x, added, coming = images(*shape, dtype=dtype), images(*shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    exact, exact_added = (one.detach().double().requires_grad_() for one in (x, added))
    expected = plain.double()(exact)
    expected = expected + exact_added if other else expected
    expected = expected.relu() if rectify else expected
    expected.backward(coming.double())
    found = quick(x, added if other else None, rectify)
    found.backward(coming)
    pairs = [(found, expected), (x.grad, exact.grad), (added.grad, exact_added.grad)]
    pairs += [(quick.weight.grad, plain.weight.grad), (quick.bias.grad, plain.bias.grad)]
    pairs += [(quick.running_mean, plain.running_mean), (quick.running_var, plain.running_var)]
    limit = 2e-4 if dtype is torch.float32 else 0.02
    for one, wanted in pairs:
        if one is None or wanted is None:
            assert one is wanted is None
            continue
        assert (one.double() - wanted).abs().max() <= limit * wanted.abs().max().clamp(min=1e-3)
    assert int(quick.num_batches_tracked) == 1  # type: ignore[arg-type]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype is dtype


@needs_compiler
@pytest.mark.parametrize("options", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_options_of_the_layer_are_kept(options: dict[str, object]) -> None:
    plain, quick = layers(8, **options)
    for _ in range(3):
        x = images(2, 8, 5, 5)
        torch.testing.assert_close(quick(x), plain(x), rtol=1e-4, atol=1e-4)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(quick.get_buffer(name), buffer, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_what_does_not_suit_goes_torch_s_way(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, quick = layers(8)
    monkeypatch.setattr(batch_norm, "call", lambda *words: pytest.fail("called"))
    x = images(2, 8, 5, 5).contiguous()
    assert torch.equal(quick(x), plain(x))
    for layer in (plain, quick):
        layer.eval()
    x = images(2, 8, 5, 5)
    assert torch.equal(quick(x, x, True), torch.relu(plain(x) + x))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        quick.train()(images(1, 8, 1, 1))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(value: float, dtype: torch.dtype) -> None:
    x = images(2, 8, 4, 4, dtype=dtype).detach()
    x[0, 3, 0, 0] = value
    found = layers(8)[1](x.requires_grad_(), None, True)
    assert found[:, 3].isnan().all()
    assert not found[:, :3].isnan().any()


@needs_compiler
def test_equal_steps_give_equal_bits() -> None:
    _, quick = layers(24)
    x = images(8, 24, 20, 20, dtype=torch.bfloat16)
    runs = []
    for _ in range(3):
        x.grad = None
        found = quick(x, None, True)
        found.backward(torch.ones_like(found))
        runs.append((found, x.grad))
    for found, gradient in runs[1:]:
        assert torch.equal(found, runs[0][0])
        assert gradient is not None
        assert torch.equal(gradient, runs[0][1])  # type: ignore[arg-type]


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    logits = model(x)
    (logits * torch.linspace(-1, 1, logits.shape[1]).to(logits.dtype)).sum().backward()
    return logits, [p.grad for p in model.parameters() if p.grad is not None]


class Own(nn.Module):
    """A sequence of a class of its own, a shared ReLU, and a normalisation whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3))
        self.norm, self.relu, self.head = nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(self.stem(x))
        y: Tensor = self.head((self.relu(normal) + normal).mean((2, 3)))
        return y


@needs_compiler
@pytest.mark.parametrize("build", [resnet18, resnet50, Own])
def test_networks_answer_as_before(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain = build().train().to(memory_format=torch.channels_last)
    quick, notes = quicken_batch_norm(copy.deepcopy(plain))
    assert notes == ()
    assert not any(type(module) is nn.BatchNorm2d for module in quick.modules())
    assert list(quick.state_dict()) == list(plain.state_dict())
    exact = copy.deepcopy(plain).double()
    x = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    (logits, found), (expected, torchs), (_, wanted) = step(quick, x), step(plain, x), step(exact, x.double())
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    # Deep networks multiply what rounding leaves: as far from the exact gradients as torch's own are.
    for one, other, right in zip(found, torchs, wanted, strict=True):
        assert (one - right).norm() <= 2 * (other - right).norm() + 1e-5 * right.norm() + 1e-6
    for module in (plain, quick):
        module.eval()
    torch.testing.assert_close(quick(x), plain(x), rtol=1e-3, atol=1e-3)
    again = copy.deepcopy(quick)
    torch.testing.assert_close(again(x), quick(x))


@needs_compiler
def test_hooks_between_normalisation_and_relu_see_what_they_saw() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    quicken_batch_norm(model)
    assert type(model).__name__ == "Sequential"
    assert isinstance(model, nn.Sequential)
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model(images(2, 4, 3, 3))
    assert (seen[0] < 0).any()


@needs_compiler
def test_marks_around_layers_change_nothing_and_operators_are_seen() -> None:
    model, _ = quicken_batch_norm(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    tallies = Tallies()
    running: list[str] = []
    with ranges(model, running.append, running.pop), WorkCounter(tallies):
        model(images(2, 4, 3, 3)).sum().backward()
    assert {"pixbench::batch_norm", "pixbench::batch_norm_backward"} <= set(tallies.operators)
    assert not any("relu" in name or "threshold" in name for name in tallies.operators)
    assert plain_name("pixbench::batch_norm_backward") == "batch-norm backward"


@needs_compiler
def test_two_commits_in_one_process_have_operators_of_their_own() -> None:
    root = Path(native.__file__).parents[1]
    beside("another_commit", root, ("models",))
    try:
        assert importlib.import_module("another_commit.models.native").NAMESPACE != native.NAMESPACE
        counted = []
        for module in (batch_norm, importlib.import_module("another_commit.models.batch_norm")):
            model, _ = module.quicken_batch_norm(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
            with OperatorCounter() as counter:
                model(images(2, 4, 3, 3)).sum().backward()
            counted.append(counter.counts)
        assert counted[0] == counted[1], "the same facts of both"
        assert counted[0]["pixbench.batch_norm.default"] == 1
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "another_commit"]:
            del sys.modules[name]


@pytest.fixture
def anew() -> Iterator[None]:
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.usefixtures("anew")
def test_without_a_compiler_nothing_changes_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    model, notes = quicken_batch_norm(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    assert type(model) is nn.Sequential
    assert type(model[0]) is nn.BatchNorm2d
    assert notes == ("batch normalisation is torch's own, which is slower: there is no g++",)
    assert quicken_batch_norm(nn.Sequential(nn.ReLU()))[1] == ()


@needs_compiler
@pytest.mark.usefixtures("anew")
def test_a_compiler_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "FLAGS", ("--no-such-flag",))
    _, (note,) = quicken_batch_norm(nn.Sequential(nn.BatchNorm2d(4)))
    assert "g++ failed" in note
    assert "no-such-flag" in note
