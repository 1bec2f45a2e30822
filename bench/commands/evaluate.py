"""`bench evaluate`: test a checkpoint on a labelled data set."""

from pathlib import Path

import click

from bench.commands.options import place_options
from bench.output import check_output, format_options, write


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the data set.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    show_default="test, or val where there is no test",
    help="Its part.",
)
@click.option("--predictions", type=click.Path(path_type=Path), metavar="FILE", help="Write one class name a line.")
@click.option(
    "--confusion", type=click.Path(path_type=Path), metavar="FILE", help="Write the matrix as .csv, .txt or .png."
)
@click.option("--loader", default="auto", show_default=True, help="What reads the images.")
@click.option(
    "--config", "--configuration", "configuration", default="fast", show_default=True, help="Preset or levers."
)
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Images a step.")
@place_options
@format_options
def command(
    checkpoint: Path,
    data: Path,
    split: str | None,
    predictions: Path | None,
    confusion: Path | None,
    loader: str,
    configuration: str,
    batch: int,
    device: str,
    threads: int,
    format: str,
    output: str,
) -> None:
    """Test CHECKPOINT (a .safetensors file, or a run's folder) on the images of --data, each exactly once."""
    from bench.errors import UsageError

    check_output(output)
    for path in (predictions, confusion):
        if path is not None:
            check_output(str(path))
    if confusion is not None and confusion.suffix not in (".csv", ".txt", ".png", ".svg"):
        raise UsageError(f"--confusion {confusion}: the name must end in .csv, .txt, .png or .svg")

    from bench.runs.predicting import evaluate_on, open_checkpoint, weights_used
    from bench.runs.reporting import classified
    from bench.runs.sources import open_split
    from results.submissions import write_predictions
    from results.tables import render, to_json

    dataset = open_split(data, split, lambda text: click.echo(text, err=True))
    opened = open_checkpoint(checkpoint, device, configuration, batch, threads)
    evaluation = evaluate_on(opened, dataset, loader)
    names = opened.classifier.card.classes
    report = classified(evaluation, names)
    if predictions is not None:
        write_predictions(predictions, [names[i] for i in evaluation.predicted.tolist()])
    if confusion is not None:
        _write_confusion(confusion, report)
    used = weights_used(checkpoint, data, dataset)
    if format == "json":
        write(to_json({**report.to_json(), "weights": used}), output)
    elif format == "text":
        write(report.text(), output)
    else:
        rows: list[list[str | int | float | None]] = [
            [s.name, s.precision, s.recall, s.f1, s.support] for s in (*report.classes, report.macro, report.weighted)
        ]
        write(render(["class", "precision", "recall", "f1", "support"], rows, format), output)
    click.echo(f"{dataset.name}: {report.summary()}", err=True)
    click.echo(f"weights: {used}", err=True)


def _write_confusion(path: Path, report: object) -> None:
    from results.classification import Classification, confusion_csv, confusion_text
    from results.pictures.images import confusion
    from results.pictures.style import save

    assert isinstance(report, Classification)
    if path.suffix == ".csv":
        write(confusion_csv(report.confusion, report.names), str(path))
    elif path.suffix == ".txt":
        write(confusion_text(report.confusion, report.names), str(path))
    else:
        save(confusion(report.confusion, report.names), path)
