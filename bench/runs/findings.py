"""What the runs of a study say together: ranks beside published ones, seeds, stored epochs; as text and as files."""

import contextlib
import csv
import io
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bench.runs.plan import FORMS, Plan, Say
from models.training import recipe as recipes
from results import runs as results_runs
from results.errors import RecordError
from results.history import History
from results.runs import RunSummary
from results.store import write_whole
from results.tables import Cell, render, to_json


@dataclass(frozen=True)
class Rank:
    """A point of a study by its published and by our accuracy; the place counts from 1, the best first."""

    point: str
    published: float
    ours: float
    published_rank: int = 0
    rank: int = 0


@dataclass(frozen=True)
class Order:
    """Whether our runs rank as the published ones did.

    Attributes:
        ranks: in the published order.
        tau: Kendall's tau-b, 1 for the same order, -1 for the reverse; None for fewer than three points or where
            all of a side are equal.
    """

    ranks: tuple[Rank, ...]
    tau: float | None


def order(pairs: Mapping[str, tuple[float, float]]) -> Order | None:
    """point -> (published, ours) as ranks; None for fewer than two points."""
    if len(pairs) < 2:
        return None
    tau = None
    if len(pairs) > 2:
        from scipy.stats import kendalltau

        theirs, ours = zip(*pairs.values(), strict=True)
        # A constant side has no order, and scipy warns of it.
        if len(set(theirs)) > 1 and len(set(ours)) > 1:
            tau = float(kendalltau(theirs, ours).statistic)
    ranks = [
        Rank(
            point,
            theirs,
            ours,
            1 + sum(other > theirs for other, _ in pairs.values()),
            1 + sum(other > ours for _, other in pairs.values()),
        )
        for point, (theirs, ours) in pairs.items()
    ]
    return Order(tuple(sorted(ranks, key=lambda rank: rank.published_rank)), tau)


@dataclass(frozen=True)
class Spread:
    """One point run with several seeds: fractions; `deviation` is the sample's."""

    point: str
    seeds: int
    mean: float
    deviation: float
    lowest: float
    highest: float


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


