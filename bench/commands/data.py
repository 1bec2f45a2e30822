"""`bench data`: generate, describe, check and show image data sets."""

import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.options import Number
from bench.defaults import IMAGES
from bench.errors import UsageError
from bench.output import PICTURES, check_output, format_options, usual_picture, write

if TYPE_CHECKING:
    from loaders.datasets import Dataset

FOLDER = click.Path(path_type=Path, file_okay=False)
# Kept here as text: the modules that know them import numpy, and help must not.
LAYOUTS = ("cifar10", "cifar100", "tinyimagenet", "imagenet100", "imagenet", "folder")
SHOWN = ("resident", "dali", "packed", "pil", "torchvision")
SHORT = 256  # loaders.packing's


@click.group(name="data")
def command() -> None:
    """Generate, pack, describe, check and show image data sets."""


@command.command()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--like",
    type=click.Choice(LAYOUTS),
    help="Small pictures that a network can learn, in this layout, instead of JPEGs as costly as ImageNet's.",
)
@click.option(
    "--images",
    type=click.IntRange(1),
    help=f"Number of images in all.  [default: {IMAGES}; --like: six a class or 1200]",
)
@click.option("--classes", type=click.IntRange(1), help="Number of classes.  [default: 10; --like: the layout's own]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed gives other images.")
def make(dest: Path, like: str | None, images: int | None, classes: int | None, seed: int) -> None:
    """Write generated images below DEST: JPEGs that cost what ImageNet's cost to decode, in class folders.

    With --like, one image in six is for validation or test; these are drawn separately.
    """
    if like is not None:
        from loaders import separable

        train, test = separable.make(dest, like, images, seed, classes)
        click.echo(f"{train} images to train and {test} to test in the layout of {like} below {dest}", err=True)
        return
    from loaders import sample

    images, classes = images or IMAGES, classes or sample.CLASSES
    if images >= 500 and sys.stderr.isatty():
        click.echo(f"making {images} images", err=True)
    sample.make(dest, images, seed, classes)
    click.echo(f"{images} images in {min(classes, images)} classes below {dest}", err=True)


