"""`bench profile MODEL`: where the time of a step goes, and what it is bound by."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.options import Task, network_options
from bench.errors import UsageError
from bench.output import check_output, format_options, write
from bench.timing.tasks import PROFILED_TASKS

if TYPE_CHECKING:
    from bench.comparing.profiling import Subject
    from bench.screen import Screen

FOLDER = Path(".benchmarks/profiles")


@click.command()
@click.argument("model", metavar="MODEL[@CONFIGURATION]")
@click.option(
    "--task",
    type=Task(PROFILED_TASKS),
    default="training",
    show_default=True,
    help="A training step, a batch of inference, a single image, or training from files with its loader.",
)
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Profiled.")
@click.option("--top", type=click.IntRange(min=1), default=12, show_default=True, help="Operators shown.")
@click.option("--depth", type=click.IntRange(min=1), default=1, show_default=True, help="Levels of layers shown.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Trace, pictures and figures go here. Default: .benchmarks/profiles/NAME",
)
@click.option("--nvtx", is_flag=True, help="Only run the step in NVTX ranges, for nsys profile (CUDA).")
@network_options
@format_options
def command(model: str, format: str, output: str, **options: Any) -> None:
    """Say where the time of a step goes, layer by layer and operator by operator, and what bounds it.

    Prints one sentence, then tables of layers and operators with FLOPs, bytes and the share of the roof they reach. The
    step's own time is measured without the profiler, in several processes. The folder holds a trace for Perfetto
    or chrome://tracing, a flame graph, a roofline plot and all figures (profile.json, which bench report reads).
    """
    from bench.comparing.profiling import annotate, profile
    from bench.machine.alone import measuring
    from bench.screen import Screen
    from models.names import file_name
    from results.profile import text

    check_output(output)
    screen = Screen()
    subject = _subject(model, screen, **options)
    try:
        if options["nvtx"]:
            workload = annotate(subject, screen.progress)
            screen.say(f"ran {subject.steps} steps of {workload.id} within NVTX ranges")
            return
        folder = options["out"] or FOLDER / f"{file_name(subject.operand.label)}-{subject.task}"
        with measuring(subject.settings.device, screen.say, force=options["force"]):
            found = profile(subject, folder, screen.progress)
    finally:
        screen.clear()
    write(text(found, format, options["top"], options["depth"]), output)
    screen.say(f"wrote {', '.join(found.files.values())} into {folder}; the trace opens in https://ui.perfetto.dev")


def _subject(model: str, screen: "Screen", **options: Any) -> "Subject":
    from bench.comparing.operands import look_up, parse_operands
    from bench.comparing.plan import open_device, settings_from
    from bench.comparing.profiling import Subject
    from bench.comparing.words import MEASURED, RUN, only_kind
    from bench.machine.cpu import usable_cores
    from models import zoo
    from models.configuration import ONLY_INFERS

    kind = only_kind([model])
    if kind != MEASURED and not (kind == RUN and zoo.has_weights(model)):
        raise UsageError(f"bench profile takes a model; {model} is {kind}")
    device = open_device(options["device"], options["force"])
    [operand] = parse_operands([model], device, look_up([model], options["threads"] or usable_cores()))
    if operand.kind != "model":
        raise UsageError(f"bench profile takes a model; {model} is a {operand.kind}; measure it with bench compare")
    task = options["task"]
    if operand.choice.file and task in ("training", "end_to_end"):
        raise UsageError(f"{ONLY_INFERS}: bench profile {model} --task inference, or latency")
    if task != "end_to_end" and options["data"] is not None:
        raise UsageError("--data is read by --task end_to_end; the other tasks work on a constant batch")
    settings, conditions = settings_from([operand], device, options, screen.say, task == "end_to_end")
    return Subject(operand, task, settings, conditions, options["steps"])
