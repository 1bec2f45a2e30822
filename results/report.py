"""One HTML page of stored results: findings, tables, charts, and where each figure comes from.

Self-contained: styles and charts are inside, nothing is fetched, no script runs. What the page says is what the
commands print, from the same functions, so that a page and a terminal never disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import gate_report, runs, tables
from results import profile as profiles
from results.changes import Trend
from results.classification import read_confusion
from results.comparison import compare_table
from results.curves import point_of
from results.errors import RecordError
from results.gate import CheckReport
from results.gate_words import verdict_line
from results.history import History
from results.index import Index
from results.profile import Profile
from results.record import Record
from results.runs import RunSummary
from results.series import look_at, series
from results.store import list_files, list_folders, read_json
from results.trend import drawing, explanations, judge, listing, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.jinja"

FULL_UP_TO = 50
"""Files of a folder that all have a section of their own."""
NEWEST = 10
"""Of more files, those that have one. Without charts: to draw them takes longer than to read all the others."""


@dataclass(frozen=True)
class Chart:
    """A picture with what it shows in words.

    Attributes:
        title: the finding; also read out to those who cannot see it.
        svg: its markup.
        wide: it needs the whole width; on a small screen it scrolls.
    """

    title: str
    svg: str
    wide: bool = False


@dataclass
class Section:
    """One result.

    Attributes:
        title: what was done.
        source: the file or folder.
        verdicts: the finding, a sentence each.
        body: markdown: tables and notes.
        charts: drawn from it.
        command: that made the figures, "" where it is not known.
        machine: where, in one line.
        created: when, as in the record.
    """

    title: str
    source: str
    verdicts: list[str] = field(default_factory=list)
    body: str = ""
    charts: list[Chart] = field(default_factory=list)
    command: str = ""
    machine: str = ""
    created: str = ""


def page(sections: Sequence[Section], title: str, skipped: Sequence[tuple[str, str]] = ()) -> str:
    """The whole page.

    Args:
        skipped: (path, reason) of what was skipped.

    Raises:
        RecordError: there is nothing to show.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    if not sections:
        raise RecordError("nothing to report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["markdown"] = lambda text: Markup(_scrolling(tables.html(text)))
    environment.filters["svg"] = Markup
    source = resources.files("results").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(title=title, sections=sections, skipped=skipped)


def _scrolling(html: str) -> str:
    """A wide table scrolls by itself: the page never does."""
    return html.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")


def open_results(
    paths: Sequence[Path],
    accuracy: Mapping[str, float] | None = None,
    indexed: Callable[[Path], Index] | None = None,
) -> tuple[list[Section], list[tuple[str, str]]]:
    """The sections of files and folders, and what was skipped and why.

    A file is a record of compare or check, a profile, or pytest-benchmark's JSON. A folder is a training run, a folder
    of runs (one section that ranks them, then one of each) or of studies, a profile's folder, or a folder of records:
    of more than `FULL_UP_TO` files the `NEWEST` have sections, without charts, between a list of all workloads and how
    each went.

    Args:
        accuracy: published top-1 accuracies of networks, fractions.
        indexed: the index of a folder; without one each file is read.

    Raises:
        RecordError: a file that was named itself is not one of these; says what it is.
    """
    sections: list[Section] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        if not path.exists():
            raise RecordError(f"{path} does not exist; name a stored result or a run's folder")
        section = _section(path, accuracy or {})
        if section is not None:
            sections.append(section)
            continue
        found, passed = from_folder(path, accuracy or {}, indexed)
        if not found:
            raise RecordError(f"{path} holds no result: no run, no profile, no record")
        sections += found
        skipped += passed
    return sections, skipped


def from_folder(
    folder: Path,
    accuracy: Mapping[str, float],
    indexed: Callable[[Path], Index] | None = None,
    within: bool = True,
) -> tuple[list[Section], list[tuple[str, str]]]:
    """Sections of everything in a folder, training runs last and, if they are several, ranked before.

    Args:
        within: after them those of the studies in it, which are folders of runs.
    """
    found: list[Section] = []
    trained: list[Section] = []
    summaries: list[RunSummary] = []
    skipped: list[tuple[str, str]] = []
    courses: list[Section] = []
    studies: list[Section] = []
    files, _ = list_files(folder)
    if len(files) <= FULL_UP_TO:
        places = sorted([*files, *list_folders(folder)])
    else:
        with indexed(folder) if indexed else nullcontext() as index:
            found, courses, newest, skipped = _of_many(folder, files, index)
        places = [*newest, *list_folders(folder)]
    for path in places:
        try:
            section = _section(path, accuracy, drawn=len(files) <= FULL_UP_TO or path.is_dir())
            if section is not None and (path / runs.FILE).is_file():
                summaries.append(RunSummary.load(path))
                trained.append(section)
            elif section is not None:
                found.append(section)
            elif within and any((run / runs.FILE).is_file() for run in list_folders(path)):
                sections, passed = from_folder(path, accuracy, indexed, within=False)
                studies += sections
                skipped += passed
        except RecordError as error:
            skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
    ranked = [from_runs(folder, summaries)] if len(summaries) > 1 else []
    return [*found, *courses, *ranked, *trained, *studies], skipped


def _of_many(
    folder: Path, files: Sequence[Path], index: Index | None
) -> tuple[list[Section], list[Section], list[Path], list[tuple[str, str]]]:
    """What all results say together, how each workload went, the newest files, and those that hold no result."""
    contents = index.contents(files) if index else look_at(files)
    every = list(zip(files, contents, strict=True))
    held = sorted(((content.created, path) for path, content in every if content.is_result), reverse=True)
    skipped = [(str(path), content.error) for path, content in every if not content.is_result]
    if not held:
        return [], [], [], skipped
    trends = judge(series(contents), index)
    command = f"bench trend --store {folder}"
    overview = Section(
        title=f"All results of {folder.name}",
        source=str(folder),
        verdicts=[
            f"{len(held):,} results: the newest {NEWEST} are shown without charts; of all of them, how "
            f"{tables.plural(len(trends), 'workload')} went and where each changed"
        ],
        body=listing(trends, "markdown") if trends else "",
        command=command,
        created=held[0][0],
    )
    courses = [
        Section(trend.id, str(folder), body=f"```\n{drawing(trend)}```\n", command=f"{command} {trend.id}")
        for trend in trends
    ]
    return [overview], courses, [path for _, path in held[:NEWEST]], skipped


def of_trends(trends: Sequence[Trend]) -> list[Section]:
    """The list of several workloads, then a picture of each."""
    from results.pictures.style import PAGE, inline, styled
    from results.pictures.trend import figure

    folder = str(trends[0].points[-1].path.parent)
    sections = [] if len(trends) == 1 else [Section("All workloads", folder, body=listing(trends, "markdown"))]
    for trend in trends:
        with styled(PAGE):
            chart = Chart(summary(trend), inline(figure(trend), summary(trend)), wide=True)
        sections.append(Section(trend.id, folder, verdicts=explanations(trend), charts=[chart]))
    return sections


def _section(path: Path, accuracy: Mapping[str, float], drawn: bool = True) -> Section | None:
    """The section of a file, or of the folder of a run or a profile; None for another folder."""
    if not path.is_dir():
        return from_file(path, accuracy, drawn)
    if (path / runs.FILE).is_file():
        return from_run(path)
    return from_file(path / profiles.FILE, accuracy) if (path / profiles.FILE).is_file() else None


def from_file(path: Path, accuracy: Mapping[str, float], drawn: bool = True) -> Section:
    """The section of a file, by what is in it.

    Args:
        drawn: whether it has charts.

    Raises:
        RecordError: it is damaged, of another schema, or of no known kind.
    """
    data = read_json(path)
    if isinstance(data, dict) and data.get("kind") == profiles.KIND:
        return of_profile(Profile.from_json(data, str(path)), path, drawn)
    if isinstance(data, dict) and "benchmarks" in data and "kind" not in data:
        return of_benchmarks(data, path)
    if path.name == runs.FILE:
        return from_run(path.parent)
    record = Record.from_json(data, str(path))
    return of_check(record, path, drawn) if record.kind == "check" else of_comparison(record, path, accuracy, drawn)


def of_comparison(record: Record, path: Path, accuracy: Mapping[str, float], drawn: bool = True) -> Section:
    """A record of bench compare: its sentences, its tables, ratios, speed beside size and accuracy, latencies."""
    text = compare_table(record, "markdown")
    bullets, _, rest = text.partition("\n\n")
    over = str(record.settings.get("over") or "")
    names = dict.fromkeys(point[0] if (point := point_of(one)) else one for one in record.operands)
    title = f"{_listed(list(names))} over {over.partition('=')[0]}" if over else _listed(record.operands)
    return Section(
        title=f"Comparison of {title}",
        source=str(path),
        verdicts=[line.removeprefix("- ") for line in bullets.splitlines()],
        body=_without_machine(rest),
        charts=_charts_of_comparison(record, accuracy) if drawn else [],
        command=record.command,
        machine=tables.machine_line(record),
        created=record.created,
    )


def _charts_of_comparison(record: Record, accuracy: Mapping[str, float]) -> list[Chart]:
    from results.pictures import page as pictures
    from results.pictures.style import PAGE, inline, styled

    with styled(PAGE):
        found = pictures.of_comparison(record, accuracy)
    return [Chart(made[0], inline(made[1], made[0])) for made in found.values() if made is not None]


def of_check(record: Record, path: Path, drawn: bool = True) -> Section:
    """A record of bench check: the verdict and its tables."""
    stored = record.settings.get("check")
    if not isinstance(stored, Mapping):
        raise RecordError(f"{path}: a check without its report; check again with this version")
    report = CheckReport.from_json({**stored, "machine": record.machine}, str(path))
    _, _, rest = gate_report.as_text(report, "markdown").partition("\n\n")
    return Section(
        title=f"Check of {report.head.ref or 'the working tree'} against {report.base.ref or report.base.commit}",
        source=str(path),
        verdicts=[verdict_line(report)],
        body=_without_machine(_without_folding(rest)),
        charts=_charts_of_check(report) if drawn else [],
        command=record.command,
        machine=tables.machine_line(record),
        created=record.created,
    )


def _charts_of_check(report: CheckReport) -> list[Chart]:
    from results.pictures import page as pictures

    return _drawn(pictures.changes, report)


def _without_folding(text: str) -> str:
    """GitHub's folded details, unfolded: the page renders no raw HTML."""
    text = re.sub(r"<summary>(.*?)</summary>", r"\n\1\n", text)
    return re.sub(r"</?(details|br)\s*/?>", "", text)


def _without_machine(text: str) -> str:
    """Below each section the machine is named anyway."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("- machine: ")) + "\n"


def of_profile(profile: Profile, path: Path, drawn: bool = True) -> Section:
    """A profile: its sentence, its tables, flame graph, roofline and the loader's stages."""
    first, _, rest = profiles.text(profile, "markdown", depth=2).partition("\n\n")
    return Section(
        title=f"Profile of {profile.label}, {profile.task.replace('_', ' ')}",
        source=str(path),
        verdicts=[first.removeprefix("- ")],
        body=rest,
        charts=_charts_of_profile(profile) if drawn else [],
        command=profile.command,
        machine=tables.machine_line(profile),
        created=profile.created,
    )


def _charts_of_profile(profile: Profile) -> list[Chart]:
    from results.pictures import page as pictures

    return [
        *_drawn(pictures.flame, profile, wide=True),
        *_drawn(pictures.operators, profile),
        *_drawn(pictures.roofline, profile),
        *_drawn(pictures.loader_stages, profile),
    ]


def of_benchmarks(data: Mapping[str, Any], path: Path) -> Section:
    """pytest-benchmark's JSON: each benchmark's median and spread."""
    rows: list[list[tables.Cell]] = []
    try:
        for benchmark in data["benchmarks"]:
            stats = benchmark["stats"]
            median = tables.quantity(stats["median"], "s", stats["q1"], stats["q3"])
            rows.append([benchmark["name"], median, stats["rounds"], f"{stats['ops']:.4g}"])
        machine = str(data["machine_info"].get("cpu", {}).get("brand_raw", "not recorded"))
        created = str(data["datetime"])
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not pytest-benchmark's JSON ({error}); is it the right file?") from None
    if not rows:
        raise RecordError(f"{path}: holds no benchmark")
    return Section(
        title=f"{tables.plural(len(rows), 'benchmark')} of pytest bench",
        source=str(path),
        body=tables.render(["benchmark", "median", "rounds", "calls/s"], rows, "markdown"),
        command="pytest bench --benchmark-json",
        machine=f"machine: {machine}, measured {created}",
        created=created,
    )


def from_runs(folder: Path, summaries: Sequence[RunSummary]) -> Section:
    """Several training runs, ranked, published figures beside them."""
    from results.pictures import page as pictures

    best = runs.ranked(summaries)
    top = best[0]
    verdicts = [] if top.top1 is None else [f"{top.name} is the most accurate: top-1 {100 * top.top1:.2f} %"]
    return Section(
        title=f"{tables.plural(len(summaries), 'training run')} of {folder.name}",
        source=str(folder),
        verdicts=verdicts,
        body=runs.compare(summaries, "markdown"),
        charts=[
            *_drawn(pictures.accuracies, best),
            *_drawn(pictures.accuracy_and_params, best),
            *_drawn(pictures.accuracy_and_time, best),
        ],
        command=f"bench compare {folder}",
    )


def from_run(folder: Path) -> Section:
    """One training run: its figures, curves and confusion matrix."""
    from results.pictures import page as pictures

    summary = RunSummary.load(folder)
    stored = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    stored = stored if isinstance(stored, Mapping) else {}
    charts: list[Chart] = []
    if (folder / "history.csv").is_file():
        steps = folder / "steps.csv"
        history = History.load(folder / "history.csv", steps if steps.is_file() else None)
        charts += _drawn(pictures.losses, history, summary)
        charts += _drawn(pictures.curves, history, summary)
        charts += _drawn(pictures.learning_rate, history)
    if (folder / "confusion.csv").is_file():
        charts += _drawn(pictures.confusion, *read_confusion(folder / "confusion.csv"))
    top1 = "not tested" if summary.top1 is None else f"top-1 {100 * summary.top1:.2f} %"
    beside = ""
    if summary.difference is not None and not summary.generated:
        side = "below" if summary.difference > 0 else "above"
        beside = f", {abs(100 * summary.difference):.2f} points {side} the published figure"
    state = "" if summary.status == "finished" else f" ({summary.status}: {summary.reason})"
    body, report = runs.table([summary], "markdown"), folder / "report.txt"
    if report.is_file():
        body += f"\n```\n{report.read_text(encoding='utf-8').rstrip()}\n```\n"
    epochs = tables.plural(summary.epochs, "epoch")
    return Section(
        title=f"Training run {summary.name}",
        source=str(folder),
        verdicts=[f"{summary.model} on {summary.data}: {top1} after {epochs}{beside}{state}"],
        body=body,
        charts=charts,
        command=str(stored.get("command", "")),
        machine=tables.machine_text(stored["machine"]) if isinstance(stored.get("machine"), Mapping) else "",
    )


def _drawn(draw: Callable[..., tuple[str, Figure] | None], *given: Any, wide: bool = False) -> list[Chart]:
    """The chart that a function draws, none where it has nothing to show."""
    from results.pictures.style import PAGE, inline, styled

    with styled(PAGE):
        made = draw(*given)
    return [] if made is None else [Chart(made[0], inline(made[1], made[0]), wide)]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