@command.command()
@click.argument("folder", type=FOLDER)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--short",
    type=click.IntRange(0),
    default=SHORT,
    show_default=True,
    help="Pixels of the shorter side: larger images are made so small. 0 keeps every size.",
)
@click.option(
    "--exif",
    type=click.Choice(("ignore", "apply")),
    default="ignore",
    show_default=True,
    help="Whether to turn images as their files say.",
)
@click.option("--threads", type=click.IntRange(1), help="Decoding threads; by default one a core.")
@click.option("--resume", is_flag=True, help="Go on after Ctrl-C, a kill or a full disk.")
def pack(folder: Path, out: Path, short: int, exif: str, threads: int | None, resume: bool) -> int:
    """Decode the images of FOLDER once and write them to OUT, which every command takes as a data set.

    `--loader packed` reads it several times as fast as files, and a set larger than memory at the speed of the disk.
    Images that cannot be decoded are left out and listed; the exit code is then 1.
    """
    from bench.locks import hold
    from bench.processes import is_interrupt
    from bench.screen import Screen
    from loaders import packing
    from results.tables import page, render

    screen = Screen()
    parts = packing.parts_of(folder)
    lock = out.with_name(f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {out.parent}: {error.strerror}") from None
    with hold(lock):
        try:
            packed = packing.pack(
                parts,
                out,
                short,
                exif,
                threads,
                resume,
                say=screen.say,
                progress=lambda done, images: screen.steps("packing", done, images, tenths=True),
            )
        except BaseException as error:
            if is_interrupt(error):
                screen.say("stopped; what is done is kept: the same command goes on with --resume")
            raise
        finally:
            screen.clear()
            lock.unlink(missing_ok=True)
    bad = [one for part in packed for one in part.undecodable]
    if bad:
        write(page(render(["path", "reason"], [list(one) for one in bad], "text")), "-")
    rest = f"; {len(bad):,} could not be decoded and are left out" if bad else ""
    screen.say(f"{sum(part.images for part in packed):,} images packed into {out}{rest}")
    return 1 if bad else 0


@command.command()
@click.argument("policy", required=False)
@click.option("--list", "listed", is_flag=True, help="List the policies and the operations they are made of.")
@click.option("--data", type=FOLDER, help="Use these images instead of generated ones.")
@click.option("-o", "--output", metavar="FILE", help=f"PNG to write.  [default: {PICTURES}/POLICY.png]")
@click.option("--size", type=click.IntRange(8), help="Pixels of an image.  [default: 32 for small pictures, else 224]")
@click.option(
    "--loader",
    type=click.Choice(SHOWN),
    default="resident",
    show_default=True,
    help="This loader's augmentation.",
)
@click.option("--images", type=click.IntRange(1), default=64, show_default=True, help="Number of images.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed gives other changes.")
def show(
    policy: str | None,
    listed: bool,
    data: Path | None,
    output: str | None,
    size: int | None,
    loader: str,
    images: int,
    seed: int,
) -> None:
    """Write a picture of what POLICY does to images.

    POLICY is a name or operations joined by "+", such as crop+flip+rotate:20. The same seed shows the same changes.
    """
    from loaders import engines, policies

    if listed:
        _list_policies()
        return
    if policy is None:
        raise UsageError("name a policy; `bench data show --list` shows them")
    engines.operations(loader, policy, size or 0)
    output = output or str(usual_picture(f"{policy.replace('+', '_').replace(':', '-') or 'none'}.png"))
    if output != "-" and Path(output).suffix.lower() != ".png":
        raise UsageError(f"cannot write images to {output}: name a file that ends in .png")
    check_output(output)
    # DALI reads only files; the others take arrays.
    with tempfile.TemporaryDirectory() if data is None and loader == "dali" else nullcontext() as folder:
        dataset = _pictures(data, images, folder)
        if size is None:
            small = dataset.pixels is not None or data is None
            # A packed set has images of many sizes.
            size = 224 if not small else 32 if dataset.pixels is None else dataset.pixels.shape[1] or 224
        path = _write_pictures(dataset, policy, output, size, loader, seed)
    click.echo(
        f"{len(dataset)} images under {policies.describe(policy) if policy in policies.POLICIES else policy}", err=True
    )
    click.echo(f"wrote {path}", err=True)


def _list_policies() -> None:
    from loaders import engines, policies
    from results.tables import render

    rows: list[list[Any]] = [[name, *policies.POLICIES[name]] for name in policies.names()]
    click.echo(render(["policy", "operations", "what"], rows, "text") + "\n")
    rows = []
    for name, kind in policies.OPERATIONS.items():
        written = name if kind.default is None else f"{name}:{kind.default:g}"
        lacking = [engine for engine, words in engines.LACKING.items() if name in words]
        rows.append([written, kind.text, ", ".join(lacking)])
    click.echo(render(["operation", "what", "not in"], rows, "text"))


def _pictures(data: Path | None, images: int, folder: str | None) -> "Dataset":
    """Images spread evenly over a data set, or generated ones: in memory, or as files in `folder`."""
    import numpy as np

    from loaders import separable
    from loaders.datasets import Dataset, open_dataset

    if data is not None:
        dataset = open_dataset(data)
        return dataset.select(np.unique(np.linspace(0, len(dataset) - 1, images).round().astype(int)).tolist())
    labels = np.arange(images) % 10
    pixels = separable.pictures(labels, 32, 32)
    if folder is None:
        return Dataset("generated", "", "all", (), tuple(labels.tolist()), separable.CIFAR10_CLASSES, pixels)
    from PIL import Image

    files = [str(Path(folder) / f"{number:04d}.png") for number in range(images)]
    for path, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).save(path)
    return Dataset("generated", folder, "all", tuple(files), tuple(labels.tolist()), separable.CIFAR10_CLASSES)


def _write_pictures(dataset: "Dataset", policy: str, output: str, size: int, loader: str, seed: int) -> Path:
    import torch

    from loaders import engines
    from loaders.grid import denormalized, write_grid
    from loaders.options import LoaderOptions

    threads = 0 if loader in ("pil", "torchvision") else 1
    # An evaluation with the training augmentation keeps the order of the images.
    options = LoaderOptions(
        batch=len(dataset), size=size, threads=threads, seed=seed, train=False, random_eval=True, augment=policy
    )
    # Pillow's transforms draw from torch's global generator.
    torch.manual_seed(seed)
    opened = engines.build(loader, dataset, options)
    try:
        images, _ = next(iter(opened))
    finally:
        opened.close()
    return write_grid(denormalized(images.numpy(), options.mean, options.std), output)


@command.command()
@click.argument("folder", type=FOLDER)
@click.option("--check", "checked", is_flag=True, help="Look for images in two parts; exit with 1 if there are any.")
@click.option(
    "--holdout",
    type=Number(0),
    help="Share (or, above 1, number) of the training images set aside.  [default: what bench train sets aside]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of their choice.")
