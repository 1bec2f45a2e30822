"""What pictures hold, that the same one is the same bytes, and that awkward input neither fails nor warns."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from results.errors import RecordError
from results.history import Epoch, History, Step
from results.pictures import bars, curves, images, style


def run(epochs: int, top1: float = 0.8, steps: int = 0, every: int = 1) -> History:
    rows = []
    for n in range(1, epochs + 1):
        part = n / epochs
        rated = n % every == 0
        loss, right, near = (2.3 - part, top1 * part, min(1.0, top1 * part + 0.1)) if rated else (None, None, None)
        lr, trained = 0.1 * (1 - part), 2.3 - 2 * part
        rows.append(Epoch(n, lr, 32, trained, part, loss, right, near, 100, 2.0, 0.5, 1.0, 0.5, 66.0, 10))
    made = [Step(n, 1 + n * epochs // (steps + 1), 0.1, 2.3 / n, n / (steps + 1)) for n in range(1, steps + 1)]
    return History(rows, made)


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        legend = axes.get_legend()
        found += [text.get_text() for text in legend.get_texts()] if legend else []
        found += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    return [text for text in found if text]


SIZES = [
    SimpleNamespace(name="baseline", weight_bytes=248024, checkpoint_bytes=502756, params=62006),
    SimpleNamespace(name="DenseNet-121", weight_bytes=28382000, checkpoint_bytes=None, params=6956298),
    SimpleNamespace(name="failed", weight_bytes=None, checkpoint_bytes=None, params=None),
]
PICTURES: dict[str, Callable[[], Figure]] = {
    "curves": lambda: curves.curves(run(5, steps=40), "a run"),
    "overlay": lambda: curves.overlay({"a": run(3), "b": run(4)}, published={"a": 0.9}),
    "confusion": lambda: images.confusion([[5, 1], [2, 9]], ["cat", "dog"]),
    "bars": lambda: bars.bars({"a": {"train": 0.9, "test": None}}, "accuracy", "1"),
    "sizes": lambda: bars.sizes(SIZES),
    "lr_finder": lambda: curves.lr_finder([1e-4, 1e-3, 1e-2], [2.0, 1.0, 9.0], [2.0, 1.2, 5.0], 1e-3),
    "schedule": lambda: curves.schedule([0.1, 0.2, 0.1]),
    "image_grid": lambda: images.image_grid(np.zeros((3, 8, 8, 3), np.uint8), ["a", "b", "cat -> dog 87 %"]),
    "accuracy_over_epochs": lambda: curves.accuracy_over_epochs({"a": {5: 0.5, 10: 0.6}}, {"a": {5: 0.55}}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_picture_is_the_same_bytes(tmp_path: Path, name: str) -> None:
    figures = [PICTURES[name]() for _ in range(2)]
    for ending in ("png", "svg"):
        paths = [style.save(figure, tmp_path / f"{i}.{ending}", dpi=40) for i, figure in enumerate(figures)]
        first, second = (path.read_bytes() for path in paths)
        assert first == second
        assert b"Matplotlib v" not in first
    assert b"<dc:date>" not in first
    with Image.open(tmp_path / "0.png") as image:
        assert min(image.size) > 50
        assert not {key for key in image.info if key != "dpi"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "0.svg", "1.png", "1.svg"]


def test_other_endings(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"written as \.png or \.svg"):
        style.save(curves.schedule([1.0]), tmp_path / "a.gif")


def test_settings_are_left_alone() -> None:
    # Reading the setting "backend" chooses one and imports pyplot.
    names = [name for name in matplotlib.rcParams if name != "backend"]
    before = {name: matplotlib.rcParams[name] for name in names}
    curves.schedule([1.0])
    assert {name: matplotlib.rcParams[name] for name in names} == before


def test_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys; from results.pictures import curves, page, studies, style, trend;"
        f"style.save(curves.schedule([1.0, 0.5]), {str(tmp_path / 'a.png')!r}, dpi=30);"
        "print([m for m in ('torch', 'matplotlib.pyplot', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == "[]"


def test_curves() -> None:
    figure = curves.curves(run(6, steps=30), evaluated="test")
    assert len(figure.axes) == 6
    found = texts(figure)
    assert {"train", "test", "train top-1", "test top-1", "test top-5", "best test 80.00 % at 6"} <= set(found)
    assert {"epoch", "step", "loss", "accuracy [%]", "learning rate"} <= set(found)
    assert len(curves.curves(run(6)).axes) == 3
    assert len(curves.curves(History(steps=run(2, steps=4).steps)).axes) == 3
    with pytest.raises(RecordError, match="without rows"):
        curves.curves(History())


def test_epochs_without_evaluation_leave_no_gap() -> None:
    axes = curves.curves(run(6, every=3)).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [6, 2]  # type: ignore[arg-type]
    curves.curves(run(2, every=9))


def test_many_steps_are_drawn_as_few_points() -> None:
    axes = curves.curves(run(2, steps=5000)).axes[3]
    assert max(len(line.get_xdata()) for line in axes.lines) <= 600  # type: ignore[arg-type]
    assert {"range", "mean"} <= set(texts(curves.curves(run(2, steps=5000))))


@pytest.mark.parametrize("what", ["test_loss", "test_accuracy", "train_test"])
def test_overlay(what: str) -> None:
    figure = curves.overlay({f"run {i}": run(3, 0.5) for i in range(9)}, what, published={"run 1": 0.9567})
    found = texts(figure)
    assert ("run 1 published 95.67 %" in found) == (what != "test_loss")
    assert sum(text.startswith("run ") for text in found) >= 9
    if what == "train_test":
        assert {"run 3 train", "run 3 test"} <= set(found)
    # Two runs of one colour differ in their dashes.
    lines = figure.axes[0].lines
    styles = {(line.get_color(), str(line.get_linestyle()), line.is_dashed()) for line in lines}
    assert what == "train_test" or len(styles) >= 9


def test_overlay_errors() -> None:
    with pytest.raises(RecordError, match="known: test_loss, test_accuracy, train_test"):
        curves.overlay({"a": run(1)}, "accuracy")
    with pytest.raises(RecordError, match="no run"):
        curves.overlay({})
    with pytest.raises(RecordError, match="published figures for b"):
        curves.overlay({"a": run(1)}, published={"b": 0.5})


def test_confusion_of_few_classes_has_numbers() -> None:
    figure = images.confusion([[50, 3], [12, 935]], ["cat", "dog"], "test")
    found = texts(figure)
    assert {"50", "3", "12", "935", "cat", "dog", "true class", "predicted class"} <= set(found)
    assert "test: top-1 98.50 % of 1000 images" in found


def test_confusion_of_a_hundred_classes_has_names_that_do_not_touch(tmp_path: Path) -> None:
    names = [f"great white shark, man-eater {i}" for i in range(100)]
    figure = images.confusion(np.eye(100, dtype=int), names)
    axes = figure.axes[0]
    assert not axes.texts
    style.save(figure, tmp_path / "a.png", dpi=60)
    for labels, side in ((axes.get_yticklabels(), "y"), (axes.get_xticklabels(), "x")):
        assert len(labels) == 100
        assert all(len(label.get_text()) <= 18 for label in labels)
        boxes = [label.get_window_extent() for label in labels]
        ends = sorted((getattr(b, f"{side}0"), getattr(b, f"{side}1")) for b in boxes)
        assert all(a[1] <= b[0] + 1 for a, b in zip(ends[:-1], ends[1:], strict=True))
        assert min(min(b.x0, b.y0) for b in boxes) >= 0


def test_confusion_of_a_thousand_classes() -> None:
    figure = images.confusion(np.eye(1000, dtype=int), [str(i) for i in range(1000)])
    assert len(figure.axes[0].get_xticklabels()) < 30
    assert "no images" in texts(images.confusion([[0, 0], [0, 0]], ["a", "b"]))


def test_bars_say_what_is_missing() -> None:
    rows: dict[str, dict[str, float | None]] = {
        "resnet18": {"train": 0.973, "test": 0.7824},
        "killed": {"train": None},
        "nan": {"test": float("nan")},
    }
    found = texts(bars.bars(rows, "accuracy", "1"))
    assert found.count("missing") == 4
    assert {"97.30", "78.24", "accuracy [%]", "resnet18", "train", "test"} <= set(found)
    assert "training [h]" in texts(bars.bars({"a": {"": 40397.59}, "b": {"": 300.0}}, "training", "s"))
    assert "parameters [M]" in texts(bars.bars({"a": {"": 4.9e6}}, "parameters", "parameters"))
    bars.bars({"a": {"": None}}, "accuracy", "1")
    bars.bars({"a": {"": -0.02}, "b": {"": 0.1}}, "difference", "1")
    for nothing in ({}, {"a": {}}):
        with pytest.raises(RecordError, match="no value"):
            bars.bars(nothing, "accuracy")


def test_sizes_keep_weights_and_checkpoint_apart() -> None:
    figure = bars.sizes(SIZES)
    found = texts(figure)
    assert {"weights only", "full checkpoint", "parameters (right axis)", "size [MiB]", "parameters [M]"} <= set(found)
    assert found.count("missing") == 3
    assert "baseline\n62.0 k parameters" in found
    assert "failed\nparameters missing" in found
    left, line = figure.axes
    assert len(left.patches) == 6
    np.testing.assert_allclose(np.array(line.lines[0].get_ydata()), np.array([0.062006, 6.956298, np.nan]))
    bars.sizes(SIZES[2:])


def test_lr_finder() -> None:
    figure = curves.lr_finder(np.geomspace(1e-6, 10, 50).tolist(), [2.0] * 49 + [float("inf")], None, 0.03)
    assert "suggested 0.03" in texts(figure)
    assert figure.axes[0].get_xscale() == "log"
    with pytest.raises(RecordError, match="2 learning rates for 1 losses"):
        curves.lr_finder([0.1, 0.2], [1.0])
    with pytest.raises(RecordError, match="must be above 0"):
        curves.lr_finder([0.0, 0.2], [1.0, 2.0])


def test_image_grid() -> None:
    batch = np.random.default_rng(0).random((16, 32, 32, 3), dtype=np.float32)
    figure = images.image_grid(batch, [f"class {i}" for i in range(16)], title="one batch")
    assert len(figure.axes) == 16
    rows = {round(axes.get_position().y0, 6) for axes in figure.axes}
    assert len(rows) == 2
    np.testing.assert_array_equal(figure.axes[9].images[0].get_array(), batch[9])
    assert len(images.image_grid(batch[:5]).axes) == 5
    assert len(images.image_grid(batch[:5], columns=2).axes) == 5


def test_titles_of_mistakes_fit(tmp_path: Path) -> None:
    title = images.mistake("great white shark, man-eater", "chiton, coat-of-mail shell", 0.873)
    assert title == "great white shark, man-eater -> chiton, coat-of-mail shell 87 %"
    figure = images.image_grid(np.zeros((8, 32, 32, 3), np.uint8), [title, *["cat -> dog 100 %"] * 7])
    style.save(figure, tmp_path / "a.png", dpi=100)
    shown = [axes.title.get_text() for axes in figure.axes]
    assert shown[0].endswith(" 87 %")
    assert shown[1] == "cat\n-> dog 100 %"
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(a.x1 < b.x0 for a, b in zip(boxes[:-1], boxes[1:], strict=True))
    assert max(box.y1 for box in boxes) <= figure.bbox.y1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((2, 8, 8), np.uint8), "images of shape 2 x 8 x 8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "images of shape 0 x 8 x 8 x 3"),
        (np.zeros((2, 3, 8, 8), np.uint8), "images of shape 2 x 3 x 8 x 8"),
        (np.zeros((2, 8, 8, 3), np.int64), "images of int64"),
        (np.full((2, 8, 8, 3), -2.1), "images from -2.1 to -2.1; undo their normalisation"),
        (np.full((2, 8, 8, 3), np.nan), "images from nan to nan"),
    ],
)
def test_not_images(wrong: np.ndarray, said: str) -> None:
    with pytest.raises(RecordError) as caught:
        images.image_grid(wrong)
    assert said in str(caught.value)


def test_grid_arguments() -> None:
    pair = np.full((2, 8, 8, 3), 1.0005)
    shown = images.image_grid(pair).axes[0].images[0].get_array()
    assert shown is not None
    assert shown.max() == 1.0
    with pytest.raises(RecordError, match="1 titles for 2 images"):
        images.image_grid(pair, ["a"])
    with pytest.raises(RecordError, match="grid of 0 columns"):
        images.image_grid(pair, columns=0)


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    awkward = ["$x^$", "_hidden", "a\nb", "x" * 90]
    figure = curves.overlay({name: run(2) for name in awkward}, title="$\\frac$")
    style.save(figure, tmp_path / "a.png", dpi=40)
    assert len(figure.legends[0].get_texts()) == 4
    style.save(images.confusion(np.eye(4, dtype=int), awkward), tmp_path / "b.svg")
    style.save(bars.bars({name: {"$1$": 1.0, "_b": 2.0} for name in awkward}, "x"), tmp_path / "c.png", dpi=40)


def test_accuracy_over_epochs() -> None:
    figure = curves.accuracy_over_epochs({"baseline": {20: 0.6481, 5: 0.572}}, {"baseline": {5: 0.572}})
    assert {"baseline", "baseline published", "64.81 % at 20", "epochs trained"} <= set(texts(figure))
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [5, 20])
    with pytest.raises(RecordError, match="no accuracy"):
        curves.accuracy_over_epochs({"a": {}})


def test_a_range_test_shows_the_whole_raw_line_up_to_its_divergence() -> None:
    lrs = [10 ** (i / 10 - 5) for i in range(40)]
    raw = [2.4 + (0.8 if i == 5 else 0.1 * (i % 2)) - 0.04 * i for i in range(35)] + [3.0, 9.0, 40.0, 90.0, 200.0]
    smooth = [2.45 - 0.04 * i for i in range(35)] + [1.3, 2.0, 6.0, 14.0, 33.0]
    low, high = curves.lr_finder(lrs, raw, smooth).axes[0].get_ylim()
    assert low < min(raw[:35])
    assert max(raw[:35]) < high < 12
    noise = [2.4, 2.9, 2.1, 2.6, 2.2, 2.7]
    low, high = curves.lr_finder(lrs[:6], noise, [2.4, 2.5, 2.45, 2.46, 2.42, 2.44]).axes[0].get_ylim()
    assert low < 2.1
    assert high > 2.9
    assert "no rate suggested: x" in " ".join(texts(curves.lr_finder(lrs, raw, smooth, caution="no rate suggested: x")))


def test_a_bar_with_an_interval_has_error_bars_and_no_more_digits_than_it_supports() -> None:
    rows = {"a": {"warm": 0.0040683}, "b": {"warm": 0.002}}
    figure = bars.bars(rows, "time", "s", intervals={"a": {"warm": (0.0037, 0.0045)}})
    shown = texts(figure)
    assert "4.1" in shown
    assert "2" in shown
    ends = [segment[:, 0].tolist() for line in figure.axes[0].collections for segment in line.get_segments()]
    assert ends == [pytest.approx([3.7, 4.5])]


def test_parameters_are_points_that_join_no_networks() -> None:
    (line,) = bars.sizes(SIZES).axes[1].lines
    assert line.get_linestyle() == "None"
    assert line.get_marker() not in ("", "None")


def test_one_epoch_shows_training_and_test_with_different_marks() -> None:
    axes = curves.overlay({"a": run(1)}, "train_test").axes[0]
    assert len({(line.get_marker(), line.get_markerfacecolor()) for line in axes.lines}) == 2


def test_published_figures_never_move_the_axis_and_are_named_beyond_it() -> None:
    histories = {"a": run(3, 0.2), "b": run(3, 0.3), "c": run(3, 0.25)}
    plain = curves.overlay(histories).axes[0].get_ylim()
    figure = curves.overlay(histories, published={"a": 0.93, "b": 0.95, "c": 0.2})
    (axes,) = figure.axes
    assert axes.get_ylim() == plain
    shown = texts(figure)
    assert "published above\n93.00 to 95.00 %" in shown
    assert "published\n20.00 %" in shown
    assert "a published 93.00 %" in shown
    ticks = [line for line in axes.lines if "published" in str(line.get_label())]
    assert [line.get_ydata().tolist() for line in ticks if len(line.get_ydata())] == [[20.0]]
    figure.draw_without_rendering()
    assert axes.get_position().height > 0.6


NAMES = ["猫", "犬小屋の写真がとても長い名前", "قطة", "😀 face", "👨‍👩‍👧", "cat"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: images.confusion(np.eye(6, dtype=int), NAMES, "データ"),
        lambda: images.image_grid(np.zeros((6, 8, 8, 3)), NAMES, title="データ"),
        lambda: images.image_grid(np.zeros((1, 8, 8, 3)), [images.mistake("猫", "犬", 0.5)]),
        lambda: bars.bars({name: {"train": 0.5} for name in NAMES}, "accuracy", "1"),
        lambda: curves.overlay({name: run(2) for name in NAMES}),
    ],
)
def test_names_in_other_scripts_are_drawn_without_a_word(
    draw: Callable[[], Figure], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Where no installed font has a character, as its code."""
    figure = draw()
    style.save(figure, tmp_path / "x.png")
    style.inline(figure, "x")
    assert not recwarn.list
    lacking = [name for name in "猫犬" if not style._family(name)]
    assert any(f"U+{ord(name):04X}" in text for text in texts(figure) for name in lacking) or not lacking


def test_characters_come_from_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mathematical script letters, which the fonts of matplotlib have and its usual one lacks."""
    letter = "𝒜"
    monkeypatch.setattr(style, "_FALLBACKS", [])
    style._family.cache_clear()
    with style.styled():
        assert style.shown("cat") == "cat"
        assert style.shown(letter) == letter
        family = matplotlib.rcParams["font.family"]
        assert family == ["DejaVu Sans", *style._FALLBACKS]
        assert len(family) == 2
    with style.styled(style.PAGE):
        assert style.shown("猫") == "猫"
    with style.styled():
        # A private character, which no font should have.
        assert style.shown("a\U0010fffd") == "aU+10FFFD"
    style._family.cache_clear()
