"""torchvision's classifiers, built without weights."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from models.dropout import DropoutLinear, check_probability
from models.errors import ModelError

# Auxiliary classifiers take part in training only, and only when a loss adds their outputs: without them the
# network returns one tensor in training as in inference, and counts what inference runs. Their weights are
# drawn as the networks' papers have it, which torchvision asks to be told.
SINGLE_OUTPUT: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class HostNumbers(TorchFunctionMode):
    """Keeps tensors made of plain numbers on the host, whatever the default device is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        if func in (torch.arange, torch.tensor):
            keywords.setdefault("device", "cpu")
        return func(*args, **keywords)


def build(name: str, classes: int = 1000, *, head_dropout: float | None = None) -> nn.Module:
    """torchvision's network `name` with random weights: images [B, 3, H, W] -> logits [B, classes].

    GoogLeNet and Inception v3 come without their auxiliary classifiers, in training as in inference.

    Args:
        name: a name of `torchvision.models`.
        classes: outputs.
        head_dropout: probability of dropout directly before the last layer, which torchvision gives some
            networks (0.2 in EfficientNet-B0) and others not; None leaves it as torchvision has it. Parameters
            and their names stay the same.

    Raises:
        ModelError: `head_dropout` is no probability below 1.
    """
    # RegNets work out their widths in tensors and read them back, which cannot be done on meta.
    with HostNumbers() if name.startswith("regnet_") else nullcontext():
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=classes, **SINGLE_OUTPUT.get(name, {})
        )
    if head_dropout is not None:
        check_probability("head_dropout", head_dropout)
        _set_head_dropout(name, model, head_dropout)
    return model


def _set_head_dropout(name: str, model: nn.Module, probability: float) -> None:
    path, last = [item for item in model.named_modules() if isinstance(item[1], nn.Linear | nn.Conv2d)][-1]
    parent = model.get_submodule(path.rpartition(".")[0])
    siblings = dict(parent.named_children())
    names = list(siblings)
    place = names.index(path.rpartition(".")[2])
    before = siblings[names[place - 1]] if place else None
    if isinstance(before, nn.Dropout):
        before.p = probability
    elif isinstance(last, nn.Linear):
        setattr(parent, names[place], DropoutLinear.replacing(last, probability))
    else:
        raise ModelError(f"{name} ends in a convolution without dropout before it: it takes no head_dropout")


def published_top1(name: str) -> float | None:
    """Top-1 accuracy on ImageNet that torchvision publishes for its first weights of a network, a fraction."""
    weights = _first_weights(name)
    if weights is None:
        return None
    found = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return None if found is None else float(found) / 100


def pretrained(name: str) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
    """torchvision's first ImageNet weights of a network, and its class names; downloaded once to TORCH_HOME.

    Raises:
        ModelError: there are none, or they cannot be had.
    """
    weights = _first_weights(name)
    if weights is None:
        raise ModelError(f"torchvision has no weights for {name}; name a checkpoint or a run's folder")
    try:
        tensors: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"cannot have torchvision's weights for {name} ({str(error).splitlines()[0]}); put {weights.url} into "
            "$TORCH_HOME/hub/checkpoints, or name a checkpoint"
        ) from error
    # Auxiliary classifiers are left out of these networks here.
    own = {key: value for key, value in tensors.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}
    return own, tuple(weights.meta["categories"])


def _first_weights(name: str) -> Any:
    try:
        found = torchvision.models.get_model_weights(name)
    except ValueError:
        return None
    return next((one for one in found if "IMAGENET1K_V1" in one.name), None)
