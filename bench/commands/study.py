"""`bench study`: run a whole study or a sweep, rank its runs, and draw them."""

from pathlib import Path

import click

from bench.commands.options import data_options, place_options, shared
from bench.errors import UsageError
from bench.output import check_output, format_options, write
from bench.screen import Screen
from models.studies import STUDIES, SWEEPS

NAMES = f"Studies: {', '.join(STUDIES)}. Sweeps: {', '.join(SWEEPS)}."


@click.command(epilog=NAMES)
@click.argument("study", metavar="NAME")
@data_options
@click.option(
    "--over",
    multiple=True,
    metavar="KEY=V1,V2,...",
    help="Values of a recipe key (or model.NAME); several --over make a grid, a single value is set in all runs.",
)
@click.option("--seeds", metavar="0,1,2", help="Each run once with each seed; the table then has their spread.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Below 1: a trial with less of everything.")
@click.option("--fast", "form", flag_value="fast", help="The corrected recipes in place of the published ones.")
@click.option("--both", "form", flag_value="both", help="The published and the corrected recipes.")
@click.option("--name", default="", help="Name of the study's folder; default: NAME.")
@shared("--runs", help="Folder of studies.")
@place_options
@click.option(
    "--devices",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs at a time, each with a GPU of its own and its share of the cores.",
)
@click.option("--on", type=click.Choice(["slurm", "ray"]), help="Give the runs to a cluster, each as a job.")
@click.option(
    "--job",
    multiple=True,
    metavar="KEY=VALUE",
    help="With --on slurm: an option of sbatch (partition=gpu, time=8:00:00); with ray: address, memory, a resource.",
)
@click.option("--attach", is_flag=True, help="With --on: only watch the runs that were submitted.")
@click.option("--charts/--no-charts", default=True, show_default=True, help="Pictures of all runs beside each other.")
@format_options
def command(
    study: str,
    data: Path | None,
    train: tuple[str, ...],
    val: str | None,
    over: tuple[str, ...],
    seeds: str | None,
    scale: float,
    form: str | None,
    name: str,
    runs: Path,
    device: str,
    threads: int,
    devices: int,
    on: str | None,
    job: tuple[str, ...],
    attach: bool,
    charts: bool,
    format: str,
    output: str,
) -> int:
    """Run study or sweep NAME (see below), or the recipe NAME with --over, and rank the runs.

    Each run is a process of its own and leaves runs/NAME/RUN/; tables and pictures of all lie in runs/NAME/. The same
    command again continues where the last one was interrupted; finished runs are not run again.
    """
    from bench.runs.folder import DataFolders
    from bench.runs.plan import FORMS, StudyError, check_arguments, parse_over, plan_runs

    check_output(output)
    forms = {None: FORMS[:1], "fast": FORMS[1:], "both": FORMS}[form]
    asked = _asked(on, devices, job, attach, threads)
    grid = parse_over(over)
    numbers = _seeds(seeds)
    # Mistakes are answered before any image is looked at.
    check_arguments(plan_runs(study, grid, forms, scale, numbers), grid)
    if name and (Path(name).name != name or name.startswith(".")):
        raise UsageError(f"--name {name}: give the name of a folder, without its path")

    from bench.machine.cpu import usable_cores
    from bench.runs.cluster import CLUSTERS, Submitting
    from bench.runs.engines import Engine, Local, local_devices
    from bench.runs.epochs import stored_epochs, tester
    from bench.runs.findings import Findings
    from bench.runs.sources import check_batch, open_folders
    from bench.runs.study import Conductor
    from loaders.soundness import remarks

    folders = DataFolders.from_options(data, train, val)
    opened = open_folders(folders)
    plan = plan_runs(study, grid, forms, scale, numbers, len(opened[0]), len(opened[0].classes))
    for run in plan.runs:
        check_batch(run.recipe, opened[0], option="--over batch=")
    folder = runs / (name or plan.name)
    screen = Screen()
    for remark in remarks(opened):
        screen.say(remark)
    for note in plan.notes:
        screen.say(f"note: {note}")
    engine: Engine
    if on is None:
        place, share = device, threads or (usable_cores() // devices or 1 if devices > 1 else 0)
        engine = Local(local_devices(devices, device))
    else:
        # What this machine has is not what the nodes have.
        place, share = "cpu" if device == "cpu" else "cuda", threads
        engine = Submitting(CLUSTERS[on](threads, int(place == "cuda"), asked), screen.say, attach)
    options = ("--device", place, "--threads", str(share))
    conductor = Conductor(plan, folder.absolute() if on else folder, folders, opened, options, screen, engine)
    try:
        summaries = conductor.train()
    except KeyboardInterrupt:
        findings = Findings(plan, tuple(conductor.summaries()))
        findings.save(folder, pictures=False)
        done = sum(run.status == "finished" for run in findings.summaries)
        screen.say(f"{done} of {len(plan.runs)} runs are finished; the same command continues")
        raise
    points = stored_epochs(plan, folder, tester(opened, device, threads), screen.say)
    findings = Findings(plan, tuple(summaries), tuple(points))
    findings.save(folder, charts)
    write(findings.text(format), output)
    screen.say(f"tables and pictures in {folder}")
    failed = [run.name for run in summaries if run.status != "finished"]
    if failed:
        raise StudyError(
            f"{len(failed)} of {len(summaries)} runs did not finish: {', '.join(failed)}; see {folder}/*.log"
        )
    return 0


def _asked(on: str | None, devices: int, job: tuple[str, ...], attach: bool, threads: int) -> dict[str, str]:
    """What --job asks for."""
    if on is None:
        if job or attach:
            raise UsageError("--job and --attach belong to a cluster: --on slurm or --on ray")
        return {}
    if devices != 1:
        raise UsageError(f"--devices belongs to this machine; {on} runs as many at a time as it has room for")
    if not threads:
        raise UsageError(f"--on {on}: say with --threads how many CPUs a run gets")
    pairs = [text.partition("=") for text in job]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise UsageError(f"cannot read --job {key}{equals}{value}; write KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"cannot read --seeds {text}; write whole numbers with commas: 0,1,2") from None
    if any(number < 0 for number in numbers) or len(set(numbers)) < len(numbers):
        raise UsageError(f"--seeds {text}: give different numbers, 0 or more")
    return numbers
