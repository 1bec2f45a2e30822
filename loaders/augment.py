"""Augmentation of whole batches on the device: bytes in, bytes out.

All random numbers are drawn on the host (loaders.epochs), so nothing here waits for the device: no value is read back,
no mask selects images. Where images go through different operations, as in AutoAugment, the host knows from its own
numbers which images take which, and each operation runs once on its images.

Windows, mirrors, rotations and shears that follow each other become one table of pixel numbers: each of them only says
where a pixel comes from, and taking the nearest pixel several times in a row is taking one pixel once. The images are
then read once, however many such operations there are.
"""

from collections.abc import Callable, Sequence
from itertools import groupby, takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional as transform

from kernels.augment import clamp, reflect, take_pixels
from loaders import geometry
from loaders.epochs import AREA, Epochs, shifts, windows
from loaders.options import LoaderOptions
from loaders.policies import BORDERED, FLIPS, PAINTING, Operation, autoaugment_images, check_border, standard

_MOVES = (*BORDERED, *FLIPS, "rotate", "affine", "perspective")

# What RandAugment and TrivialAugment choose from.
_CHOICES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
_WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_SIGNED = (*_WARPS, "Brightness", "Color", "Contrast", "Sharpness")

Floats = NDArray[np.float64]
Numbered = tuple[int, Operation]
Place = tuple[int, int]
"""Epoch and number of a batch: where its random numbers come from."""