@dataclass(frozen=True)
class Findings:
    """All that a study's runs say together.

    Attributes:
        summaries: in the plan's order; runs that have not been started are missing.
        points: tested epochs, where they were kept.
    """

    plan: Plan
    summaries: tuple[RunSummary, ...]
    points: tuple[EpochPoint, ...] = ()

    def _figures(self) -> dict[str, list[RunSummary]]:
        named = {run.name: run for run in self.summaries}
        found: dict[str, list[RunSummary]] = {}
        for entry in self.plan.entries:
            if entry.name in named:
                found.setdefault(entry.point, []).append(named[entry.name])
        return found

    def orders(self) -> dict[str, Order]:
        """Published against our order, each form of the recipes by itself: form -> order."""
        if self.plan.epochs:
            pairs = {str(p.epoch): (p.published_top1, p.test_top1) for p in self.points}
            made = order({k: (a, b) for k, (a, b) in pairs.items() if a is not None and b is not None})
            return {FORMS[0]: made} if made else {}
        forms = {entry.point: entry.recipe.published.form for entry in self.plan.entries}
        best = self.plan.sort == "best_top1"
        groups: dict[str, dict[str, tuple[float, float]]] = {}
        for point, runs in self._figures().items():
            published = runs[0].published
            theirs = None if published is None else (published.top1_best if best else published.top1)
            ours = [x for run in runs if (x := run.best_top1 if best else run.top1) is not None]
            if theirs is not None and ours:
                groups.setdefault(forms[point], {})[point] = (theirs, statistics.fmean(ours))
        return {form: made for form, pairs in groups.items() if (made := order(pairs)) is not None}

    def spreads(self) -> list[Spread]:
        """Of the points that were run with several seeds, the best mean first."""
        found = []
        for point, runs in self._figures().items():
            values = [run.top1 for run in runs if run.top1 is not None]
            if len(values) > 1:
                mean, deviation = statistics.fmean(values), statistics.stdev(values)
                found.append(Spread(point, len(values), mean, deviation, min(values), max(values)))
        return sorted(found, key=lambda spread: -spread.mean)

    def missing(self) -> list[str]:
        """Runs that have not been started."""
        named = {run.name for run in self.summaries}
        return [entry.name for entry in self.plan.entries if entry.name not in named]

    # As text

    def text(self, format: str) -> str:
        """Everything in one of text, markdown, csv and json. csv holds the runs alone."""
        if format == "json":
            return to_json(self.to_json())
        if format == "csv":
            return _marked_csv(results_runs.table(self.summaries, "csv", self.plan.sort), self.plan.mark)
        return "\n".join(self._sections(format))

    def to_json(self) -> dict[str, Any]:
        """Plain values, unscaled."""
        runs = json.loads(results_runs.table(self.summaries, "json", self.plan.sort))
        return {
            "study": self.plan.name,
            "line": self.plan.line,
            "scale": self.plan.scale,
            "mark": self.plan.mark or None,
            "notes": list(self.plan.notes),
            "runs": runs,
            "not_run": self.missing(),
            "orders": {
                form: {"tau": found.tau, "points": [_values(rank) for rank in found.ranks]}
                for form, found in self.orders().items()
            },
            "seeds": [_values(spread) for spread in self.spreads()],
            "epochs": [_values(point) for point in self.points],
        }

    def _sections(self, format: str) -> Iterator[str]:
        markdown = format == "markdown"
        yield f"# {self.plan.name}\n\n{self.plan.line}\n" if markdown else f"{self.plan.name}: {self.plan.line}\n"
        if self.plan.mark:
            yield f"**{self.plan.mark}**\n" if markdown else f"{self.plan.mark}\n"
        if self.summaries:
            yield results_runs.table(self.summaries, format, self.plan.sort)
        for form, found in self.orders().items():
            words = (
                f"Published order and ours ({form} recipes)" if len(self.orders()) > 1 else "Published order and ours"
            )
            if found.tau is not None:
                words += f", Kendall's tau {found.tau:.2f}"
            rows: list[list[Cell]] = [
                [r.published_rank, r.rank, r.point, f"{100 * r.published:.2f}", f"{100 * r.ours:.2f}"]
                for r in found.ranks
            ]
            named = "epochs" if self.plan.epochs else "run"
            headers: tuple[str, ...] = ("published", "ours", named, "published [%]", "ours [%]")
            yield from self._titled(words, render(headers, rows, format), markdown)
        if self.spreads():
            headers = ("run", "seeds", "top1 mean [%]", "deviation", "lowest", "highest")
            rows = [
                [s.point, s.seeds, *(f"{100 * x:.2f}" for x in (s.mean, s.deviation, s.lowest, s.highest))]
                for s in self.spreads()
            ]
            yield from self._titled("Seeds", render(headers, rows, format), markdown)
        if self.points:
            headers = ("run", "epoch", "train [%]", "validation [%]", "test [%]", "published [%]")
            rows = [
                [p.run, p.epoch, *map(_percent, (p.train_top1, p.val_top1, p.test_top1, p.published_top1))]
                for p in self.points
            ]
            yield from self._titled("Stored epochs, tested", render(headers, rows, format), markdown)
        for note in [*self.plan.notes, *([f"not run yet: {', '.join(self.missing())}"] if self.missing() else [])]:
            yield f"Note: {note}\n" if markdown else f"note: {note}"

    def _titled(self, title: str, table: str, markdown: bool) -> Iterator[str]:
        mark = f" ({self.plan.mark})" if self.plan.mark else ""
        yield f"## {title}{mark}\n" if markdown else f"{title}{mark}"
        yield table

    # As files

    def save(self, folder: Path, charts: bool = True) -> list[Path]:
        """Write table.md, table.csv, results.json and, where epochs were tested, epochs.csv; and the pictures.

        Raises:
            RecordError: the folder cannot be written, or a run's history is damaged.
        """
        written = []
        for name, format in (("table.md", "markdown"), ("table.csv", "csv"), ("results.json", "json")):
            written.append(folder / name)
            write_whole(written[-1], self.text(format).encode())
        if self.points:
            names = [f.name for f in fields(EpochPoint)]
            rows: list[list[Cell]] = [[getattr(point, name) for name in names] for point in self.points]
            written.append(folder / "epochs.csv")
            write_whole(written[-1], _marked_csv(render(names, rows, "csv"), self.plan.mark).encode())
        if charts and self.summaries:
            written += self._draw(folder)
        return written

    def _draw(self, folder: Path) -> list[Path]:
        from results.pictures import studies

        histories = {run.name: studies.load_history(folder / run.name) for run in self.summaries}
        title = self.plan.name + (f" ({self.plan.mark})" if self.plan.mark else "")
        ranked = results_runs.ranked(self.summaries, self.plan.sort)
        written = studies.draw(ranked, {k: h for k, h in histories.items() if h is not None}, folder, title)
        if self.points:
            from results.pictures.curves import accuracy_over_epochs
            from results.pictures.style import save

            ours: dict[str, dict[int, float]] = {}
            theirs: dict[str, dict[int, float]] = {}
            for point in self.points:
                for group, value in ((ours, point.test_top1), (theirs, point.published_top1)):
                    if value is not None:
                        group.setdefault(point.run, {})[point.epoch] = value
            if ours:
                figure = accuracy_over_epochs(ours, theirs, "test", f"{title}: test accuracy over epochs")
                written.append(save(figure, folder / "epochs.png"))
        return written


