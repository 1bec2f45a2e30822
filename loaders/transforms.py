"""torchvision's own random transforms for the operations of a policy, from its API v1 or v2."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

from loaders.geometry import MOVED, SCALED
from loaders.policies import Operation, autoaugment_images


def random_transform(
    library: ModuleType, operation: Operation, size: int, colour: Sequence[float]
) -> Callable[[Any], Any]:
    """What `operation` does to one image of the library's kind.

    Args:
        library: torchvision.transforms or torchvision.transforms.v2.
        operation: one that is neither a window, a flip, a rotation nor cutout.
        size: of the image, pixels.
        colour: with which erasing paints, red, green and blue in the image's own units.
    """
    value = operation.value
    makers: dict[str, Callable[[], Callable[[Any], Any]]] = {
        "affine": lambda: library.RandomAffine(value, (MOVED, MOVED), (1 - SCALED, 1 + SCALED), value),
        "perspective": lambda: library.RandomPerspective(value, interpolation=InterpolationMode.NEAREST),
        "jitter": lambda: library.ColorJitter(value, value, value, value / 2),
        "blur": lambda: library.GaussianBlur(operation.pixels, (0.1, 2.0)),
        "erasing": lambda: library.RandomErasing(value, value=list(colour)),
        "autoaugment": lambda: library.AutoAugment(AutoAugmentPolicy(autoaugment_images(size))),
        "randaugment": lambda: library.RandAugment(2, int(value)),
        "trivialaugment": library.TrivialAugmentWide,
    }
    return makers[operation.name]()
