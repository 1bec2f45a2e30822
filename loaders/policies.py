"""Augmentation policies by name: which random changes a training image goes through, in which order.

A policy is written as words joined by "+": the name of a policy stands for its words, any other word is an operation
with an optional value after a colon, as in "crop+flip+rotate:20". The operations run in the order written, on bytes,
before normalisation. What they uncover is black, as torchvision's fill of 0; erasing and cutout paint the data set's
mean colour.
"""

import difflib
from dataclasses import dataclass

from loaders.errors import DataError


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a policy. `value` is None where the operation has none or the engine's own option decides."""

    name: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """What an operation does and which values it takes: `default` when none is written, `low` to `high` otherwise."""

    text: str
    default: float | None = None
    low: float | None = None
    high: float | None = None


OPERATIONS: dict[str, Kind] = {
    "resized_crop": Kind("a window of random area (at least the value) and aspect 3/4 to 4/3, resized", 0.08, 0.01, 1),
    "crop": Kind("a black border of so many pixels (option padding), then a random window", None, 0, 512),
    "crop_reflect": Kind("a reflected border of so many pixels (option padding), then a random window", None, 0, 512),
    "flip": Kind("half of the images mirrored"),
    "alternating_flip": Kind("half of the images mirrored, and in the next epoch the other half"),
    "rotate": Kind("turned by up to so many degrees, nearest pixel", 15, 0, 180),
    "affine": Kind("turned and sheared by up to so many degrees, moved and scaled by up to 10 %, nearest", 10, 0, 45),
    "perspective": Kind("half of the images seen aslant, corners moved by up to value / 2 of a side", 0.5, 0, 1),
    "jitter": Kind("brightness, contrast and saturation changed by up to this share, hue by half of it", 0.2, 0, 1),
    "blur": Kind("Gaussian blur with a kernel of so many pixels, deviation 0.1 to 2", 3, 3, 31),
    "erasing": Kind("with this probability a rectangle of 2 to 33 % of the area painted over", 0.5, 0, 1),
    "cutout": Kind("a square of so many pixels around a random place painted over", 16, 1, 512),
    "autoaugment": Kind("AutoAugment: the CIFAR-10 policies up to 64 pixels, above those of ImageNet"),
    "randaugment": Kind("RandAugment: two operations, of this magnitude out of 0 to 30", 9, 0, 30),
    "trivialaugment": Kind("TrivialAugment: one operation of random magnitude"),
}
WINDOWS = ("resized_crop", "crop", "crop_reflect")
PAINTING = ("erasing", "cutout")
LARGEST_CIFAR = 64  # pixels: up to here autoaugment means the policies found on CIFAR-10

# What "standard" means where an engine reads files, and where the images are resident.
STANDARD_FILES = "resized_crop+flip"
STANDARD_RESIDENT = "crop_reflect+flip"

# name -> (words, one line)
POLICIES: dict[str, tuple[str, str]] = {
    "none": ("", "the image as evaluation sees it"),
    "standard": ("standard", "imagenet for engines that read files, cifar for resident"),
    "imagenet": ("resized_crop+flip", "random windows and mirrors, as ImageNet networks are trained"),
    "cifar": ("crop_reflect+flip", "reflected border of 4, random window, mirrors"),
    "cifar_zero": ("crop+flip", "black border of 4, random window, mirrors"),
    "cifar_rotate": ("crop+flip+rotate:20", "black border of 4, random window, mirrors, up to 20 degrees"),
    "cifar_tilt": ("flip+perspective+rotate:30", "mirrors, perspective, up to 30 degrees; no window"),
    "cifar_alternating": (
        "crop_reflect:2+alternating_flip",
        "reflected border of 2; each image mirrored every other epoch",
    ),
    "cifar_cutout": ("crop+flip+cutout:16", "black border of 4, random window, mirrors, a square of 16 painted over"),
    "cifar_autoaugment": ("crop_reflect+flip+autoaugment", "cifar and AutoAugment"),
    "cifar_heavy": (
        "crop_reflect+flip+rotate:15+affine+perspective+jitter+blur+erasing",
        "cifar, then turned, moved, tilted, recoloured, blurred and partly erased",
    ),
    "imagenet_jitter": ("resized_crop+flip+jitter:0.4", "imagenet and changed colours"),
    "imagenet_autoaugment": ("resized_crop+flip+autoaugment", "imagenet and AutoAugment"),
    "imagenet_randaugment": ("resized_crop+flip+randaugment", "imagenet and RandAugment"),
    "imagenet_trivial": ("resized_crop+flip+trivialaugment+erasing:0.1", "imagenet, TrivialAugment, a little erasing"),
}


