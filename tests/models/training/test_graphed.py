"""A captured update does what the update does, and capturing leaves no trace. A stand-in replays on the CPU."""

import copy
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from batches import Heard, recipe, training
from replayed import Recorder
from torch import Tensor, nn
from torch.nn import functional

from bench.timing import step as step_module
from bench.timing.step import trainer
from models import prepare as preparing
from models.captured import capture
from models.configuration import Configuration
from models.errors import ModelError
from models.prepare import Prepared
from models.training import loop, schedules
from models.training.checkpoint import digest, weights_of
from models.training.graphed import GraphedUpdate


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_graph_reads_lives_as_long_as_its_replays() -> None:
    held = torch.arange(4.0, device="cuda")

    def made() -> Any:
        own = held.clone()
        return capture(lambda: (own + 1,))

    replay, (result,) = made()
    junk = [torch.full((4,), 9.0, device="cuda") for _ in range(64)]
    replay()
    assert result.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert len(junk) == 64


def network() -> nn.Module:
    torch.manual_seed(0)
    # Without a bias before batch norm: its gradient is nothing but rounding, which Adam would turn into whole steps.
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 5)
    )


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True, fused=True),
    "plain": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


class Side:
    """A network with its optimiser and the update that a training step is."""

    def __init__(self, optimizer: str, model: nn.Module | None = None, device: str = "cpu") -> None:
        self.model = (network() if model is None else model).to(device).train()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def update(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(images)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach(), (logits.argmax(1) == labels).float().mean()


def batches(count: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, 6, 6, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for _ in range(count)
    ]


def assert_alike(plain: nn.Module, graphed: nn.Module) -> None:
    for (name, expected), found in zip(plain.state_dict().items(), graphed.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replays_train_as_plain_updates_do(optimizer: str) -> None:
    plain, other = Side(optimizer), Side(optimizer)
    recorder = Recorder()
    graphed = GraphedUpdate(other.update, other.model, other.optimizer, recorder)
    found = []
    for step in (plain.update, graphed):
        torch.manual_seed(7)
        results = []
        for number, (images, labels) in enumerate(batches(5)):
            # The rate changes at every step, as schedules have it.
            schedules.apply((plain if step == plain.update else other).optimizer, 1 / (1 + number))
            results.append([float(value) for value in step(images, labels)])
        found.append(results)
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]))
    assert recorder.captured == 1
    assert_alike(plain.model, other.model)


def test_of_several_shapes_the_last_graph_is_kept() -> None:
    side, recorder = Side("sgd"), Recorder()
    graphed = GraphedUpdate(side.update, side.model, side.optimizer, recorder)
    small, large = batches(1)[0], batches(1, 8)[0]
    for number, batch in enumerate((small, small, large, large, small), 1):
        graphed(*batch)
        assert recorder.captured == {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}[number]


def test_a_graph_that_was_made_ready_updates_nothing() -> None:
    side, recorder = Side("sgd"), Recorder()
    graphed = GraphedUpdate(side.update, side.model, side.optimizer, recorder)
    before = copy.deepcopy(side.model.state_dict())
    graphed.ready(*batches(1)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in side.model.state_dict().items())
    graphed(*batches(1)[0])
    assert recorder.captured == 1
    assert not torch.equal(side.model.state_dict()["0.weight"], before["0.weight"])


def test_capturing_leaves_no_trace() -> None:
    side = Side("sgd")
    before = copy.deepcopy(side.model.state_dict())
    graphed = GraphedUpdate(side.update, side.model, side.optimizer, Recorder())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    graphed._captured(*batches(1)[0])
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in side.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(value.any() for held in side.optimizer.state.values() for value in held.values())


def test_capturing_again_for_another_size_keeps_the_momenta() -> None:
    plain, other = Side("sgd"), Side("sgd")
    recorder = Recorder()
    graphed = GraphedUpdate(other.update, other.model, other.optimizer, recorder)
    for step in (plain.update, graphed):
        torch.manual_seed(7)
        for images, labels in [*batches(2), *batches(2, size=6), *batches(1)]:
            step(images, labels)
    assert recorder.captured == 3
    assert_alike(plain.model, other.model)


def test_a_loader_may_use_its_buffer_again() -> None:
    plain, other = Side("plain"), Side("plain")
    graphed = GraphedUpdate(other.update, other.model, other.optimizer, Recorder())
    images, labels = (tensor.clone() for tensor in batches(1)[0])
    for new_images, new_labels in batches(3):
        torch.manual_seed(1)
        plain.update(new_images, new_labels)
        images.copy_(new_images)
        labels.copy_(new_labels)
        torch.manual_seed(1)
        graphed(images, labels)
    assert_alike(plain.model, other.model)


