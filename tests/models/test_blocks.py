"""A network as blocks: which they are, their order, what repeats, where shortcuts run."""

import pytest
import torch
from torch import nn

from models import zoo
from models.blocks import Block, Shortcut, blocks
from models.errors import ModelError

RESIDUAL = "3×3 conv {0}{1} · batch norm · dropout 0.1 · leaky ReLU", "3×3 conv {0} · batch norm", "add · leaky ReLU"


def residual(names, width, shapes, params, label="identity"):
    lines = tuple(line.format(width, "" if label == "identity" else " /2") for line in RESIDUAL)
    return Block(names, "Block", lines, (Shortcut(0, 2, label),), *shapes, params)


def test_the_blocks_of_a_residual_network():
    stem = ("7×7 conv 64 /2 · batch norm · leaky ReLU", "3×3 max pool /2")
    assert blocks("res_512_d") == (
        Block(("conv1",), "", stem, (), (3, 32, 32), (64, 8, 8), 9_536),
        residual(tuple(f"layer1.{i}" for i in range(3)), 64, ((64, 8, 8), (64, 8, 8)), 221_952),
        residual(("layer2.0",), 128, ((64, 8, 8), (128, 4, 4)), 230_144, "1×1 conv 128 /2 · batch norm"),
        residual(tuple(f"layer2.{i}" for i in range(1, 6)), 128, ((128, 4, 4), (128, 4, 4)), 1_477_120),
        residual(("layer3.0",), 512, ((128, 4, 4), (512, 2, 2)), 3_017_728, "1×1 conv 512 /2 · batch norm"),
        Block(("avgpool",), "", ("global average pool · flatten", "linear 10"), (), (512, 2, 2), (10,), 5_130),
    )


def test_repetitions_are_one_block_with_their_number():
    found = blocks("cifar_densenet121")
    assert [block.heading for block in found] == [
        "conv1",
        "DenseLayer  block1.0 to .5  × 6",
        "transition1",
        "DenseLayer  block2.0 to .11  × 12",
        "transition2",
        "DenseLayer  block3.0 to .23  × 24",
        "transition3",
        "DenseLayer  block4.0 to .15  × 16",
        "bn",
    ]
    assert all(block.grows == block.heading.startswith("Dense") for block in found)
    assert found[1].lines[-1] == "concatenate"
    assert found[1].output_shape == (256, 32, 32)


def test_blocks_that_differ_in_width_are_not_folded():
    headings = [block.heading for block in blocks("vgg11")]
    assert headings[:2] == ["features.0", "features.3"]
    assert len(headings) == len(set(headings))


def test_squeeze_and_excitation_is_one_word_and_depthwise_convolutions_are_named():
    (block,) = [block for block in blocks("efficientnet_b0") if block.names == ("features.2.1",)]
    assert block.lines == (
        "1×1 conv 144 · batch norm · SiLU",
        "3×3 depthwise conv 144 · batch norm · SiLU",
        "squeeze-excite 6",
        "1×1 conv 24 · batch norm · stochastic depth",
        "add",
    )
    assert block.shortcuts == (Shortcut(0, 4, "identity"),)


def test_two_shortcuts_of_a_transformer_block_follow_each_other():
    _, encoder, _ = blocks("vit_b_32")
    assert encoder.heading.endswith("× 12")
    assert [(cut.start, cut.end) for cut in encoder.shortcuts] == [(0, 2), (3, 5)]


def test_parallel_paths_are_all_there():
    (block,) = [block for block in blocks("googlenet") if block.names == ("inception3a",)]
    assert block.lines[-1] == "concatenate"
    assert [cut.label.count("conv") for cut in block.shortcuts] == [1, 2, 1]


@pytest.mark.parametrize("name", [*zoo.STUDIED, "resnet18", "densenet121", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_every_parameter_is_in_a_block_and_blocks_connect(name):
    found = blocks(name)
    with torch.device("meta"):
        params = sum(parameter.numel() for parameter in zoo.build(name).parameters())
    assert sum(block.params for block in found) == params
    assert all(block.traced for block in found)
    assert found[0].input_shape == (3, zoo.default_size(name), zoo.default_size(name))
    assert found[-1].output_shape == (zoo.default_classes(name),)


def test_a_block_that_cannot_be_traced_keeps_its_layers_and_says_so():
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1)
            self.two = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.two(self.one(x)) if x.shape[0] > 0 else x

    network = nn.Sequential(Choosy(), nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    first = blocks(network, size=8)[0]
    assert not first.traced
    assert first.lines == ("1×1 conv 3", "3×3 conv 3")
    assert first.shortcuts == ()


def test_an_image_that_does_not_fit_is_refused_and_leaves_no_hooks():
    network = zoo.build("lenet")
    with pytest.raises(ModelError, match="takes no image of 64 x 64"):
        blocks(network, size=64)
    assert not any(module._forward_hooks for module in network.modules())
