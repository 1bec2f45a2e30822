"""`bench serve CHECKPOINT|MODEL`: a page to try a network, and the same as an API."""

from pathlib import Path

import click

from bench.commands.options import Number, shared
from bench.defaults import EVALUATION_BATCH, UPLOAD_MIB, UPLOAD_PIXELS
from bench.errors import UsageError
from bench.screen import Screen


@click.command()
@click.argument("networks", nargs=-1, required=True, metavar="CHECKPOINT|MODEL [OTHER]")
@click.option("--host", default="127.0.0.1", show_default=True, help="The default is reachable from here alone.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@shared("--device", help="Where it runs.")
@shared("--config")
@shared("--threads")
@shared("--weights")
@shared("--class-names")
@shared("--size")
@click.option("--max-mib", type=Number(0.01), default=UPLOAD_MIB, show_default=True, help="Of an upload.")
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=UPLOAD_PIXELS,
    show_default=True,
    help="Width times height of an image, as its header says.",
)
def command(
    networks: tuple[str, ...],
    host: str,
    port: int,
    device: str,
    configuration: str,
    threads: int | None,
    weights: str | None,
    class_names: Path | None,
    size: int | None,
    max_mib: float,
    max_pixels: int,
) -> None:
    """Serve a page that classifies uploaded images with one network, or with two beside each other.

    A network is a checkpoint, a run's folder, or a MODEL: one of torchvision with its published weights, or any with
    --weights. POST /predict takes an image as the body or in a form and answers in JSON; GET /health says what is
    served.
    """
    if len(networks) > 2:
        raise UsageError(f"one network or two are served beside each other; {len(networks)} were named")
    from bench.runs.predicting import Predictor, checkpoint_of, read_classes
    from bench.runs.serving import MIB, Limits, Network, listen, serve

    screen, opened = Screen(), []
    with listen(host, port) as door:
        for word in networks:
            # Of two networks, those that come with weights and classes keep them.
            keeps = checkpoint_of(word) and not all(map(checkpoint_of, networks))
            given = (None, (), None) if keeps else (weights, read_classes(class_names), size)
            predictor = Predictor.open(word, device, configuration, EVALUATION_BATCH, threads or 0, *given)
            if predictor.said:
                screen.say(f"weights of {word}: {predictor.said}")
            opened.append(Network(word, predictor))
        address = f"[{host}]" if ":" in host else host
        names = " and ".join(Path(word).name or word for word in networks)
        screen.say(f"{names}: http://{address}:{port} (Ctrl-C ends it); POST /predict, GET /health")
        serve(opened, door, Limits(int(max_mib * MIB), max_pixels))
