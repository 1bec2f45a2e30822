"""`bench report FILE|RUN...`: writes one HTML page of stored results."""

from pathlib import Path

import click

from bench.output import check_output, write
from bench.screen import Screen

PAGE = "report.html"


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE|RUN...")
@click.option("--title", default="", help="Of the page; default: what a single result says, or how many there are.")
@click.option(
    "-o", "--output", default=PAGE, metavar="FILE", show_default=True, help="Write the page here; - is stdout."
)
def command(results: tuple[Path, ...], title: str, output: str) -> None:
    """Write one self-contained HTML page of stored results.

    A result is a record of bench compare or bench check, a profile (profile.json or its folder), pytest-benchmark's
    JSON, a training run's folder, a name that --tag gave, or a folder of any of these. Of a folder of more than 50
    files the newest 10 are shown without charts, and of all of them how each workload went and where it changed. The
    page holds the verdicts, tables, charts, the machine and the command of every figure; it needs no network and no
    script.
    """
    from bench.comparing.words import with_tags
    from loaders.cache import cache_folder
    from models.published import FRACTIONS
    from results.index import Index
    from results.report import open_results, page
    from results.tables import plural

    check_output(output)
    results = tuple(map(Path, with_tags(list(map(str, results)))))
    screen = Screen()
    sections, skipped = open_results(results, FRACTIONS, lambda folder: Index(folder, cache_folder(), screen))
    for path, reason in skipped:
        click.echo(f"skipped {path}: {reason}", err=True)
    kinds = plural(len(sections), "result")
    # One finding of many would stand for all of them.
    finding = kinds if len(sections) > 1 else next(map(_brief, sections[0].verdicts), sections[0].title)
    write(page(sections, title or finding, skipped), output)
    if output != "-":
        click.echo(f"wrote {output}: {kinds}, {Path(output).stat().st_size / 1024:.0f} KiB", err=True)


def _brief(sentence: str) -> str:
    """A finding without its evidence, which the page shows below."""
    return sentence.partition(" (")[0].partition("; ")[0]
