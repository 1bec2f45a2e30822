"""`bench evaluate`: test a network on a labelled data set."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.options import place_options, shared
from bench.defaults import EVALUATION_BATCH
from bench.errors import UsageError
from bench.output import check_output, format_options, write
from bench.screen import Screen

if TYPE_CHECKING:
    from results.classification import Classification


@click.command()
@click.argument("network", metavar="CHECKPOINT|MODEL")
@shared("--data", required=True, help="Folder of the data set.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    show_default="test, or val where there is no test",
    help="The part of it to test on.",
)
@click.option("--predictions", type=click.Path(path_type=Path), metavar="FILE", help="Write one class name a line.")
@click.option(
    "--confusion", type=click.Path(path_type=Path), metavar="FILE", help="Write the matrix as .csv, .txt or .png."
)
@shared("--loader", default="auto", help="The engine that reads the images.")
@shared("--weights")
@shared("--size")
@shared("--config")
@shared("--batch", default=EVALUATION_BATCH, show_default=True, help="Images a step.")
@place_options
@format_options
def command(
    network: str,
    data: Path,
    split: str | None,
    predictions: Path | None,
    confusion: Path | None,
    loader: str,
    weights: str | None,
    size: int | None,
    configuration: str,
    batch: int,
    device: str,
    threads: int,
    format: str,
    output: str,
) -> None:
    """Test a network on the images of --data, each exactly once.

    It is a checkpoint (a .safetensors file, or a run's folder), or a MODEL: one of torchvision with its published
    weights, or any with --weights. The logits of a MODEL are taken for the classes of the data, in their order.
    """
    for path in (output, predictions, confusion):
        if path is not None:
            check_output(str(path))
    if confusion is not None and confusion.suffix not in (".csv", ".txt", ".png", ".svg"):
        raise UsageError(f"--confusion {confusion}: the name must end in .csv, .txt, .png or .svg")

    from bench.runs.predicting import Predictor, WeightsUsed, checkpoint_of, weights_used
    from bench.runs.reporting import classified
    from bench.runs.sources import open_split
    from loaders.soundness import doubts, left_out
    from results.submissions import write_predictions
    from results.tables import Cell, render, to_json

    screen = Screen()
    dataset = open_split(data, split, screen.say)
    for line in (*left_out(dataset), *doubts(dataset, training=False)):
        screen.say(line)
    path = checkpoint_of(network)
    classes = () if path else dataset.classes
    predictor = Predictor.open(network, device, configuration, batch, threads, weights, classes, size)
    evaluation = predictor.evaluate(dataset, loader, screen.say)
    names = predictor.classifier.card.classes
    report = classified(evaluation, names)
    if predictions is not None:
        write_predictions(predictions, [names[i] for i in evaluation.predicted.tolist()])
    if confusion is not None:
        _write_confusion(confusion, report)
    used = (
        weights_used(path, data, dataset)
        if path
        else WeightsUsed(f"{predictor.said}; unknown whether they were trained on these images", None)
    )
    if format == "json":
        said = {
            "weights": used.text,
            "images_trained_on": used.trained_on,
            "left_out": list(map(asdict, dataset.left_out)),
        }
        write(to_json({**report.to_json(), **said}), output)
    elif format == "text":
        write(report.text(), output)
    else:
        rows: list[list[Cell]] = [
            [s.name, s.precision, s.recall, s.f1, s.support] for s in (*report.classes, report.macro, report.weighted)
        ]
        write(render(["class", "precision", "recall", "f1", "support"], rows, format), output)
    screen.say(f"{dataset.title}: {report.summary()}")
    screen.say(f"weights: {used.text}")


def _write_confusion(path: Path, report: "Classification") -> None:
    from results.classification import confusion_csv, confusion_text
    from results.pictures.images import confusion
    from results.pictures.style import save

    if path.suffix == ".csv":
        write(confusion_csv(report.confusion, report.names), str(path))
    elif path.suffix == ".txt":
        write(confusion_text(report.confusion, report.names), str(path))
    else:
        save(confusion(report.confusion, report.names), path)
