"""Optimisers by name over parameter groups that say what decays, and sharpness-aware minimisation around any of them.

Imports no torch until something is built, so that a mistyped optimiser is answered at once.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import ModelError, unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class OptimizerOptions:
    """Which optimiser, and its numbers. A number its optimiser does not have is not looked at.

    Attributes:
        name: one of OPTIMIZERS.
        lr: learning rate, before the schedule's factor.
        momentum: sgd and rmsprop.
        nesterov: sgd.
        weight_decay: an L2 term of the gradient; decoupled from it in adamw.
        decay_all: biases, norms and every other parameter decay as well, as a plain torch optimiser does it.
        bias_lr_factor: multiplies the learning rate of the biases of norm layers (Jordan 2024, 94 % on CIFAR-10 in
            3.29 seconds on a single GPU). Where these decay their weight decay is divided by it, so that a step
            shrinks every parameter by the same share.
        beta1, beta2: adam and adamw.
        eps: adam, adamw, rmsprop, adadelta, adagrad; 0 = torch's default, which differs between them.
        alpha: the smoothing of squared gradients, `alpha` of rmsprop and `rho` of adadelta; 0 = torch's default.
        sam_rho: radius of sharpness-aware minimisation, 0 = off.
        sam_interval: it is done at every so manyth step.
    """

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_all: bool = False
    bias_lr_factor: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 0.0
    alpha: float = 0.0
    sam_rho: float = 0.0
    sam_interval: int = 1

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise unknown("optimizer", self.name, OPTIMIZERS)
        for name in ("lr", "bias_lr_factor"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("weight_decay", "eps", "sam_rho"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("momentum", "beta1", "beta2", "alpha"):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 up to, but not including, 1")
        _check(self.sam_interval >= 1, "sam_interval", self.sam_interval, "1 or more steps")
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ModelError("nesterov needs momentum; set momentum, usually to 0.9")

    def sam_due(self, step: int) -> bool:
        """Whether step number `step` (0-based, counted over the whole training) is a sharpness-aware one."""
        return self.sam_rho > 0 and step % self.sam_interval == 0


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ModelError(f"{name} is {value!r}; give {wanted}")


def build(model: "nn.Module", options: OptimizerOptions, fused: bool) -> "torch.optim.Optimizer":
    """The optimiser over the parameters of `model` that are trained, each group with its `initial_lr`.

    Args:
        model: already where, and in the precision in which, it will be trained.
        fused: one kernel reads gradient and state and writes the weights; `implementation` says what it comes to.

    Raises:
        ModelError: nothing in the model is trained.
    """
    groups = parameter_groups(model, options)
    settings: dict[str, Any] = {"lr": options.lr}
    if implementation(options.name, fused) == "fused":
        settings["fused"] = True
    return OPTIMIZERS[options.name](groups, options, settings)


# Adagrad's fused form is missing on CUDA in older versions of torch; RMSprop and Adadelta have none.
FUSED = ("sgd", "adam", "adamw")


def implementation(name: str, fused: bool) -> str:
    """What `build` uses, for the record: "fused", or "default" (on CUDA torch's foreach form, otherwise its loop)."""
    return "fused" if fused and name in FUSED else "default"


def parameter_groups(model: "nn.Module", options: OptimizerOptions) -> list[dict[str, Any]]:
    """Up to three groups, called `weights`, `rest` and `norm_biases`: weights of convolutions and linear layers,
    everything else, and the biases of norm layers.

    The split does not depend on the options, so stored state fits when a training goes on with other numbers.
    """
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.conv import _ConvNd

    products = (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention)
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    split: dict[str, list[Tensor]] = {"weights": [], "rest": [], "norm_biases": []}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, norms) and name == "bias":
                split["norm_biases"].append(parameter)
            elif isinstance(module, products) and parameter.ndim >= 2:
                split["weights"].append(parameter)
            else:
                split["rest"].append(parameter)
    if not seen:
        raise ModelError("no parameter of this model is trained; all have requires_grad=False")
    decay = options.weight_decay if options.decay_all else 0.0
    bias_factor = options.bias_lr_factor
    numbers = {
        "weights": (options.lr, options.weight_decay),
        "rest": (options.lr, decay),
        "norm_biases": (options.lr * bias_factor, decay / bias_factor),
    }
    return [
        {"params": split[name], "name": name, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay}
        for name, (lr, weight_decay) in numbers.items()
        if split[name]
    ]


