"""Optimisers: what decays, that each one learns, that stored state goes on exactly, and the sharpness-aware step."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.training.optimizers import (
    OPTIMIZERS,
    OptimizerOptions,
    Sam,
    build,
    frozen_batch_norm_statistics,
    implementation,
    load_state,
)

# Rates that suit each optimiser on the small network below.
RATES = {"sgd": 0.05, "adam": 0.01, "adamw": 0.01, "rmsprop": 0.003, "adadelta": 1.0, "adagrad": 0.05}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(16) % 4
    images = torch.randn(16, 3, 8, 8, generator=generator) + labels[:, None, None, None] * 0.5
    return images, labels


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    images, labels = batch()
    optimizer.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_only_weights_of_products_decay() -> None:
    model = network()
    groups = {group["name"]: group for group in build(model, OptimizerOptions(weight_decay=0.1), False).param_groups}
    assert groups["weights"]["params"] == [model[0].weight, model[5].weight]
    assert groups["norm_biases"]["params"] == [model[1].bias]
    assert groups["rest"]["params"] == [model[0].bias, model[1].weight, model[5].bias]
    assert [groups[name]["weight_decay"] for name in ("weights", "rest", "norm_biases")] == [0.1, 0, 0]


def test_decay_all_is_the_plain_torch_optimizer() -> None:
    ours, theirs = network(), network()
    optimizer = build(ours, OptimizerOptions(lr=0.05, momentum=0.9, weight_decay=0.1, decay_all=True), False)
    plain = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        assert step(ours, optimizer) == step(theirs, plain)
    assert same(weights(ours), weights(theirs))


def test_norm_biases_learn_faster_and_shrink_alike() -> None:
    options = OptimizerOptions(lr=0.1, weight_decay=0.01, decay_all=True, bias_lr_factor=64)
    groups = {group["name"]: group for group in build(network(), options, False).param_groups}
    assert groups["norm_biases"]["lr"] == groups["norm_biases"]["initial_lr"] == pytest.approx(6.4)
    assert groups["weights"]["initial_lr"] == 0.1
    shrink = {name: group["lr"] * group["weight_decay"] for name, group in groups.items()}
    assert shrink["norm_biases"] == pytest.approx(shrink["weights"]) == pytest.approx(shrink["rest"])


def test_shared_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    groups = build(model, OptimizerOptions(), False).param_groups
    assert sum(len(group["params"]) for group in groups) == 3
    with pytest.raises(ModelError, match="requires_grad"):
        build(model.requires_grad_(False), OptimizerOptions(), False)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_learns_and_resumes_exactly(name: str, fused: bool) -> None:
    options = OptimizerOptions(name, RATES[name], momentum=0.9, weight_decay=1e-4)
    model = network()
    optimizer = build(model, options, fused)
    losses = [step(model, optimizer) for _ in range(10)]
    stored = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    losses += [step(model, optimizer) for _ in range(10)]
    assert all(torch.tensor(losses).isfinite())
    assert losses[-1] < 0.9 * losses[0]

    other = network(seed=2)
    resumed = build(other, options, fused)
    other.load_state_dict(stored[0])
    load_state(resumed, stored[1])
    assert [step(other, resumed) for _ in range(10)] == losses[10:]
    assert same(weights(model), weights(other))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_fused_and_default_agree(name: str) -> None:
    models = [network(), network()]
    options = OptimizerOptions(name, RATES[name], momentum=0.9, weight_decay=1e-2)
    for model, fused in zip(models, (False, True), strict=True):
        optimizer = build(model, options, fused)
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            # Gradients of a bias before batch norm are rounding errors, which Adam would blow up; hence given ones.
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_implementation_is_told() -> None:
    assert implementation("adamw", True) == "fused"
    assert implementation("adamw", False) == implementation("rmsprop", True) == "default"
    assert build(network(), OptimizerOptions(), True).defaults["fused"]


def test_numbers_of_zero_mean_those_of_torch() -> None:
    for name, theirs in (("rmsprop", torch.optim.RMSprop), ("adadelta", torch.optim.Adadelta)):
        parameter = nn.Parameter(torch.zeros(1))
        defaults = theirs([parameter]).defaults
        ours = build(network(), OptimizerOptions(name), False).defaults
        key = "alpha" if name == "rmsprop" else "rho"
        assert (ours["eps"], ours[key]) == (defaults["eps"], defaults[key])
        changed = build(network(), OptimizerOptions(name, alpha=0.5, eps=0.1), False).defaults
        assert (changed["eps"], changed[key]) == (0.1, 0.5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_may_skip_the_first_step(fused: bool) -> None:
    model = network()
    before = weights(model)
    optimizer = build(model, OptimizerOptions(momentum=0.9), fused)
    scaler = torch.amp.GradScaler("cpu")
    images, labels = batch()
    scaler.scale(functional.cross_entropy(model(images), labels) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    other = network()
    other.load_state_dict(weights(model))
    plain = build(other, OptimizerOptions(momentum=0.9), False)
    step(model, optimizer)
    step(other, plain)
    torch.testing.assert_close(weights(model), weights(other))


def test_load_state_keeps_the_new_numbers() -> None:
    model = network()
    optimizer = build(model, OptimizerOptions(lr=0.1, momentum=0.9), False)
    step(model, optimizer)
    changed = build(model, OptimizerOptions(lr=0.02, momentum=0.8, weight_decay=1e-3), False)
    load_state(changed, optimizer.state_dict())
    group = changed.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.02, 0.8, 1e-3)
    buffers = (optimizer.state[model[0].weight], changed.state[model[0].weight])
    torch.testing.assert_close(buffers[0]["momentum_buffer"], buffers[1]["momentum_buffer"], rtol=0, atol=0)


def test_load_state_refuses_what_does_not_fit() -> None:
    state = build(network(), OptimizerOptions(), False).state_dict()
    with pytest.raises(ModelError, match="does not fit Adam"):
        load_state(build(network(), OptimizerOptions("adam"), False), state)
    with pytest.raises(ModelError, match="other parameters"):
        load_state(build(nn.Linear(2, 2), OptimizerOptions(), False), state)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "sdg"}, "did you mean sgd"),
        ({"lr": 0}, "lr is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"bias_lr_factor": 0}, "bias_lr_factor"),
        ({"beta2": 1.5}, "beta2"),
        ({"sam_interval": 0}, "sam_interval"),
        ({"nesterov": True}, "nesterov needs momentum"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_options_are_checked(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        OptimizerOptions(**wrong)


# Sharpness-aware minimisation


def sam_step(model: nn.Module, optimizer: torch.optim.Optimizer, sam: Sam, due: bool, passes: list[int]) -> float:
    images, labels = batch()

    def backward() -> float:
        passes[-1] += 1
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss.item()

    passes.append(0)
    loss = backward()
    if due:
        sam.perturb(model.parameters())
        with frozen_batch_norm_statistics(model):
            backward()
        sam.restore()
    optimizer.step()
    return loss


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_sam_learns_with_two_passes_at_every_interval(name: str) -> None:
    model, options = network(), OptimizerOptions(name, RATES[name], sam_rho=0.05, sam_interval=5)
    optimizer, sam = build(model, options, False), Sam(options.sam_rho)
    passes: list[int] = []
    losses = [sam_step(model, optimizer, sam, options.sam_due(number), passes) for number in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    assert passes == [2, 1, 1, 1, 1] * 4
    assert not OptimizerOptions(name).sam_due(0)
    assert model[1].num_batches_tracked.item() == 20


def test_sam_moves_by_rho_along_the_gradient_and_back() -> None:
    model = network()
    images, labels = batch()
    functional.cross_entropy(model(images), labels).backward()
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    sam = Sam(0.05)
    sam.perturb(parameters)
    moved = torch.cat([(now - old).flatten() for now, old in zip(parameters, before, strict=True)]).detach()
    torch.testing.assert_close(moved, 0.05 * gradients / gradients.norm(), rtol=1e-3, atol=1e-6)
    sam.restore()
    assert all(torch.equal(now, old) for now, old in zip(parameters, before, strict=True))


def test_sam_does_not_mind_the_scale_of_gradients() -> None:
    moved = []
    for scale in (1.0, 2.0**16):
        model = network()
        images, labels = batch()
        (functional.cross_entropy(model(images), labels) * scale).backward()
        Sam(0.05).perturb(model.parameters())
        moved.append(weights(model))
    torch.testing.assert_close(*moved)


def test_sam_brings_weights_back_after_an_overflow() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    before = weights(model)
    sam = Sam(0.05)
    sam.perturb(model.parameters())
    sam.restore()
    assert same(before, weights(model))


def test_sam_under_bfloat16_autocast_and_in_bfloat16() -> None:
    images, labels = batch()
    for cast in (False, True):
        model = network().to(torch.bfloat16) if cast else network()
        before = weights(model)
        sam = Sam(0.5)
        with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
            loss = functional.cross_entropy(model(images.bfloat16() if cast else images).float(), labels)
        loss.backward()
        sam.perturb(model.parameters())
        assert not torch.equal(before["0.weight"], model[0].weight)
        sam.restore()
        assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_sam_is_used_in_order() -> None:
    model = network()
    sam = Sam(0.05)
    with pytest.raises(ModelError, match="without perturb"):
        sam.restore()
    with pytest.raises(ModelError, match="after backward"):
        sam.perturb(model.parameters())
    images, labels = batch()
    functional.cross_entropy(model(images), labels).backward()
    sam.perturb(model.parameters())
    with pytest.raises(ModelError, match="twice"):
        sam.perturb(model.parameters())
    with pytest.raises(ModelError, match="sam_rho"):
        Sam(0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_statistics_record_nothing_and_normalise_the_same(momentum: float | None) -> None:
    model = network()
    model[1].momentum = momentum
    images, _ = batch()
    expected = model(images)
    before = weights(model)
    with frozen_batch_norm_statistics(model):
        frozen = model(images * 1)
    assert torch.equal(expected, frozen)
    assert same(before, weights(model))
    model(images)
    assert model[1].num_batches_tracked.item() == 2


def test_frozen_statistics_cost_one_more_compilation() -> None:
    model, compiled = network(), 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal compiled
        compiled += 1
        return graph

    fast = torch.compile(model, backend=backend, dynamic=False)
    images, _ = batch()
    for _ in range(3):
        fast(images)
        with frozen_batch_norm_statistics(model):
            fast(images)
    assert compiled == 2
    assert model[1].num_batches_tracked.item() == 3


def test_options_need_no_torch() -> None:
    code = (
        "import sys; from models.training import averaging, losses, mixing, optimizers, schedules; "
        "optimizers.OptimizerOptions(); schedules.ScheduleOptions(); losses.LossOptions(); mixing.MixOptions(); "
        "averaging.AveragingOptions(); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