@format_options
def split(folder: Path, checked: bool, holdout: float | None, seed: int, format: str, output: str) -> int:
    """Show the images that training, validation and test use, and check that these parts are separate.

    --check looks for images listed twice and for copies of an image in another part, and repeats an evaluation.
    """
    from loaders import splits
    from results.tables import render, to_json

    check_output(output)
    parts = splits.parts_of(folder, holdout, seed)
    checks = splits.check(parts) if checked else []
    if format == "json":
        described = [{"name": part.name, "split": part.split, "images": len(part)} for part in parts]
        write(to_json({"parts": described, "seed": seed, "checks": [asdict(check) for check in checks]}), output)
    else:
        rows: list[list[Any]] = [[part.name, part.split, len(part), len(set(part.labels))] for part in parts]
        tables = [render(["part", "split", "images", "classes"], rows, format)]
        if checks:
            found: list[list[Any]] = [[check.name, check.found, "; ".join(check.examples)] for check in checks]
            tables.append(render(["check", "found", "such as"], found, format))
        write("\n".join(tables), output)
    for one in checks:
        if one.found:
            click.echo(f"{one.name}: {one.found}", err=True)
    return 1 if any(check.found for check in checks) else 0


def _splits(folder: Path | None, train: tuple[str, ...], val: str | None) -> "list[Dataset]":
    from loaders.datasets import open_parts, open_splits

    if folder is not None and (train or val):
        raise UsageError("name either a folder or --train and --val, not both")
    if folder is not None:
        return open_splits(folder)
    if not train:
        raise UsageError("name a folder of images, or its parts: --train A,B --val C")
    from bench.runs.folder import named_folders

    return open_parts([part for parts in train for part in named_folders(parts)], named_folders(val) if val else ())


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
    from loaders.soundness import remarks

    check_output(output)
    splits = _splits(folder, train, val)
    lines = _say(remarks(splits))
    described = [{**asdict(examine(part)), "left_out": list(map(asdict, part.left_out))} for part in splits]
    rates: list[dict[str, Any]] = []
    if against is not None:
        from bench.inspecting.decoding import compare_decoding
        from loaders.datasets import open_dataset

        other = open_dataset(against)
        rates = [asdict(rate) for rate in compare_decoding(splits[0], other, threads, turns)]
    if format == "json":
        from results.tables import to_json

        document: dict[str, Any] = {"datasets": described, "warnings": lines}
        if against is not None:
            document["decoding"] = {"of": str(folder or train[0]), "to": str(against), "stages": rates}
        write(to_json(document), output)
        return
    write("\n".join(_tables(described, rates, format)), output)


def _say(lines: list[str]) -> list[str]:
    """The lines, which have then been printed on stderr."""
    for line in lines:
        click.echo(line, err=True)
    return lines


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
    if isinstance(value, list):
        return sum(passed["files"] for passed in value)
    if isinstance(value, tuple):
        return " / ".join(f"{number:.4g}" for number in value)
    return value


@command.command()
@click.argument("folder", type=FOLDER)
@click.option("--threads", type=click.IntRange(1), help="Decoding threads; by default one a core.")
@format_options
def check(folder: Path, threads: int | None, format: str, output: str) -> int:
    """Decode every image of FOLDER, list those that fail, and exit with 1 if there are any.

    Of a packed set every image is read and compared with its checksum. Files that are left out, and what else looks
    wrong with the data, is said in a line each.
    """
    from loaders.datasets import open_splits
    from loaders.images import check as find_bad
    from loaders.packed_images import PackedImages
    from loaders.soundness import remarks
    from results.tables import notes, page, render, to_json

    check_output(output)
    splits = open_splits(folder)
    packed = [dataset for dataset in splits if isinstance(dataset.pixels, PackedImages)]
    files = sum(map(len, packed)) or sum(len(dataset.files) for dataset in splits)
    lines = _say(remarks(splits))
    bad = [image for dataset in splits for image in find_bad(dataset, threads)]
    left_out = sum(each.files for dataset in splits for each in dataset.left_out)
    rest = f"; {left_out} files were left out" if left_out else ""
    found = [f"{len(bad)} of {files} images {'are damaged' if packed else 'cannot be decoded'}{rest}"]
    for dataset in packed:
        missing = dataset.pixels.description.undecodable if isinstance(dataset.pixels, PackedImages) else ()
        if missing:
            found.append(f"{len(missing)} images of {dataset.name} could not be decoded when it was packed")
    if not files:
        found.append(f"{sum(map(len, splits))} images come as arrays: there is nothing to decode")
    rows: list[list[Any]] = [[image.path, image.reason] for image in bad]
    if format == "json":
        passed = [asdict(each) for dataset in splits for each in dataset.left_out]
        unreadable = [asdict(image) for image in bad]
        write(to_json({"images": files, "unreadable": unreadable, "left_out": passed, "warnings": lines}), output)
    elif format == "csv":
        write(render(["path", "reason"], rows, format), output)
    else:
        write(page(render(["path", "reason"], rows, format) if bad else "", notes(found, format)), output)
    if format in ("csv", "json"):
        # What programs read has no room for sentences.
        _say(found)
    return 1 if bad else 0