def _values(thing: Any) -> dict[str, Any]:
    return {f.name: getattr(thing, f.name) for f in fields(thing)}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _marked_csv(table: str, mark: str) -> str:
    """A trial's rows say that they are one: a reader of the file sees no heading."""
    if not mark:
        return table
    head, *rows = csv.reader(io.StringIO(table))
    return render([*head, "scaled"], [[*row, mark] for row in rows], "csv")


# Stored epochs

Tester = Callable[[Path], tuple[float, float]]


def tester(data: Path | None, train: tuple[str, ...], val: str | None, device: str, threads: int) -> Tester:
    """A function from a weights file to its top-1 and loss on the test images, in the precision it was trained in.

    Raises:
        UsageError, DataError: see `material`.
    """
    from bench.runs import predicting, sources

    found = sources.open_folders(data, train, val)

    def test(path: Path) -> tuple[float, float]:
        recipe = recipes.load(path.parent / "recipe.toml")
        splits = sources.split(found, recipe, lambda text: None)
        opened = predicting.open_checkpoint(path, device, recipe.configuration, threads=threads)
        evaluation = predicting.evaluate_on(opened, splits.test, recipe.loader)
        return evaluation.top1, evaluation.loss

    return test


def stored_epochs(plan: Plan, folder: Path, make: Callable[[], Tester], say: Say) -> list[EpochPoint]:
    """Test every stored epoch of the runs (of `plan.epochs` where a plan has some), each once: results are kept.

    Args:
        make: called only where there is something to test.
    """
    from models.training.checkpoint import read_card

    known = _tested(folder / "epochs.csv")
    test: Tester | None = None
    points = []
    for entry in plan.entries:
        place = folder / entry.name
        rows = {}
        with contextlib.suppress(RecordError):
            rows = {row.epoch: row for row in History.load(place / "history.csv").epochs}
        for path in sorted(place.glob("epoch-*.safetensors")):
            epoch = int(path.stem.removeprefix("epoch-"))
            if plan.epochs and epoch not in plan.epochs:
                continue
            digest = read_card(path).digest[:16]
            if (entry.name, epoch, digest) not in known:
                test = test or make()
                say(f"testing {entry.name}, epoch {epoch}")
                known[entry.name, epoch, digest] = test(path)
            top1, loss = known[entry.name, epoch, digest]
            row = rows.get(epoch)
            published = (plan.published or {}).get(str(epoch)) if plan.epochs and plan.scale == 1 else None
            points.append(
                EpochPoint(
                    run=entry.name,
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


def _tested(path: Path) -> dict[tuple[str, int, str], tuple[float, float]]:
    """What an earlier command tested; a file that cannot be read holds nothing."""
    found = {}
    with contextlib.suppress(OSError, KeyError, ValueError), path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["run"], int(row["epoch"]), row["weights"])
            found[key] = (float(row["test_top1"]), float(row["test_loss"]))
    return found
