"""The table of all networks: what each is, its image size, its classes, and how it is built.

Asking about a network imports nothing heavy; building one imports the module that holds it. To add a network, add a
row. A name may have arguments behind it, `resnet34_se[se_ratio=8]`, and names like FILE.py:NAME stand for networks of
the user's; see models.names. The studied networks keep the parameter counts that their authors published
(tests/models/test_networks.py).
"""

import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from models.errors import ModelError, unknown
from models.names import TIMM, Name
from models.project import find, root
from models.project import named as named_anywhere

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """A row of the zoo.

    Attributes:
        builder: "module:callable" that builds it from `classes` and keyword arguments.
        line: what it is, in one line.
        classes: outputs by default.
        size: height and width of its images by default, in pixels.
        arguments: passed to the builder; keyword arguments of `build` replace all but `name`.
    """

    builder: str
    line: str
    classes: int
    size: int
    arguments: Mapping[str, object] = field(default_factory=dict)


# title and paper -> torchvision's names, each at 224 px unless SIZES says otherwise
FAMILIES: dict[str, str] = {
    "AlexNet, Krizhevsky 2014": "alexnet",
    "ConvNeXt, Liu et al. 2022": "convnext_tiny convnext_small convnext_base convnext_large",
    "DenseNet, Huang et al. 2016": "densenet121 densenet161 densenet169 densenet201",
    "EfficientNet, Tan and Le 2019": (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 "
        "efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7"
    ),
    "EfficientNetV2, Tan and Le 2021": "efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l",
    "GoogLeNet, Szegedy et al. 2014, without auxiliary classifiers": "googlenet",
    "Inception v3, Szegedy et al. 2015, without auxiliary classifiers": "inception_v3",
    "MaxViT, Tu et al. 2022": "maxvit_t",
    "MNASNet, Tan et al. 2018": "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    "MobileNetV2, Sandler et al. 2018": "mobilenet_v2",
    "MobileNetV3, Howard et al. 2019": "mobilenet_v3_small mobilenet_v3_large",
    "RegNet, Radosavovic et al. 2020": (
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf "
        "regnet_x_8gf regnet_x_16gf regnet_x_32gf "
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf "
        "regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf"
    ),
    "ResNet, He et al. 2015": "resnet18 resnet34 resnet50 resnet101 resnet152",
    "ResNeXt, Xie et al. 2016": "resnext50_32x4d resnext101_32x8d resnext101_64x4d",
    "ShuffleNetV2, Ma et al. 2018": ("shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"),
    "SqueezeNet, Iandola et al. 2016": "squeezenet1_0 squeezenet1_1",
    "Swin Transformer, Liu et al. 2021": "swin_t swin_s swin_b",
    "Swin Transformer V2, Liu et al. 2021": "swin_v2_t swin_v2_s swin_v2_b",
    "VGG, Simonyan and Zisserman 2014": "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
    "Vision Transformer, Dosovitskiy et al. 2020": "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14",
    "Wide ResNet, Zagoruyko and Komodakis 2016": "wide_resnet50_2 wide_resnet101_2",
}

# The sizes at which torchvision evaluates its first ImageNet weights. vit_h_14, which has none from plain training, is
# built for 224 px.
SIZES: dict[str, int] = {
    "efficientnet_b1": 240,
    "efficientnet_b2": 288,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
    "efficientnet_v2_s": 384,
    "efficientnet_v2_m": 480,
    "efficientnet_v2_l": 480,
    "inception_v3": 299,
    "swin_v2_t": 256,
    "swin_v2_s": 256,
    "swin_v2_b": 256,
}

CIFAR_STEM: dict[str, object] = {"stem_kernel": 3, "stem_stride": 1, "stem_pool": False}
NARROW: dict[str, object] = {**CIFAR_STEM, "stem_width": 40, "widths": (40, 80, 144, 176), "head_dropout": 0.5}


