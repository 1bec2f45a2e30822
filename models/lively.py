"""Networks whose answer depends on the image and on every layer, as a comparison of two answers needs.

Fresh networks often do not: a head or the last layer of each block that begins with zeros hides all before it, and
without statistics of real activations a deep network's signal dies out on the way. Two answers that cannot differ agree
about nothing.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

# Share of the answers' spread that other images, or other weights, have to change: well above what fp32 rounds.
VISIBLE = 1e-3
# By how much of their own size the weights are changed to see it.
DISTURBANCE = 0.02
STATISTICS = 4  # images that normalisation takes its statistics from
# Constant parameters below this are meant to switch something off at first: zeros, or the 1e-6 of layer scales.
NEARLY_ZERO = 0.1


def varied(number: int, size: int) -> Tensor:
    """Images [number, 3, size, size], some dark, some bright, some with little contrast.

    Answers to plain noise hardly depend on the image.
    """
    images = torch.randn(number, 3, size, size)
    return images * torch.rand(number, 1, 1, 1).add(0.25) + torch.randn(number, 3, 1, 1)


def enliven(model: nn.Module, images: Tensor | None = None) -> None:
    """Draw what begins as nothing, and give normalisation the statistics of images; changes `model`.

    Args:
        model: on the CPU, fp32; stays in the mode it is in.
        images: [N, 3, height, width], two or more; without any, normalisation stays as it is, which costs no pass.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.numel() or parameter.abs().max() >= NEARLY_ZERO or parameter.min() != parameter.max():
                continue
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.normal_(0, fan_in**-0.5 if fan_in > 1 and len(parameter) > 1 else 0.2)
        if images is None:
            return
        norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
        before = [(module, module.training, module.momentum) for module in norms]
        for module in norms:
            module.reset_running_stats()
            # The statistics of all that comes, not a moving average that begins with none.
            module.momentum = None
            module.training = True
        try:
            if norms:
                model(images)
        finally:
            for module, training, momentum in before:
                module.training, module.momentum = training, momentum


def has_statistics(model: nn.Module) -> bool:
    """Whether normalisation has statistics of its own: a network with trained weights."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    return any(
        (norm.num_batches_tracked is not None and bool(norm.num_batches_tracked > 0))
        or (norm.running_mean is not None and bool(norm.running_mean.any()))
        for norm in norms
    )


# How many times as much contrast images may be given: fresh convolutions without statistics of activations answer to
# ordinary ones by little more than their biases. Powers of two, so that it can be taken back exactly.
CONTRASTS = (1.0, 128.0, 16384.0)


def visible_contrast(
    answer: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, images: Tensor, weights: bool = True
) -> tuple[float, str]:
    """The contrast at which two answers of a network could differ, and ""; or 1 and why they could not.

    Arguments as those of `blindness`.
    """
    reasons = []
    for contrast in CONTRASTS:
        reason = blindness(answer, model, images * contrast, weights)
        if not reason:
            return contrast, ""
        reasons.append(reason)
    return 1.0, reasons[0]


def blindness(
    answer: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, images: Tensor, weights: bool = True
) -> str:
    """Why a comparison of two answers of a network would say nothing; "" where it would.

    Both images and weights are changed; the weights are put back.

    Args:
        answer: (model, images) -> logits [N, classes].
        images: [N, 3, height, width].
        weights: change them; what runs in a foreign engine has none that can be changed.
    """
    with torch.no_grad():
        logits = answer(model, images).double()
        spread = logits.std(correction=0).item()
        if not math.isfinite(spread):
            return "its logits are not all finite"
        if not spread > 0:
            return "all its logits are the same"
        if _distance(answer(model, images), logits) > VISIBLE * spread:
            return "its logits differ from call to call"
        others = torch.randn_like(images) * images.std() + images.mean(0, keepdim=True).flip(-1)
        if _distance(answer(model, others), logits) < VISIBLE * spread:
            return "its logits hardly depend on the image"
        if not weights:
            return ""
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        try:
            for parameter in model.parameters():
                parameter.mul_(1 + DISTURBANCE * torch.randn_like(parameter))
            if _distance(answer(model, images), logits) < VISIBLE * spread:
                return "its logits hardly depend on the weights"
        finally:
            for parameter, old in zip(model.parameters(), kept, strict=True):
                parameter.copy_(old)
    return ""


def _distance(one: Tensor, other: Tensor) -> float:
    """Root mean square distance."""
    return float((one.double() - other).square().mean().sqrt())
