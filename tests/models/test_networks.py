"""The project's own networks: exact counts, parity with torchvision, memory format, compilation."""

import pytest
import torch
import torchvision
from torch import nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from models import zoo
from models.activation import ACTIVATIONS, activation_layer
from models.densenet import DenseNet
from models.errors import ModelError
from models.resnet import Block, PadShortcut, ResNet
from models.squeeze_excite import SqueezeExcite

# name -> parameters, tensors that hold them, entries of the state dict
COUNTS = {
    "resnet34_se": (21_497_168, 174, 282),
    "narrow_resnet34": (4_348_082, 110, 218),
    "narrow_resnet50": (4_815_794, 161, 320),
    "narrow_resnet26": (4_196_906, 89, 176),
    "narrow_resnet34_se": (4_842_061, 177, 288),
    "narrow_resnet50_se": (5_311_282, 193, 352),
    "cifar_resnet56": (853_018, 167, 332),
    "wide_cifar_resnet56": (4_565_674, 221, 440),
    "airbench94": (1_972_792, 21, 39),
    "lenet": (62_006, 10, 10),
    "cifar_resnet18": (11_173_962, 62, 122),
    "cifar_resnext29_32x4d": (4_774_218, 95, 188),
    "cifar_densenet121": (6_956_298, 362, 722),
    "og_resnet": (4_997_802, 92, 182),
    "og_64_resnet": (4_926_282, 77, 152),
    "res_block": (4_979_498, 95, 188),
    "res_512": (4_961_610, 71, 140),
    "res_512_d": (4_961_610, 71, 140),
}

# Small relatives with every kind of layer, quick enough to be run and compiled.
SMALL = {
    "basic": ("narrow_resnet34", {"depths": (1,) * 4, "widths": (8, 8, 16, 16), "head_dropout": 0.0}),
    "bottleneck with gates": (
        "narrow_resnet50_se",
        {"depths": (1,) * 4, "widths": (8, 8, 16, 16), "head_dropout": 0.0},
    ),
    "padded shortcuts": ("wide_cifar_resnet56", {"depths": (1,) * 3}),
    "groups": ("cifar_resnext29_32x4d", {"depths": (1,) * 3, "widths": (16, 32, 32), "groups": 8}),
    "three convolutions": ("res_block", {"depths": (1,) * 3, "widths": (16, 32, 32)}),
    "dense": ("cifar_densenet121", {"depths": (2, 2), "growth": 8}),
    "lenet": ("lenet", {}),
}


def counts(model: nn.Module) -> tuple[int, int, int]:
    parameters = list(model.parameters())
    return sum(parameter.numel() for parameter in parameters), len(parameters), len(model.state_dict())


def small(kind: str, **arguments: object) -> nn.Module:
    name, shape = SMALL[kind]
    torch.manual_seed(0)
    return zoo.build(name, **{**shape, **arguments})


@pytest.mark.parametrize("name", zoo.STUDIED)
def test_counts_are_exact_whatever_activation_and_dropout(name):
    dropout = {key: 0.3 for key in ("head_dropout", "block_dropout") if key in zoo.known_arguments(name)}
    with torch.device("meta"):
        plain, changed = zoo.build(name), zoo.build(name, activation="tanh", **dropout)
    assert counts(plain) == counts(changed) == COUNTS[name]
    assert sum(isinstance(module, nn.Dropout) for module in changed.modules()) >= len(dropout)
    assert any(isinstance(module, nn.Tanh) for module in changed.modules())
    # The whole network, to the logits.
    size = zoo.default_size(name)
    assert plain.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, zoo.default_classes(name))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_no_parameters(name):
    assert counts(activation_layer(name)) == (0, 0, 0)


def test_projection_shortcuts_make_the_resnet56_of_option_b():
    with torch.device("meta"):
        assert counts(zoo.build("cifar_resnet56", shortcut="projection"))[0] == 855_770


@pytest.mark.parametrize(
    ("theirs", "arguments"),
    [
        (lambda: TorchvisionResNet(BasicBlock, [1, 2, 1, 1]), {}),
        (lambda: TorchvisionResNet(Bottleneck, [1, 2, 1, 1]), {"block": "bottleneck"}),
        (
            lambda: TorchvisionResNet(Bottleneck, [1, 2, 1, 1], groups=32, width_per_group=4),
            {"block": "bottleneck", "widths": (128, 256, 512, 1024), "expansion": 2, "groups": 32},
        ),
    ],
    ids=["basic", "bottleneck", "groups"],
)
def test_same_configuration_is_torchvisions_network(theirs, arguments):
    theirs = theirs().eval()
    ours = ResNet(1000, depths=(1, 2, 1, 1), **arguments).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_gateless_resnet34_se_is_torchvisions_resnet34():
    with torch.device("meta"):
        ours = zoo.build("resnet34_se", 1000, se_ratio=0).state_dict()
        theirs = torchvision.models.resnet34().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", SMALL)
