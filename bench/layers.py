"""The layer table of a network: what a command prints and a run keeps."""

from collections.abc import Sequence

from models.summary import Layer, totals
from results.tables import render


def layer_cells(layer: Layer) -> list[str | int]:
    """Name, type, output shape, parameters and MACs of a layer."""
    return [layer.name, layer.type, "x".join(map(str, layer.output_shape)), layer.params, layer.macs]


def layer_table(title: str, layers: Sequence[Layer], format: str = "text") -> str:
    """A row a layer in the order in which they run, and the totals; `title` heads the column of names."""
    params, macs = totals(layers)
    rows = [[*layer_cells(layer)[:3], f"{layer.params:,}", f"{layer.macs:,}"] for layer in layers]
    return render(
        [title, "type", "output", "params", "MACs"], [*rows, ["total", "", "", f"{params:,}", f"{macs:,}"]], format
    )
