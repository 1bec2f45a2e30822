"""The layers of a network: order, shapes, and that nothing is counted twice or left out."""

import pytest
import torch
from torch import nn

from models import summary, zoo
from models.errors import ModelError
from models.summary import Layer, summarise, totals


def test_rows_are_layers_in_execution_order():
    assert summarise("lenet") == (
        Layer("conv1", "Conv2d", (6, 28, 28), 456, 352_800),
        Layer("activation1", "ReLU", (6, 28, 28), 0, 0),
        Layer("pool1", "MaxPool2d", (6, 14, 14), 0, 0),
        Layer("conv2", "Conv2d", (16, 10, 10), 2_416, 240_000),
        Layer("activation2", "ReLU", (16, 10, 10), 0, 0),
        Layer("pool2", "MaxPool2d", (16, 5, 5), 0, 0),
        Layer("flatten", "Flatten", (400,), 0, 0),
        Layer("fc1", "Linear", (120,), 48_120, 48_000),
        Layer("activation3", "ReLU", (120,), 0, 0),
        Layer("fc2", "Linear", (84,), 10_164, 10_080),
        Layer("activation4", "ReLU", (84,), 0, 0),
        Layer("fc3", "Linear", (10,), 850, 840),
    )


def test_the_studied_network_has_its_published_figures():
    params, macs = totals(summarise("res_512_d", size=32))
    assert params == 4_961_610
    assert f"{macs / 1e9:.3f}" == "0.056"
    rows = summarise("res_512_d")
    block = [row.name for row in rows if row.name.startswith("layer2.0.")]
    assert block == [
        f"layer2.0.{name}"
        for name in (
            *("conv1", "bn1", "dropout", "activation", "conv2", "bn2"),
            *("downsample.0", "downsample.1", "activation"),
        )
    ]


def test_idle_layers_have_no_row():
    assert not [row for row in summarise("res_512") if "dropout" in row.name]


def test_arguments_classes_and_size_are_the_networks():
    rows = summarise("res_512", classes=7, size=64, arguments={"activation": "gelu"})
    assert rows[-1].output_shape == (7,)
    assert rows[0].output_shape == (64, 32, 32)
    assert rows[2].type == "GELU"


def test_a_layer_that_is_called_again_has_a_row_each_and_its_parameters_once():
    shared = nn.Linear(4, 4)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.shared = shared

        def forward(self, x):
            return self.shared(self.shared(self.first(x).mean((2, 3))))

    rows = summarise(Twice(), size=8)
    assert [(row.name, row.params, row.macs) for row in rows] == [
        ("first", 16, 768),
        ("shared", 20, 16),
        ("shared", 0, 16),
    ]


def test_parameters_and_products_outside_of_layers_have_a_row_of_the_module_that_holds_them():
    rows = {row.name: row for row in summarise("vit_b_32")}
    assert rows["(network)"].params == 768
    attention = rows["encoder.layers.encoder_layer_0.self_attention"]
    # The output layer of nn.MultiheadAttention is never called itself, and counted with it.
    assert attention.params == 4 * (768 * 768 + 768)
    assert attention.macs > 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet34_se", {"depths": (1, 1, 1, 1)}),
        ("efficientnet_b0", {}),
        ("cifar_densenet121", {"depths": (2, 2)}),
        ("vit_b_32", {}),
        ("swin_t", {}),
    ],
)
def test_every_parameter_is_in_one_row(name, arguments):
    with torch.device("meta"):
        network = zoo.build(name, **arguments)
    layers = summarise(name, arguments=arguments)
    assert totals(layers)[0] == sum(parameter.numel() for parameter in network.parameters())


def test_a_module_stays_as_it_is():
    arguments = {"depths": (1, 1, 1, 1)}
    network = zoo.build("og_resnet", **arguments)
    weight = network.conv1.weight.detach().clone()
    hooks = [len(module._forward_hooks) for module in network.modules()]
    assert summarise(network, size=32) == summarise("og_resnet", arguments=arguments)
    assert network.training
    assert torch.equal(network.conv1.weight, weight)
    assert not network.conv1.weight.is_meta
    assert [len(module._forward_hooks) for module in network.modules()] == hooks


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarise("lenet", size=64), "lenet takes no image of 64 x 64 pixels"),
        (lambda: summarise("lenet", size=0), "size is 0"),
        (lambda: summarise("lenett"), "did you mean lenet"),
        (lambda: summarise("lenet", arguments={"width": 1}), "unknown argument of lenet"),
        (lambda: summarise(nn.Flatten()), "a module has no default size of images"),
        (
            lambda: summarise(nn.Flatten(), classes=3, size=8),
            "classes and arguments are for a network built by its name",
        ),
    ],
)
def test_what_cannot_be_summarised_says_why(call, message):
    with pytest.raises(ModelError, match=message):
        call()


def test_shapes_are_those_of_the_first_tensor():
    image = torch.empty(1, 3, 8, 8)
    assert summary.shape_of(image) == (3, 8, 8)
    assert summary.shape_of((None, [image])) == (3, 8, 8)
    assert summary.shape_of({"out": image}) == (3, 8, 8)
    assert summary.shape_of(None) == ()
