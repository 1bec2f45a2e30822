"""A network as blocks: which they are, their order, what repeats, where shortcuts run."""

import pytest
import torch
from torch import nn

from models import zoo
from models.blocks import Block, Shortcut, blocks
from models.errors import ModelError
from models.summary import on_meta

RESIDUAL = "3×3 Conv {0}{1} · BatchNorm · Dropout 0.1 · LeakyReLU", "3×3 Conv {0} · BatchNorm", "add · LeakyReLU"


def read(network: str | nn.Module, size: int | None = None) -> tuple[Block, ...]:
    return blocks(*on_meta(network, None, size, None))


def residual(names, width, shape, params, label="identity"):
    lines = tuple(line.format(width, "" if label == "identity" else " /2") for line in RESIDUAL)
    return Block(names, "Block", lines, (Shortcut(0, 2, label),), shape, params)


def test_the_blocks_of_a_residual_network():
    stem = ("7×7 Conv 64 /2 · BatchNorm · LeakyReLU", "MaxPool /2")
    assert read("res_512_d") == (
        Block(("conv1",), "", stem, (), (64, 8, 8), 9_536),
        residual(tuple(f"layer1.{i}" for i in range(3)), 64, (64, 8, 8), 221_952),
        residual(("layer2.0",), 128, (128, 4, 4), 230_144, "1×1 Conv 128 /2 · BatchNorm"),
        residual(tuple(f"layer2.{i}" for i in range(1, 6)), 128, (128, 4, 4), 1_477_120),
        residual(("layer3.0",), 512, (512, 2, 2), 3_017_728, "1×1 Conv 512 /2 · BatchNorm"),
        Block(("avgpool",), "", ("AdaptiveAvgPool · Flatten", "Linear 10"), (), (10,), 5_130),
    )


def test_repetitions_are_one_block_with_their_number():
    found = read("cifar_densenet121")
    assert [block.heading for block in found] == [
        "conv1",
        "DenseLayer  block1.0 to .5  × 6",
        "transition1.bn",
        "DenseLayer  block2.0 to .11  × 12",
        "transition2.bn",
        "DenseLayer  block3.0 to .23  × 24",
        "transition3.bn",
        "DenseLayer  block4.0 to .15  × 16",
        "bn",
    ]
    assert all(block.grows == block.heading.startswith("Dense") for block in found)
    assert found[1].shortcuts == (Shortcut(0, 3, "identity"),)
    assert found[1].lines[-1] == "concatenate"
    assert found[1].output_shape == (256, 32, 32)


def test_blocks_that_differ_in_width_are_not_folded():
    headings = [block.heading for block in read("vgg11")]
    assert headings[:2] == ["features.0", "features.3"]
    assert len(headings) == len(set(headings))


def test_a_bottleneck_of_efficientnet():
    (block,) = [block for block in read("efficientnet_b0") if block.names == ("features.2.1",)]
    assert block.lines == (
        "1×1 Conv 144 · BatchNorm · SiLU",
        "3×3 Conv 144, depthwise · BatchNorm · SiLU",
        "SqueezeExcitation",
        "1×1 Conv 24 · BatchNorm · StochasticDepth",
        "add",
    )
    assert block.shortcuts == (Shortcut(0, 4, "identity"),)


def test_two_shortcuts_of_a_transformer_block_follow_each_other():
    _, encoder, _ = read("vit_b_32")
    assert encoder.heading.endswith("× 12")
    assert encoder.lines[1:4] == ("MultiheadAttention, 12 heads", "add", "LayerNorm")
    assert encoder.shortcuts == (Shortcut(0, 2, "identity"), Shortcut(3, 6, "identity"))


def test_parallel_paths_are_all_there():
    (block,) = [block for block in read("googlenet") if block.names == ("inception3a",)]
    assert block.lines[-1] == "concatenate"
    assert [cut.label.count("Conv") for cut in block.shortcuts] == [1, 2, 1]


@pytest.mark.parametrize(
    "name",
    ["narrow_resnet50_se", "cifar_resnet56", "res_block", "airbench94", "resnet18", "densenet121", "mobilenet_v2"],
)
def test_every_parameter_is_in_a_block_and_the_last_gives_the_logits(name):
    found = read(name)
    with torch.device("meta"):
        params = sum(parameter.numel() for parameter in zoo.build(name).parameters())
    assert sum(block.params for block in found) == params
    assert found[-1].output_shape == (zoo.default_classes(name),)


class Choosy(nn.Module):
    """Its forward pass depends on a value and holds layers that do nothing, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Identity()
        self.one = nn.Conv2d(3, 3, 1)
        self.two = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + self.two(self.one(self.idle(x))) if x.shape[0] > 0 else self.idle(x)


def test_blocks_of_any_forward_pass_are_read():
    first, rest = read(nn.Sequential(Choosy(), nn.Sequential(nn.Identity()), nn.Flatten()), size=8)
    assert first.lines == ("1×1 Conv 3", "3×3 Conv 3", "add")
    assert first.shortcuts == (Shortcut(0, 2, "identity"),)
    assert rest.lines == ("Flatten",)


def test_an_image_that_does_not_fit_is_refused_and_leaves_no_hooks():
    network, title, _ = on_meta("lenet", None, None, None)
    with pytest.raises(ModelError, match="takes no image of 64 x 64"):
        blocks(network, title, 64)
    assert not any(module._forward_hooks for module in network.modules())
