"""Counting: pinned figures, agreement with fvcore, the command and its guard."""

import json
import logging
import warnings
from dataclasses import fields
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.commands.cost import command
from bench.errors import BenchError, UsageError
from bench.inspecting.cost import Cost, Opinion, convolution_backward_flops, count, disagreement, second_opinion
from models import zoo
from models.errors import ModelError
from models.summary import summarise, totals

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

# fvcore's GMAC for one image at the default size, to the digits that were published
GMAC = {
    "resnet18": "1.819",
    "resnet34": "3.671",
    "resnet50": "4.11",
    "efficientnet_b0": "0.402",
    "narrow_resnet34": "0.367",
    "narrow_resnet50": "0.411",
    "cifar_resnet18": "0.557",
    "cifar_resnext29_32x4d": "0.780",
    "cifar_densenet121": "0.898",
    "lenet": "0.001",
    "og_resnet": "0.056",
    "og_64_resnet": "0.052",
    "res_block": "0.062",
    "res_512": "0.056",
    "res_512_d": "0.056",
}


@pytest.mark.parametrize(
    ("name", "flops", "training_flops"),
    [("resnet34", 7_327_522_816, 21_746_540_544), ("vit_b_16", 35_127_656_448, 105_151_758_336)],
)
def test_flops_are_pinned(name, flops, training_flops):
    cost = count(name)
    assert (cost.flops, cost.macs, cost.training_flops) == (flops, flops // 2, training_flops)


def test_a_cost_is_everything_about_one_image():
    assert count("resnet34", classes=100) == Cost(
        model="resnet34",
        classes=100,
        size=224,
        params=21_335_972,
        parameter_tensors=110,
        state_entries=218,
        weight_bytes=85_343_888,
        macs=3_663_300_608,
        flops=7_326_601_216,
        training_flops=21_743_775_744,
        activations=3_738_212,
    )
    assert [field.name for field in fields(Cost)] == KEYS


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnext50_32x4d", "mobilenet_v2", "cifar_resnext29_32x4d"])
def test_training_of_grouped_convolutions_costs_three_forward_passes_less_the_images_gradient(name):
    cost = count(name)
    assert 2.9 < cost.training_flops / cost.flops < 3


def test_backward_of_ungrouped_convolutions_is_counted_as_torch_does():
    def flops(mapping):
        with torch.device("meta"):
            model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 6, 5), nn.ConvTranspose2d(6, 4, 4, 2))
            images = torch.empty(2, 3, 32, 24)
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            model(images).sum().backward()
        return counter.get_total_flops()

    assert flops({torch.ops.aten.convolution_backward: convolution_backward_flops}) == flops({})


def test_arguments_of_the_network_are_counted():
    assert count("narrow_resnet50_se", se_ratio=0).params == 4_815_794
    assert count("res_512", activation="tanh").macs == count("res_512").macs
    with pytest.raises(ModelError, match="unknown argument of res_512"):
        count("res_512", width=3)


@pytest.mark.parametrize("name", GMAC)
def test_fvcore_counts_what_was_published(name):
    with torch.device("meta"):
        model = zoo.build(name)
    opinion = second_opinion(model, zoo.default_size(name))
    digits = len(GMAC[name].partition(".")[2])
    assert f"{opinion.macs / 1e9:.{digits}f}" == GMAC[name]


