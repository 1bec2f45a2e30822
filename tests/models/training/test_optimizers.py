"""Optimisers: what decays, that each one learns, that stored state goes on exactly, and the sharpness-aware step."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.training.optimizers import (
    OPTIMIZERS,
    build,
    frozen_batch_norm_statistics,
    implementation,
    load_state,
    perturbed,
)
from models.training.recipe import Recipe

# Rates that suit each optimiser on the small network below.
RATES = {"sgd": 0.05, "adam": 0.01, "adamw": 0.01, "rmsprop": 0.003, "adadelta": 1.0, "adagrad": 0.05, "muon": 0.05}


def chosen(name: str = "sgd", lr: float = 0.1, **options: Any) -> Recipe:
    plain = {"momentum": 0.6 if name == "muon" else 0.0, "weight_decay": 0.0}
    return Recipe("lenet", optimizer=name, lr=lr, **{**plain, **options})


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
    groups = {group["name"]: group for group in build(model, chosen(weight_decay=0.1), False).param_groups}
    assert groups["weights"]["params"] == [model[0].weight, model[5].weight]
    assert groups["norm_biases"]["params"] == [model[1].bias]
    assert groups["rest"]["params"] == [model[0].bias, model[1].weight, model[5].bias]
    assert [groups[name]["weight_decay"] for name in ("weights", "rest", "norm_biases")] == [0.1, 0, 0]


def test_decay_all_is_the_plain_torch_optimizer() -> None:
    ours, theirs = network(), network()
    optimizer = build(ours, chosen(lr=0.05, momentum=0.9, weight_decay=0.1, decay_all=True), False)
    plain = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        assert step(ours, optimizer) == step(theirs, plain)
    assert same(weights(ours), weights(theirs))


def test_norm_biases_learn_faster_and_shrink_alike() -> None:
    options = chosen(lr=0.1, weight_decay=0.01, decay_all=True, bias_lr_factor=64)
    groups = {group["name"]: group for group in build(network(), options, False).param_groups}
    assert groups["norm_biases"]["lr"] == groups["norm_biases"]["initial_lr"] == pytest.approx(6.4)
    assert groups["weights"]["initial_lr"] == 0.1
    shrink = {name: group["lr"] * group["weight_decay"] for name, group in groups.items()}
    assert shrink["norm_biases"] == pytest.approx(shrink["weights"]) == pytest.approx(shrink["rest"])


def test_shared_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    groups = build(model, chosen(), False).param_groups
    assert sum(len(group["params"]) for group in groups) == 3
    with pytest.raises(ModelError, match="requires_grad"):
        build(model.requires_grad_(False), chosen(), False)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_learns_and_resumes_exactly(name: str, fused: bool) -> None:
    options = chosen(name, RATES[name], momentum=0.9, weight_decay=1e-4)
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
    options = chosen(name, RATES[name], momentum=0.9, weight_decay=1e-2)
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
    assert build(network(), chosen(), True).defaults["fused"]


def test_numbers_of_zero_mean_those_of_torch() -> None:
    for name, theirs in (("rmsprop", torch.optim.RMSprop), ("adadelta", torch.optim.Adadelta)):
        parameter = nn.Parameter(torch.zeros(1))
        defaults = theirs([parameter]).defaults
        ours = build(network(), chosen(name), False).defaults
        key = "alpha" if name == "rmsprop" else "rho"
        assert (ours["eps"], ours[key]) == (defaults["eps"], defaults[key])
        changed = build(network(), chosen(name, alpha=0.5, eps=0.1), False).defaults
        assert (changed["eps"], changed[key]) == (0.1, 0.5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_may_skip_the_first_step(fused: bool) -> None:
    model = network()
    before = weights(model)
    optimizer = build(model, chosen(momentum=0.9), fused)
    scaler = torch.amp.GradScaler("cpu")
    images, labels = batch()
    scaler.scale(functional.cross_entropy(model(images), labels) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    other = network()
    other.load_state_dict(weights(model))
    plain = build(other, chosen(momentum=0.9), False)
    step(model, optimizer)
    step(other, plain)
    torch.testing.assert_close(weights(model), weights(other))


def test_load_state_keeps_the_new_numbers() -> None:
    model = network()
    optimizer = build(model, chosen(lr=0.1, momentum=0.9), False)
    step(model, optimizer)
    changed = build(model, chosen(lr=0.02, momentum=0.8, weight_decay=1e-3), False)
    load_state(changed, optimizer.state_dict())
    group = changed.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.02, 0.8, 1e-3)
    buffers = (optimizer.state[model[0].weight], changed.state[model[0].weight])
    torch.testing.assert_close(buffers[0]["momentum_buffer"], buffers[1]["momentum_buffer"], rtol=0, atol=0)


def test_load_state_refuses_what_does_not_fit() -> None:
    state = build(network(), chosen(), False).state_dict()
    with pytest.raises(ModelError, match="does not fit Adam"):
        load_state(build(network(), chosen("adam"), False), state)
    with pytest.raises(ModelError, match="other parameters"):
        load_state(build(nn.Linear(2, 2), chosen(), False), state)


# Sharpness-aware minimisation


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_sharpness_aware_steps_learn(name: str) -> None:
    model = network()
    optimizer = build(model, chosen(name, RATES[name]), False)
    images, labels = batch()
    losses = []
    for _ in range(20):
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        with perturbed(model.parameters(), 0.05), frozen_batch_norm_statistics(model):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert model[1].num_batches_tracked.item() == 20


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_weights_move_by_rho_along_the_gradient_whatever_its_scale_and_back(scale: float) -> None:
    model = network()
    images, labels = batch()
    (functional.cross_entropy(model(images), labels) * scale).backward()
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    with perturbed(parameters, 0.05):
        moved = torch.cat([(now - old).flatten() for now, old in zip(parameters, before, strict=True)]).detach()
    torch.testing.assert_close(moved, 0.05 * gradients / gradients.norm(), rtol=1e-3, atol=1e-6)
    assert all(torch.equal(now, old) for now, old in zip(parameters, before, strict=True))


def test_weights_come_back_after_an_overflow_and_an_error() -> None:
    model = network()
    before = weights(model)
    with pytest.raises(ModelError, match="after backward"), perturbed(model.parameters(), 0.05):
        pass
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    with pytest.raises(RuntimeError, match="within"), perturbed(model.parameters(), 0.05):
        raise RuntimeError("within")
    assert same(before, weights(model))


@pytest.mark.parametrize("cast", [False, True])
def test_sharpness_aware_steps_in_bfloat16(cast: bool) -> None:
    images, labels = batch()
    model = network().to(torch.bfloat16) if cast else network()
    before = weights(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
        loss = functional.cross_entropy(model(images.bfloat16() if cast else images).float(), labels)
    loss.backward()
    with perturbed(model.parameters(), 0.5):
        assert not torch.equal(before["0.weight"], model[0].weight)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


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
    torch._dynamo.reset()  # what other tests compiled counts against the same limit
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