def load_state(optimizer: "torch.optim.Optimizer", state: Mapping[str, Any]) -> None:
    """Take over each parameter's state (momenta, averages), but keep the rates and other numbers of `optimizer`.

    So a training goes on exactly with the same options, and with changed ones as these say.

    Raises:
        ModelError: the state is of another optimiser or of a model with other parameters.
    """
    stored, current = state["param_groups"], optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in stored] != [len(group["params"]) for group in current]:
        raise ModelError("the stored optimiser state belongs to a model with other parameters")
    if stored[0].keys() != current[0].keys():
        raise ModelError(
            f"the stored optimiser state does not fit {type(optimizer).__name__}; "
            "go on with the optimiser it was stored by, or without its state"
        )
    groups = [{**group, "params": old["params"]} for group, old in zip(current, stored, strict=True)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


Groups = list[dict[str, Any]]


def _sgd(groups: Groups, options: OptimizerOptions, settings: dict[str, Any]) -> "torch.optim.Optimizer":
    import torch

    optimizer = torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, **settings)
    if options.momentum and settings.get("fused"):
        # The fused form leaves its buffers unwritten if a GradScaler skips the very first step, and then uses them
        # (torch 2.15). A buffer of zeros makes the first step what it would be without one.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _adam(groups: Groups, options: OptimizerOptions, settings: dict[str, Any]) -> "torch.optim.Optimizer":
    import torch

    return torch.optim.Adam(groups, betas=(options.beta1, options.beta2), **_eps(options), **settings)


def _adamw(groups: Groups, options: OptimizerOptions, settings: dict[str, Any]) -> "torch.optim.Optimizer":
    import torch

    return torch.optim.AdamW(groups, betas=(options.beta1, options.beta2), **_eps(options), **settings)


def _rmsprop(groups: Groups, options: OptimizerOptions, settings: dict[str, Any]) -> "torch.optim.Optimizer":
    import torch

    alpha: dict[str, Any] = {"alpha": options.alpha} if options.alpha else {}
    return torch.optim.RMSprop(groups, momentum=options.momentum, **alpha, **_eps(options), **settings)


def _adadelta(groups: Groups, options: OptimizerOptions, settings: dict[str, Any]) -> "torch.optim.Optimizer":
    import torch

    rho: dict[str, Any] = {"rho": options.alpha} if options.alpha else {}
    return torch.optim.Adadelta(groups, **rho, **_eps(options), **settings)


def _adagrad(groups: Groups, options: OptimizerOptions, settings: dict[str, Any]) -> "torch.optim.Optimizer":
    import torch

    return torch.optim.Adagrad(groups, **_eps(options), **settings)


def _eps(options: OptimizerOptions) -> dict[str, Any]:
    return {"eps": options.eps} if options.eps else {}


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerOptions, dict[str, Any]], "torch.optim.Optimizer"]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "adadelta": _adadelta,
    "adagrad": _adagrad,
}


class Sam:
    """Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412) around any optimiser.

    A sharpness-aware step is: forward, backward, `perturb`, gradients to None, forward and backward within
    `frozen_batch_norm_statistics`, `restore`, optimiser step. Which steps are such, `OptimizerOptions.sam_due`
    says from their number, and nothing is remembered from one step to the next: there is nothing to store for resuming.

    Args:
        rho: radius of the neighbourhood whose worst loss is minimised.
    """

    def __init__(self, rho: float) -> None:
        _check(rho > 0, "sam_rho", rho, "a positive radius")
        self.rho = rho
        self._perturbed: list[Tensor] = []
        self._saved: list[Tensor] = []

    def perturb(self, parameters: Iterable["Tensor"]) -> None:
        """Move the parameters that have a gradient by rho along it: w + rho g / |g|, |g| over all of them.

        The direction does not depend on the gradient's scale, so a GradScaler's scaled gradients serve as they are.
        Nothing waits for the device. Gradients that overflowed give weights that are not numbers and a second
        gradient that is not either, which a GradScaler skips; `restore` brings the weights back in any case.
        """
        import torch

        if self._perturbed:
            raise ModelError("Sam.perturb was called twice without restore between")
        with torch.no_grad():
            moved = [parameter for parameter in parameters if parameter.grad is not None]
            if not moved:
                raise ModelError("Sam.perturb needs gradients; call it after backward")
            gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
            # Copies kept from step to step: allocated once, and at addresses a captured graph may rely on.
            if [(copy.shape, copy.dtype, copy.device) for copy in self._saved] != [
                (parameter.shape, parameter.dtype, parameter.device) for parameter in moved
            ]:
                self._saved = [torch.empty_like(parameter) for parameter in moved]
            # Adding and subtracting the same number does not give back the weight to the last bit; a copy does.
            torch._foreach_copy_(self._saved, moved)
            norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
            scale = self.rho / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-12)
            torch._foreach_add_(moved, torch._foreach_mul(gradients, scale))
            self._perturbed = moved

    def restore(self) -> None:
        """Put the weights back, bit for bit; the gradients of the perturbed weights stay for the optimiser."""
        import torch

        if not self._perturbed:
            raise ModelError("Sam.restore was called without perturb before it")
        with torch.no_grad():
            torch._foreach_copy_(self._perturbed, self._saved)
        self._perturbed = []


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
