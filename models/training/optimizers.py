"""Optimisers over parameter groups that say what decays, and sharpness-aware minimisation.

Imports no torch until something is built, so that a mistyped optimiser is reported at once.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from models.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from models.training.recipe import Recipe

# name -> class of torch.optim; Muon is that of models.training.muon
OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "muon": "Muon",
}
# Adagrad's fused form is missing on CUDA in older versions of torch; RMSprop and Adadelta have none.
FUSED = ("sgd", "adam", "adamw", "muon")


def build(model: "nn.Module", recipe: "Recipe", fused: bool) -> "torch.optim.Optimizer":
    """The recipe's optimiser over the trainable parameters of `model`, each group with its `initial_lr`.

    Args:
        model: already on the device and in the precision in which it will be trained.
        fused: one kernel reads gradient and state and writes the weights, where `implementation` says so.

    Raises:
        ModelError: no parameter of the model is trainable.
    """
    import torch

    from models.training.muon import Muon

    eps = {"eps": recipe.eps} if recipe.eps else {}
    momentum = {"momentum": recipe.momentum}
    adam = {"betas": (recipe.beta1, recipe.beta2), **eps}
    arguments: Mapping[str, dict[str, Any]] = {
        "sgd": {**momentum, "nesterov": recipe.nesterov},
        "adam": adam,
        "adamw": adam,
        "rmsprop": {**momentum, **eps, **({"alpha": recipe.alpha} if recipe.alpha else {})},
        "adadelta": {**eps, **({"rho": recipe.alpha} if recipe.alpha else {})},
        "adagrad": eps,
        "muon": momentum,
    }
    fused = implementation(recipe.optimizer, fused) == "fused"
    kind: Callable[..., torch.optim.Optimizer] = (
        Muon if recipe.optimizer == "muon" else getattr(torch.optim, OPTIMIZERS[recipe.optimizer])
    )
    settings = {**arguments[recipe.optimizer], **({"fused": True} if fused else {})}
    optimizer = kind(parameter_groups(model, recipe), lr=recipe.lr, **settings)
    if fused and settings.get("momentum"):
        # The fused form leaves its buffers unwritten if a GradScaler skips the very first step, and then uses them
        # (torch 2.15). A buffer of zeros makes the first step what it would be without one.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def implementation(name: str, fused: bool) -> str:
    """What `build` uses, for the record: "fused", or "default" (on CUDA torch's foreach form, otherwise its loop)."""
    return "fused" if fused and name in FUSED else "default"


def parameter_groups(model: "nn.Module", recipe: "Recipe") -> list[dict[str, Any]]:
    """Up to three groups, called `weights`, `rest` and `norm_biases`: weights of convolutions and linear layers,
    everything else, and the biases of normalisation layers; for muon the filters of convolutions are a group
    `filters` of their own.

    The split depends on nothing else of the recipe, so stored state fits when a training is resumed with other numbers.
    """
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.conv import _ConvNd

    products = (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention)
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    muon = recipe.optimizer == "muon"
    split: dict[str, list[Tensor]] = {"filters": [], "weights": [], "rest": [], "norm_biases": []}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, norms) and name == "bias":
                split["norm_biases"].append(parameter)
            elif muon and isinstance(module, _ConvNd) and parameter.ndim >= 3:
                split["filters"].append(parameter)
            elif isinstance(module, products) and parameter.ndim >= 2:
                split["weights"].append(parameter)
            else:
                split["rest"].append(parameter)
    if not seen:
        raise ModelError("no parameter of this model is trainable: all have requires_grad=False")
    decay = recipe.weight_decay if recipe.decay_all else 0.0
    biases = recipe.bias_lr_factor
    factors = {
        "filters": (1.0, 0.0),
        "weights": (recipe.head_lr_factor if muon else 1.0, recipe.weight_decay),
        "rest": (biases if muon else 1.0, decay),
        "norm_biases": (biases, decay),
    }
    return [
        {
            "params": split[name],
            "name": name,
            "lr": recipe.lr * factor,
            "initial_lr": recipe.lr * factor,
            # Decay shrinks all by the same share per step.
            "weight_decay": weight_decay / factor,
            **({"orthogonal": name == "filters"} if muon else {}),
        }
        for name, (factor, weight_decay) in factors.items()
        if split[name]
    ]


def load_state(optimizer: "torch.optim.Optimizer", state: Mapping[str, Any]) -> None:
    """Restore the state of each parameter (momenta, averages), but keep the rates and other numbers of `optimizer`.

    A resumed training thus continues exactly with the same recipe, and by its new numbers with a changed one.

    Raises:
        ModelError: the state belongs to another optimiser or to a model with other parameters.
    """
    stored, current = state["param_groups"], optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in stored] != [len(group["params"]) for group in current]:
        raise ModelError("the stored optimiser state belongs to a model with other parameters")
    if stored[0].keys() != current[0].keys():
        raise ModelError(
            f"the stored optimiser state does not fit {type(optimizer).__name__}; "
            "resume with the optimiser that stored it, or without its state"
        )
    groups = [{**group, "params": old["params"]} for group, old in zip(current, stored, strict=True)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


@contextlib.contextmanager
def perturbed(parameters: Iterable["Tensor"], rho: float) -> Iterator[None]:
    """Within it the parameters are moved by `rho` along their gradient: w + rho g / |g|, |g| over all of them.

    This is sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412) around any optimiser: the gradients
    computed within it are those that the optimiser's step takes. Parameters without a gradient stay; on leaving, the
    weights are put back bit for bit.

    The direction does not depend on the gradient's scale, so gradients scaled by a GradScaler serve as they are.
    Nothing waits for the device. Gradients that overflowed give weights that are not finite, and so a second gradient
    that is not finite either, which a GradScaler skips.

    Raises:
        ModelError: no parameter has a gradient.
    """
    import torch

    moved = [parameter for parameter in parameters if parameter.grad is not None]
    if not moved:
        raise ModelError("a sharpness-aware step needs gradients; take it after backward")
    with torch.no_grad():
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        # Adding and subtracting the same number does not give back the weight to the last bit; a copy does.
        saved = [parameter.clone() for parameter in moved]
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
        scale = rho / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-12)
        torch._foreach_add_(moved, torch._foreach_mul(gradients, scale))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, saved)


@contextlib.contextmanager
def frozen_batch_norm_statistics(model: "nn.Module") -> Iterator[None]:
    """Within it batch norm normalises with the batch's statistics as in training, but records none.

    `track_running_stats` is turned off rather than momentum set to 0: it serves momentum=None too, leaves
    num_batches_tracked alone, and the pass writes no statistics at all instead of writing them unchanged. A compiled
    model guards on it, so it is compiled once more at the first such pass, and both programs are kept.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    recording = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for module in recording:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in recording:
            module.track_running_stats = True
