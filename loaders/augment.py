"""Augmentation of whole batches on the device: bytes in, bytes out, the same few operators whatever the batch.

All random numbers are drawn on the host (loaders.epochs), so nothing here waits for the device: no value is read
back, no mask selects images. Where images go through different operations, as in AutoAugment, the host knows from its
own numbers which images take which, and each operation runs once on its images.

Windows, mirrors, rotations and slants that follow each other become one table of pixel numbers: each of them only
says from where a pixel is taken, and taking the nearest pixel several times in a row is taking one pixel once. The
images are then read once, however many such operations there are.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from loaders import geometry
from loaders.epochs import AREA, Epochs, flips, windows
from loaders.errors import DataError
from loaders.options import LoaderOptions
from loaders.policies import LARGEST_CIFAR, STANDARD_RESIDENT, Operation, parse

_MOVES = ("crop", "crop_reflect", "flip", "alternating_flip", "rotate", "affine", "perspective")

# What RandAugment and TrivialAugment choose from.
_CHOICES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
_WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_SIGNED = (*_WARPS, "Brightness", "Color", "Contrast", "Sharpness")

Floats = NDArray[np.float64]


class Augmentation:
    """A policy for one data set of square images that lie on the device.

    Attributes:
        operations: what is done, in order.
    """

    def __init__(self, options: LoaderOptions, epochs: Epochs, side: int) -> None:
        self.operations = parse(options.augment, STANDARD_RESIDENT)
        self._epochs = epochs
        self._options = options
        self._side = side
        self._device = torch.device(options.device)
        self._steps = torch.arange(side, device=self._device, dtype=torch.int32)
        border = max(
            (self._border(operation) for operation in self.operations if operation.name == "crop_reflect"), default=0
        )
        if border >= side:
            raise DataError(f"loader option padding is {border}; a reflected border must be smaller than the image")

    def __call__(self, images: torch.Tensor, indices: NDArray[np.int64], epoch: int, batch: int) -> torch.Tensor:
        """One augmented batch.

        Args:
            images: the whole set, uint8 [images, side, side, 3].
            indices: which of them, on the host.
            epoch, batch: where the random numbers come from.

        Returns:
            uint8 [batch, side, side, 3]; a resized_crop comes out at the size asked for.
        """
        chosen = torch.from_numpy(indices).to(self._device, non_blocking=True)
        made: torch.Tensor | None = None
        moves: list[tuple[int, Operation]] = []
        for number, operation in enumerate(self.operations):
            if operation.name in _MOVES:
                moves.append((number, operation))
                continue
            if moves or made is None:
                made = self._moved(
                    images if made is None else made, chosen if made is None else None, moves, epoch, batch
                )
                moves = []
            made = self._changed(made, number, operation, epoch, batch)
        if moves or made is None:
            made = self._moved(images if made is None else made, chosen if made is None else None, moves, epoch, batch)
        return made

    @property
    def fused(self) -> str | None:
        """The border ("black", "reflect") with which kernels.augment does all of it; None where it cannot.

        It can move by one window, mirror, and paint one rectangle last.
        """
        names = [operation.name for operation in self.operations]
        if names and names[-1] in ("erasing", "cutout"):
            names.pop()
        if not set(names) <= {"crop", "crop_reflect", "flip", "alternating_flip"}:
            return None
        return "reflect" if "crop_reflect" in names else "black"

    def table(self, indices: NDArray[np.int64], epoch: int, batch: int) -> NDArray[np.int32]:
        """What a batch is made of, for kernels.augment: [batch, 8], see its COLUMNS. Only where `fused` is not None."""
        count = len(indices)
        row, column, sign = np.zeros(count, np.int64), np.zeros(count, np.int64), np.ones(count, np.int64)
        painted = np.zeros((count, 4), np.int64)
        for number, operation in reversed(list(enumerate(self.operations))):
            if operation.name in ("erasing", "cutout"):
                draws = self._epochs.extras(epoch, batch, geometry.COLUMNS[operation.name], number)
                painted = geometry.painted(operation, draws, self._side)
            elif operation.name in ("flip", "alternating_flip"):
                mirror = self._mirrors(operation, epoch, batch)
                sign = np.where(mirror, -sign, sign)
                column = np.where(mirror, self._side - 1 - column, column)
            else:
                top, left = self._shifts(operation, epoch, batch)
                row, column = row + top, column + left
        return np.column_stack([indices, row, sign, column, painted]).astype(np.int32)

    def _mirrors(self, operation: Operation, epoch: int, batch: int) -> NDArray[np.bool_]:
        """Which images of a batch are mirrored."""
        if operation.name == "flip":
            return flips(self._epochs.draws(epoch, batch))
        return self._epochs.mirrors(epoch, batch)

    def _shifts(self, operation: Operation, epoch: int, batch: int) -> NDArray[np.int64]:
        """By how many rows and columns a window is moved, [2, images]."""
        border = self._border(operation)
        moved = np.floor(self._epochs.draws(epoch, batch)[:, -3:-1] * (2 * border + 1)) - border
        return moved.T.astype(np.int64)

    def _border(self, operation: Operation) -> int:
        return self._options.padding if operation.value is None else int(operation.value)

    def _put(self, values: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype).to(self._device, non_blocking=True)

    def _moved(
        self,
        images: torch.Tensor,
        chosen: torch.Tensor | None,
        moves: Sequence[tuple[int, Operation]],
        epoch: int,
        batch: int,
    ) -> torch.Tensor:
        """Take every pixel of the moved images from where it was before; what lies outside is black.

        `chosen` None stands for all images in order.
        """
        if not moves:
            return images if chosen is None else images.index_select(0, chosen)
        side = images.shape[1]
        steps = self._steps if side == self._side else torch.arange(side, device=self._device, dtype=torch.int32)
        # Rows [n or 1, side, 1] and columns [n or 1, 1, side] until an operation mixes them.
        rows, columns = steps.view(1, -1, 1), steps.view(1, 1, -1)
        inside: torch.Tensor | None = None
        for number, operation in reversed(moves):
            rows, columns, kept = self._before(rows, columns, side, number, operation, epoch, batch)
            if kept is not None:
                inside = kept if inside is None else inside & kept
        first = torch.arange(len(images), device=self._device) if chosen is None else chosen
        # Whole pixels by their number: on a CPU five times as fast as indexing three dimensions at once.
        pixels = (first.view(-1, 1, 1) * side + rows) * side + columns
        taken = images.view(-1, 3).index_select(0, pixels.flatten()).view(-1, side, side, 3)
        if inside is not None:
            taken.mul_(inside.unsqueeze(-1))
        return taken

    def _before(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        side: int,
        number: int,
        operation: Operation,
        epoch: int,
        batch: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Rows and columns before an operation, and which of them lie inside the image (None: all)."""
        name = operation.name
        if name in ("flip", "alternating_flip"):
            mirror = self._put(self._mirrors(operation, epoch, batch), torch.int32).view(-1, 1, 1)
            # A mirrored image is one whose columns are read backwards; sums are cheaper than a choice.
            return rows, columns * (1 - 2 * mirror) + (side - 1) * mirror, None
        if name in ("crop", "crop_reflect"):
            top, left = self._put(self._shifts(operation, epoch, batch), torch.int32).view(2, -1, 1, 1)
            rows, columns = rows + top, columns + left
            if name == "crop_reflect":
                return _reflected(rows, side), _reflected(columns, side), None
            return (*_kept(rows, columns, side),)
        columns_needed = geometry.COLUMNS[name]
        matrices = geometry.maps(operation, self._epochs.extras(epoch, batch, columns_needed, number), side)
        return _warped(rows, columns, self._put(matrices, torch.float32), side, name == "perspective")

    def _changed(self, images: torch.Tensor, number: int, operation: Operation, epoch: int, batch: int) -> torch.Tensor:
        """One operation that is more than taking pixels from elsewhere."""
        name, value = operation.name, operation.value or 0.0
        side = images.shape[1]
        if name == "resized_crop":
            sides = np.full(len(images), side)
            placed = windows(self._epochs.draws(epoch, batch), sides, sides, (value, AREA[1]))
            return resized_windows(images, self._put(placed, torch.float32), self._options.size)
        if name in ("erasing", "cutout"):
            draws = self._epochs.extras(epoch, batch, geometry.COLUMNS[name], number)
            return paint(images, self._put(geometry.painted(operation, draws, side), torch.int32), self._options.mean)
        if name == "jitter":
            around = 2 * self._epochs.extras(epoch, batch, 4, number) - 1
            return jitter(images, *self._put(around * value * [[1, 1, 1, 0.5]], torch.float32).T)
        if name == "blur":
            deviation = 0.1 + 1.9 * self._epochs.extras(epoch, batch, 1, number)[:, 0]
            return blur(images, self._put(deviation, torch.float32), int(value))
        draws = self._epochs.extras(epoch, batch, 6, number)
        for chosen, magnitudes in automatic(operation, draws, side):
            images = self._applied(images, chosen, magnitudes)
        return images

    def _applied(self, images: torch.Tensor, chosen: NDArray[np.str_], magnitudes: Floats) -> torch.Tensor:
        """Each image through the operation chosen for it. Writes into `images`, which belong to this batch."""
        warped = np.flatnonzero(np.isin(chosen, _WARPS))
        if len(warped):
            where = self._put(warped, torch.int64)
            matrices = _matrices(chosen[warped], magnitudes[warped], images.shape[1])
            images.index_copy_(0, where, warp(images.index_select(0, where), self._put(matrices, torch.float32)))
        for name, change in _CHANGES.items():
            numbers = np.flatnonzero(chosen == name)
            if len(numbers):
                where = self._put(numbers, torch.int64)
                part, strength = images.index_select(0, where), self._put(magnitudes[numbers], torch.float32)
                images.index_copy_(0, where, change(part, strength.view(-1, 1, 1, 1)))
        return images


