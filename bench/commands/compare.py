"""`bench compare A B...`: measure side by side, or compare stored results, runs or labels."""

import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bench.commands.options import Number, network_options
from bench.defaults import TRAINING_BATCH
from bench.errors import UsageError
from bench.output import check_output, format_options, write
from bench.screen import Screen
from bench.sides.load import LOADS
from results.store import FOLDER


@click.command()
@click.argument("operands", nargs=-1, required=True, metavar="A B...")
@network_options
@click.option(
    "--on-bad-image",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do about unreadable files.",
)
@click.option(
    "--training-batch",
    type=click.IntRange(min=1),
    help=f"Images a training step. Default: --batch if given, else {TRAINING_BATCH['cpu']} on a CPU, "
    f"{TRAINING_BATCH['cuda']} on a GPU.",
)
@click.option(
    "--tasks",
    default="",
    metavar="TASK,...",
    help="Of models, only these: latency, inference, loading, training, end_to_end. Default: all.",
)
@click.option(
    "--energy/--no-energy", default=True, show_default=True, help="Measure an image's energy where there is a counter."
)
@click.option(
    "--budget",
    type=Number(0),
    default=150.0,
    show_default=True,
    metavar="SECONDS",
    help="Add blocks of fresh processes while this lasts; six give an interval, the first is always completed.",
)
@click.option(
    "--beside",
    type=click.Choice(LOADS),
    default="none",
    show_default=True,
    help="Measure beside a process that keeps one core busy: at random times (core) or always (busy).",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=2),
    help="Turns of each side in a block. Default: what fits into a few seconds.",
)
@click.option("--resume", is_flag=True, help="Go on with the newest interrupted run of the same comparison.")
@click.option(
    "--across",
    is_flag=True,
    help="Stored results of different machines: compare ratios to the first operand they share.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder of stored runs. Default: {FOLDER}",
)
@click.option(
    "--charts",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Training runs: write overlays of their epochs, bars and sizes as pictures into this folder.",
)
@click.option(
    "--sort", default="top1", show_default=True, metavar="FIGURE", help="Training runs: rank them by this figure."
)
@format_options
def command(
    operands: tuple[str, ...],
    format: str,
    output: str,
    store: Path | None,
    across: bool,
    charts: Path | None,
    sort: str,
    **options: Any,
) -> int:
    """Measure models, loaders or kernels side by side, taking turns on this machine.

    An operand is MODEL or MODEL@CONFIGURATION (resnet34, resnet34@naive, resnet34@fp32-nchw-eager), a loader (dali,
    pil), a kernel, or a stored result (a path ending in .json). The first is the reference.

    Nothing is measured where operands are training runs (their folders, their summary.json, or a folder of runs): a
    table ranks them beside published figures. Two files of labels (.csv of ID,Labels, or .txt of one label a line)
    are compared image by image.
    """
    from bench.comparing.words import LABELS, RUN, STORED, files, only_kind, refuse_same, run_folders

    check_output(output)
    chosen = only_kind(operands)
    if charts is not None and chosen != RUN:
        raise UsageError(f"--charts draws training runs; {operands[0]} is {chosen}")
    if across and chosen in (RUN, LABELS):
        raise UsageError(f"--across compares stored results; {operands[0]} is {chosen}")
    if chosen in (LABELS, STORED):
        refuse_same(operands)
    if chosen == LABELS:
        return _labels(operands, format, output)
    if chosen == RUN:
        folders, passed = run_folders(operands)
        for reason in passed:
            click.echo(f"skipped {reason}", err=True)
        return _runs(folders, format, output, charts, sort)
    stored = files(operands)
    if stored:
        from results import store as records
        from results.stored import compare_files

        # One file is shown as it is, with the ratios that were measured in turns.
        record = compare_files(stored, across) if len(stored) > 1 else records.load(stored[0])
        _print(record, format, output)
        return 0
    if across:
        raise UsageError("--across compares stored results; name .json files")
    return _measure(operands, format, output, store, **options)


def _print(record: Any, format: str, output: str) -> None:
    from results.comparison import compare_table
    from results.tables import coloured

    write(compare_table(record, format, output == "-" and coloured(sys.stdout)), output)


def _runs(folders: list[Path], format: str, output: str, folder: Path | None, sort: str) -> int:
    from results.pictures import studies
    from results.runs import compare, ranked

    summaries, histories = studies.load(folders)
    text = compare(summaries, format, sort)
    if folder is not None:
        written = studies.draw(ranked(summaries, sort), histories, folder)
        click.echo(f"wrote {len(written)} pictures into {folder}: {', '.join(p.name for p in written)}", err=True)
    write(text, output)
    return 0


def _labels(operands: tuple[str, ...], format: str, output: str) -> int:
    from results.submissions import compare_files

    if len(operands) != 2:
        raise UsageError(f"labels are compared two files at a time; {len(operands)} were named")
    write(compare_files(*operands).text(format, operands), output)
    return 0


def _measure(
    words: tuple[str, ...],
    format: str,
    output: str,
    store: Path | None,
    resume: bool,
    budget: float,
    **options: Any,
) -> int:
    """Operands -> plan -> processes -> turns -> figures -> record -> table."""
    from bench.comparing.comparison import Comparison
    from bench.comparing.operands import parse_operands
    from bench.comparing.plan import open_device, settings_from
    from bench.comparing.run_log import RunLog

    screen = Screen()
    device = open_device(options["device"], options["force"])
    operands = parse_operands(words, device)
    settings, conditions = settings_from(operands, device, options, screen.say)
    log = RunLog("compare", shlex.join(["bench", *sys.argv[1:]]), [o.label for o in operands], asdict(settings), store)
    state = log.resume(screen.say) if resume else None
    comparison = Comparison(operands, settings, conditions, screen.row(log), screen.progress, screen.say, state)
    log.follow(comparison)
    begin = time.monotonic()
    with log.kept(screen):
        comparison.run(budget)
    _print(log.record(complete=True), format, output)
    where = f"stored in {log.path}" if not log.failure else "not stored"
    screen.say(f"{where}; took {time.monotonic() - begin:.0f} s")
    if comparison.failures:
        screen.say(f"bench: no number for {', '.join(comparison.failures)}: see above")
    if log.failure:
        screen.say(f"bench: {log.failure}")
    return 2 if comparison.failures or log.failure else 0
