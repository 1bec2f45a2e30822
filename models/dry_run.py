"""What a network gives for one image, on the meta device: without the memory and time of its weights."""

import contextlib
import copy
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.errors import ModelError, where

USUAL_SIZES = (224, 32, 28, 64, 96, 128, 160, 192, 256, 288, 299, 384, 448, 512)
"""Pixels that are tried to say which sizes a network takes where it does not take the one it was given."""


def without_weights(network: nn.Module) -> nn.Module:
    """A copy on the meta device; the weights are not copied."""
    memo = {id(tensor): _without_values(tensor) for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo)


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty


def device_of(network: nn.Module) -> torch.device:
    """Where its first tensor is; the meta device without any."""
    tensor = next(iter([*network.parameters(), *network.buffers()]), None)
    return torch.device("meta") if tensor is None else tensor.device


def answer(network: nn.Module, title: str, size: int) -> Tensor:
    """The logits [1, classes] of one image of `size` x `size` pixels, where the network is, with the mode it is in.

    An exported network may take several images at once, and no other number.

    Raises:
        ModelError: it takes no image of this size, or gives no logits.
    """
    number = getattr(network, "batch", 0) or 1
    try:
        # stdout is for data, and a forward pass may print.
        with contextlib.redirect_stdout(sys.stderr):
            logits = network(torch.zeros(number, 3, size, size, device=device_of(network)))
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, SystemExit):
            raise ModelError(f"{title} called exit({reason}) when it was given an image") from error
        if type(error) is not RuntimeError:
            reason = f"{type(error).__name__}: {reason}"
        place = where(error, libraries=False)
        raise ModelError(f"{title} takes no image of {size} x {size} pixels ({reason}{place})") from error
    return logits_of(logits, title, number)


def logits_of(found: object, title: str, images: int) -> Tensor:
    """What a network gave for this many images, if it is what can be measured.

    Raises:
        ModelError: it is something else than a tensor of floats [images, classes].
    """
    if not isinstance(found, Tensor):
        raise ModelError(f"{title} gives {_described(found)}; {_WANTED}")
    if found.dim() != 2 or len(found) != images:
        number = "one image" if images == 1 else f"{images} images"
        raise ModelError(f"{title} gives a tensor {list(found.shape)} for {number}; {_WANTED}")
    if not found.is_floating_point():
        raise ModelError(f"{title} gives numbers of type {str(found.dtype).removeprefix('torch.')}; {_WANTED}")
    return found


_WANTED = "what is measured here gives one tensor of logits [N, classes]: wrap it in a module that does"


def _described(found: object) -> str:
    """What a network gives in place of a tensor."""
    kind = type(found).__name__
    if isinstance(found, Mapping):
        return f"a {kind} of {', '.join(map(str, found))}"
    return f"a {kind} of {len(found)}" if isinstance(found, tuple | list) else f"a {kind}"


def sizes_taken(network: nn.Module, title: str) -> list[int]:
    """Which of the usual sizes a network takes."""
    taken = []
    for size in USUAL_SIZES:
        try:
            with torch.no_grad():
                answer(network, title, size)
        except ModelError as error:
            if "takes no image" in str(error):
                continue
        taken.append(size)
    return taken
