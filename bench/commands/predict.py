"""`bench predict`: what is on an image, how sure, and how long it took."""

from pathlib import Path

import click

from bench.commands.options import place_options, shared
from bench.defaults import EVALUATION_BATCH
from bench.errors import UsageError
from bench.output import check_output, format_options, write
from bench.screen import Screen


@click.command()
@click.argument("network", metavar="CHECKPOINT|MODEL")
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("--data", metavar="pickle:FILE", help="Unlabelled images: a pickle of arrays with the keys data and ids.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes an image.")
@shared("--weights")
@shared("--class-names")
@shared("--size")
@shared("--config")
@place_options
@click.option("--numbers", is_flag=True, help="With --data: class numbers in place of names.")
@format_options
def command(
    network: str,
    images: tuple[Path, ...],
    data: str | None,
    top: int,
    weights: str | None,
    class_names: Path | None,
    size: int | None,
    configuration: str,
    device: str,
    threads: int,
    numbers: bool,
    format: str,
    output: str,
) -> int:
    """Classify IMAGES with a network: classes, confidences, milliseconds.

    It is a checkpoint (a .safetensors file, or a run's folder), or a MODEL: one of torchvision with its published
    weights, or any with --weights.

    With --data pickle:FILE every image of the pickle is labelled, as a CSV of ID,Labels.
    """
    check_output(output)
    if (data is None) == (not images):
        raise UsageError("name images to classify, or --data pickle:FILE")
    if data is not None and not data.startswith("pickle:"):
        raise UsageError(f"--data {data}: write pickle:FILE; for a labelled folder use bench evaluate")

    from bench.runs.predicting import Predictor, predict, read_classes
    from results.submissions import submission_csv
    from results.tables import Cell, bounded, quantity, render, to_json

    screen = Screen()
    classes = read_classes(class_names)
    predictor = Predictor.open(network, device, configuration, EVALUATION_BATCH, threads, weights, classes, size)
    if predictor.said:
        screen.say(f"weights: {predictor.said}")
    if data is not None:
        ids, predicted = predictor.label_pickle(Path(data.removeprefix("pickle:")))
        names = predictor.classifier.card.classes
        write(submission_csv(ids, predicted if numbers else [names[i] for i in predicted]), output)
        screen.say(f"{len(ids)} images labelled")
        return 0
    found = predict(predictor, images, top)
    for reason in found.refused.values():
        screen.say(f"bench: {reason}")
    code = 2 if found.refused else 0
    if format == "json":
        write(to_json(found.to_json()), output)
        return code
    # A reader sees path and time once an image; a program gets them in every row.
    rows: list[list[Cell]] = [
        [image.path, name, 100 * p, 1000 * image.seconds] if rank == 0 or format == "csv" else ["", name, 100 * p, None]
        for image in found.predictions
        for rank, (name, p) in enumerate(image.top)
    ]
    write(render(["image", "class", "confidence %", "ms"], rows, format), output)
    times = found.times
    warm = bounded(times.warm_seconds, "s", times.warm_low_seconds, times.warm_high_seconds)
    p95 = "" if times.warm_p95_seconds is None else f"; 95th percentile {quantity(times.warm_p95_seconds, 's')}"
    screen.say(
        f"from file to answer on the {predictor.device.type}: the first image {quantity(times.cold_seconds, 's')} "
        f"(cold: everything for the first time), warm {warm} (median of {times.warm_calls} calls and its 95 % "
        f"interval{p95}), of which the network takes {quantity(times.forward_seconds, 's')}"
    )
    return code
