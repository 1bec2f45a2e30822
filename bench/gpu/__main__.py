"""`python -m bench.gpu`, which `make gpu` runs; `--device cpu` rehearses it at a small scale."""

import contextlib
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import click

from bench.cli import CONTEXT
from bench.cli import run as exiting
from bench.defaults import BATCH
from bench.errors import UsageError
from bench.output import check_output, output_option, write
from bench.screen import Screen
from results.errors import RecordError

device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)


@click.group(context_settings={**CONTEXT, "auto_envvar_prefix": None})
def app() -> None:
    """Measure a GPU host in parts that each leave a file, and make the table of them."""


@app.command()
@click.option(
    "--parts",
    default="",
    metavar="PART,...",
    help="Default: training,inference,cifar,loaders,end_to_end, in 12 minutes; all: every part.",
)
@device_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path(".benchmarks/gpu"), show_default=True
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path, dir_okay=False),
    help="One file with all others, made at the end.  [default: $OUT/gpu.tar.gz where OUT is set]",
)
@click.option("--networks", default="", metavar="MODEL,...", help="Default: resnet50,efficientnet_b0,resnet34.")
@click.option("--batch", type=click.IntRange(1), help="Images a step; default: by the memory of the GPU.")
@click.option("--cifar", type=click.Path(path_type=Path, exists=True), help="CIFAR-10, which part cifar trains on.")
@click.option("--force", is_flag=True, help="Measure on a GPU even if other processes use it.")
def run(
    parts: str,
    device: str,
    out: Path,
    archive: Path | None,
    networks: str,
    batch: int | None,
    cifar: Path | None,
    force: bool,
) -> int:
    """Run the parts, each job in its own process, and show their rates; exit code 2 if a job fails.

    Each part alone ends in less than four minutes.
    """
    from bench.gpu.parts import PARTS, REHEARSAL, Scale, batch_for, jobs, parts_named
    from bench.gpu.report import packed, report
    from bench.gpu.running import run as run_all
    from bench.machine.devices import choose_device, refuse_used_gpu
    from bench.processes import SOURCE

    wanted = parts_named(parts)
    if "cifar" in wanted and cifar is None:
        if "cifar" in parts:
            raise UsageError("part cifar needs the data set: --cifar DIR (make gpu ARGS='--cifar DIR')")
        wanted = tuple(part for part in wanted if part != "cifar")
    if archive is None and os.environ.get("OUT"):
        archive = Path(os.environ["OUT"]) / "gpu.tar.gz"
    if archive is not None:
        check_output(str(archive))
    chosen = choose_device(device)
    if chosen == "cpu" and device == "auto":
        raise UsageError("no GPU is visible to the NVIDIA driver here; --device cpu (make gpu DEVICE=cpu) rehearses")
    if chosen == "cuda" and not force:
        refuse_used_gpu()
    scale = replace(Scale(), batch=batch_for(_memory())) if chosen == "cuda" else REHEARSAL
    if networks:
        scale = replace(scale, networks=tuple(networks.split(",")))
    scale = replace(scale, batch=batch or scale.batch, cifar=cifar and cifar.absolute())
    out.mkdir(parents=True, exist_ok=True)
    say = Screen().say
    try:
        done = run_all(jobs(wanted, chosen, scale, SOURCE / "tests"), out, {part: PARTS[part] for part in wanted}, say)
    finally:
        if archive is not None:
            packed(out, archive)
            say(f"all files are in {archive}")
    failed = sum(bool(outcome.reason) for outcome in done)
    say(f"{len(done) - failed} of {len(done)} jobs succeeded; their files are in {out}")
    with contextlib.suppress(RecordError):
        write(report([out]), "-")
    return 2 if failed else 0


@app.command()
@click.argument("runs", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@output_option
def report(runs: tuple[Path, ...], output: str) -> None:
    """The table of a device, in markdown, from the folders or archives RUNS, of which later ones count more."""
    from bench.gpu.report import report as text

    check_output(output)
    write(text(runs), output)


@app.command()
@device_option
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="JPEGs; default: generated ones.")
@click.option("--images", type=click.IntRange(1), default=2000, show_default=True, help="Generated files.")
@click.option("--batch", type=click.IntRange(1), default=BATCH["cuda"], show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: every usable core.")
@output_option
def sweep(device: str, data: Path | None, images: int, batch: int, threads: int | None, output: str) -> None:
    """Find the share of images that the GPU's JPEG engine should decode, and remember it for this GPU."""
    from bench.inspecting.jpeg_share import choose
    from bench.machine.cpu import usable_cores
    from bench.machine.devices import choose_device
    from bench.timing.step import LONG_EPOCH
    from loaders.datasets import open_dataset
    from loaders.options import LoaderOptions
    from loaders.sample import default_sample
    from results.tables import to_json

    check_output(output)
    dataset = open_dataset(data or default_sample(images), "train")
    dataset = dataset.select([*range(len(dataset))] * -(-LONG_EPOCH // len(dataset)), dataset.name)
    threads = threads or usable_cores()
    options = LoaderOptions(batch=batch, dtype="bfloat16", device=choose_device(device), threads=threads)
    write(to_json(asdict(choose(dataset, options, Screen().say))), output)


@app.command("compile")
@device_option
@click.option("--task", type=click.Choice(["training", "inference", "latency"]), required=True)
@click.option("--networks", required=True, metavar="MODEL,...", help="What the part measures.")
@click.option("--batch", type=click.IntRange(1), required=True, help="Images a step.")
@click.option("--size", type=click.IntRange(0), default=0, help="Pixels; 0 is each network's own.")
@output_option
def compile_(device: str, task: str, networks: str, batch: int, size: int, output: str) -> None:
    """Compile what a part measures, in many processes at a time, so that its comparisons find warm caches."""
    from bench.gpu.warming import at_once, warm, workloads
    from bench.machine.cpu import usable_cores
    from bench.machine.devices import choose_device
    from results.tables import to_json

    check_output(output)
    chosen = choose_device(device)
    memory = _memory() if chosen == "cuda" else None
    wanted = workloads(networks.split(","), batch, size, task, chosen)
    done = warm(wanted, at_once(usable_cores(), memory), Screen().say)
    write(to_json([asdict(compiled) for compiled in done]), output)


def _memory() -> int:
    """Bytes of the GPU, asked of torch in a process of its own, which also proves that torch can use it.

    Raises:
        UsageError: torch cannot use it, with its reason (a driver that is too old, for one).
    """
    code = "import torch; torch.zeros(1, device='cuda'); print(torch.cuda.get_device_properties(0).total_memory)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise UsageError(f"torch cannot use this GPU: {reason}; bench doctor says more")
    return int(done.stdout)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run it and exit: 0 fine, 2 a job or the environment failed, 130 interrupted."""
    exiting(app, "python -m bench.gpu", arguments, "; what was measured is kept")


if __name__ == "__main__":
    main()
