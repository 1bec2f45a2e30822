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
    with Index(store, cache_folder(), Screen()) as index:
        contents = index.contents(files)
    found = sorted(zip(files, contents, strict=True), key=lambda one: one[1].created, reverse=True)
    for path, content in found:
        if content.error:
            click.echo(f"skipped {path}: {content.error}", err=True)
    known = [(path, content) for path, content in found if not content.error]
    rows: list[list[Cell]] = []
    for path, content in known[:last]:
        made = datetime.fromisoformat(content.created).astimezone()
        operands = ", ".join(content.operands)
        rows.append([tag_of(path) or str(path), f"{made:%Y-%m-%d %H:%M}", content.kind, operands, content.says])
    if rows:
        write(render(["name", "made", "kind", "operands", "says first"], rows, format), output)
    else:
        click.echo(f"no results in {store}; bench compare stores one", err=True)
    if len(known) > last:
        click.echo(f"{len(known) - last:,} older ones: --last {len(known)} shows all", err=True)
    return 0
