"""`bench tune MODEL`: find the fastest configuration here, and what each lever is worth."""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from bench.commands.options import Number, network_options
from bench.errors import UsageError
from bench.output import check_output, format_options, write
from bench.timing.tasks import TUNED_TASKS, named

if TYPE_CHECKING:
    from bench.comparing.tuning import Lever, Tuner, Tuning
    from bench.screen import Screen


@click.command()
@click.argument("model")
@click.option(
    "--tasks",
    default=",".join(TUNED_TASKS),
    show_default=True,
    metavar="TASK,...",
    help="Only these, in this order. Of loading: threads and batches ahead of the loader.",
)
@click.option(
    "--budget",
    type=Number(0),
    default=340.0,
    show_default=True,
    metavar="SECONDS",
    help="For everything; what there was no time for is named.",
)
@network_options
@format_options
def command(model: str, tasks: str, budget: float, format: str, output: str, **options: Any) -> int:
    """Find the fastest configuration of MODEL on this machine and remember it as MODEL@tuned.

    Each configuration, and each other engine that is installed, takes turns with the preset `fast`. In every rung the
    slower half drops out, and the last one left replaces `fast` only if fresh processes show that it is faster.
    Accuracy is not traded for speed: logits may differ from plain fp32's at most twice as much as those of `fast` do.
    The winner is then tried on fewer threads and with other batch sizes, and each of its levers is undone in turn to
    show what it is worth; another engine is compared with the fastest configuration that needs none.
    """
    from bench.errors import BenchError
    from bench.machine.alone import measuring
    from bench.machine.devices import choose_device
    from bench.machine.tuned import remember
    from bench.screen import Screen
    from loaders.errors import DataError
    from results.errors import RecordError
    from results.tables import to_json

    check_output(output)
    wanted = named(tasks, TUNED_TASKS)
    if not wanted:
        raise UsageError(f"--tasks names no task; there are {', '.join(TUNED_TASKS)}")
    screen = Screen()
    begin = time.monotonic()
    found, failed, forgotten = [], list[str](), ""
    with ExitStack() as stack:
        stack.callback(screen.clear)
        stack.enter_context(measuring(choose_device(options["device"]), screen.say, force=options["force"]))
        tuner = _tuner(model, wanted, screen, stack, **options)
        from bench.comparing.tuning import SHARES

        shares = {task: SHARES[task] for task in tuner.base}
        for task, share in shares.items():
            left = budget - (time.monotonic() - begin)
            rest = sum(shares[name] for name in list(shares)[list(shares).index(task) :])
            try:
                one = tuner.tune(task, left * share / rest)
            except BenchError as error:
                screen.say(f"{task} of {model}: {error}")
                failed.append(task)
                continue
            found.append(one)
            if one.winner is not None:
                try:
                    path = remember(one.winner)
                except (DataError, RecordError) as error:
                    # What was found is still shown.
                    forgotten = str(error)
            screen.say(f"{task}: {one.verdict}")
    if format == "json":
        write(to_json({"model": model, "tasks": [one.to_json() for one in found]}), output)
    elif format == "csv":
        write(_csv(found), output)
    elif found:
        write("\n".join(_text(one, format) for one in found), output)
    if forgotten:
        screen.say(f"bench: not remembered: {forgotten}")
    elif found:
        name = f"{model}@tuned" if any(one.task != "loading" for one in found) else "the loader's line above"
        screen.say(f"remembered in {path}; use it as {name}; took {time.monotonic() - begin:.0f} s")
    if failed:
        screen.say(f"bench: nothing was found for {', '.join(failed)}: see above")
    return 2 if failed or forgotten else 0


