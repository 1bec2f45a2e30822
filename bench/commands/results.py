"""`bench results`: stored results, with the names by which they can be compared."""

from datetime import datetime
from pathlib import Path

import click

from bench.output import check_output, format_options, write
from bench.screen import Screen
from results.store import FOLDER


@click.command("results")
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    help="Folder of stored results.",
)
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="Show only the newest.")
@format_options
def command(store: Path, last: int, format: str, output: str) -> int:
    """List stored results, the newest first: their names, when they were made, what they say.

    A result that `--tag` named is an operand of bench compare by that name; any other one by its path.
    """
    from loaders.cache import cache_folder
    from results.index import Index
    from results.store import list_files, tag_of
    from results.tables import Cell, render

    check_output(output)
    files, _ = list_files(store)
    newest = sorted(files, key=_changed, reverse=True)[:last]
    with Index(store, cache_folder(), Screen()) as index:
        contents = index.contents(newest)
    rows: list[list[Cell]] = []
    for path, content in zip(newest, contents, strict=True):
        if content.error:
            click.echo(f"skipped {path}: {content.error}", err=True)
            continue
        made = datetime.fromisoformat(content.created).astimezone()
        operands = ", ".join(content.operands)
        rows.append([tag_of(path) or str(path), f"{made:%Y-%m-%d %H:%M}", content.kind, operands, content.says])
    if rows:
        write(render(["name", "made", "kind", "operands", "says first"], rows, format), output)
    else:
        click.echo(f"no results in {store}; bench compare stores one", err=True)
    if len(files) > len(newest):
        click.echo(f"{len(files) - len(newest):,} older ones: --last {len(files)} shows all", err=True)
    return 0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        # It was removed meanwhile.
        return 0.0