def names() -> tuple[str, ...]:
    """Names of all policies, sorted."""
    return tuple(sorted(POLICIES))


def describe(name: str) -> str:
    """One line about a policy: its words and what they do.

    Raises:
        DataError: there is no policy of this name.
    """
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise DataError(f"unknown augmentation policy {name}{hint} Known: {', '.join(names())}")
    words, line = POLICIES[name]
    return f"{words}: {line}" if words and words != name else line


def parse(text: str, standard: str = STANDARD_FILES) -> tuple[Operation, ...]:
    """The operations of a policy text, in order.

    Args:
        text: names of policies and operations joined by "+"; an empty text is the policy none.
        standard: what the word "standard" stands for.

    Raises:
        DataError: an unknown word (the message names a near one), a value that is no number or out of range, an
            operation named twice, or an order that no engine can keep.
    """
    found: list[Operation] = []
    for word in _words(text, standard):
        name, colon, value = word.partition(":")
        found.append(Operation(name, _value(name, value) if colon else OPERATIONS[name].default))
    used = [operation.name for operation in found]
    for name in used:
        if used.count(name) > 1:
            raise DataError(f"augmentation {text!r} names {name} twice")
    windows = [name for name in used if name in WINDOWS]
    if len(windows) > 1:
        raise DataError(f"augmentation {text!r} cuts two windows, {' and '.join(windows)}; keep one")
    if "resized_crop" in used[1:]:
        raise DataError(f"augmentation {text!r}: resized_crop comes first, it decides what is decoded")
    if "flip" in used and "alternating_flip" in used:
        raise DataError(f"augmentation {text!r} has flip and alternating_flip; keep one")
    painting = [index for index, name in enumerate(used) if name in PAINTING]
    if painting and painting[0] < len(used) - len(painting):
        raise DataError(f"augmentation {text!r}: erasing and cutout come last, they paint the finished image")
    return tuple(found)


def check_border(operations: tuple[Operation, ...], size: int) -> None:
    """Raise DataError if a window may lie in the border alone, at images of `size` pixels."""
    for operation in operations:
        if operation.name in ("crop", "crop_reflect") and (operation.value or 0) >= size:
            raise DataError(
                f"augmentation {operation.name}:{operation.value:g} puts a border around images of {size} px in which "
                f"a whole window has room; give at most {size - 1}, usual is {max(1, size // 8)}"
            )


def _words(text: str, standard: str) -> list[str]:
    words: list[str] = []
    for word in filter(None, (part.strip() for part in text.split("+"))):
        if word in POLICIES:
            inner = standard if word == "standard" else POLICIES[word][0]
            words += filter(None, inner.split("+"))
        elif word.partition(":")[0] in OPERATIONS:
            words.append(word)
        else:
            name = word.partition(":")[0]
            known = [*POLICIES, *OPERATIONS]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise DataError(
                f"unknown augmentation {name}{hint} Policies: {', '.join(names())}; "
                f"operations: {', '.join(sorted(OPERATIONS))}"
            )
    return words


def _value(name: str, text: str) -> float:
    kind = OPERATIONS[name]
    if kind.low is None or kind.high is None:
        raise DataError(f"augmentation {name} takes no value, but {name}:{text} gives one")
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"augmentation {name}:{text} has a value that is not a number") from None
    if not kind.low <= value <= kind.high:
        raise DataError(f"augmentation {name}:{text} is out of range: {kind.low:g} to {kind.high:g}")
    if name in ("crop", "crop_reflect", "cutout", "blur") and value != int(value):
        raise DataError(f"augmentation {name}:{text} counts pixels; write a whole number")
    if name == "blur" and value % 2 == 0:
        raise DataError(f"augmentation {name}:{text} needs an odd number of pixels")
    return value
