"""`bench check`: did a change make anything slower, bigger or wrong?"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from bench.checking.check import refuse_unknown, subjects
from bench.errors import UsageError
from bench.output import check_output, write

FORMATS = ("text", "markdown", "json", "junit")


@click.command()
@click.option("--base", metavar="REF", help="Commit, branch or tag that the working tree is compared with.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="A stored check of this machine in place of --base; of a folder the newest.",
)
@click.option(
    "--base-env",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Virtual environment that runs the base; default: this interpreter and its packages.",
)
@click.option(
    "--workloads",
    multiple=True,
    metavar="ID,...|FILE",
    help="What is timed: ids, or a file of one a line; default: inference, training step and loading around "
    "resnet18 and efficientnet_b0.",
)
@click.option("--exact", is_flag=True, help="Only what has no noise: counted facts and what is computed. Seconds.")
@click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="A fact (state_dict, operators, output) or verdict (VANISHED) that may differ; repeatable.",
)
@click.option(
    "--looks",
    type=click.IntRange(1, 3),
    default=3,
    show_default=True,
    help="How many looks at the blocks measured so far there may be; fewer end sooner.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0),
    default=570.0,
    show_default=True,
    help="Seconds. No further look is begun that would end later; what is in doubt by then is UNSURE.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; default: every usable core.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="JPEGs for loaders in place of generated.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order of turns.")
@click.option("--format", type=click.Choice(FORMATS), default="text", show_default=True, help="How it is written.")
@click.option("-o", "--output", default="-", metavar="FILE", show_default=True, help="Write here; - is stdout.")
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the history, to which the result is appended. Default: .benchmarks/pixbench",
)
@click.option("--no-store", is_flag=True, help="Append nothing.")
@click.option("--fail-on-unsure", is_flag=True, help="Exit code 1 also where nothing could be shown.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait while another check measures here.")
def command(
    base: str | None,
    baseline: Path | None,
    base_env: Path | None,
    workloads: tuple[str, ...],
    exact: bool,
    allow: tuple[str, ...],
    looks: int,
    budget: float,
    device: str,
    threads: int,
    data: Path | None,
    seed: int,
    format: str,
    output: str,
    store: Path | None,
    no_store: bool,
    fail_on_unsure: bool,
    wait: bool,
) -> int:
    """Say whether the working tree is slower or bigger than a base, or computes something else.

    Counted facts are compared exactly, then fresh processes of both sides take turns, and what looks slower is
    measured a second time. Exit codes: 0 fine or not sure, 1 worse, 2 no answer.
    """
    from bench.checking.sides import only_one
    from bench.machine.cpu import usable_cores
    from bench.machine.devices import choose_device
    from bench.screen import Screen
    from results.verdict import LOOKS

    if (base is None) == (baseline is None):
        raise UsageError("name either --base REF or --baseline FILE|DIR" + (", not both" if base else ""))
    if baseline is not None and (exact or base_env):
        raise UsageError("--exact and --base-env go with --base: a stored run holds times only")
    check_output(output)
    refuse_unknown(allow)
    screen = Screen()
    place = choose_device(device)
    cores = threads or usable_cores()
    begin = time.monotonic()
    how: dict[str, Any] = {
        "allow": allow,
        "fail_on_unsure": fail_on_unsure,
        "looks": LOOKS[:looks],
        "seed": seed,
        "budget": budget,
        "say": screen.progress if screen.moving else screen.say,
    }
    record: Any = None
    if baseline is not None:
        baseline, record, workloads = stored(baseline, workloads, screen)
    chosen, conditions = subjects(workloads, place, cores, data, seed, screen.progress)
    with only_one(place, wait, screen.say):
        if base is not None:
            report, extra = _against_commit(base, base_env, chosen, conditions, exact, how, screen)
        else:
            from bench.checking.baseline import check_against

            assert baseline is not None
            report, extra = check_against(baseline, record, chosen, conditions, **how)
    screen.clear()
    failure = ""
    if report.machine and not no_store:
        failure = _store(report, extra, store, screen)
    _show(report, format, output)
    for text in _tell_ci(report, os.environ):
        screen.say(text)
    screen.say(f"took {time.monotonic() - begin:.0f} s")
    code: int = report.exit_code
    if failure:
        screen.say(f"bench: {failure}")
        # That something is worse is the graver news.
        return code or 2
    return code


def _against_commit(
    base: str,
    base_env: Path | None,
    workloads: list[Any],
    conditions: Any,
    exact: bool,
    how: dict[str, Any],
    screen: Any,
) -> tuple[Any, dict[str, Any]]:
    from bench.checking.check import check
    from bench.checking.trees import trees

    screen.progress("writing both sides' files")
    with trees(Path.cwd(), base, base_env) as (old, new):
        return check(
            old,
            new,
            workloads,
            conditions,
            exact_only=exact,
            **how,
        )


def stored(baseline: Path, words: tuple[str, ...], screen: Any) -> tuple[Path, Any, tuple[str, ...]]:
    """A baseline's file and record, and what is measured against it: `words`, or everything that it timed."""
    from bench.checking.baseline import find, stored_values

    path, record = find(baseline, screen.say)
    return path, record, words or tuple(stored_values(path, record))


def _store(report: Any, extra: dict[str, Any], folder: Path | None, screen: Any) -> str:
    """Append to the history; returns why it could not be stored, or ""."""
    import shlex

    from bench.checking.check import record_of
    from results import store
    from results.errors import RecordError

    command = shlex.join(["bench", *sys.argv[1:]])
    try:
        path = store.save(record_of(report, extra, command), store.new_path("check", folder or store.FOLDER))
    except RecordError as error:
        return str(error)
    screen.say(f"stored in {path}")
    return ""


def _show(report: Any, format: str, output: str) -> None:
    from results import gate_report, tables

    write(gate_report.as_text(report, format, output == "-" and tables.coloured(sys.stdout)), output)


def _tell_ci(report: Any, environment: Any) -> list[str]:
    """GitHub's own channels, where they are there."""
    from results import gate_report

    said = []
    warning = gate_report.summary_file(report, environment)
    if warning:
        said.append(warning)
    if environment.get("GITHUB_ACTIONS") == "true":
        # Commands to the runner are read from either stream; stdout stays data.
        said += gate_report.annotations(report)
    return said