def test_an_optimiser_that_is_not_fused_is_refused() -> None:
    side = Side("plain")
    loop = torch.optim.RMSprop(side.model.parameters())
    with pytest.raises(ModelError, match="fused optimiser, which RMSprop is not"):
        GraphedUpdate(side.update, side.model, loop, Recorder())


GRAPHS = Configuration(compile="graphs")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Captures on the CPU and compiles nothing."""
    recorder = Recorder()
    for module in (loop, step_module):
        monkeypatch.setattr(module, "GraphedUpdate", partial(GraphedUpdate, capture=recorder))
    monkeypatch.setattr(preparing, "apply_compile", lambda model, *_: model)
    return recorder


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "onecycle", "clip": 1.0},
        {"ema": 0.9, "arguments": {"head_dropout": 0.2}},
        {"optimizer": "adamw"},
        {"optimizer": "muon", "momentum": 0.6, "rest_epochs": 1},
    ],
    ids=str,
)
def test_a_training_as_graphs_is_the_training(stand_in: Recorder, changes: dict[str, Any]) -> None:
    chosen = recipe(epochs=2, **changes)
    digests = []
    for mode in ("compile", "graphs"):
        configuration = Configuration(layout="nhwc", compile=mode)
        made = training(chosen, configuration=configuration)
        made.run(Heard())
        digests.append(digest(weights_of(made.raw)))
    assert digests[0] == digests[1]
    # Once the biases of convolutions stay, the update is another one.
    assert stand_in.captured == (2 if "rest_epochs" in changes else 1)


def test_what_will_be_captured_is_captured_before_the_first_epoch(stand_in: Recorder) -> None:
    made = training(recipe(epochs=2, rest_epochs=1), configuration=Configuration(compile="graphs"))
    made.warm_up()
    assert stand_in.captured == 2
    made.run(Heard())
    assert stand_in.captured == 2


def test_a_warmed_training_is_the_same_training(stand_in: Recorder) -> None:
    chosen, digests = recipe(epochs=1, arguments={"head_dropout": 0.2}), []
    for warmed in (False, True):
        made = training(chosen, configuration=GRAPHS)
        if warmed:
            assert made.warm_up() > 0
            assert stand_in.captured == 2
        made.run(Heard())
        digests.append(digest(weights_of(made.raw)))
    assert digests[0] == digests[1]
    # What was captured for made-up images is replayed for the real ones.
    assert stand_in.captured == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 2}, "without accumulate"),
        ({"sam_rho": 0.05, "mixup": 0.2}, "without sam_rho or mixup, cutmix and ricap"),
        ({"optimizer": "rmsprop"}, "fused optimiser"),
    ],
)
def test_a_training_whose_steps_are_not_alike_is_refused(
    stand_in: Recorder, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        training(recipe(**changes), configuration=GRAPHS)


def test_a_timed_step_is_the_captured_update(stand_in: Recorder) -> None:
    losses = []
    for configuration in (Configuration(layout="nhwc"), GRAPHS):
        model = network()
        for module in model.modules():
            module.training = not isinstance(module, nn.Dropout)
        prepared = Prepared(model, model, torch.float32, torch.contiguous_format, None)
        update, _ = trainer(prepared, configuration, torch.device("cpu"))
        losses.append([update(*batch).item() for batch in batches(4)])
    assert losses[0] == pytest.approx(losses[1])
    assert stand_in.captured == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_cuda_graph_trains_as_plain_updates_do(optimizer: str) -> None:
    plain, other = Side(optimizer, device="cuda"), Side(optimizer, device="cuda")
    for side in (plain, other):
        side.model[3].p = 0.0  # type: ignore[union-attr]
    graphed = GraphedUpdate(other.update, other.model, other.optimizer, capture)
    for images, labels in batches(6):
        expected = plain.update(images.cuda(), labels.cuda())
        found = graphed(images.cuda(), labels.cuda())
        torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-4)
    states = (side.model.state_dict() for side in (plain, other))
    for (name, expected), found in zip(next(states).items(), next(states).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3, msg=name)


WAITING = """
import torch
from models.errors import ModelError
from models.training.graphed import GraphedUpdate

model = torch.nn.Linear(4, 2).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)

def update(images, labels):
    optimizer.zero_grad(set_to_none=True)
    model(images).square().mean().backward()
    optimizer.step()
    return (torch.tensor(images.sum().item(), device="cuda"),)

try:
    GraphedUpdate(update, model, optimizer)(torch.randn(3, 4).cuda(), torch.zeros(3).cuda())
except ModelError as error:
    print(error)
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_that_waits_for_the_device_is_named() -> None:
    """In a process of its own: a capture that broke off leaves its device's random generator behind in it."""
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, timeout=120, check=False)
    assert "cannot be captured" in done.stdout, done.stderr