@pytest.mark.parametrize("name", ["resnet34", "efficientnet_b0", "vit_b_32", "swin_t", "narrow_resnet34_se"])
def test_activations_are_those_of_fvcore(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import ActivationCountAnalysis

        model = zoo.build(name).eval()
        size = zoo.default_size(name)
        analysis = ActivationCountAnalysis(model, torch.zeros(1, 3, size, size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert count(name).activations == analysis.total()


def test_second_opinion_leaves_model_and_logger_as_they_were():
    model = zoo.build("lenet")
    weight = model.conv1.weight.detach().clone()
    level = logging.getLogger("fvcore").level
    assert second_opinion(model, 32).macs == 651_720
    assert model.training
    assert torch.equal(model.conv1.weight, weight)
    assert logging.getLogger("fvcore").level == level


def test_second_opinion_that_cannot_be_had_says_why():
    with pytest.raises(BenchError, match="fvcore cannot trace this network"):
        second_opinion(zoo.build("lenet"), 64)


def test_disagreement_beyond_five_percent_is_worded():
    cost = count("lenet")
    assert disagreement(cost, Opinion(int(cost.macs * 1.049), {})) is None
    note = disagreement(cost, Opinion(int(cost.macs * 0.8), {"aten::gelu": 2}))
    assert note is not None
    assert "-20.0%" in note
    assert "leaves out gelu" in note


@pytest.mark.parametrize(("name", "size"), [("lenet", 64), ("alexnet", 32), ("vit_b_16", 225)])
def test_a_size_that_does_not_fit_names_the_one_that_does(name, size):
    with pytest.raises(ModelError, match=f"takes no image of {size} x {size} .*{zoo.default_size(name)}"):
        count(name, size=size)


def test_sizes_below_a_pixel_are_refused():
    with pytest.raises(ModelError, match="size is 0"):
        count("lenet", size=0)


def invoke(*arguments: str):
    return CliRunner().invoke(command, list(arguments))


def test_json_has_the_promised_keys_and_raw_numbers():
    result = invoke("lenet", "og_resnet", "--classes", "10", "--size", "32", "--format", "json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert list(data) == ["models"]
    assert [list(model) for model in data["models"]] == [KEYS, KEYS]
    assert data["models"][0]["params"] == 62_006
    assert data["models"][1]["params"] == 4_997_802


def test_text_shows_exact_counts_in_a_column_a_model_and_keeps_to_the_width():
    result = invoke("og_resnet", *["lenet"] * 6)
    assert result.exit_code == 0
    assert "4,997,802" in result.stdout
    assert result.stdout.count("parameter_tensors") == 2
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_csv_is_a_raw_row_a_model(tmp_path):
    file = tmp_path / "cost.csv"
    result = invoke("lenet", "--format", "csv", "-o", str(file))
    assert result.exit_code == 0
    assert result.stdout == ""
    header, row = file.read_text().splitlines()
    assert header == ",".join(KEYS)
    assert row.startswith("lenet,10,32,62006,10,10,248024,651720,1303440,")


def test_markdown_is_one_table():
    result = invoke("lenet", "res_512", "--format", "markdown")
    assert result.stdout.splitlines()[0].startswith("| one image")
    assert "4,961,610" in result.stdout


def test_guard_passes_at_the_limit_and_fails_above_with_the_figure():
    assert invoke("res_block", "--max-params", "5e6").exit_code == 0
    assert invoke("lenet", "--max-params", "62006").exit_code == 0
    result = invoke("lenet", "narrow_resnet50_se", "--max-params", "5e6", "--format", "csv")
    assert result.exit_code == 1
    assert "narrow_resnet50_se has 5,311,282 parameters, more than --max-params 5,000,000" in result.stderr
    assert "lenet has" not in result.stderr
    assert result.stdout.count("\n") == 3


@pytest.mark.parametrize("limit", ["nan", "-1"])
def test_a_guard_that_could_not_trip_is_refused(limit):
    assert isinstance(invoke("lenet", "--max-params", limit).exception, UsageError)


def test_disagreement_is_a_note_beside_the_data():
    result = invoke("mnasnet0_5", "--format", "json")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: mnasnet0_5: fvcore counts")
    json.loads(result.stdout)


def test_an_unknown_model_stops_before_anything_is_counted():
    result = invoke("lenet", "resnt34")
    assert isinstance(result.exception, ModelError)
    assert result.stdout == ""


@pytest.mark.parametrize(
    "name",
    [*zoo.STUDIED, "resnet50", "efficientnet_b0", "densenet121", "googlenet", "vit_b_32", "swin_t", "swin_v2_t"],
)
def test_layers_add_up_to_the_cost(name):
    cost = count(name)
    assert totals(summarise(name)) == (cost.params, cost.macs)


def test_layers_follow_the_cost_and_end_in_its_totals():
    result = invoke("lenet", "res_512", "--layers")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines if line.startswith("total")] == [
        ["total", "62,006", "651,720"],
        ["total", "4,961,610", f"{count('res_512').macs:,}"],
    ]
    assert lines.index(next(line for line in lines if line.startswith("one image"))) == 0
    assert "conv2        Conv2d     16x10x10   2,416  240,000" in lines


def test_layers_as_json_stand_beside_the_promised_keys():
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


def test_layers_as_csv_are_a_row_each():
    lines = invoke("lenet", "--layers", "--format", "csv").stdout.splitlines()
    assert lines[0] == "model,layer,type,output_shape,params,macs"
    assert lines[1] == "lenet,conv1,Conv2d,6x28x28,456,352800"
    assert len(lines) == 13


def test_a_diagram_is_drawn_for_one_model(tmp_path):
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
def test_a_diagram_that_cannot_be_drawn_stops_before_anything_is_counted(arguments, message):
    result = invoke(*arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert result.stdout == ""
