"""`bench export MODEL|CHECKPOINT`: a network as a file for another engine, checked against itself."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.options import shared
from bench.errors import UsageError
from bench.output import check_output

if TYPE_CHECKING:
    from torch import nn

FORMATS = ("onnx", "openvino", "torch-export")
ALLOWED = 1e-2  # of the logits' standard deviation: fp32 in another order, never another network


@click.command()
@click.argument("model", metavar="MODEL|CHECKPOINT")
@click.option("--to", "format", type=click.Choice(FORMATS), default="onnx", show_default=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: NAME.onnx, .xml or .pt2"
)
@shared("--batch", default=1, show_default=True, help="Images at once.")
@click.option("--dynamic-batch", is_flag=True, help="Any number of images at once.")
@shared("--size")
@shared("--classes", help="Logits of a MODEL; default: its own.")
@shared("--weights")
@shared("--seed", help="Of a MODEL's weights, where they are random.")
def command(
    model: str,
    format: str,
    output: Path | None,
    batch: int,
    dynamic_batch: bool,
    size: int | None,
    classes: int | None,
    weights: str | None,
    seed: int,
) -> None:
    """Export a network (with random weights, or those of --weights) or a checkpoint, run the file, and compare logits.

    MODEL is a name of bench list models, or your own: FILE.py:NAME, package.module:NAME.

    The file takes normalised fp32 images [N, 3, size, size] and gives logits [N, classes].
    """
    from models.export import FORMATS as ENDINGS
    from models.export import export

    network, name, own_size, words = _network(model, classes, weights, seed)
    path = output or Path(f"{name}{ENDINGS[format][0]}")
    if path.suffix != ENDINGS[format][0]:
        raise UsageError(f"{format} is written as a file that ends in {ENDINGS[format][0]}; got {path}")
    check_output(str(path))
    done = export(network, format, path, size or own_size, batch, dynamic_batch)
    sizes = sum(file.stat().st_size for file in done.files) / 2**20
    click.echo(f"{', '.join(map(str, done.files))}: {sizes:.1f} MiB, {words}")
    if done.error is None:
        click.echo(f"bench: not checked: {done.checked_by}", err=True)
        return
    if done.error > ALLOWED:
        raise UsageError(
            f"{path} is wrong: {done.checked_by} gives logits that differ by up to {done.error:.2g} of their deviation"
        )
    click.echo(f"checked by {done.checked_by}: logits differ by at most {done.error:.2g} of their deviation")


def _network(model: str, classes: int | None, weights: str | None, seed: int) -> tuple["nn.Module", str, int, str]:
    """The network, a name for its file, its size, and what it is in words."""
    import torch

    from models import zoo
    from models.names import file_name
    from models.trained import Weights

    path = Path(model)
    if zoo.is_exported(model):
        raise UsageError(f"{model} is exported already; name a network or a checkpoint")
    if path.exists() and (path.suffix or path.is_dir()) and model not in zoo.names():
        from models.configuration import Configuration
        from models.predict import Classifier

        if classes is not None or weights:
            raise UsageError("a checkpoint has its own classes and weights; leave out --classes and --weights")
        classifier = Classifier.from_checkpoint(path, Configuration(), torch.device("cpu"))
        card = classifier.card
        normal = ", ".join(f"{x:.4g}" for x in (*card.mean, *card.std))
        words = f"{card.model} with {len(card.classes)} classes; images normalised by mean and deviation {normal}"
        if card.tta != "none":
            words += "; the run's own test averages over an image and others made of it, which the file does not"
        return classifier.prepared.module, path.stem if path.is_file() else path.name, card.size, words
    zoo.check(model)
    torch.manual_seed(seed)
    words = f"{model} with random weights"
    if weights:
        found = Weights.read(weights)
        classes, words = classes or found.classes(model), f"{model} with the weights of {weights}"
        if found.unwrapped:
            click.echo(f"--weights {weights}: took {found.unwrapped}", err=True)
    network = zoo.build(model, classes)
    if weights:
        found.put(network, model)
    return network, file_name(model), zoo.default_size(model), words