def _resnet(line: str, **arguments: object) -> Network:
    """A network of models.resnet for CIFAR-10."""
    return Network("models.resnet:ResNet", line, 10, 32, arguments)


STUDIED: dict[str, Network] = {
    "resnet34_se": Network(
        "models.resnet:ResNet",
        "ResNet-34 with squeeze-and-excitation (reduction 16) in every block",
        100,
        224,
        {"se_ratio": 16},
    ),
    "narrow_resnet34": _resnet("ResNet-34 below 5M parameters for CIFAR: widths 40 to 176", **NARROW),
    "narrow_resnet50": _resnet(
        "ResNet-50 below 5M parameters for CIFAR: widths 40 to 176", **NARROW, block="bottleneck"
    ),
    "narrow_resnet26": _resnet(
        "ResNet-26 below 5M parameters for CIFAR: published count, configuration ours",
        **{**NARROW, "stem_width": 32, "widths": (40, 88, 176, 240)},
        block="bottleneck",
        depths=(2, 2, 2, 2),
    ),
    "narrow_resnet34_se": _resnet(
        "narrow ResNet-34 with squeeze-and-excitation: widths 42 to 184",
        **{**NARROW, "stem_width": 44, "widths": (42, 84, 152, 184)},
        se_ratio=16,
    ),
    "narrow_resnet50_se": _resnet(
        "narrow ResNet-50 with squeeze-and-excitation without biases: above 5M",
        **NARROW,
        block="bottleneck",
        se_ratio=16,
        se_bias=False,
    ),
    "cifar_resnet56": _resnet(
        "ResNet-56 for CIFAR, He et al. 2015: shortcuts without parameters",
        **CIFAR_STEM,
        stem_width=16,
        depths=(9, 9, 9),
        widths=(16, 32, 64),
        strides=(1, 2, 2),
        shortcut="pad",
    ),
    "wide_cifar_resnet56": _resnet(
        "ResNet-56 for CIFAR twice as wide, 12 blocks a stage (so 74 layers)",
        **CIFAR_STEM,
        stem_width=32,
        depths=(12, 12, 12),
        widths=(32, 64, 128),
        strides=(1, 2, 2),
        shortcut="pad",
    ),
    "airbench94": Network(
        "models.airbench:Airbench",
        "network of the CIFAR-10 speed records, Jordan 2024: whitening, three plain blocks",
        10,
        32,
    ),
    "lenet": Network("models.lenet:LeNet", "LeNet-5 with ReLU and max pooling, colour images of 32 px", 10, 32),
    "cifar_resnet18": _resnet("ResNet-18 at full width with a 3x3 stem for CIFAR", **CIFAR_STEM, depths=(2, 2, 2, 2)),
    "cifar_resnext29_32x4d": _resnet(
        "ResNeXt-29 for CIFAR: three stages, 32 groups of 4, 1x1 stem",
        **{**CIFAR_STEM, "stem_kernel": 1},
        block="bottleneck",
        depths=(3, 3, 3),
        widths=(128, 256, 512),
        strides=(1, 2, 2),
        expansion=2,
        groups=32,
    ),
    "cifar_densenet121": Network(
        "models.densenet:DenseNet", "DenseNet-121 with a 3x3 stem for CIFAR, growth 32", 10, 32
    ),
    "og_resnet": _resnet(
        "ResNet below 5M parameters with the ImageNet stem, four stages from 32 channels",
        stem_width=32,
        depths=(1, 4, 5, 3),
        widths=(32, 64, 128, 256),
        strides=(1, 1, 2, 2),
    ),
    "og_64_resnet": _resnet(
        "ResNet below 5M parameters with the ImageNet stem, three stages from 64 channels",
        depths=(3, 5, 3),
        widths=(64, 128, 256),
        strides=(1, 2, 2),
    ),
    "res_block": _resnet(
        "ResNet below 5M parameters, three 3x3 convolutions a block (softmax_output off)",
        block="three_conv",
        stem_width=32,
        depths=(4, 3, 2),
        widths=(64, 128, 256),
        strides=(1, 2, 2),
    ),
    "res_512": _resnet(
        "ResNet below 5M parameters, three stages, the last of 512 channels",
        depths=(3, 6, 1),
        widths=(64, 128, 512),
        strides=(1, 2, 2),
    ),
    "res_512_d": _resnet(
        "res_512 with dropout 0.1 in every block and leaky ReLU",
        depths=(3, 6, 1),
        widths=(64, 128, 512),
        strides=(1, 2, 2),
        activation="leaky_relu",
        block_dropout=0.1,
    ),
}


