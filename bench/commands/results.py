"""`bench results`: stored results, with the names by which they can be compared."""

from datetime import datetime
from pathlib import Path

import click

from bench.output import check_output, format_options, write
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
    from results.comparison import sentences
    from results.errors import RecordError
    from results.store import list_folder, load, tag_of
    from results.tables import Cell, render

    check_output(output)
    files = [path for path in list_folder(store) if path.suffix == ".json" and path.is_file()]
    newest = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)[:last]
    rows: list[list[Cell]] = []
    for path in newest:
        try:
            record = load(path)
        except RecordError as error:
            click.echo(f"skipped {error}", err=True)
            continue
        made = datetime.fromisoformat(record.created).astimezone()
        said = next(iter(sentences(record)), "") if record.complete else "interrupted"
        rows.append(
            [tag_of(path) or str(path), f"{made:%Y-%m-%d %H:%M}", record.kind, ", ".join(record.operands), said]
        )
    if rows:
        write(render(["name", "made", "kind", "operands", "says first"], rows, format), output)
    else:
        click.echo(f"no results in {store}; bench compare stores one", err=True)
    if len(files) > len(newest):
        click.echo(f"{len(files) - len(newest):,} older ones: --last {len(files)} shows all", err=True)
    return 0
