"""The look of all pictures, and how a figure becomes a file or part of a page."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from results.errors import RecordError
from results.store import write_whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart under the common colour blindnesses; its yellow is too pale for lines."""

_FONT = "DejaVu Sans"

_STYLE: dict[str, Any] = {
    # Class and run names are shown as they are, not read as formulas.
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#666666",
    "axes.facecolor": "white",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "white",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.0,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "#dddddd",
    "lines.linewidth": 1.5,
    "savefig.facecolor": "white",
    "svg.hashsalt": "pixbench",
    "svg.fonttype": "path",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
}

# Colours that no picture uses otherwise, which `inline` turns into the page's own.
INK, FAINT, GRID = "#010203", "#040506", "#070809"
_THEMED = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"}
# The same by the names that pictures outside of pages use.
_THEMED |= {"#222222": "var(--ink)", "#444444": "var(--ink)", "#000000": "var(--ink)", "#dddddd": "var(--grid)"}

PAGE: Mapping[str, Any] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": FAINT,
    "grid.color": GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "none",
}
"""What a picture inside a page does differently: it has the colours and the font of the page."""

_THEME: ContextVar[Mapping[str, Any]] = ContextVar("theme")


# Fonts whose names have one of these words are asked first: they have most scripts.
_BROAD = ("cjk", "wenquanyi", "fallback", "unifont", "unicode", "noto sans", "symbola", "emoji")
_FALLBACKS: list[str] = []
"""Fonts for characters that the usual one lacks, found as they are needed."""


def shown(text: str) -> str:
    """The text as a picture can show it: what no installed font has is spelled out, such as U+732B for a character.

    Text that stays text, in pictures inside a page, is left to the reader's fonts.
    """
    if text.isascii() or matplotlib.rcParams["svg.fonttype"] == "none":
        return text
    letters = [letter if _family(letter) else _spelled(letter) for letter in text]
    if _FALLBACKS and matplotlib.rcParams["font.family"][0] == _FONT:
        matplotlib.rcParams["font.family"] = [_FONT, *_FALLBACKS]
    return "".join(letters)


def _spelled(letter: str) -> str:
    # Joiners and selectors of a variant are nothing by themselves.
    return "" if unicodedata.category(letter) == "Cf" or letter in "\ufe0e\ufe0f" else f"U+{ord(letter):04X}"


@cache
def _family(letter: str) -> str:
    """The family of an installed font that has a character, the usual one's if it does; "" if none has it."""
    if letter.isspace() or ord(letter) in _characters(font_manager.findfont(_FONT)):
        return _FONT
    fonts = [font for font in font_manager.fontManager.ttflist if "last resort" not in font.name.lower()]
    for font in sorted(fonts, key=lambda font: not any(word in font.name.lower() for word in _BROAD)):
        if ord(letter) in _characters(font.fname):
            if font.name not in _FALLBACKS:
                _FALLBACKS.append(font.name)
            return font.name
    return ""


@cache
def _characters(path: str) -> frozenset[int]:
    """Code points that a font file has outlines for; none where it cannot be used."""
    try:
        font = FT2Font(path)
        # Fonts of coloured bitmaps cannot be scaled, and matplotlib draws nothing of them.
        return frozenset(map(int, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


@contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield


@contextmanager
def styled(theme: Mapping[str, Any] | None = None) -> Iterator[None]:
    """This project's style with the changes of `theme`, around a block or a function that draws.

    A theme also holds for what is drawn inside without one.
    """
    theme = _THEME.get({}) if theme is None else theme
    token = _THEME.set(theme)
    try:
        settings: Any = {**_STYLE, "font.family": [_FONT, *_FALLBACKS], **theme}
        with matplotlib.rc_context(settings):
            yield
    finally:
        _THEME.reset(token)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


@styled()
def save(figure: Figure, path: Path | str, dpi: int = 130) -> Path:
    """Writes the figure as its file's ending says, .png or .svg, the whole file or nothing.

    Neither carries a date or a program's name. Raises RecordError for another ending or a place that cannot be
    written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    # None leaves an entry out that would otherwise differ from day to day or version to version.
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    if kind not in metadata:
        raise RecordError(f"{path}: pictures are written as .png or .svg")
    data = io.BytesIO()
    with _no_glyph_warnings():
        figure.savefig(data, format=kind, dpi=dpi, metadata=metadata[kind])
    write_whole(path, data.getvalue())
    return path


@styled()
def svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text."""
    data = io.StringIO()
    with _no_glyph_warnings():
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return data.getvalue()


def inline(figure: Figure, title: str) -> str:
    """The figure as SVG markup for a page: no size of its own but a largest one, and the page's colours and font."""
    with styled(PAGE):
        markup = svg(figure)
    head, rest = markup[markup.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    width = float(box[1].split()[2])
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.S)
    for colour, variable in _THEMED.items():
        rest = rest.replace(colour, variable)
    # The page's font: matplotlib's own is seldom installed.
    rest = re.sub(r"font: ([^;\"]*?)(\d[\d.]*)px [^;\"]*", r"font: \1\2px system-ui, sans-serif", rest)
    words = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return (
        f'<svg viewBox="{box[1]}" role="img" aria-label="{words}" style="max-width:{1.35 * width:.0f}px" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
    )


def colour(number: int) -> str:
    """The colour of series `number`, counted from 0."""
    return COLOURS[number % len(COLOURS)]


def label_axes(axes: Axes, title: str | None, x: str, y: str) -> None:
    """Title, names of both axes, and a grid."""
    if title:
        axes.set_title(shortened(title, 80))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True)


def whole_numbers(axis: Axis, **options: Any) -> None:
    """Ticks at whole numbers only; `options` of matplotlib's MaxNLocator."""
    axis.set_major_locator(MaxNLocator(integer=True, **options))


def plain_logarithms(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers, none between the powers."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(axes: Axes) -> None:
    """A legend under the axes, where it hides nothing; none for a single line."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    longest = max(len(text) for text in labels)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    # In inches: what a letter takes on average, and the line before and the space after each label.
    columns = max(1, min(4, len(labels), int((figure.get_figwidth() - 0.3) / (0.066 * longest + 0.6))))
    # The figure grows with the legend, so that the axes keep their height.
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, -(-len(labels) // columns) - 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def shortened(text: str, length: int = 28) -> str:
    """The text, its middle left out where it is too long: names of a family differ at their ends."""
    text = shown(" ".join(text.split()))
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def legible(label: str) -> str:
    """A label that matplotlib shows: it leaves those with a leading underscore out of the legend."""
    return f" {label}" if label.startswith("_") else label
