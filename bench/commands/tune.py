"""`bench tune MODEL`: find the fastest configuration here, remember it, and say what each lever is worth."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bench.commands.options import network_options
from bench.errors import UsageError
from bench.output import check_output, format_options, write

TASKS = {"infer": "inference", "latency": "latency", "train": "training", "loading": "loading"}


@click.command()
@click.argument("model")
@click.option(
    "--tasks",
    default="infer,latency,train,loading",
    show_default=True,
    metavar="TASK,...",
    help="infer, latency, train, loading: threads and batches ahead of the loader.",
)
@click.option(
    "--budget", default=540.0, show_default=True, metavar="SECONDS", help="In all; what it does not reach is named."
)
@network_options
@format_options
def command(model: str, tasks: str, budget: float, format: str, output: str, **options: Any) -> int:
    """Find the fastest configuration of MODEL on this machine and remember it: MODEL@tuned then stands for it.

    Configurations meet the preset `fast` in turns, the slower half drops out of each rung, and the last one replaces
    `fast` only where pairs of fresh processes show that it is faster. Accuracy is not traded: logits may lie twice as
    far from plain fp32's as those of `fast`, and how far is printed. Then the winner is tried at other batches, and
    each of its levers is put back, one at a time, to say what it is worth.
    """
    from bench.errors import BenchError
    from bench.machine.tuned import remember
    from bench.screen import Screen
    from results.tables import to_json

    check_output(output)
    wanted = [word for word in tasks.split(",") if word]
    for word in wanted:
        if word not in TASKS:
            raise UsageError(f"--tasks has no {word!r}; there are {', '.join(TASKS)}")
    if not wanted:
        raise UsageError(f"--tasks names no task; there are {', '.join(TASKS)}")
    screen = Screen()
    begin = time.monotonic()
    tuner = _tuner(model, [TASKS[word] for word in wanted], screen, **options)
    from bench.comparing.tuning import SHARES

    found, failed = [], False
    shares = {task: SHARES[task] for task in tuner.base}
    try:
        for task, share in shares.items():
            left = budget - (time.monotonic() - begin)
            rest = sum(shares[name] for name in list(shares)[list(shares).index(task) :])
            try:
                one = tuner.tune(task, left * share / rest)
            except BenchError as error:
                screen.say(f"{task} of {model}: {error}")
                failed = True
                continue
            found.append(one)
            if one.winner is not None:
                path = remember(one.winner)
            screen.say(f"{task}: {one.verdict}")
    finally:
        tuner.close()
        screen.clear()
    if format == "json":
        write(to_json({"model": model, "tasks": [one.to_json() for one in found]}), output)
    elif format == "csv":
        write(_csv(found), output)
    elif found:
        write("\n".join(_text(one, format) for one in found), output)
    if found:
        name = f"{model}@tuned" if any(one.task != "loading" for one in found) else "the loader's line above"
        screen.say(f"remembered in {path}; use it as {name}; took {time.monotonic() - begin:.0f} s")
    return 2 if failed else 0


def _tuner(model: str, tasks: list[str], screen: Any, **o: Any) -> Any:
    from bench.comparing.tuning import Tuner, base_workloads
    from bench.machine.cpu import usable_cores
    from bench.machine.devices import choose_device, refuse_used_gpu
    from bench.sides.process import Worker
    from bench.timing.images import find_data
    from bench.timing.workload import Conditions
    from loaders import engines
    from models import zoo
    from models.configuration import Device

    if "@" in model:
        raise UsageError(
            f"bench tune takes a model without a configuration; it finds one: bench tune {model.split('@')[0]}"
        )
    zoo.check(model)
    engines.check(o["loader"])
    device = choose_device(o["device"])
    if device == "cuda" and not o["force"]:
        refuse_used_gpu()
    threads = o["threads"] or usable_cores()
    name, root = find_data(o["data"], screen.progress) if "loading" in tasks else ("", Path())
    conditions = Conditions(
        data_root=str(root.absolute()) if name else "", threads=threads, seed=o["seed"], images=o["images"]
    )
    batches = (o["batch"] or (256 if device == "cuda" else 32), o["batch"] or (256 if device == "cuda" else 8))
    screen.progress("starting")
    worker = Worker(model, {})
    try:
        worker.ask("hello", 300, compiler=False)
        machine = worker.ask("machine")
        base = base_workloads(
            worker.ask, model, device, batches, o["size"] or 0, o["classes"] or 0, tasks, threads, name, o["loader"]
        )
        facts = worker.ask("device", device=device)
    finally:
        worker.close()
    return Tuner(base, Device(**facts), conditions, machine, screen.progress)


def _text(found: Any, format: str) -> str:
    """One task for reading."""
    from results.tables import render

    winner = found.winner
    bullet = "- " if format == "markdown" else ""
    title = f"{found.task} of {found.model}" if found.task != "loading" else f"loader {found.model}"
    lines = [f"{bullet}{title}: {winner.configuration}, batch {winner.batch}; {found.verdict}"]
    if winner.error is not None:
        lines.append(f"{bullet}its price: logits lie {winner.error:.2g} of their spread from plain fp32's")
    pieces = ["\n".join(lines)]
    if found.levers:
        rows = [[one.lever, one.without, _ratio(one) or one.reason] for one in found.levers]
        pieces.append(render(["lever", "without it", "worth"], rows, format).rstrip("\n"))
    if len(found.batches) > 1:
        rows = [
            [batch, f"{ratio:.2f}" if ratio is not None else "-", reason] for batch, _, ratio, reason in found.batches
        ]
        pieces.append(render(["batch", "images/s, ratio", ""], rows, format).rstrip("\n"))
    rows = [
        [one.configuration, f"{one.ratio:.2f}" if one.ratio is not None else "-", one.rung or "-",
         "-" if one.error is None else f"{one.error:.2g}", one.reason]
        for one in found.results
    ]  # fmt: skip
    pieces.append(render(["configuration", "times fast", "rung", "error", ""], rows, format).rstrip("\n"))
    if found.hopeless:
        pieces.append(f"{bullet}not tried, since a change in them is slower alone: {', '.join(found.hopeless)}")
    if found.untried:
        pieces.append(f"{bullet}no time for: {', '.join(found.untried)}")
    return "\n\n".join(pieces) + "\n"


def _ratio(lever: Any) -> str:
    from results.record import Ratio
    from results.tables import ratio_text

    if lever.ratio is None:
        return ""
    return ratio_text(Ratio("with", "without", lever.ratio, lever.low, lever.high, None, 1, 1))


def _csv(found: list[Any]) -> str:
    from results.tables import render

    headers = ["task", "model", "configuration", "ratio", "rung", "error", "reason"]
    rows = [
        [one.task, one.model, *(asdict(result)[name] for name in ("configuration", "ratio", "rung", "error", "reason"))]
        for one in found
        for result in one.results
    ]
    return render(headers, rows, "csv")
