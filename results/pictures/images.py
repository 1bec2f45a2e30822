"""Pictures of images and of confusion matrices."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from results.classification import checked
from results.errors import RecordError
from results.pictures.style import new_figure, shortened, shown, styled, whole_numbers

_NAMED_CELLS = 20
"""Up to so many classes a confusion matrix has room for numbers."""
_NAMED_CLASSES = 120
"""Up to so many classes it has room for names."""


@styled()
def confusion(matrix: ArrayLike, classes: Sequence[str], title: str | None = None) -> Figure:
    """A confusion matrix of counts, rows true: colour is the share of the true class.

    Up to 20 classes the counts stand in the cells, up to 120 the axes carry names (long ones shortened), beyond
    that numbers. Raises RecordError as `classification.checked` does.
    """
    counts = checked(matrix, classes)
    n, images = len(counts), int(counts.sum())
    side = min(max(4.5, 0.62 * n + 2), 11) if n <= _NAMED_CELLS else min(max(9, 0.15 * n + 2), 15)
    figure, axes = new_figure(side + 0.8, side)
    size = 9.0 if n <= _NAMED_CELLS else max(4.0, min(8.0, 0.62 * 72 * (side - 2.2) / n))
    image = confusion_axes(axes, counts, classes, size)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("share of the true class [%]")
    top1 = f"top-1 {100 * counts.trace() / images:.2f} % of {images} images" if images else "no images"
    axes.set_title(f"{shortened(title, 60)}: {top1}" if title else top1)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


def confusion_axes(axes: Axes, matrix: ArrayLike, classes: Sequence[str], size: float) -> Any:
    """Draws a confusion matrix of counts as shares of the true class, with names and numbers where there is room.

    `size` is of the class names, in points. Returns the image, for a colour bar.
    """
    counts = checked(matrix, classes)
    n = len(counts)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, support, out=np.zeros(counts.shape), where=support > 0)
    # A square root: confusions of a few percent are what is looked for, and a linear scale leaves them white.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.spines[:].set_visible(True)
    if n <= _NAMED_CLASSES:
        names = [shortened(name, 18) for name in classes]
        # Upright names in the smallest sizes stand clear of each other where slanted ones run together.
        upright = n > 12 or n * max(map(len, names)) > 60
        axes.set_xticks(range(n), names, rotation=90 if upright else 0, fontsize=size)
        axes.set_yticks(range(n), names, fontsize=size)
    else:
        whole_numbers(axes.xaxis)
        whole_numbers(axes.yaxis)
    if n <= _NAMED_CELLS:
        figures = min(size, 8.0 if len(str(counts.max())) <= 5 else 6.0)
        for i, j in np.ndindex(n, n):
            # On the colour of the cell, whatever the colours around the picture are.
            colour = "#ffffff" if shares[i, j] > 40 else "#333333" if counts[i, j] else "#bbbbbb"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=figures)
    return image


@styled()
def image_grid(
    images: ArrayLike, titles: Sequence[str] | None = None, columns: int = 8, title: str | None = None
) -> Figure:
    """Images [n, h, w, 3], uint8 or floats from 0 to 1, in rows of `columns`, each under its title.

    Raises RecordError for another shape, no image, values outside the range, or titles that do not match.
    """
    pictures = _pictures(images)
    if titles is not None and len(titles) != len(pictures):
        raise RecordError(f"{len(titles)} titles for {len(pictures)} images")
    if columns < 1:
        raise RecordError(f"a grid of {columns} columns; expected 1 or more")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = [] if titles is None else [_wrapped(text) for text in titles]
    height, width = pictures.shape[1:3]
    # Laid out by hand: cells are all alike, so nothing needs a solver, which would also cut the upper titles.
    cell, gap, above = 1.3, 0.06, 0.12 * max((text.count("\n") + 1 for text in lines), default=0)
    tall, top = cell * min(2.0, max(0.5, height / width)), 0.36 if title else 0.0
    across, down = columns * (cell + gap) + gap, rows * (tall + above + gap) + gap + top
    figure = Figure(figsize=(across, down))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        left, bottom = gap + column * (cell + gap), down - top - (row + 1) * (tall + above + gap)
        axes = figure.add_axes((left / across, bottom / down, cell / across, tall / down))
        axes.set_axis_off()
        # Few pixels stay the squares that the network sees; many are smoothed down.
        axes.imshow(picture, interpolation="nearest" if max(height, width) <= 96 else "antialiased")
        if lines:
            axes.set_title(lines[i], fontsize=6.5, pad=2, linespacing=1.05)
    if title:
        figure.text(0.5, 1 - 0.18 / down, shortened(title, 12 * columns), ha="center", va="center", fontsize=11)
    return figure


def mistake(true: str, predicted: str, probability: float) -> str:
    """The title of a misclassified image: "cat -> dog 87 %"."""
    return f"{true} -> {predicted} {100 * probability:.0f} %"


def _pictures(images: ArrayLike) -> NDArray[Any]:
    given = np.asarray(images)
    if given.ndim != 4 or given.shape[-1] != 3 or not given.size:
        shape = " x ".join(str(n) for n in given.shape)
        raise RecordError(f"images of shape {shape}; expected n x height x width x 3")
    if given.dtype == np.uint8:
        return given
    if given.dtype.kind != "f":
        raise RecordError(f"images of {given.dtype}; expected uint8 or floats from 0 to 1")
    # De-normalising in single precision may leave the range by a rounding error, not by more.
    if not (np.isfinite(given).all() and given.min() >= -1e-3 and given.max() <= 1 + 1e-3):
        raise RecordError(f"images from {given.min():.3g} to {given.max():.3g}; undo their normalisation to 0..1 first")
    return given.clip(0, 1)


def _wrapped(title: str, width: int = 20) -> str:
    """A title in lines that a cell of the grid holds: the arrow's two sides apart, each shortened to one line."""
    left, arrow, right = title.partition(" -> ")
    if arrow:
        return f"{shortened(left, width)}\n-> {_ending_kept(right, width - 3)}"
    return "\n".join(textwrap.wrap(shown(title), width, max_lines=2, placeholder="…")) or " "


def _ending_kept(text: str, width: int) -> str:
    """Shortened before its last two words if they are a percentage, which must stay whole."""
    words = text.rsplit(" ", 2)
    if len(words) == 3 and words[2] == "%":
        tail = f" {words[1]} %"
        return shortened(words[0], width - len(tail)) + tail
    return shortened(text, width)
