"""`bench cost`: its formats, layers, diagram and guard."""

import json
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from bench.commands.cost import command
from bench.errors import UsageError
from bench.inspecting.cost import Cost, count
from models.errors import ModelError

KEYS = [
    "model",
    "classes",
    "size",
    "params",
    "parameter_tensors",
    "state_entries",
    "weight_bytes",
    "macs",
    "flops",
    "training_flops",
    "activations",
]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_a_network_without_weights_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "means.py").write_text(
        "from torch import nn\nclass Means(nn.Module):\n    def forward(self, x):\n        print('here')\n"
        "        return x.mean((2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    result = invoke("means.py:Means", "--size", "16", "--format", "json")
    assert (result.exit_code, json.loads(result.stdout)["models"][0]["params"]) == (0, 0)


def test_json_has_the_promised_keys_and_raw_numbers() -> None:
    result = invoke("lenet", "airbench94", "--classes", "10", "--size", "32", "--format", "json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert list(data) == ["models"]
    assert [list(model) for model in data["models"]] == [KEYS, KEYS]
    assert [field.name for field in fields(Cost)] == KEYS
    assert data["models"][0]["params"] == 62_006
    assert data["models"][1]["params"] == 1_972_792


def test_text_shows_exact_counts_in_a_column_a_model_and_keeps_to_the_width() -> None:
    result = invoke(*["lenet"] * 7)
    assert result.exit_code == 0
    assert "62,006" in result.stdout
    assert result.stdout.count("parameter_tensors") == 2
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_csv_is_a_raw_row_a_model(tmp_path: Path) -> None:
    file = tmp_path / "cost.csv"
    result = invoke("lenet", "--format", "csv", "-o", str(file))
    assert result.exit_code == 0
    assert result.stdout == ""
    header, row = file.read_text().splitlines()
    assert header == ",".join(KEYS)
    assert row.startswith("lenet,10,32,62006,10,10,248024,651720,1303440,")


def test_markdown_is_one_table() -> None:
    result = invoke("lenet", "airbench94", "--format", "markdown")
    assert result.stdout.splitlines()[0].startswith("| one image")
    assert "1,972,792" in result.stdout


def test_guard_passes_at_the_limit_and_fails_above_with_the_figure() -> None:
    assert invoke("lenet", "--max-params", "62006").exit_code == 0
    result = invoke("lenet", "airbench94", "--max-params", "1e6", "--format", "csv")
    assert result.exit_code == 1
    assert "airbench94 has 1,972,792 parameters, more than --max-params 1,000,000" in result.stderr
    assert "lenet has" not in result.stderr
    assert result.stdout.count("\n") == 3


@pytest.mark.parametrize("limit", ["nan", "-1"])
def test_a_guard_that_could_not_trip_is_refused(limit: str) -> None:
    assert isinstance(invoke("lenet", "--max-params", limit).exception, UsageError)


def test_disagreement_is_a_note_beside_the_data() -> None:
    result = invoke("mnasnet0_5", "--format", "json")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: mnasnet0_5: fvcore counts")
    json.loads(result.stdout)


def test_an_unknown_model_stops_before_anything_is_counted() -> None:
    result = invoke("lenet", "resnt34")
    assert isinstance(result.exception, ModelError)
    assert result.stdout == ""


def test_layers_follow_the_cost_and_end_in_its_totals() -> None:
    result = invoke("lenet", "airbench94", "--layers")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines if line.startswith("total")] == [
        ["total", "62,006", "651,720"],
        ["total", "1,972,792", f"{count('airbench94').macs:,}"],
    ]
    assert lines[0].startswith("one image")
    assert "conv2        Conv2d     16x10x10   2,416  240,000" in lines


def test_layers_as_json_stand_beside_the_promised_keys() -> None:
    (model,) = json.loads(invoke("lenet", "--layers", "--format", "json").stdout)["models"]
    assert list(model) == [*KEYS, "layers"]
    assert len(model["layers"]) == 12
    assert model["layers"][0] == {
        "name": "conv1",
        "type": "Conv2d",
        "output_shape": [6, 28, 28],
        "params": 456,
        "macs": 352_800,
    }


def test_layers_as_csv_are_a_row_each() -> None:
    lines = invoke("lenet", "--layers", "--format", "csv").stdout.splitlines()
    assert lines[0] == "model,layer,type,output_shape,params,macs"
    assert lines[1] == "lenet,conv1,Conv2d,6x28x28,456,352800"
    assert len(lines) == 13


def test_a_diagram_is_drawn_for_one_model(tmp_path: Path) -> None:
    file = tmp_path / "m.svg"
    result = invoke("lenet", "--classes", "7", "--diagram", str(file), "--format", "json")
    assert result.exit_code == 0
    json.loads(result.stdout)
    assert f"wrote {file}" in result.stderr
    texts = [element.text for element in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == f"lenet: {count('lenet', 7).params:,} parameters, image 3\u00d732\u00d732"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lenet", "res_512", "--diagram", "m.svg"), "draws one network"),
        (("lenet", "--diagram", "m.pdf"), "an .svg or .png file"),
        (("lenet", "--diagram", "none/m.svg"), "there is no folder none"),
    ],
)
def test_a_diagram_that_cannot_be_drawn_stops_before_anything_is_counted(
    arguments: tuple[str, ...], message: str
) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert result.stdout == ""
