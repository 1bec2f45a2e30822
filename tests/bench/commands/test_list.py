"""The names that other commands take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.commands.list import KINDS, command
from models import zoo
from models.configuration import PRESETS, levers
from results import presets


def invoke(*arguments: str):
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_names_only_its_own(kind):
    result = invoke(kind, "--format", "json")
    assert result.exit_code == 0
    assert list(json.loads(result.stdout)) == [kind]


def test_every_model_has_its_line():
    lines = invoke("models").stdout.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(zoo.names())
    assert all(len(line.split()) > 1 for line in lines)


def test_every_preset_and_lever_has_its_line():
    lines = invoke("levers").stdout.splitlines()[2:]
    assert [line.split()[0] for line in lines] == [*PRESETS, *levers()]
    assert all(len(line.split()) > 1 for line in lines)


def test_all_kinds_are_listed_without_an_argument():
    result = invoke("--format", "csv")
    rows = [line.split(",")[0] for line in result.stdout.splitlines()]
    assert rows[0] == "kind"
    assert set(rows[1:]) <= set(KINDS)
    assert {"models", "loaders", "kernels", "workloads"} <= set(rows)


def test_a_kind_without_members_says_so(monkeypatch):
    monkeypatch.setitem(KINDS, "recipes", list)
    assert invoke("recipes").stdout == "recipes: none\n"


def test_speed_is_what_was_published(monkeypatch):
    row = {"ratio": 2.0, "low": 1.9, "high": 2.1, "fast": "amp-nhwc-eager"}
    rows = dict.fromkeys(presets.TASKS, row)
    found = [
        presets.Outcome(name, 8, 4, "c0ffee", device, 0.0, 1.0, rows)
        for name, device in (("b", "Y"), ("a", "X"), ("c", "X"))
    ]
    monkeypatch.setattr(presets, "published", lambda: found)
    said = invoke("models", "--speed").stdout
    assert said.count("fast / naive") == 2, "a table for each machine, that of most networks first"
    assert said.index("X, batch 8, in training 4") < said.index("\na ") < said.index("Y, batch 8") < said.index("\nb ")
    assert "2.00 [1.90, 2.10]" in said
    assert len(json.loads(invoke("models", "--speed", "--format", "json").stdout)) == 3
    assert "--speed is of models, not of recipes" in str(invoke("recipes", "--speed").exception)


def test_an_unknown_kind_is_a_usage_error():
    result = invoke("recipe")
    assert result.exit_code == 2
    assert "recipes" in result.stderr


def test_listing_imports_no_torch():
    code = (
        "import sys; from bench.commands.list import command\n"
        "command.main([], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(zoo.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60, stdout=subprocess.DEVNULL)


def test_recipes_show_their_data_epochs_and_the_published_run():
    result = invoke("recipes", "--format", "json")
    listed = {entry["name"]: entry for entry in json.loads(result.stdout)["recipes"]}
    entry = listed["imagenet100-resnet34"]
    assert entry.pop("description").startswith("ImageNet-100: ResNet-34")
    assert entry == {
        "name": "imagenet100-resnet34",
        "data": "imagenet100",
        "epochs": 30,
        "published_top1": 0.6268,
        "published_epochs": 30,
        "published_seconds": 31906.43,
    }
    # Only the best epoch's accuracy is published there.
    assert listed["under-5m-res_512_d"]["published_top1"] == 0.8667
    text = invoke("recipes").stdout
    line = next(line for line in text.splitlines() if line.startswith("imagenet100-resnet34 "))
    assert line.split()[1:7] == ["imagenet100", "30", "62.68", "%", "8", "h"]
    header = invoke("recipes", "--format", "csv").stdout.splitlines()[0]
    assert header == "kind,name,description,data,epochs,published_top1,published_epochs,published_seconds"
