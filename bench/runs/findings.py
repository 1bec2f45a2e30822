"""What the runs of a study show together: ranks beside published ones, seeds, stored epochs."""

import csv
import io
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.runs import epochs
from bench.runs.epochs import EpochPoint
from bench.runs.plan import FORMS, Plan
from results import runs as results_runs
from results.pictures import studies
from results.pictures.curves import accuracy_over_epochs
from results.pictures.style import save
from results.runs import RunSummary
from results.store import write_whole
from results.tables import Cell, render, to_json


@dataclass(frozen=True)
class Rank:
    """A point of a study by its published and by our accuracy; the place counts from 1, the best first."""

    point: str
    published: float
    ours: float
    published_rank: int
    rank: int


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
    theirs, ours = zip(*pairs.values(), strict=True)
    tau = None
    # A constant side has no order, and scipy warns of it.
    if len(pairs) > 2 and len(set(theirs)) > 1 and len(set(ours)) > 1:
        from scipy.stats import kendalltau

        tau = float(kendalltau(theirs, ours).statistic)
    ranks = [
        Rank(point, a, b, 1 + sum(other > a for other in theirs), 1 + sum(other > b for other in ours))
        for point, (a, b) in pairs.items()
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
class Findings:
    """All that a study's runs say together.

    Attributes:
        summaries: in the plan's order; runs that have not been started are missing.
        points: tested epochs, where they were kept.
    """

    plan: Plan
    summaries: tuple[RunSummary, ...]
    points: tuple[EpochPoint, ...] = ()

    def _by_point(self) -> dict[str, list[RunSummary]]:
        named = {summary.name: summary for summary in self.summaries}
        points: dict[str, list[RunSummary]] = {}
        for run in self.plan.runs:
            if run.name in named:
                points.setdefault(run.point, []).append(named[run.name])
        return points

    def orders(self) -> dict[str, Order]:
        """Published against our order, each form of the recipes by itself: form -> order."""
        pairs: dict[str, dict[str, tuple[float, float]]] = {}
        if self.plan.epochs:
            for tested in self.points:
                if tested.published_top1 is not None and tested.test_top1 is not None:
                    both = (tested.published_top1, tested.test_top1)
                    pairs.setdefault(FORMS[0], {})[str(tested.epoch)] = both
        else:
            forms = {run.point: run.recipe.published.form for run in self.plan.runs}
            best = self.plan.sort == "best_top1"
            for point, runs in self._by_point().items():
                published = runs[0].published
                theirs = None if published is None else (published.top1_best if best else published.top1)
                ours = [x for run in runs if (x := run.best_top1 if best else run.top1) is not None]
                if theirs is not None and ours:
                    pairs.setdefault(forms[point], {})[point] = (theirs, statistics.fmean(ours))
        return {form: made for form, values in pairs.items() if (made := order(values)) is not None}

    def spreads(self) -> list[Spread]:
        """Of the points that were run with several seeds, the best mean first."""
        spreads = []
        for point, runs in self._by_point().items():
            values = [run.top1 for run in runs if run.top1 is not None]
            if len(values) > 1:
                mean, deviation = statistics.fmean(values), statistics.stdev(values)
                spreads.append(Spread(point, len(values), mean, deviation, min(values), max(values)))
        return sorted(spreads, key=lambda spread: -spread.mean)

    def not_run(self) -> list[str]:
        """Names of the runs that have not been started."""
        named = {summary.name for summary in self.summaries}
        return [run.name for run in self.plan.runs if run.name not in named]

    def text(self, format: str) -> str:
        """Everything in one of text, markdown, csv and json. csv holds the runs alone."""
        if format == "json":
            return to_json(self.to_json())
        if format == "csv":
            return _marked_csv(results_runs.table(self.summaries, "csv", self.plan.sort), self.plan.mark)
        return "\n".join(self._sections(format == "markdown", format))

    def to_json(self) -> dict[str, Any]:
        """Plain values, unscaled."""
        return {
            "study": self.plan.name,
            "line": self.plan.line,
            "scale": self.plan.scale,
            "mark": self.plan.mark or None,
            "notes": list(self.plan.notes),
            "runs": json.loads(results_runs.table(self.summaries, "json", self.plan.sort)),
            "not_run": self.not_run(),
            "orders": {
                form: {"tau": order.tau, "points": [asdict(rank) for rank in order.ranks]}
                for form, order in self.orders().items()
            },
            "seeds": [asdict(spread) for spread in self.spreads()],
            "epochs": [asdict(point) for point in self.points],
        }

    def _sections(self, markdown: bool, format: str) -> Iterator[str]:
        plan = self.plan
        yield f"# {plan.name}\n\n{plan.line}\n" if markdown else f"{plan.name}: {plan.line}\n"
        if plan.mark:
            yield f"**{plan.mark}**\n" if markdown else f"{plan.mark}\n"
        if self.summaries:
            yield results_runs.table(self.summaries, format, plan.sort)
        for title, headers, rows in self._tables():
            marked = title + (f" ({plan.mark})" if plan.mark else "")
            yield f"## {marked}\n" if markdown else marked
            yield render(headers, rows, format)
        missing = [f"not run yet: {', '.join(self.not_run())}"] if self.not_run() else []
        for note in (*plan.notes, *missing):
            yield f"Note: {note}\n" if markdown else f"note: {note}"

    def _tables(self) -> Iterator[tuple[str, tuple[str, ...], list[list[Cell]]]]:
        """Title, headers and rows of the tables that follow that of the runs."""
        orders = self.orders()
        for form, order in orders.items():
            title = "Published order and ours" + (f" ({form} recipes)" if len(orders) > 1 else "")
            if order.tau is not None:
                title += f", Kendall's tau {order.tau:.2f}"
            named = "epochs" if self.plan.epochs else "run"
            rows: list[list[Cell]] = [
                [r.published_rank, r.rank, r.point, _percent(r.published), _percent(r.ours)] for r in order.ranks
            ]
            yield title, ("published", "ours", named, "published [%]", "ours [%]"), rows
        rows = [[s.point, s.seeds, *map(_percent, (s.mean, s.deviation, s.lowest, s.highest))] for s in self.spreads()]
        if rows:
            yield "Seeds", ("run", "seeds", "top1 mean [%]", "deviation", "lowest", "highest"), rows
        rows = [
            [p.run, p.epoch, *map(_percent, (p.train_top1, p.val_top1, p.test_top1, p.published_top1))]
            for p in self.points
        ]
        if rows:
            headers = ("run", "epoch", "train [%]", "validation [%]", "test [%]", "published [%]")
            yield "Stored epochs, tested", headers, rows

    def save(self, folder: Path, pictures: bool = True) -> list[Path]:
        """Write table.md, table.csv, results.json and, where epochs were tested, epochs.csv; and the pictures.

        Raises RecordError: the folder cannot be written, or a run's history is damaged.
        """
        texts = {"table.md": self.text("markdown"), "table.csv": self.text("csv"), "results.json": self.text("json")}
        if self.points:
            texts[epochs.FILE] = _marked_csv(epochs.to_csv(list(self.points)), self.plan.mark)
        for name, text in texts.items():
            write_whole(folder / name, text.encode())
        written = [folder / name for name in texts]
        return written + (self._draw(folder) if pictures and self.summaries else [])

    def _draw(self, folder: Path) -> list[Path]:
        histories = {run.name: studies.load_history(folder / run.name) for run in self.summaries}
        title = self.plan.name + (f" ({self.plan.mark})" if self.plan.mark else "")
        ranked = results_runs.ranked(self.summaries, self.plan.sort)
        written = studies.draw(ranked, {k: h for k, h in histories.items() if h is not None}, folder, title)
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


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _marked_csv(table: str, mark: str) -> str:
    """A trial's rows say that they are one: a reader of the file sees no heading."""
    if not mark:
        return table
    head, *rows = csv.reader(io.StringIO(table))
    return render([*head, "scaled"], [[*row, mark] for row in rows], "csv")