def _torchvision() -> dict[str, Network]:
    return {
        name: Network("models.torchvision:build", f"{title} (torchvision)", 1000, SIZES.get(name, 224), {"name": name})
        for title, members in FAMILIES.items()
        for name in members.split()
    }


NETWORKS: dict[str, Network] = {**_torchvision(), **STUDIED}


def names() -> tuple[str, ...]:
    """Names of all networks but those of timm, torchvision's first. Imports no torch."""
    return tuple(NETWORKS)


def check(name: str) -> None:
    """Check that `name` can be built, as far as possible without importing torch or anything of the user's.

    Raises:
        ModelError: there is no such network (similar names are listed) or file, or it needs timm, which is not
            installed.
    """
    parsed = _parsed(name)
    if parsed.is_code or parsed.has_weights:
        parsed.check(root())
    else:
        _network(parsed.base)


def describe(name: str) -> str:
    """What the network is, in one line. Imports no torch.

    Raises:
        ModelError: there is no such network.
    """
    parsed = _parsed(name)
    if parsed.is_code:
        return f"{parsed.attribute} of {parsed.place}"
    return f"network in {parsed.base}" if parsed.has_weights else _network(parsed.base).line


def has_weights(name: str) -> bool:
    """Whether it comes with its weights: a checkpoint, a run or an exported file. Imports no torch."""
    parsed = _parsed(name)
    return parsed.base not in NETWORKS and parsed.has_weights


def is_exported(name: str) -> bool:
    """Whether it is an exported file, which only infers. Imports no torch."""
    return _parsed(name).is_exported


def default_classes(name: str) -> int:
    """Outputs of the network by default: 1000, or as many as its study has.

    Raises:
        ModelError: there is no such network.
    """
    parsed = _parsed(name)
    source = _source(parsed)
    return int(source.facts(parsed).classes) if source else _network(parsed.base).classes


def default_size(name: str) -> int:
    """Height and width of the network's images by default, in pixels.

    Raises:
        ModelError: there is no such network.
    """
    parsed = _parsed(name)
    source = _source(parsed)
    if source:
        return int(source.facts(parsed).size)
    network = _network(parsed.base)
    if parsed.base.startswith(TIMM):
        return int(importlib.import_module("models.timm").default_size(parsed.base.removeprefix(TIMM)))
    return network.size


def known_arguments(name: str) -> dict[str, object]:
    """The keyword arguments of `build` for this network, with their defaults. Imports torch.

    Raises:
        ModelError: there is no such network.
    """
    parsed = _parsed(name)
    source = _source(parsed)
    if source:
        return dict(source.known_arguments(parsed.base)) | dict(parsed.arguments)
    network = _network(parsed.base)
    parameters = inspect.signature(_builder(network)).parameters.values()
    known = {item.name: item.default for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY}
    return known | {key: value for key, value in {**network.arguments, **parsed.arguments}.items() if key in known}


