"""Augmentation policies by name: the random changes of a training image and their order.

A policy is written as words joined by "+": the name of a policy stands for its words, any other word is an operation
with an optional value after a colon, as in "crop+flip+rotate:20". The operations run in the order written, on bytes,
before normalisation. What they uncover is black, as torchvision's fill of 0; erasing and cutout paint the data set's
mean colour.
"""

from dataclasses import dataclass

from loaders.errors import DataError, unknown


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a policy; `value` is 0 where the operation takes none."""

    name: str
    value: float = 0.0

    @property
    def pixels(self) -> int:
        """The value where it counts pixels."""
        return int(self.value)


@dataclass(frozen=True, slots=True)
class Kind:
    """What an operation does and which values it takes: `default` if none is written, otherwise `low` to `high`."""

    text: str
    default: float | None = None
    low: float | None = None
    high: float | None = None


OPERATIONS: dict[str, Kind] = {
    "resized_crop": Kind("a window of random area (at least the value) and aspect 3/4 to 4/3, resized", 0.08, 0.01, 1),
    "crop": Kind("a black border of this many pixels, then a random window", 4, 0, 512),
    "crop_reflect": Kind("a reflected border of this many pixels, then a random window", 4, 0, 512),
    "flip": Kind("half of the images mirrored"),
    "alternating_flip": Kind("half of the images mirrored, and in the next epoch the other half"),
    "rotate": Kind("rotated by up to this many degrees, nearest pixel", 15, 0, 180),
    "affine": Kind("rotated and sheared by up to this many degrees, moved and scaled by up to 10 %", 10, 0, 45),
    "perspective": Kind("half of the images in perspective, corners moved by up to value / 2 of a side", 0.5, 0, 1),
    "jitter": Kind("brightness, contrast and saturation changed by up to this share, hue by half of it", 0.2, 0, 1),
    "blur": Kind("Gaussian blur with a kernel of this many pixels, deviation 0.1 to 2", 3, 3, 31),
    "erasing": Kind("with this probability a rectangle of 2 to 33 % of the area painted over", 0.5, 0, 1),
    "cutout": Kind("a square of this many pixels around a random place painted over", 16, 1, 512),
    "autoaugment": Kind("AutoAugment: the CIFAR-10 policies up to 64 pixels, those of ImageNet above"),
    "randaugment": Kind("RandAugment: two operations, of this magnitude out of 0 to 30", 9, 0, 30),
    "trivialaugment": Kind("TrivialAugment: one operation of random magnitude"),
}
BORDERED = ("crop", "crop_reflect")
WINDOWS = ("resized_crop", *BORDERED)
FLIPS = ("flip", "alternating_flip")
PAINTING = ("erasing", "cutout")
AUTOMATIC = ("autoaugment", "randaugment", "trivialaugment")
LARGEST_CIFAR = 64  # pixels

# What "standard" means: see `standard`.
STANDARD_FILES = "resized_crop+flip"
STANDARD_RESIDENT = "crop_reflect+flip"

# name -> (words, one line)
POLICIES: dict[str, tuple[str, str]] = {
    "none": ("", "the image as evaluation sees it"),
    "standard": ("standard", "imagenet; for loader resident up to 64 pixels cifar"),
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
        "cifar, then rotated, moved, tilted, recoloured, blurred and partly erased",
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
        raise unknown("augmentation policy", name, names())
    words, line = POLICIES[name]
    return f"{words}: {line}" if words and words != name else line


def standard(engine: str, size: int) -> str:
    """What the policy "standard" stands for in an engine, for images of `size` pixels."""
    return STANDARD_RESIDENT if engine == "resident" and size <= LARGEST_CIFAR else STANDARD_FILES


def autoaugment_images(size: int) -> str:
    """Which of AutoAugment's searches suits images of `size` pixels: the one on "cifar10" or on "imagenet"."""
    return "cifar10" if size <= LARGEST_CIFAR else "imagenet"


def parse(text: str, standard: str = STANDARD_FILES) -> tuple[Operation, ...]:
    """The operations of a policy text, in order.

    Args:
        text: names of policies and operations joined by "+"; an empty text is the policy none.
        standard: what the word "standard" stands for.

    Raises:
        DataError: an unknown word (the message names a similar one), a value that is not a number or out of range, an
            operation named twice, or an order that no engine can follow.
    """
    operations: list[Operation] = []
    for word in _words(text, standard):
        name, colon, value = word.partition(":")
        operations.append(Operation(name, _value(name, value) if colon else OPERATIONS[name].default or 0.0))
    used = [operation.name for operation in operations]
    for name in used:
        if used.count(name) > 1:
            raise DataError(f"augmentation {text!r} names {name} twice")
    windows = [name for name in used if name in WINDOWS]
    if len(windows) > 1:
        raise DataError(f"augmentation {text!r} cuts two windows, {' and '.join(windows)}; keep one")
    if "resized_crop" in used[1:]:
        raise DataError(f"augmentation {text!r}: resized_crop comes first, it decides what is decoded")
    if set(FLIPS) <= set(used):
        raise DataError(f"augmentation {text!r} has flip and alternating_flip; keep one")
    painting = [index for index, name in enumerate(used) if name in PAINTING]
    if painting and painting[0] < len(used) - len(painting):
        raise DataError(f"augmentation {text!r}: erasing and cutout come last, they paint the finished image")
    return tuple(operations)


def check_border(operations: tuple[Operation, ...], size: int) -> None:
    """Raise DataError if a window of `size` pixels can lie entirely in the border."""
    for operation in operations:
        if operation.name in BORDERED and operation.pixels >= size:
            raise DataError(
                f"augmentation {operation.name}:{operation.pixels} puts a border around images of {size} px that can "
                f"hold a whole window; use at most {size - 1}, usual is {max(1, size // 8)}"
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
            listing = f"Policies: {', '.join(names())}; operations: {', '.join(sorted(OPERATIONS))}"
            raise unknown("augmentation", word.partition(":")[0], [*POLICIES, *OPERATIONS], listing)
    return words


def _value(name: str, text: str) -> float:
    kind = OPERATIONS[name]
    if kind.low is None or kind.high is None:
        raise DataError(f"augmentation {name} takes no value, but {name}:{text} has one")
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"augmentation {name}:{text} has a value that is not a number") from None
    if not kind.low <= value <= kind.high:
        raise DataError(f"augmentation {name}:{text} is out of range: {kind.low:g} to {kind.high:g}")
    if name in (*BORDERED, "cutout", "blur") and value != int(value):
        raise DataError(f"augmentation {name}:{text} counts pixels; write a whole number")
    if name == "blur" and value % 2 == 0:
        raise DataError(f"augmentation {name}:{text} needs an odd number of pixels")
    return value
