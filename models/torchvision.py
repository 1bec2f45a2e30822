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

# Auxiliary classifiers take part in training only, and only when a loss adds their outputs: without them the network
# returns one tensor in training as in inference, and its counts are those of inference. `init_weights` draws weights as
# in the networks' papers; torchvision warns if it is not given.
SINGLE_OUTPUT: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class HostNumbers(TorchFunctionMode):
    """Within it tensors made of plain numbers are on the CPU, whatever the default device is."""

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

    GoogLeNet and Inception v3 have no auxiliary classifiers, in training as in inference.

    Args:
        name: a name of `torchvision.models`.
        classes: outputs.
        head_dropout: probability of dropout directly before the last layer, which only some of torchvision's networks
            have (0.2 in EfficientNet-B0); None leaves it as it is. Parameters and their names stay the same.

    Raises:
        ModelError: `head_dropout` is not a probability below 1.
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
        raise ModelError(f"{name} cannot have head_dropout: it ends in a convolution without dropout before it")


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes, in the order of the logits of published weights."""
    weights = _first_weights("resnet18")
    return tuple(weights.meta["categories"])


def pretrained(name: str) -> Mapping[str, torch.Tensor]:
    """torchvision's first ImageNet weights of a network; downloaded once to TORCH_HOME.

    Raises:
        ModelError: there are none, or they cannot be downloaded.
    """
    weights = _first_weights(name)
    if weights is None:
        raise ModelError(
            f"torchvision has no weights for {name}; give --weights FILE, or name a checkpoint or a run's folder"
        )
    try:
        tensors: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"cannot download torchvision's weights for {name} ({str(error).splitlines()[0]}); put {weights.url} into "
            "$TORCH_HOME/hub/checkpoints, or name a checkpoint"
        ) from error
    # The networks built here have no auxiliary classifiers.
    return {key: value for key, value in tensors.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}


def _first_weights(name: str) -> Any:
    try:
        versions = torchvision.models.get_model_weights(name)
    except ValueError:
        return None
    return next((version for version in versions if "IMAGENET1K_V1" in version.name), None)
