"""`bench predict`: what is on an image, how sure, and how long it took."""

from pathlib import Path

import click

from bench.commands.options import place_options
from bench.errors import UsageError
from bench.output import check_output, format_options, write


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("--data", metavar="pickle:FILE", help="Unlabelled images: a pickle of arrays with the keys data and ids.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes an image.")
@click.option(
    "--config", "--configuration", "configuration", default="fast", show_default=True, help="Preset or levers."
)
@place_options
@click.option("--numbers", is_flag=True, help="With --data: class numbers in place of names.")
@format_options
def command(
    checkpoint: Path,
    images: tuple[Path, ...],
    data: str | None,
    top: int,
    configuration: str,
    device: str,
    threads: int,
    numbers: bool,
    format: str,
    output: str,
) -> int:
    """Classify IMAGES with CHECKPOINT (a .safetensors file, or a run's folder): classes, confidences, milliseconds.

    With --data pickle:FILE every image of the pickle is labelled, as a CSV of ID,Labels.
    """
    check_output(output)
    if (data is None) == (not images):
        raise UsageError("name images to classify, or --data pickle:FILE")
    if data is not None and not data.startswith("pickle:"):
        raise UsageError(f"--data {data}: write pickle:FILE; for a labelled folder use bench evaluate")

    from bench.runs.predicting import as_numbers, label_pickle, open_checkpoint, predict
    from results.submissions import submission_csv
    from results.tables import fixed, render, to_json

    opened = open_checkpoint(checkpoint, device, configuration, 0, threads)
    if data is not None:
        ids, names = label_pickle(opened, Path(data.removeprefix("pickle:")))
        labels = as_numbers(opened.classifier.card.classes, names) if numbers else names
        write(submission_csv(ids, labels), output)
        click.echo(f"{len(ids)} images labelled", err=True)
        return 0
    answers = predict(opened, images, top)
    for _, reason in answers.refused:
        click.echo(f"bench: {reason}", err=True)
    code = 2 if answers.refused else 0
    if format == "json":
        write(to_json(answers.to_json()), output)
        return code
    rows = [
        [answer.path if rank == 0 else "", name, 100 * p, 1000 * answer.seconds if rank == 0 else None]
        for answer in answers.answers
        for rank, (name, p) in enumerate(answer.top)
    ]
    if format in ("csv",):
        rows = [[a.path, name, 100 * p, 1000 * a.seconds] for a in answers.answers for name, p in a.top]
    write(render(["image", "class", "confidence %", "ms"], rows, format), output)
    low, high = (1000 * x for x in answers.warm_interval)
    p95 = "" if answers.warm_p95_seconds is None else f"; p95 {1000 * answers.warm_p95_seconds:.1f}"
    click.echo(
        f"first image {1000 * answers.cold_seconds:.1f} ms (cold: everything for the first time), "
        f"warm {fixed(1000 * answers.warm_seconds, low, high)} ms "
        f"(median of {answers.warm_calls} calls, 95 % {low:.2f} to {high:.2f}{p95}), "
        f"file to answer, {opened.device.type}; the network alone {1000 * answers.forward_seconds:.1f} ms",
        err=True,
    )
    return code