def _kept(rows: torch.Tensor, columns: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows and columns brought into the image, and which ones were in it."""
    low_row, low_column = rows.clamp(0, side - 1), columns.clamp(0, side - 1)
    return low_row, low_column, (low_row == rows) & (low_column == columns)


def _reflected(places: torch.Tensor, side: int) -> torch.Tensor:
    """Places up to side - 1 beyond an edge, reflected at the outermost pixel."""
    return (side - 1) - ((side - 1) - places.abs()).abs()


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
    # To whole numbers before they are compared; clamped first, for a slant may send a pixel beyond any integer.
    return _kept(
        before_y.clamp_(-1, side).floor_().to(torch.int32), before_x.clamp_(-1, side).floor_().to(torch.int32), side
    )


def warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """uint8 [n, s, s, 3] through maps [n, 3, 3] of loaders.geometry without perspective: nearest pixel, else black."""
    side = images.shape[1]
    steps = torch.arange(side, device=images.device, dtype=torch.int32)
    rows, columns, inside = _warped(steps.view(1, -1, 1), steps.view(1, 1, -1), matrices, side, False)
    first = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    pixels = (first * side + rows) * side + columns
    taken = images.view(-1, 3).index_select(0, pixels.flatten()).view(images.shape)
    return taken.mul_(inside.unsqueeze(-1))


def resized_windows(images: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """Windows of uint8 [n, s, s, 3], resized to [n, size, size, 3] with torchvision's antialiased bilinear filter.

    A resize weighs rows and columns apart, so it is two products of matrices for the whole batch.

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
    made = torch.einsum("nxw,nywc->nyxc", across, narrowed.round_())
    return made.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def _weights(start: torch.Tensor, length: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """How much every pixel of a line counts for every pixel of the resized window, [n, size, side]."""
    step = (length / size).view(-1, 1, 1)
    centre = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * step
    place = torch.arange(side, device=start.device).view(1, 1, -1) + 0.5 - start.view(-1, 1, 1)
    weight = (1 - (place - centre).abs() / step.clamp(min=1)).clamp_(min=0)
    # A window's edge is where its image ends: what lies beside it does not shine in.
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
    """Every channel stretched to 0..255; one of a single value stays."""
    pixels = images.to(torch.float32)
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    flat = low == high
    scale = 255 / torch.where(flat, 1, high - low)
    return _bytes(torch.where(flat, pixels, (pixels - low) * scale))


def equalize(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Every channel's levels spread so that each is about as frequent as any other (Pillow's ImageOps.equalize)."""
    count, tall, wide, _channels = images.shape
    planes = images.permute(0, 3, 1, 2).reshape(count * 3, tall * wide).to(torch.int64)
    histogram = torch.zeros(count * 3, 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, planes, torch.ones_like(planes))
    total = histogram.cumsum(1)
    # The last occupied level is not counted for the width of a step.
    last = histogram.gather(1, planes.amax(1, keepdim=True))
    step = (tall * wide - last) // 255
    table = (total - histogram + step // 2) // step.clamp(min=1)
    unchanged = torch.arange(256, device=images.device).expand_as(table)
    table = torch.where(step == 0, unchanged, table.clamp_(0, 255))
    return table.gather(1, planes).view(count, 3, tall, wide).permute(0, 2, 3, 1).to(torch.uint8)


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
            taken = pixels.index_select(dimension, _reflected(place, length).clamp_(0, length - 1))
            total.addcmul_(taken, weight[:, number].view(-1, 1, 1, 1))
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
    made = np.where((names == "Rotate")[:, None, None], geometry.turned(magnitudes, side), np.eye(3))
    places = (("ShearX", 0, 1, 1), ("ShearY", 1, 0, 1), ("TranslateX", 0, 2, -1), ("TranslateY", 1, 2, -1))
    for name, row, column, sign in places:
        made[:, row, column] = np.where(names == name, sign * magnitudes, made[:, row, column])
    return made


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
        kind = AutoAugmentPolicy.CIFAR10 if side <= LARGEST_CIFAR else AutoAugmentPolicy.IMAGENET
        policies = AutoAugment(kind).policies
        taken = [policies[int(draw * len(policies))] for draw in draws[:, 0]]
        plans = []
        for step in (0, 1):
            plans.append(
                [
                    (pair[step][0], (pair[step][2] or 0) / 9) if draw < pair[step][1] else ("Identity", 0.0)
                    for pair, draw in zip(taken, draws[:, 2 + step], strict=True)
                ]
            )
    elif operation.name == "randaugment":
        share = (operation.value or 0.0) / 30
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
