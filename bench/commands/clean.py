"""`bench clean`: how large the caches are, and removing what can be made again."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from bench.errors import UsageError

# Name -> what it is, and the files and folders below the cache folder that hold it.
CACHES = {
    "compiled": ("code of torch.compile; the next run compiles anew", ("inductor",)),
    "check": ("code of both sides of bench check", ("check",)),
    "generated": ("generated images, where no --data is given", ("sample-*",)),
    "packed": ("images decoded for --loader packed", ("packed",)),
    "index": ("what stored results hold, for bench trend, results and report", ("index",)),
    "identity": ("checksums of data sets", ("identity",)),
    "settings": ("what bench tune and a GPU's decoder found fastest", ("*.json",)),
    "tracebacks": ("of errors that nobody foresaw", ("tracebacks",)),
}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
def command(names: tuple[str, ...]) -> int:
    """Show how much each cache holds, then remove those that are NAMEd; all means every one of them.

    Stored results and training runs are no caches: they stay.
    """
    from bench.machine.alone import user
    from loaders.cache import cache_folder
    from loaders.packing import size_text
    from models.errors import unknown
    from results.tables import render

    folder = cache_folder()
    for name in names:
        if name not in (*CACHES, "all"):
            raise UsageError(str(unknown("cache", name, (*CACHES, "all"))))
    chosen = set(CACHES) if "all" in names else set(names)
    sizes = {name: sum(map(_size, _places(folder, name))) for name in CACHES}
    rows = [[name, size_text(size), CACHES[name][0]] for name, size in sizes.items()]
    click.echo(f"{folder}\n\n{render(['cache', 'holds', 'what'], rows)}".rstrip("\n"))
    if chosen and (who := user()):
        raise UsageError(f"{who} measures or trains with what these caches hold; wait for its end")
    for name in sorted(chosen):
        for place in _places(folder, name):
            _remove(place)
    if chosen:
        click.echo(f"removed {size_text(sum(sizes[name] for name in chosen))}: {', '.join(sorted(chosen))}")
    return 0


def _places(folder: Path, name: str) -> Iterator[Path]:
    for pattern in CACHES[name][1]:
        yield from folder.glob(pattern)


def _size(place: Path) -> int:
    """Bytes of a file, or of all files below a folder; what goes away meanwhile counts nothing."""
    if place.is_file() or place.is_symlink():
        return place.lstat().st_size
    total = 0
    for parent, _, files in os.walk(place):
        for file in files:
            try:
                total += os.lstat(os.path.join(parent, file)).st_size
            except OSError:
                continue
    return total


def _remove(place: Path) -> None:
    try:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot remove {place}: {error.strerror}") from error
