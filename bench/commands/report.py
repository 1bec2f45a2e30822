"""`bench report FILE|RUN...`: writes one HTML page of stored results."""

import json
from pathlib import Path

import click

from bench.output import check_output, write

PAGE = "report.html"


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE|RUN...")
@click.option("--title", default="", help="Of the page; default: the first result's finding.")
@click.option(
    "-o", "--output", default=PAGE, metavar="FILE", show_default=True, help="Write the page here; - is stdout."
)
def command(results: tuple[Path, ...], title: str, output: str) -> None:
    """Write one self-contained HTML page of stored results.

    A result is a record of bench compare or bench check, a profile (profile.json or its folder), pytest-benchmark's
    JSON, a training run's folder, a name that --tag gave, or a folder of any of these. The page holds the verdicts,
    tables, charts, the machine and the command of every figure; it needs no network and no script.
    """
    from bench.comparing.words import with_tags
    from results.report import open_results, page

    check_output(output)
    results = tuple(map(Path, with_tags(list(map(str, results)))))
    sections, skipped = open_results(results, _accuracy(results))
    for path, reason in skipped:
        click.echo(f"skipped {path}: {reason}", err=True)
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    write(page(sections, title or (_brief(verdicts[0]) if verdicts else sections[0].title), skipped), output)
    if output != "-":
        kinds = f"{len(sections)} result{'' if len(sections) == 1 else 's'}"
        click.echo(f"wrote {output}: {kinds}, {Path(output).stat().st_size / 1024:.0f} KiB", err=True)


def _brief(sentence: str) -> str:
    """A finding without its evidence, which the page shows below."""
    return sentence.partition(" (")[0].partition("; ")[0]


def _accuracy(results: tuple[Path, ...]) -> dict[str, float]:
    """Published top-1 accuracies of the records' models, as fractions; none where fewer than two are known."""
    from models import zoo

    names: set[str] = set()
    for path in results:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            try:
                names.update(map(str, json.loads(file.read_text(encoding="utf-8")).get("operands", [])))
            except (OSError, ValueError, AttributeError):
                continue
    return zoo.published_accuracy(names)
