"""Pictures of several runs beside each other, as files in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from results.errors import RecordError
from results.history import History
from results.pictures.bars import bars, sizes
from results.pictures.curves import OVERLAYS, overlay
from results.pictures.style import save
from results.runs import RunSummary


def load_history(folder: Path) -> History | None:
    """The epochs of a run's folder; None where it has not finished one.

    Raises:
        RecordError: the file is damaged.
    """
    path = folder / "history.csv"
    history = History.load(path) if path.is_file() else None
    return history if history is not None and history.epochs else None


def draw(
    summaries: Sequence[RunSummary], histories: Mapping[str, History], folder: Path, title: str = ""
) -> list[Path]:
    """Write overlays of the epochs, bars of accuracy, times and parameters, and the sizes; returns the files.

    Args:
        summaries: in the order of the bars.
        histories: run -> its epochs; runs without any are left out.
        folder: is made where it is missing.
        title: stands in every picture, before what it shows.

    Raises:
        RecordError: a file cannot be written.
    """
    written: list[Path] = []
    head = f"{title}: " if title else ""

    def write(figure: Figure, name: str) -> None:
        written.append(save(figure, folder / f"{name}.png"))

    # Epochs are tested on the test images only where a run holds nothing out.
    kinds = {run.evaluated for run in summaries}
    evaluated = "validation or test" if len(kinds) > 1 else "test" if kinds == {"test"} else "validation"
    drawn = {run.name: histories[run.name] for run in summaries if run.name in histories}
    published = {run.name: x for run in summaries if run.name in drawn and (x := _published(run)) is not None}
    for what, (words, _) in OVERLAYS.items() if drawn else ():
        theirs = published if what == "test_accuracy" else None
        write(overlay(drawn, what, theirs, evaluated, head + words.format(evaluated)), what)

    # The best epoch was chosen by looking at these images.
    best = "ours, best epoch" if evaluated == "test" else "best epoch, validation"
    accuracy = {run.name: {"ours": run.top1, best: run.best_top1, "published": _published(run)} for run in summaries}
    if all(row["published"] is None for row in accuracy.values()):
        accuracy = {name: {"ours": row["ours"], best: row[best]} for name, row in accuracy.items()}
    write(bars(accuracy, "top-1 accuracy", "1", f"{head}top-1 accuracy"), "accuracy")
    intervals = {run.name: {"warm": run.warm_interval} for run in summaries if run.warm_interval is not None}
    for name, label, unit, series, figure in (
        ("training_time", "training time", "s", "ours", "train_seconds"),
        # The first image takes so much longer than the next that in one picture the latter would not be seen.
        ("inference_time", "time for one image, warm", "s", "warm", "inference_warm_seconds"),
        ("inference_time_cold", "time for the first image", "s", "cold", "inference_cold_seconds"),
        ("parameters", "parameters", "parameters", "parameters", "params"),
    ):
        rows = {run.name: {series: getattr(run, figure)} for run in summaries}
        write(bars(rows, label, unit, f"{head}{label}", intervals if name == "inference_time" else None), name)
    write(sizes(summaries, f"{head}sizes"), "sizes")
    return written


def _published(run: RunSummary) -> float | None:
    return None if run.published is None else (run.published.top1 or run.published.top1_best)


def load(folders: Sequence[Path]) -> tuple[list[RunSummary], dict[str, History]]:
    """Summaries and epochs of runs' folders; a name that comes twice is told apart by its folder's path.

    Raises:
        RecordError: a folder has no summary, or a damaged one.
    """
    found = [(folder, RunSummary.load(folder)) for folder in folders]
    names = [run.name for _, run in found]
    summaries = [replace(run, name=str(folder)) if names.count(run.name) > 1 else run for folder, run in found]
    if len({run.name for run in summaries}) < len(summaries):
        raise RecordError("a run is named twice; name each once")
    histories = {
        run.name: history
        for folder, run in zip(folders, summaries, strict=True)
        if (history := load_history(folder)) is not None
    }
    return summaries, histories
