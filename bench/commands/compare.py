"""`bench compare A B...`: measure side by side, or compare stored results, runs or labels."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from bench.commands.options import Number, network_options
from bench.defaults import TRAINING_BATCH
from bench.errors import UsageError
from bench.output import check_output, format_options, make_folder, write
from bench.screen import Screen
from bench.sides.load import LOADS
from bench.timing.tasks import MODEL_TASKS
from results.store import FOLDER


@click.command()
@click.argument("operands", nargs=-1, metavar="A B...")
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
    help=f"Of models, only these: {', '.join(MODEL_TASKS)}. Default: all.",
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
    "--over",
    default="",
    metavar="KEY=V1,V2,...",
    help="Measure each operand at each of these values of batch, size or threads; of models inference, unless --tasks "
    "says otherwise.",
)
@click.option("--quick", is_flag=True, help="First estimates only: a few steps, nothing compiled, no intervals.")
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
@click.option(
    "--units",
    metavar="NAME",
    help="Of steps: what a call works through (tokens), for a rate; the step returns the number or has an attribute of "
    "that name.",
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
@click.option("--explain", is_flag=True, help="Show all notes: what the numbers consist of, how they were measured.")
@click.option("--tag", default="", metavar="NAME", help="Name the stored result, for compare and report.")
@click.option(
    "--charts",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write pictures into this folder: of rates, sizes and latencies, or of training runs and their epochs.",
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
    tag: str,
    explain: bool,
    across: bool,
    charts: Path | None,
    sort: str,
    **options: Any,
) -> int:
    """Measure models, loaders, kernels or steps side by side, taking turns on this machine.

    An operand is MODEL or MODEL@CONFIGURATION (resnet34, resnet34@naive, resnet34@fp32-nchw-eager), a loader (dali,
    pil), a kernel, or a stored result (a path ending in .json). The first is the reference.

    An exported file (model.onnx, model.xml, model.pt2) only infers: an .onnx in ONNX Runtime, or in OpenVINO with
    @openvino. A checkpoint is measured with its weights, and so is a run's folder with @CONFIGURATION or beside
    something else that is measured.

    Your own code is named FILE.py:NAME or package.module:NAME: a network (a class, a function that returns one, or a
    module), a loader (a function of batch, size and device that returns an iterable of images and labels), or a step
    (any callable without arguments). Arguments follow in brackets, in quotes: 'mynet.py:build[width=64]'.

    --over batch=1,4,16 answers which batch: every operand is measured with each of them, all in turns, and the knee is
    named: the smallest value that reaches 95 % of the best rate. The same for size and threads.

    Nothing is measured where all operands are training runs (their folders, their summary.json, or a folder of runs): a
    table ranks them beside published figures. Two files of labels (.csv of ID,Labels, or .txt of one label a line)
    are compared image by image.
    """
    from bench.comparing.words import LABELS, RUN, STORED, files, only_kind, refuse_same, run_folders, with_tags

    check_output(output)
    if not operands:
        raise UsageError(
            "name what to compare: bench compare resnet34 efficientnet_b0; bench list models has more names"
        )
    operands = with_tags(operands, store)
    chosen = only_kind(operands)
    if charts is not None and chosen == LABELS:
        raise UsageError(f"--charts draws what was measured or trained; {operands[0]} is {chosen}")
    if across and chosen in (RUN, LABELS):
        raise UsageError(f"--across compares stored results; {operands[0]} is {chosen}")
    if charts is not None:
        make_folder(charts, "name another one with --charts")
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
        if tag:
            raise UsageError(f"--tag {tag} names what is measured; what is stored has its name")
        from results import store as records
        from results.stored import compare_files

        # One file is shown as it is, with the ratios that were measured in turns.
        record = compare_files(stored, across) if len(stored) > 1 else records.load(stored[0])
        _print(record, format, output, explain)
        if charts is not None:
            _draw(record, charts)
        return 0
    if across:
        raise UsageError("--across compares stored results; name .json files")
    if tag in operands:
        raise UsageError(f"--tag {tag} would name the result like what is measured; choose another name")
    from bench.comparing.measuring import measure

    screen = Screen()
    measured = measure(operands, options, shlex.join(["bench", *sys.argv[1:]]), screen, store, tag=tag)
    _print(measured.record, format, output, explain)
    for line in measured.closing:
        screen.say(line)
    if charts is not None:
        _draw(measured.record, charts)
    return 0 if measured.whole else 2


def _print(record: Any, format: str, output: str, explain: bool) -> None:
    from results.comparison import compare_table
    from results.tables import coloured

    write(compare_table(record, format, output == "-" and coloured(sys.stdout), explain), output)


def _draw(record: Any, folder: Path) -> None:
    from models.published import FRACTIONS
    from results.pictures.page import write as draw

    _say_written(draw(record, FRACTIONS, folder), folder)


def _say_written(written: list[Path], folder: Path) -> None:
    from results.tables import plural

    names = ", ".join(path.name for path in written)
    click.echo(f"wrote {plural(len(written), 'picture')} into {folder}: {names}", err=True)


def _runs(folders: list[Path], format: str, output: str, folder: Path | None, sort: str) -> int:
    from results.pictures import studies
    from results.runs import compare, ranked

    summaries, histories = studies.load(folders)
    text = compare(summaries, format, sort)
    if folder is not None:
        _say_written(studies.draw(ranked(summaries, sort), histories, folder), folder)
    write(text, output)
    return 0


def _labels(operands: tuple[str, ...], format: str, output: str) -> int:
    from results.submissions import compare_files

    if len(operands) != 2:
        raise UsageError(f"labels are compared two files at a time; {len(operands)} were named")
    write(compare_files(*operands).text(format, operands), output)
    return 0