def build(name: str, classes: int | None = None, **arguments: object) -> "nn.Module":
    """The network, on the default device: images [B, 3, H, W] -> logits [B, classes].

    Its weights are random, or those of the checkpoint or exported file that the name is.

    Under `with torch.device("meta")` it takes no memory for its weights. It returns one tensor in training as in
    inference; GoogLeNet and Inception v3 therefore have no auxiliary classifiers.

    Args:
        name: one of `names()`, `timm:NAME`, FILE.py:NAME or package.module:NAME, each with arguments or without; or the
            path of a checkpoint, a run or an exported file.
        classes: outputs; `default_classes(name)` if None.
        **arguments: activation, dropout, widths and so on; `known_arguments(name)` lists them. They go before those in
            the name.

    Raises:
        ModelError: no such network or argument, or values it cannot be built from.
    """
    parsed = _parsed(name)
    arguments = {**parsed.arguments, **arguments}
    if classes is not None and (not isinstance(classes, int) or classes < 1):
        raise ModelError(f"classes is {classes!r}; {name} needs a whole number above 0")
    source = _source(parsed)
    if source:
        own: nn.Module = source.build(parsed.base, classes, arguments)
        return own
    network = _network(parsed.base)
    known = known_arguments(parsed.base)
    if not parsed.base.startswith(TIMM):
        for key in arguments:
            if key not in known:
                raise unknown(f"argument of {parsed.base}", key, known)
            _check_kind(parsed.base, key, arguments[key], known[key])
    classes = network.classes if classes is None else classes
    try:
        model: nn.Module = _builder(network)(classes=classes, **{**network.arguments, **arguments})
    except ModelError:
        raise
    except (TypeError, ValueError) as error:
        raise ModelError(f"{parsed.base} cannot be built with {arguments}: {error}") from error
    return model


def _parsed(name: str) -> Name:
    """A name taken apart; one of a network in the table means that, whatever else is called so."""
    given = Name.from_text(name)
    return given if given.base in NETWORKS else named_anywhere(name)


def _source(name: Name) -> ModuleType | None:
    """What builds a network that is in no table: of code, of a checkpoint, or of an exported file.

    Each has `facts`, `known_arguments`, `build` and `load`.
    """
    if name.base in NETWORKS:
        return None
    if name.is_code:
        return importlib.import_module("models.code")
    if name.is_exported:
        return importlib.import_module("models.exported")
    return importlib.import_module("models.trained") if name.is_trained else None


def _network(name: str) -> Network:
    if name.startswith(TIMM):
        own = name.removeprefix(TIMM)
        if importlib.util.find_spec("timm") is None:
            raise ModelError(f"{name} needs the package timm, which is not installed: pip install timm")
        return Network("models.timm:build", f"{own} (timm)", 1000, 224, {"name": own})
    if name.endswith(".py"):
        raise ModelError(f"{name} is a file; say what of it is meant: {name}:NAME")
    if name not in NETWORKS:
        listing = "`bench list models` names them all; your own: FILE.py:NAME, package.module:NAME or FILE.onnx"
        raise unknown("model", name, [*NETWORKS, *find().names], listing)
    return NETWORKS[name]


# type of an argument's default -> types that are accepted, and what they are in words
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    tuple: ((list, tuple), "a list"),
    bool: ((bool,), "true or false"),
    str: ((str,), "a word"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}


def _check_kind(name: str, key: str, value: object, default: object) -> None:
    """Raise ModelError if the value of an argument is of another kind than its default."""
    kind = tuple if isinstance(default, list) else type(default)
    accepted, words = _KINDS.get(kind, ((object,), ""))
    if not isinstance(value, accepted) or (kind in (int, float) and isinstance(value, bool)):
        example = json.dumps(default) if kind is not str else default
        raise ModelError(f"{key} of {name} is {value!r}; give {words}, such as model.{key}={example}")


def prepare_imports(name: str) -> None:
    """Import what a network is built from: a module of ours, torchvision, or the user's file.

    Raises:
        ModelError: there is no such network, or the user's file cannot be imported.
    """
    parsed = _parsed(name)
    source = _source(parsed)
    if source:
        source.load(parsed.base)
    else:
        importlib.import_module(_network(parsed.base).builder.split(":")[0])


def _builder(network: Network) -> "Callable[..., nn.Module]":
    module, attribute = network.builder.split(":")
    builder: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
    return builder
