"""Counting: pinned figures, and agreement with fvcore."""

import logging
import warnings
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.errors import BenchError
from bench.inspecting.cost import Cost, Opinion, convolution_backward_flops, count, disagreement, second_opinion
from models import zoo
from models.errors import ModelError
from models.summary import summarise, totals

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


cost_of = cache(count)


@pytest.mark.parametrize(
    ("name", "flops", "training_flops"),
    [("resnet34", 7_327_522_816, 21_746_540_544), ("vit_b_16", 35_127_656_448, 105_151_758_336)],
)
def test_flops_are_pinned(name, flops, training_flops):
    cost = cost_of(name)
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


@pytest.mark.parametrize("name", ["efficientnet_b0", "cifar_resnext29_32x4d"])
def test_training_of_grouped_convolutions_costs_three_forward_passes_less_the_images_gradient(name):
    cost = cost_of(name)
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
    assert cost_of("narrow_resnet50_se", se_ratio=0).params == 4_815_794
    assert count("res_512", activation="tanh").macs == cost_of("res_512").macs
    with pytest.raises(ModelError, match="unknown argument of res_512"):
        count("res_512", width=3)


@pytest.mark.parametrize("name", GMAC)
def test_fvcore_counts_what_was_published(name):
    with torch.device("meta"):
        model = zoo.build(name)
    opinion = second_opinion(model, zoo.default_size(name))
    digits = len(GMAC[name].partition(".")[2])
    assert f"{opinion.macs / 1e9:.{digits}f}" == GMAC[name]


@pytest.mark.parametrize("name", ["cifar_resnet18", "vit_b_32", "swin_t"])
def test_activations_are_those_of_fvcore(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import ActivationCountAnalysis

        model = zoo.build(name).eval()
        size = zoo.default_size(name)
        analysis = ActivationCountAnalysis(model, torch.zeros(1, 3, size, size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert cost_of(name).activations == analysis.total()


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
    cost = cost_of("lenet")
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


LAYERED = ("lenet", "airbench94", "res_512_d", "narrow_resnet26", "narrow_resnet34_se", "cifar_resnext29_32x4d")


# One network for each kind of block.
@pytest.mark.parametrize("name", [*LAYERED, "efficientnet_b0", "googlenet", "vit_b_32", "swin_t"])
def test_layers_add_up_to_the_cost(name):
    cost = cost_of(name)
    assert totals(summarise(name)) == (cost.params, cost.macs)
