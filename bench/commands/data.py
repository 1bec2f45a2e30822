"""`bench data`: generate, describe and check image data sets."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.errors import UsageError
from bench.output import check_output, format_options, write

if TYPE_CHECKING:
    from loaders.datasets import Dataset

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(name="data")
def command() -> None:
    """Generate, describe and check image data sets."""


@command.command()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(1), default=1000, show_default=True, help="Number of JPEGs.")
@click.option("--classes", type=click.IntRange(1), default=10, show_default=True, help="Number of class folders.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, other pictures.")
def make(dest: Path, images: int, classes: int, seed: int) -> None:
    """Write generated JPEGs that cost what ImageNet's cost to decode into class folders below DEST."""
    from loaders import sample

    if images >= 500 and sys.stderr.isatty():
        click.echo(f"making {images} images", err=True)
    sample.make(dest, images, seed, classes)
    click.echo(f"{images} images in {min(classes, images)} classes below {dest}", err=True)


def _splits(folder: Path | None, train: tuple[str, ...], val: str | None) -> "list[Dataset]":
    from loaders.datasets import check_same_classes, merge_folders, open_splits

    if folder is not None and (train or val):
        raise UsageError("name either a folder or --train and --val, not both")
    if folder is not None:
        return open_splits(folder)
    if not train:
        raise UsageError("name a folder of images, or its parts: --train A,B --val C")
    found = [merge_folders([part for parts in train for part in parts.split(",")], "train")]
    if val:
        found.append(merge_folders(val.split(","), "val"))
        check_same_classes(*found)
    return found


@command.command()
@click.argument("folder", type=FOLDER, required=False)
@click.option("--train", multiple=True, metavar="FOLDERS", help="Training folders to be merged, comma-separated.")
@click.option("--val", metavar="FOLDERS", help="Validation folders; the classes must be those of --train.")
@click.option("--against", type=FOLDER, help="Measure how fast both sets are decoded, taking turns.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Decoding threads of --against.")
@click.option("--turns", type=click.IntRange(1), default=9, show_default=True, help="Turns of --against.")
@format_options
def info(
    folder: Path | None,
    train: tuple[str, ...],
    val: str | None,
    against: Path | None,
    threads: int,
    turns: int,
    format: str,
    output: str,
) -> None:
    """Count images and classes of FOLDER and describe sizes, formats and colours of up to 2,000 of them.

    FOLDER holds class folders, train and val folders of class folders, CIFAR python batches or Tiny-ImageNet.
    """
    from loaders.contents import examine

    check_output(output)
    splits = _splits(folder, train, val)
    described = [asdict(examine(dataset)) for dataset in splits]
    rates: list[dict[str, Any]] = []
    if against is not None:
        from bench.decoding import compare_decoding
        from loaders.datasets import open_dataset

        other = open_dataset(against)
        rates = [asdict(rate) for rate in compare_decoding(splits[0], other, threads, turns)]
    if format == "json":
        from results.tables import to_json

        document: dict[str, Any] = {"datasets": described}
        if against is not None:
            document["decoding"] = {"of": str(folder or train[0]), "to": str(against), "stages": rates}
        write(to_json(document), output)
        return
    write("\n".join(_tables(described, rates, format)), output)


def _tables(described: list[dict[str, Any]], rates: list[dict[str, Any]], format: str) -> list[str]:
    from results.tables import render

    headers = ["figure", *(f"{split['split']}" for split in described)]
    rows: list[list[Any]] = []
    for key in described[0]:
        if key != "split":
            rows.append([key, *(_cell(split[key]) for split in described)])
    tables = [render(headers, rows, format)]
    if rates:
        headers = ["stage", "images/s", "against, images/s", "ratio", "lowest turn", "highest turn", "turns"]
        rows = [[r["stage"], *r["rates"], r["ratio"], r["low"], r["high"], r["turns"]] for r in rates]
        tables.append(render(headers, rows, format))
    return tables


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name} {share:.1%}" for name, share in value.items())
    if isinstance(value, (tuple, list)):
        return " / ".join(f"{number:.4g}" for number in value)
    return value


@command.command()
@click.argument("folder", type=FOLDER)
@click.option("--threads", type=click.IntRange(1), help="Decoding threads; by default one a core.")
@format_options
def check(folder: Path, threads: int | None, format: str, output: str) -> int:
    """Decode every file of FOLDER, list those that fail, and exit with 1 if there are any."""
    from loaders.datasets import open_splits
    from loaders.images import check as find_bad
    from results.tables import render, to_json

    check_output(output)
    splits = open_splits(folder)
    files = [path for dataset in splits for path in dataset.files]
    bad = find_bad(files, threads)
    if format == "json":
        write(to_json({"images": len(files), "unreadable": [asdict(image) for image in bad]}), output)
    elif bad or format == "csv":
        write(render(["path", "reason"], [[image.path, image.reason] for image in bad], format), output)
    click.echo(f"{len(bad)} of {len(files)} images cannot be decoded", err=True)
    return 1 if bad else 0