def _tuner(model: str, tasks: list[str], screen: "Screen", stack: ExitStack, **options: Any) -> "Tuner":
    """What tunes a model; its processes end with `stack`."""
    from bench.comparing.operands import Operand
    from bench.comparing.plan import classes_for, needs, open_device, settings_from
    from bench.comparing.tuning import Tuner, base_workloads, missing_engines
    from bench.machine.tuned import resolve
    from bench.sides.crew import Crew, spawner
    from models import zoo
    from models.configuration import PEERS, Choice, Device

    if "@" in model:
        raise UsageError(
            f"bench tune takes a model without a configuration; it finds one: bench tune {model.split('@')[0]}"
        )
    zoo.check(model)
    if zoo.is_exported(model):
        raise UsageError(f"bench tune takes networks of torch; {model} was exported: bench compare tries its engines")
    operand = Operand(model, model, Choice("fast"))
    device = open_device(options["device"], options["force"])
    settings, conditions = settings_from([operand], device, options, screen.say, "loading" in tasks)
    screen.progress("starting")
    crew = stack.enter_context(Crew(spawner(conditions.threads), forks=device == "cpu"))
    crew.start([model], replace(needs([operand], settings, "loading" in tasks), compiler=True))
    machine = crew[model].ask("machine")
    facts = Device(**crew[model].ask("device", device=device))
    classes = classes_for(crew[model], [model], settings, screen.say)[model]
    cost = crew[model].ask("cost", 300, model=model, classes=classes, size=options["size"])
    crew.end_block()
    base = base_workloads(operand, settings, resolve(operand.choice, facts, model, machine), cost, tasks)
    engines = [name for name, peer in PEERS.items() if peer.installed]
    if {"inference", "latency"} & set(tasks):
        for name in missing_engines(facts):
            screen.say(f"{name} is not installed, so it was not tried")
    return Tuner(base, facts, conditions, machine, screen.progress, crew, engines)


def _text(found: "Tuning", format: str) -> str:
    """One task for reading."""
    from results.tables import Cell, render

    winner = found.winner
    assert winner is not None
    bullet = "- " if format == "markdown" else ""
    title = f"{found.task} of {found.model}" if found.task != "loading" else f"loader {found.model}"
    lines = [f"{bullet}{title}: {winner.configuration}, batch {winner.batch}; {found.verdict}"]
    if winner.error is not None:
        lines.append(f"{bullet}accuracy: logits differ from plain fp32's by {winner.error:.2g} of their spread")
    for threads, *figures in found.threads:
        if threads == winner.threads:
            lines.append(f"{bullet}with --threads {threads} it is {_times(*figures)} times as fast")
    if winner.alone:
        [other] = found.levers
        lines.append(
            f"{bullet}fastest without another engine: {other.without}; {winner.configuration} is {_ratio(other)} times "
            "as fast"
        )
    pieces = ["\n".join(lines)]
    if found.levers and not winner.alone:
        worth = [[one.lever, one.without, _ratio(one) or one.reason] for one in found.levers]
        pieces.append(render(["lever", "without it", "worth"], worth, format).rstrip("\n"))
    if len(found.batches) > 1:
        batches: list[list[Cell]] = [
            [batch, f"{ratio:.2f}" if ratio is not None else "-", reason] for batch, _, ratio, reason in found.batches
        ]
        pieces.append(render(["batch", "images/s, ratio", ""], batches, format).rstrip("\n"))
    rows: list[list[Cell]] = [
        [one.configuration.text, f"{one.ratio:.2f}" if one.ratio is not None else "-", one.rung or "-",
         "-" if one.error is None else f"{one.error:.2g}", one.reason]
        for one in found.results
    ]  # fmt: skip
    pieces.append(render(["configuration", "times fast", "rung", "error", ""], rows, format).rstrip("\n"))
    if found.hopeless:
        pieces.append(
            f"{bullet}not tried, because they cannot win by what was measured of others: {', '.join(found.hopeless)}"
        )
    if found.unsteady:
        pieces.append(f"{bullet}still getting faster when their warm-up ended: {', '.join(found.unsteady)}")
    if found.untried:
        pieces.append(f"{bullet}no time for: {', '.join(found.untried)}")
    return "\n\n".join(pieces) + "\n"


def _ratio(lever: "Lever") -> str:
    return "" if lever.ratio is None else _times(lever.ratio, lever.low, lever.high)


def _times(ratio: float | None, low: float | None, high: float | None) -> str:
    from results.record import Ratio
    from results.tables import ratio_text

    return ratio_text(Ratio("of", "to", ratio, low, high, None, 1, 1))


def _csv(found: "list[Tuning]") -> str:
    from results.tables import render

    headers = ["task", "model", "configuration", "ratio", "rung", "error", "reason"]
    rows = [
        [one.task, one.model, r.configuration.text, r.ratio, r.rung, r.error, r.reason]
        for one in found
        for r in one.results
    ]
    return render(headers, rows, "csv")
