"""`bench trend`: shows stored runs over time, and finds the commit that changed one."""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from bench.errors import UsageError, WorkloadError
from bench.output import check_output, format_options, output_option, write
from bench.screen import Screen
from results.store import FOLDER

FORMATS = ("text", "table", "markdown", "csv", "json", "html", "svg")


class _WithBisect(click.Command):
    """`trend ID`, and `trend bisect` beside it: a workload's id is never the word bisect."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] != ["bisect"]:
            for before, word in pairwise(args):
                # It may be the value of an option (-o bisect).
                if word == "bisect" and (before[:1] != "-" or "=" in before):
                    raise UsageError("options of bench trend bisect come after the word bisect")
            return super().make_context(info_name, args, parent, **extra)
        prefix = parent.auto_envvar_prefix if parent is not None else None
        if prefix:
            extra["auto_envvar_prefix"] = f"{prefix}_TREND_BISECT"
        return bisect_command.make_context(f"{info_name} bisect", args[1:], parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command("bisect")
@click.argument("good")
@click.argument("bad")
@click.argument("id", metavar="ID")
@format_options
def bisect_command(good: str, bad: str, id: str, format: str, output: str) -> int:
    """Find the commit after GOOD, up to BAD, that made workload ID slower, by duels of commits.

    ID is an id as bench trend lists it, or what picks one of the workloads of this repository's settings (training).
    Commits that do not run are skipped; the repository is not touched.
    """
    from bench.checking.bisect import bisect
    from bench.checking.check import duel_refs, subjects
    from bench.machine.cpu import usable_cores
    from bench.machine.devices import choose_device
    from bench.timing.workload import Workload
    from results.gate import Row
    from results.tables import to_json

    check_output(output)
    repository = Path.cwd()

    say = Screen().say
    try:
        workload = Workload.from_id(id)
    except WorkloadError:
        named = subjects((id,), choose_device("auto"), usable_cores(), None, 0, say).workloads
        if len(named) > 1:
            raise UsageError(f"{id} picks {', '.join(one.id for one in named)}; name one of them") from None
        [workload] = named

    def duel(base: str, head: str, asked: Workload) -> Row:
        return duel_refs(repository, base, head, asked, say)

    found = bisect(good, bad, workload, repository, duel, say)
    write(to_json(found.to_json()) if format == "json" else found.text(format), output)
    return 0


@click.command(cls=_WithBisect, epilog="bench trend bisect GOOD BAD ID finds the commit that made one slower.")
@click.argument("id", metavar="[ID]", required=False)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=FOLDER,
    show_default=True,
    metavar="FOLDER",
    help="Where the runs are stored.",
)
@click.option("--since", metavar="DATE", help="Only runs since then: 2026-05-01, or with a time.")
@click.option("--format", type=click.Choice(FORMATS), default="text", show_default=True, help="How it is written.")
@output_option
def command(id: str | None, store: Path, since: str | None, format: str, output: str) -> int:
    """List the history of every workload, the worst change first, or draw the one called ID.

    ID is a part of an id that only one workload has. A change is a place before and after which times differ by more
    than the margin, found with a known error rate. A pinned reference in the runs makes machines comparable.
    """
    from loaders.cache import cache_folder
    from results.index import Index
    from results.trend import chosen, judge, listing, load, one

    check_output(output)
    if id is None and format == "svg":
        raise UsageError("--format svg draws one series: name it, or use --format html for all")
    screen = Screen()
    with Index(store, cache_folder(), screen) as index:
        series, skipped = load(store, _moment(since), index)
        for path, reason in skipped:
            screen.say(f"skipped {path}: {reason}")
        if not series:
            when = f" since {since}" if since else ""
            raise UsageError(f"{store} holds no run of a workload{when}; bench check and bench compare store theirs")
        if id is not None:
            id = chosen(series, id)
            series = {id: series[id]}
        trends = judge(series, index)
    if format == "html":
        from results.report import of_trends, page

        title = trends[0].id if len(trends) == 1 else f"{len(trends)} workloads"
        write(page(of_trends(trends), f"bench trend: {title}"), output)
    else:
        write(listing(trends, format) if id is None else one(trends[0], format), output)
    return 0


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--since {text}: write a date like 2026-05-01") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
