"""`bench cost`: counts what networks cost for one image."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from bench.errors import BenchError, UsageError
from bench.output import check_output, format_options, write

if TYPE_CHECKING:
    from bench.inspecting.cost import Cost

# Numbers that are easier to read in a unit; parameters and tensors are compared digit by digit.
UNITS = {
    "weight_bytes": "bytes",
    "macs": "MAC",
    "flops": "FLOP",
    "training_flops": "FLOP",
    "activations": "elements",
}


def _models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from models import zoo

    return [CompletionItem(name) for name in zoo.names() if name.startswith(incomplete)]


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, shell_complete=_models)
@click.option("--classes", type=click.IntRange(min=1), help="Outputs. [default: the model's own]")
@click.option("--size", type=click.IntRange(min=1), help="Height and width in pixels. [default: the model's own]")
@click.option(
    "--max-params",
    type=float,
    metavar="N",
    help="Exit with 1 if a model has more parameters than this, such as 5e6.",
)
@click.option("--layers", is_flag=True, help="Show every layer in the order in which they run, with shape and cost.")
@click.option("--diagram", metavar="FILE", help="Draw the network (one MODEL) as an .svg or .png file.")
@format_options
@click.pass_context
def command(
    context: click.Context,
    models: tuple[str, ...],
    classes: int | None,
    size: int | None,
    max_params: float | None,
    layers: bool,
    diagram: str | None,
    format: str,
    output: str,
) -> None:
    """Count what models cost for one image: parameters, MACs, FLOPs, activations, bytes.

    Nothing is timed. weight_bytes are the parameters in fp32, without buffers and optimiser state;
    training_flops are those of a forward and a backward pass.
    """
    from models import zoo

    check_output(output)
    # Not `max_params < 0`: a limit that is not a number would let every model pass.
    if max_params is not None and not max_params >= 0:
        raise UsageError(f"--max-params {max_params:g} is not a number of parameters")
    for name in models:
        zoo.check(name)
    if diagram is not None:
        if len(models) != 1:
            raise UsageError(f"--diagram draws one network into {diagram}, not {len(models)}")
        if Path(diagram).suffix not in (".svg", ".png"):
            raise UsageError(f"--diagram {diagram}: name an .svg or .png file")
        check_output(diagram)

    from bench.inspecting.cost import count

    costs = [count(name, classes, size) for name in models]
    write(_table(costs, format, layers), output)
    if diagram is not None:
        from models.diagram import write as draw

        draw(diagram, models[0], costs[0].classes, costs[0].size)
        click.echo(f"wrote {diagram}", err=True)
    for cost in costs:
        _second_opinion(cost)
    over = [cost for cost in costs if max_params is not None and cost.params > max_params]
    for cost in over:
        click.echo(
            f"bench: {cost.model} has {cost.params:,} parameters, more than --max-params {max_params:,.0f}",
            err=True,
        )
    if over:
        context.exit(1)


def _second_opinion(cost: "Cost") -> None:
    import torch

    from bench.inspecting.cost import disagreement, second_opinion
    from models import zoo

    if zoo.is_exported(cost.model):
        return
    with torch.device("meta"):
        model = zoo.build(cost.model, cost.classes)
    try:
        note = disagreement(cost, second_opinion(model, cost.size))
    except BenchError as error:
        note = f"{cost.model}: {error}"
    if note:
        click.echo(f"note: {note}", err=True)


def _table(costs: Sequence["Cost"], format: str, with_layers: bool) -> str:
    """The costs and, if wanted, the layers of each model."""
    from bench.inspecting.cost import layer_cells, layer_table
    from models.summary import summarise
    from results.tables import WIDTH, quantity, render, to_json

    layers = {cost: summarise(cost.model, cost.classes, cost.size) for cost in costs} if with_layers else {}
    if format == "json":
        models = [
            asdict(cost) | ({"layers": [asdict(layer) for layer in layers[cost]]} if with_layers else {})
            for cost in costs
        ]
        return to_json({"models": models})
    if format == "csv" and with_layers:
        headers = ["model", "layer", "type", "output_shape", "params", "macs"]
        rows = [[cost.model, *layer_cells(layer)] for cost in costs for layer in layers[cost]]
        return render(headers, rows, format)
    names = [field.name for field in fields(costs[0])]
    if format == "csv":
        return render(names, [list(asdict(cost).values()) for cost in costs], format)

    def cell(name: str, value: int) -> str:
        return quantity(value, UNITS[name]) if name in UNITS else f"{value:,}"

    # A column for each model, as in `bench compare`; as many side by side as the width holds.
    widest = max(12, *(len(cost.model) for cost in costs))
    abreast = max(1, (WIDTH - len("parameter_tensors")) // (widest + 2)) if format == "text" else len(costs)
    tables = []
    for start in range(0, len(costs), abreast):
        shown = costs[start : start + abreast]
        rows = [[name, *(cell(name, getattr(cost, name)) for cost in shown)] for name in names[1:]]
        tables.append(render(["one image", *(cost.model for cost in shown)], rows, format))
    return "\n".join([*tables, *(layer_table(cost.model, found, format) for cost, found in layers.items())])