class Augmentation:
    """A policy for one data set of square images on the device.

    Args:
        options: the policy is theirs.
        epochs: where the random numbers come from.
        side: pixels.
        cropped: the images are what resized_crop has cut already.
    """

    def __init__(self, options: LoaderOptions, epochs: Epochs, side: int, cropped: bool = False) -> None:
        operations = enumerate(options.operations(standard("resident", options.stored_size or options.size)))
        self._operations = [one for one in operations if not (cropped and one[1].name == "resized_crop")]
        self._epochs = epochs
        self._options = options
        self._side = side
        self._device = torch.device(options.device)
        check_border(tuple(operation for _, operation in self._operations), side)

    def __call__(self, images: torch.Tensor, indices: NDArray[np.int64], epoch: int, batch: int) -> torch.Tensor:
        """One augmented batch.

        Args:
            images: the whole set, uint8 [images, side, side, 3].
            indices: which of them, on the host.
            epoch, batch: where the random numbers come from.

        Returns:
            uint8 [batch, side, side, 3]; after a resized_crop the images have the options' size.
        """
        place = (epoch, batch)
        chosen = torch.from_numpy(indices).to(self._device, non_blocking=True)
        moves = list(takewhile(_moves, self._operations))
        result = self._moved(images, chosen, moves, place) if moves else images.index_select(0, chosen)
        for moving, group in groupby(self._operations[len(moves) :], _moves):
            if moving:
                every = torch.arange(len(result), device=self._device)
                result = self._moved(result, every, list(group), place)
            else:
                for number, operation in group:
                    result = self._changed(result, number, operation, place)
        return result

    @property
    def fused_border(self) -> str | None:
        """The border ("black", "reflect") with which kernels.augment does the whole policy; None where it cannot.

        The kernel can move by one window, mirror, and paint one rectangle last.
        """
        names = [operation.name for _, operation in self._operations]
        if names and names[-1] in PAINTING:
            names.pop()
        if not set(names) <= {*BORDERED, *FLIPS}:
            return None
        return "reflect" if "crop_reflect" in names else "black"

    def table(self, indices: NDArray[np.int64], epoch: int, batch: int) -> NDArray[np.int32]:
        """What kernels.augment makes a batch of, [batch, 8], see its COLUMNS. Only where `fused_border` is not None."""
        count = len(indices)
        row, column, sign = np.zeros(count, np.int64), np.zeros(count, np.int64), np.ones(count, np.int64)
        painted = np.zeros((count, 4), np.int64)
        for number, operation in reversed(self._operations):
            if operation.name in PAINTING:
                painted = geometry.rectangles(operation, self._extras(number, operation, (epoch, batch)), self._side)
            elif operation.name in FLIPS:
                mirror = self._epochs.mirrored(operation.name, epoch, batch)
                sign = np.where(mirror, -sign, sign)
                column = np.where(mirror, self._side - 1 - column, column)
            else:
                top, left = self._shifts(operation, (epoch, batch))
                row, column = row + top, column + left
        return np.column_stack([indices, row, sign, column, painted]).astype(np.int32)

    def _shifts(self, operation: Operation, place: Place) -> NDArray[np.int64]:
        """By how many rows and columns a window is moved, [2, images]."""
        return (shifts(self._epochs.draws(*place), operation.pixels) - operation.pixels).T

    def _extras(self, number: int, operation: Operation, place: Place) -> Floats:
        return self._epochs.extras(*place, geometry.COLUMNS[operation.name], number)

    def _put(self, values: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype).to(self._device, non_blocking=True)

    def _moved(
        self, images: torch.Tensor, chosen: torch.Tensor, moves: Sequence[Numbered], place: Place
    ) -> torch.Tensor:
        """Fetch every pixel of the chosen images from where it was before the moves; what lies outside is black."""
        side = images.shape[1]
        # Rows [n or 1, side, 1] and columns [n or 1, 1, side] until an operation mixes them.
        rows, columns = _pixel_numbers(side, self._device)
        inside: torch.Tensor | None = None
        for number, operation in reversed(moves):
            rows, columns, here = self._before(rows, columns, side, number, operation, place)
            if here is not None:
                inside = here if inside is None else inside & here
        return take_pixels(images, chosen.view(-1, 1, 1), rows, columns, inside)

    def _before(
        self, rows: torch.Tensor, columns: torch.Tensor, side: int, number: int, operation: Operation, place: Place
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Rows and columns before an operation, and which of them lie inside the image (None: all)."""
        name = operation.name
        if name in FLIPS:
            mirror = self._put(self._epochs.mirrored(name, *place), torch.int32).view(-1, 1, 1)
            # A mirrored image is one whose columns are read backwards; sums are cheaper than a choice.
            return rows, columns * (1 - 2 * mirror) + (side - 1) * mirror, None
        if name in BORDERED:
            top, left = self._put(self._shifts(operation, place), torch.int32).view(2, -1, 1, 1)
            rows, columns = rows + top, columns + left
            if name == "crop_reflect":
                return reflect(rows, side), reflect(columns, side), None
            return clamp(rows, columns, side)
        matrices = geometry.maps(operation, self._extras(number, operation, place), side)
        return _warped(rows, columns, self._put(matrices, torch.float32), side, name == "perspective")

    def _changed(self, images: torch.Tensor, number: int, operation: Operation, place: Place) -> torch.Tensor:
        """One operation that does more than move pixels."""
        name, value = operation.name, operation.value
        side = images.shape[1]
        if name == "resized_crop":
            sides = np.full(len(images), side)
            placed = windows(self._epochs.draws(*place), sides, sides, (value, AREA[1]))
            return resized_windows(images, self._put(placed, torch.float32), self._options.size)
        draws = self._extras(number, operation, place)
        if name in PAINTING:
            rectangles = self._put(geometry.rectangles(operation, draws, side), torch.int32)
            return paint(images, rectangles, self._options.mean)
        if name == "jitter":
            return jitter(images, *self._put((2 * draws - 1) * value * [[1, 1, 1, 0.5]], torch.float32).T)
        if name == "blur":
            return blur(images, self._put(0.1 + 1.9 * draws[:, 0], torch.float32), operation.pixels)
        for names, magnitudes in automatic(operation, draws, side):
            images = self._applied(images, names, magnitudes)
        return images

    def _applied(self, images: torch.Tensor, names: NDArray[np.str_], magnitudes: Floats) -> torch.Tensor:
        """Each image through the operation chosen for it. Writes into `images`, which belong to this batch."""
        warped = np.flatnonzero(np.isin(names, _WARPS))
        if len(warped):
            where = self._put(warped, torch.int64)
            matrices = _matrices(names[warped], magnitudes[warped], images.shape[1])
            images.index_copy_(0, where, warp(images.index_select(0, where), self._put(matrices, torch.float32)))
        for name, change in _CHANGES.items():
            numbers = np.flatnonzero(names == name)
            if len(numbers):
                where = self._put(numbers, torch.int64)
                part, strength = images.index_select(0, where), self._put(magnitudes[numbers], torch.float32)
                images.index_copy_(0, where, change(part, strength.view(-1, 1, 1, 1)))
        return images


def _moves(numbered: Numbered) -> bool:
    """Whether an operation only says where pixels come from."""
    return numbered[1].name in _MOVES


def _pixel_numbers(side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [1, side, 1] and columns [1, 1, side] of an image, int32."""
    steps = torch.arange(side, device=device, dtype=torch.int32)
    return steps.view(1, -1, 1), steps.view(1, 1, -1)


def _warped(
    rows: torch.Tensor, columns: torch.Tensor, matrices: torch.Tensor, side: int, perspective: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The nearest pixels before a map [n, 3, 3] of loaders.geometry, and which ones lie inside."""
    x, y = columns + 0.5, rows + 0.5
    m = matrices.view(-1, 9, 1, 1).unbind(1)
    # Sums of a term of the column and one of the row: only the sum is as large as the image.
    before_x, before_y = m[0] * x + (m[1] * y + m[2]), m[3] * x + (m[4] * y + m[5])
    if perspective:
        depth = m[6] * x + (m[7] * y + m[8])
        before_x, before_y = before_x / depth, before_y / depth
    # To whole numbers before they are compared; clamped first, as a perspective may send a pixel beyond any integer.
    return clamp(
        before_y.clamp_(-1, side).floor_().to(torch.int32), before_x.clamp_(-1, side).floor_().to(torch.int32), side
    )


def warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """uint8 [n, s, s, 3] through maps [n, 3, 3] of loaders.geometry without perspective: nearest pixel, else black."""
    side = images.shape[1]
    rows, columns, inside = _warped(*_pixel_numbers(side, images.device), matrices, side, False)
    return take_pixels(images, torch.arange(len(images), device=images.device).view(-1, 1, 1), rows, columns, inside)


def resized_windows(images: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """Windows of uint8 [n, s, s, 3], resized to [n, size, size, 3] with torchvision's antialiased bilinear filter.

    A resize weights rows and columns separately, so it is two products of matrices for the whole batch.

    Args:
        images: one for each window.
        places: float32 [n, 4]: top, left, height, width in pixels.
        size: pixels.
    """
    count, side = images.shape[:2]
    top, left, height, width = places.unbind(1)
    down, across = _weights(top, height, side, size), _weights(left, width, side, size)
    pixels = images.to(torch.float32).view(count, side, side * 3)
    narrowed = torch.bmm(down, pixels).view(count, size, side, 3)
    # Rounded between the two as at the end: torchvision does one direction after the other on bytes.
    resized = torch.einsum("nxw,nywc->nyxc", across, narrowed.round_())
    return _bytes(resized.round_()).contiguous()


def _weights(start: torch.Tensor, length: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """The weight of every pixel of a line in every pixel of the resized window, [n, size, side]."""
    step = (length / size).view(-1, 1, 1)
    centre = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * step
    place = torch.arange(side, device=start.device).view(1, 1, -1) + 0.5 - start.view(-1, 1, 1)
    weight = (1 - (place - centre).abs() / step.clamp(min=1)).clamp_(min=0)
    # The window is resized as an image of its own: pixels beside it have no weight.
    weight = weight * ((place > 0) & (place < length.view(-1, 1, 1)))
    return weight / weight.sum(-1, keepdim=True)


def paint(images: torch.Tensor, places: torch.Tensor, mean: Sequence[float]) -> torch.Tensor:
    """Rectangles [n, 4] (top, left, height, width) of uint8 [n, s, s, 3] in the data set's mean colour."""
    side = images.shape[1]
    steps = torch.arange(side, device=images.device, dtype=torch.int32)
    top, left, height, width = places.view(-1, 4, 1).unbind(1)
    rows = (steps >= top) & (steps < top + height)
    columns = (steps >= left) & (steps < left + width)
    colour = torch.stack(
        [torch.full((), round(255 * level), dtype=torch.uint8, device=images.device) for level in mean]
    )
    return torch.where((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(-1), colour, images)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _gray(pixels: torch.Tensor) -> torch.Tensor:
    """Luma of float [n, h, w, 3], [n, h, w, 1] (ITU-R BT.601)."""
    return pixels[..., :1] * 0.299 + pixels[..., 1:2] * 0.587 + pixels[..., 2:] * 0.114


def brightness(images: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Pixels times 1 + change; `change` is [n, 1, 1, 1] here and below."""
    return _bytes(images * (1 + change))


def contrast(images: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Away from the image's mean luma by 1 + change."""
    pixels = images.to(torch.float32)
    mean = _gray(pixels).floor_().mean((1, 2, 3), keepdim=True)
    return _bytes(mean + (pixels - mean) * (1 + change))


def colour(images: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Away from the pixel's luma by 1 + change: saturation."""
    pixels = images.to(torch.float32)
    gray = _gray(pixels).floor_()
    return _bytes(gray + (pixels - gray) * (1 + change))


def sharpness(images: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Away from the smoothed image by 1 + change; the outermost pixels stay."""
    pixels = images.to(torch.float32)
    inner = pixels[:, 1:-1, 1:-1]
    smooth = pixels.clone()
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    smooth[:, 1:-1, 1:-1] = ((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner) / 13).round_()
    return _bytes(smooth + (pixels - smooth) * (1 + change))


def posterize(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Only the highest bits of every value."""
    step = torch.exp2(8 - bits).to(torch.int32)
    return (images.to(torch.int32) // step * step).to(torch.uint8)


def solarize(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Values at or above the threshold inverted."""
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Every channel stretched to 0..255; a constant one stays."""
    pixels = images.to(torch.float32)
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    flat = low == high
    scale = 255 / torch.where(flat, 1, high - low)
    return _bytes(torch.where(flat, pixels, (pixels - low) * scale))


def equalize(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Every channel's levels spread so that each is about as frequent as any other."""
    planes: torch.Tensor = transform.equalize(images.permute(0, 3, 1, 2))
    return planes.permute(0, 2, 3, 1)


def invert(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """255 minus the value."""
    return 255 - images


def hue(images: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """The hue moved on by `change` of a full turn, in -0.5..0.5 (through HSV)."""
    pixels = images.to(torch.float32)
    high, low = pixels.amax(-1), pixels.amin(-1)
    span = high - low
    safe = torch.where(span == 0, 1, span)
    red, green, blue = pixels.unbind(-1)
    turn = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turn = turn + 6 * change.squeeze(-1)
    # Each channel as a function of the angle: full, falling, none, rising.
    place = (turn.unsqueeze(-1) + torch.tensor([5.0, 3.0, 1.0]).to(turn.device, non_blocking=True)) % 6
    share = torch.minimum(place, 4 - place).clamp_(0, 1)
    return _bytes((high.unsqueeze(-1) - span.unsqueeze(-1) * share).round_())


def jitter(
    images: torch.Tensor,
    light: torch.Tensor,
    strength: torch.Tensor,
    saturation: torch.Tensor,
    turn: torch.Tensor,
) -> torch.Tensor:
    """Brightness, contrast, saturation and hue changed, in this order; each argument [n]."""
    for change, by in ((brightness, light), (contrast, strength), (colour, saturation), (hue, turn)):
        images = change(images, by.view(-1, 1, 1, 1))
    return images


def blur(images: torch.Tensor, deviation: torch.Tensor, kernel: int) -> torch.Tensor:
    """Gaussian blur of uint8 [n, h, w, 3] with a `deviation` [n] for each image, reflected at the edges."""
    radius = kernel // 2
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weight = torch.exp(-0.5 * (offsets / deviation.unsqueeze(1)) ** 2)
    weight = weight / weight.sum(1, keepdim=True)
    pixels = images.to(torch.float32)
    for dimension in (1, 2):
        length = pixels.shape[dimension]
        total = torch.zeros_like(pixels)
        for number in range(kernel):
            place = torch.arange(number - radius, length + number - radius, device=images.device)
            shifted = pixels.index_select(dimension, reflect(place, length).clamp_(0, length - 1))
            total.addcmul_(shifted, weight[:, number].view(-1, 1, 1, 1))
        pixels = total
    return _bytes(pixels.round_())


# The operations of AutoAugment and its kin that change values; the others move pixels.
_CHANGES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Brightness": brightness,
    "Color": colour,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
}


def _matrices(names: NDArray[np.str_], magnitudes: Floats, side: int) -> Floats:
    """Maps of the operations that move pixels, [n, 3, 3]."""
    matrices = np.where((names == "Rotate")[:, None, None], geometry.rotations(magnitudes, side), np.eye(3))
    places = (("ShearX", 0, 1, 1), ("ShearY", 1, 0, 1), ("TranslateX", 0, 2, -1), ("TranslateY", 1, 2, -1))
    for name, row, column, sign in places:
        matrices[:, row, column] = np.where(names == name, sign * magnitudes, matrices[:, row, column])
    return matrices


def _magnitude(name: str, share: float, wide: bool, side: int) -> float:
    """What a share in 0..1 of an operation's range means: a tangent, pixels, degrees, bits, a level or a change."""
    ranges = {
        "ShearX": 0.99 if wide else 0.3,
        "ShearY": 0.99 if wide else 0.3,
        # Whole pixels; 150 of 331 is where AutoAugment's search had its limit.
        "TranslateX": 32.0 if wide else 150 / 331 * side,
        "TranslateY": 32.0 if wide else 150 / 331 * side,
        "Rotate": 135.0 if wide else 30.0,
    }
    if name in ranges:
        value = share * ranges[name]
        return float(int(value)) if name.startswith("Translate") else value
    if name == "Posterize":
        return 8.0 - round(share * (6 if wide else 4))
    if name == "Solarize":
        return 255.0 * (1 - share)
    return share * (0.99 if wide else 0.9)


def automatic(operation: Operation, draws: Floats, side: int) -> list[tuple[NDArray[np.str_], Floats]]:
    """The steps of AutoAugment, RandAugment or TrivialAugment: for each, the operation and magnitude of every image.

    Cubuk et al. 2019, "AutoAugment: Learning Augmentation Strategies from Data"; Cubuk et al. 2020, "RandAugment:
    Practical automated data augmentation with a reduced search space"; Müller and Hutter 2021, "TrivialAugment:
    Tuning-free Yet State-of-the-Art Data Augmentation". Ranges as in torchvision.

    Args:
        operation: autoaugment, randaugment or trivialaugment.
        draws: uniform in 0..1, [n, 6].
        side: pixels.
    """
    if operation.name == "autoaugment":
        policies = AutoAugment(AutoAugmentPolicy(autoaugment_images(side))).policies
        pairs = [policies[int(draw * len(policies))] for draw in draws[:, 0]]
        plans = [
            [
                (pair[step][0], (pair[step][2] or 0) / 9) if draw < pair[step][1] else ("Identity", 0.0)
                for pair, draw in zip(pairs, draws[:, 2 + step], strict=True)
            ]
            for step in (0, 1)
        ]
    elif operation.name == "randaugment":
        share = operation.value / 30
        plans = [[(_CHOICES[int(draw * len(_CHOICES))], share) for draw in draws[:, step]] for step in (0, 1)]
    else:
        shares = np.floor(draws[:, 1] * 31) / 30
        names = [_CHOICES[int(draw * len(_CHOICES))] for draw in draws[:, 0]]
        plans = [list(zip(names, shares.tolist(), strict=True))]
    wide = operation.name == "trivialaugment"
    steps = []
    for step, plan in enumerate(plans):
        signs = np.where(draws[:, 4 + step] < 0.5, -1.0, 1.0)
        chosen = np.array([name for name, _ in plan])
        magnitudes = np.array([_magnitude(name, share, wide, side) for name, share in plan])
        steps.append((chosen, np.where(np.isin(chosen, _SIGNED), magnitudes * signs, magnitudes)))
    return steps
