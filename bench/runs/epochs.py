"""Weights that the runs of a study stored at single epochs, each tested once."""

import csv
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bench.runs.folder import HISTORY, RECIPE
from bench.runs.plan import Plan
from bench.runs.predicting import Predictor
from bench.runs.sources import split
from bench.screen import Say
from loaders.datasets import Dataset
from models.project import named
from models.training.checkpoint import read_card
from models.training.recipe import load
from results.errors import RecordError
from results.history import History
from results.tables import render

FILE = "epochs.csv"

Tester = Callable[[Path], tuple[float, float]]
"""From a weights file to its top-1 and loss on the test images."""


@dataclass(frozen=True)
class EpochPoint:
    """A run's stored weights of one epoch, tested: fractions. `weights` names them, so that none is tested twice."""

    run: str
    epoch: int
    train_top1: float | None
    val_top1: float | None
    test_top1: float | None
    test_loss: float | None
    published_top1: float | None
    weights: str


def tester(opened: list[Dataset], device: str, threads: int) -> Tester:
    """A tester on the test images among `opened`, in the precision that the weights were trained in."""

    def test(path: Path) -> tuple[float, float]:
        recipe = load(path.parent / RECIPE)
        splits = split(opened, recipe, lambda text: None)
        predictor = Predictor.open(path, device, recipe.configuration, threads=threads)
        evaluation = predictor.evaluate(splits.test, "auto" if named(recipe.loader).is_code else recipe.loader)
        return evaluation.top1, evaluation.loss

    return test


def stored_epochs(plan: Plan, folder: Path, test: Tester, say: Say) -> list[EpochPoint]:
    """Test every stored epoch of the runs (of `plan.epochs` where a plan has some), each once: results are kept."""
    known = _tested(folder / FILE)
    points = []
    for run in plan.runs:
        place = folder / run.name
        rows = {}
        with suppress(RecordError):
            rows = {row.epoch: row for row in History.load(place / HISTORY).epochs}
        for path in sorted(place.glob("epoch-*.safetensors")):
            epoch = int(path.stem.removeprefix("epoch-"))
            if plan.epochs and epoch not in plan.epochs:
                continue
            digest = read_card(path).digest[:16]
            if (run.name, epoch, digest) not in known:
                say(f"testing {run.name}, epoch {epoch}")
                known[run.name, epoch, digest] = test(path)
            top1, loss = known[run.name, epoch, digest]
            row = rows.get(epoch)
            published = plan.published.get(str(epoch)) if plan.epochs and plan.scale == 1 else None
            points.append(
                EpochPoint(
                    run=run.name,
                    epoch=epoch,
                    train_top1=row.train_top1 if row else None,
                    val_top1=row.val_top1 if row else None,
                    test_top1=top1,
                    test_loss=loss,
                    published_top1=published,
                    weights=digest,
                )
            )
    return points


def to_csv(points: list[EpochPoint]) -> str:
    """The file from which `stored_epochs` knows what was tested."""
    names = [f.name for f in fields(EpochPoint)]
    return render(names, [list(asdict(point).values()) for point in points], "csv")


def _tested(path: Path) -> dict[tuple[str, int, str], tuple[float, float]]:
    """What an earlier command tested; a file that cannot be read holds nothing."""
    tested = {}
    with suppress(OSError, KeyError, ValueError), path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["run"], int(row["epoch"]), row["weights"])
            tested[key] = (float(row["test_top1"]), float(row["test_loss"]))
    return tested