def test_every_parameter_learns_under_every_activation(kind, activation):
    arguments: dict[str, object] = {"activation": activation}
    if kind != "lenet":
        arguments["block_dropout"] = 0.1
    model = small(kind, **arguments).train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", SMALL)
def test_channels_last_survives_every_layer(kind):
    model = small(kind).eval().to(memory_format=torch.channels_last)
    lost: list[str] = []

    def check(name: str, output: torch.Tensor) -> None:
        if output.dim() == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            lost.append(name)

    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: check(name, output))
    model(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert lost == []


@pytest.mark.parametrize("kind", SMALL)
def test_compiles_whole_and_answers_alike(kind):
    model = small(kind).eval()
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("kind", SMALL)
def test_batch_norm_can_be_folded_by_tracing(kind):
    model = small(kind).train()
    images = torch.randn(2, 3, 32, 32)
    # Statistics other than 0 and 1, so that folding has something to get wrong.
    model(torch.randn(8, 3, 32, 32))
    folded = fuse(model.eval())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(2, 16, 9, 8), (1, 16, 8, 8), (2, 16, 1, 1)])
def test_padded_shortcut_subsamples_and_adds_zero_channels(shape, memory_format):
    images = torch.randn(shape).contiguous(memory_format=memory_format)
    output = PadShortcut(16, 40, 2)(images)
    torch.testing.assert_close(output[:, :16], images[:, :, ::2, ::2])
    assert not output[:, 16:].any()
    assert output.is_contiguous(memory_format=memory_format)


def test_gate_is_the_published_formula():
    torch.manual_seed(0)
    gate = SqueezeExcite(32, 16)
    images = torch.randn(2, 32, 5, 5)
    squeezed = images.flatten(2).mean(2)
    hidden = (squeezed @ gate.fc1.weight.T + gate.fc1.bias).clamp(min=0)
    scale = 1 / (1 + torch.exp(-(hidden @ gate.fc2.weight.T + gate.fc2.bias)))
    torch.testing.assert_close(gate(images), images * scale.reshape(2, 32, 1, 1))
    assert gate.fc1.out_features == 2


def test_gates_stand_at_the_end_of_every_branch():
    with torch.device("meta"):
        model = zoo.build("resnet34_se")
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert len(blocks) == 16
    for block in blocks:
        assert block.se is not None
        assert block.se.fc2.out_features == block.bn2.num_features


def test_res_512_d_drops_out_after_the_first_normalisation_of_each_block():
    with torch.device("meta"):
        model = zoo.build("res_512_d")
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert [block.dropout.p for block in blocks] == [0.1] * 10
    assert all(isinstance(block.activation, nn.LeakyReLU) for block in blocks)
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 10


def test_softmax_output_is_off_unless_asked_for():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    assert not any(isinstance(module, nn.Softmax) for module in small("three convolutions").modules())
    output = small("three convolutions", softmax_output=True).eval()(images)
    torch.testing.assert_close(output.sum(1), torch.ones(2))


def test_dense_layers_read_everything_before_them():
    model = DenseNet(10, depths=(3, 1), growth=8)
    assert [layer.conv1.in_channels for layer in model.block1] == [16, 24, 32]
    assert model.transition1.conv.out_channels == 20
    assert model.fc.in_features == 28


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "rulu"}, "unknown activation 'rulu'; did you mean relu"),
        ({"block": "wide"}, "known: basic, bottleneck, three_conv"),
        ({"shortcut": "none"}, "known: pad, projection"),
        ({"widths": (16, 32)}, "differ in length"),
        ({"depths": (), "widths": (), "strides": ()}, "differ in length|one value per stage"),
        ({"depths": (1, 0, 1, 1)}, r"depths is \(1, 0, 1, 1\); give whole numbers above 0"),
        ({"stem_width": 2.5}, "stem_width is 2.5; give a whole number above 0"),
        ({"se_ratio": 0.25}, "se_ratio is 0.25"),
        ({"groups": 32}, "groups 32 needs bottleneck blocks"),
        ({"groups": 48, "block": "bottleneck"}, "groups 48"),
        ({"shortcut": "pad", "stem_width": 128}, "can only add channels"),
        ({"block_dropout": -0.1}, "block_dropout is -0.1"),
        ({"head_dropout": True}, "head_dropout is True"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ModelError, match=message):
        ResNet(10, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"depths": (6, -1)}, "depths"), ({"growth": 0}, "growth"), ({"compression": 0}, "compression is 0")],
)
def test_dense_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ModelError, match=message):
        DenseNet(10, **arguments)


def test_lenet_takes_two_convolutions_and_two_hidden_layers():
    with pytest.raises(ModelError, match="widths is .*; give 2 whole numbers above 0"):
        zoo.build("lenet", widths=(6, 16, 32))
    with pytest.raises(ModelError, match="hidden is .*; give 2 whole numbers above 0"):
        zoo.build("lenet", hidden=(120, 0))
