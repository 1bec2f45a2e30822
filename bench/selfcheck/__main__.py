"""`python -m bench.selfcheck`: measures how often `bench check` errs, for those who change it."""

from pathlib import Path
from typing import NoReturn

import click

from bench.cli import CONTEXT
from bench.cli import run as exiting
from bench.defaults import CHECK_SECONDS
from bench.output import check_output, output_option, write
from bench.screen import Screen
from bench.sides.load import LOADS

FORMATS = ("text", "markdown", "json")
format_option = click.option(
    "--format", type=click.Choice(FORMATS), default="text", show_default=True, help="How it is written."
)


@click.group(context_settings={**CONTEXT, "auto_envvar_prefix": None})
def app() -> None:
    """How often `bench check` errs: record traces of equal code, judge decisions drawn from them, run it in a loop.

    And how often `bench trend` errs, and what is left when a command is killed.
    """


@app.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--blocks", type=click.IntRange(1), required=True, help="Record until OUT holds so many.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=float("inf"), help="Stop after that time.")
@click.option(
    "--load",
    type=click.Choice(LOADS),
    default="none",
    show_default=True,
    help="core: beside a process that works at random times; busy: at all times.",
)
@click.option("--workloads", multiple=True, metavar="ID,...|FILE", help="Default: those of `bench check`.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; default: every usable core.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="JPEGs in place of generated ones.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order of turns.")
@click.option(
    "--sampled-rounds",
    type=click.IntRange(1, 256),
    default=256,
    show_default=True,
    help="Rounds of a block whose single times are stored; fewer make OUT smaller.",
)
def record(
    out: Path,
    blocks: int,
    seconds: float,
    load: str,
    workloads: tuple[str, ...],
    device: str,
    threads: int,
    data: Path | None,
    seed: int,
    sampled_rounds: int,
) -> None:
    """Measure equal code against itself into OUT (.json.gz), a line for each block; adds to an OUT that exists."""
    from bench.checking.check import subjects
    from bench.machine.cpu import usable_cores
    from bench.machine.devices import choose_device
    from bench.selfcheck.record import record as measure
    from bench.selfcheck.record import snapshot

    check_output(str(out))
    say = Screen().say
    subject = subjects(workloads, choose_device(device), threads or usable_cores(), data, seed, say)
    with snapshot() as tree:
        done = measure(out, tree, blocks, seconds, load, subject.workloads, subject.conditions, say, sampled_rounds)
    say(f"{out} holds {done} blocks, {out.stat().st_size / 1e6:.2f} MB")


@app.command()
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--decisions", type=click.IntRange(1), default=2000, show_default=True, help="Of each workload and trace."
)
@click.option(
    "--looks",
    type=click.IntRange(1, 4),
    default=4,
    show_default=True,
    help="How many looks the check takes; 1 where its budget allows no more.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@format_option
@output_option
def judge(traces: tuple[Path, ...], decisions: int, looks: int, seed: int, format: str, output: str) -> None:
    """False alarms and power of the check's rule on recorded TRACES, of other tools' rules, and compare's intervals."""
    from bench.selfcheck import resample
    from bench.selfcheck.report import report
    from bench.selfcheck.traces import read

    check_output(output)
    judgement = resample.judge([read(path) for path in traces], decisions, seed, Screen().say, looks=looks)
    write(report(judgement, format), output)


@app.command()
@click.option("--runs", type=click.IntRange(1), default=30, show_default=True, help="Run until FILE holds so many.")
@click.option("--slow", type=click.IntRange(0, 99), default=0, help="Percentage of extra work of head.")
@click.option("--workloads", multiple=True, metavar="ID,...|FILE", help="Default: inference of lenet.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("live.jsonl"),
    show_default=True,
    help="Outcomes, a line for each run.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0),
    default=CHECK_SECONDS,
    show_default=True,
    help="Seconds, as given to each check.",
)
@click.option("--timeout", type=click.FloatRange(1), default=3600.0, show_default=True, help="Seconds of one run.")
@format_option
@output_option
def live(
    runs: int,
    slow: int,
    workloads: tuple[str, ...],
    file: Path,
    budget: float,
    timeout: float,
    format: str,
    output: str,
) -> None:
    """Run `bench check` in a loop, on equal code or with head made slower, and count its verdicts."""
    from bench.checking.check import ids
    from bench.selfcheck.live import WORKLOADS, loop, summary
    from bench.timing.workload import Workload

    check_output(output)
    check_output(str(file))
    chosen = tuple(Workload.from_id(text).id for text in ids(workloads)) or WORKLOADS
    write(summary(loop(file, runs, slow, chosen, budget, Screen().say, timeout), format), output)


@app.command()
@click.option(
    "--tasks",
    default="inference,training,end_to_end",
    show_default=True,
    metavar="TASK,...",
    help="Of the check's workloads.",
)
@click.option("--windows", type=click.IntRange(2), default=40, show_default=True, help="Of each way and workload.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.5, show_default=True, help="Of a window.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="JPEGs in place of generated ones.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order of turns.")
@format_option
@output_option
def turns(tasks: str, windows: int, seconds: float, data: Path | None, seed: int, format: str, output: str) -> None:
    """How much noise different ways of taking turns leave, the same code on both sides. On a CPU."""
    from bench.machine.cpu import usable_cores
    from bench.selfcheck.turns import chosen, measure
    from bench.selfcheck.turns import report as table
    from bench.timing.images import find_data
    from bench.timing.workload import Conditions

    check_output(output)
    say = Screen().say
    name, folder = find_data(data, say)
    conditions = Conditions(data_root=str(folder.absolute()), threads=usable_cores())
    workloads = chosen(tasks.split(","), "cpu", name)
    found = [noise for w in workloads for noise in measure(w, conditions, windows, seconds, seed, say)]
    write(table(found, seconds, format), output)


@app.command()
@click.argument("url")
@click.argument("image", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--clients", type=click.IntRange(1), default=200, show_default=True, help="That ask at the same time.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True)
@click.option("--load", type=click.Choice(LOADS), default="none", show_default=True, help="As in record.")
@format_option
@output_option
def crowd(url: str, image: Path, clients: int, seconds: float, load: str, format: str, output: str) -> None:
    """Have many clients post IMAGE to the server at URL (`bench serve` prints it), and see how long they wait."""
    from bench.selfcheck.crowd import ask, report
    from bench.sides.load import competing

    check_output(output)
    with competing(load, 0):
        write(report(ask(url, image.read_bytes(), clients, seconds), load, format), output)


@app.command()
@click.option("--series", type=click.IntRange(1), default=4000, show_default=True, help="Of each kind of noise.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@format_option
@output_option
def trend(series: int, seed: int, format: str, output: str) -> None:
    """Changes that `bench trend` shows in simulated series of 100 points, without a change and with one."""
    from bench.selfcheck.simulated import simulate

    check_output(output)
    write(simulate(series, seed, format), output)


@app.command()
@click.option("--times", type=click.IntRange(1), default=300, show_default=True, help="Kill until FILE holds so many.")
@click.option("--commands", default="", metavar="NAME,...", help="Which; default: all that are known here.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("kills.jsonl"),
    show_default=True,
    help="Outcomes, a line for each kill.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the moments.")
@format_option
@output_option
def kills(times: int, commands: str, file: Path, seed: int, format: str, output: str) -> int:
    """Kill commands at random moments and look at what they leave; exit with 1 if anything is wrong."""
    from bench.selfcheck.kills import TRIALS, loop, summary

    check_output(output)
    check_output(str(file))
    outcomes = loop(file, times, commands.split(",") if commands else list(TRIALS), seed, Screen().say)
    write(summary(outcomes, format), output)
    return 1 if any(outcome.faults for outcome in outcomes) else 0


@app.command()
@click.option("--networks", default="", metavar="NAME,...", help="Which; default: all of torchvision's.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("presets.jsonl"),
    show_default=True,
    help="Outcomes, a line for each network.",
)
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images a step in inference.")
@click.option("--training-batch", type=click.IntRange(1), default=4, show_default=True)
@click.option("--budget", type=click.FloatRange(0), default=45.0, show_default=True, help="Seconds of a comparison.")
@click.option("--seconds", type=click.FloatRange(0), default=float("inf"), help="Begin no network after that time.")
@format_option
@output_option
def presets(
    networks: str,
    file: Path,
    batch: int,
    training_batch: int,
    budget: float,
    seconds: float,
    format: str,
    output: str,
) -> None:
    """Compare `fast` with `naive` for every network, and list how many times as fast it is, the lowest first."""
    from bench.selfcheck.presets import sweep
    from models import zoo
    from models.names import split
    from results.presets import summary

    check_output(output)
    check_output(str(file))
    wanted = split(networks) or [name for name in zoo.names() if zoo.describe(name).endswith("(torchvision)")]
    for name in wanted:
        zoo.check(name)
    write(summary(sweep(file, wanted, batch, training_batch, budget, seconds, Screen().say), format), output)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run it and exit: 0 fine, 1 a kill did harm, 2 usage, environment or input error, 130 interrupted."""
    exiting(app, "python -m bench.selfcheck", arguments, "; the same command continues")


if __name__ == "__main__":
    main()
