"""The five public studies and their sweeps, as lists of runs. Imports no torch.

A study is a set of recipes that are compared with one another; a sweep is one recipe run with several values of one
or more of its keys. docs/studies.md and each recipe's [published] table say what the studies did and published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Study:
    """One public study.

    Attributes:
        line: what it is, in one line.
        recipes: names of the recipes that repeat its runs, defects included, in the study's order.
        fast: names of their corrected forms.
        compares: what differs from run to run, in a few words.
        metrics: the figures it compares, as a run's summary.json names them.
        sweeps: names of the sweeps that it did or named as future work.
    """

    line: str
    recipes: tuple[str, ...]
    fast: tuple[str, ...]
    compares: str
    metrics: tuple[str, ...]
    sweeps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sweep:
    """One recipe, run once for every combination of values.

    Attributes:
        line: what it is, in one line.
        recipe: name of the recipe that all runs share.
        over: recipe key -> its values; `model.NAME` is an argument of the network. Several keys make a grid, of which
            the last varies fastest.
        settings: keys changed in all runs alike.
        published: values of a run, joined by commas -> the study's test accuracy, as a fraction, if it published one.
        within_one_run: the values are epochs of one run with a constant rate, so that the longest training, evaluated
            after every epoch, holds them all.
        note: what to know before comparing the figures with the published ones.
    """

    line: str
    recipe: str
    over: Mapping[str, tuple[Value, ...]]
    settings: Mapping[str, Value] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    within_one_run: bool = False
    note: str = ""


def _fast(*recipes: str) -> tuple[str, ...]:
    return tuple(f"{name}-fast" for name in recipes)


_IMAGENET100 = (
    "imagenet100-resnet34",
    "imagenet100-resnet50",
    "imagenet100-efficientnet_b0",
    "imagenet100-resnet18",
    "imagenet100-resnet34_se",
    "imagenet100-resnet50-cosine",
)
_NARROW = ("narrow-resnet34-200", "narrow-resnet34-100", "narrow-resnet26-100", "narrow-resnet50-300")
_FAMILIES = (
    "four-families-lenet",
    "four-families-resnet18",
    "four-families-resnext29",
    "four-families-densenet121",
)
_UNDER_5M = (
    "under-5m-og_resnet",
    "under-5m-og_64_resnet",
    "under-5m-res_block",
    "under-5m-res_512",
    "under-5m-res_512_d",
)

STUDIES: dict[str, Study] = {
    "imagenet100": Study(
        "ImageNet-100: ResNet-18, -34, -50 and EfficientNet-B0 on one baseline",
        _IMAGENET100,
        _fast(*_IMAGENET100),
        "networks on one baseline recipe",
        ("top1", "best_top1", "train_seconds", "inference_cold_seconds", "inference_warm_seconds", "params"),
        (
            "dropout",
            "augmentation-imagenet100",
            "weight-decay",
            "schedules",
            "batch",
            "optimizers-imagenet100",
        ),
    ),
    "narrow-resnets": Study(
        "CIFAR-10: ResNet-34, -26 and -50 narrowed to fewer than 5M parameters",
        _NARROW,
        _fast(*_NARROW),
        "depths and numbers of epochs",
        ("top1", "best_top1", "best_epoch", "train_seconds", "params"),
    ),
    "four-families": Study(
        "CIFAR-10: LeNet, ResNet-18, ResNeXt-29 and DenseNet-121",
        _FAMILIES,
        _fast(*_FAMILIES),
        "families of networks",
        ("top1", "epochs", "params", "state_entries", "weight_bytes", "checkpoint_bytes"),
        ("epochs", "augmentation", "learning-rates"),
    ),
    "imagenet-resnet50": Study(
        "ImageNet: ResNet-50 from random weights to 72.82 %",
        (
            "imagenet-resnet50",
            "imagenet-resnet50-phase1",
            "imagenet-resnet50-phase2",
            "imagenet-resnet50-phase3",
        ),
        ("imagenet-resnet50-fast",),
        "one network, settings changed while it trained",
        ("top1", "top5", "train_seconds", "images_per_second", "epochs"),
    ),
    "under-5m": Study(
        "CIFAR-10: five ResNets with fewer than 5M parameters",
        _UNDER_5M,
        _fast(*_UNDER_5M),
        "widths, depths and blocks of one family",
        ("best_top1", "best_epoch", "top1", "params", "train_seconds"),
        ("activations", "optimizers"),
    ),
}

# The future work that the ImageNet-100 study names is done on its baseline, but evaluated on the centre crop.
_BASELINE = {"evaluation": "center"}

SWEEPS: dict[str, Sweep] = {
    "activations": Sweep(
        "res_512_d, 50 epochs, by activation",
        "under-5m-res_512_d",
        {"model.activation": ("relu", "leaky_relu", "gelu", "tanh")},
        {"epochs": 50},
        {"relu": 0.8462, "leaky_relu": 0.8511, "gelu": 0.8473, "tanh": 0.7875},
        note="the study's figure for ReLU is that of the SGD run of its optimiser study",
    ),
    "optimizers": Sweep(
        "res_512_d with ReLU, 50 epochs, by optimiser, all at a rate of 0.1",
        "under-5m-res_512_d",
        {"optimizer": ("sgd", "adam", "rmsprop", "adadelta", "adagrad")},
        {"epochs": 50, "model.activation": "relu"},
        {"sgd": 0.8462, "adam": 0.8084, "rmsprop": 0.7801, "adadelta": 0.8285},
        note="one rate for all favours SGD, but the study did so; its Adagrad run is unfinished and in fact uses Adam",
    ),
    "epochs": Sweep(
        "LeNet by number of epochs: one run, tested after each of them",
        "four-families-lenet",
        {"epochs": (5, 10, 20, 30, 40, 55, 70, 95)},
        {},
        {
            "5": 0.572,
            "10": 0.603,
            "20": 0.6481,
            "30": 0.648,
            "40": 0.630,
            "55": 0.627,
            "70": 0.622,
            "95": 0.615,
        },
        within_one_run=True,
        note="tested on the test images: choosing the number of epochs by this chart, as the study did, is selection "
        "on the test set",
    ),
    "augmentation": Sweep(
        "ResNet-18 without augmentation, and mirrored, tilted and turned",
        "four-families-resnet18",
        {"augment": ("none", "cifar_tilt")},
        {"one_at_a_time": False},
        note="the study's augmented runs stayed at 10 %, for filling with 255 on a scale of 0..1: nothing to compare",
    ),
    "learning-rates": Sweep(
        "ResNet-18 by optimiser and learning rate",
        "four-families-resnet18",
        {"optimizer": ("sgd", "adam"), "lr": (1e-3, 1e-4)},
        {"one_at_a_time": False},
        note="that the study's a3, a4, s3 and s4 are Adam and SGD at 1e-3 and 1e-4 is inferred from its file names",
    ),
    "dropout": Sweep(
        "ResNet-34 on ImageNet-100 by dropout before the last layer",
        "imagenet100-resnet34",
        {"model.head_dropout": (0.0, 0.2, 0.4, 0.6)},
        _BASELINE,
    ),
    "weight-decay": Sweep(
        "ResNet-34 on ImageNet-100 by weight decay",
        "imagenet100-resnet34",
        {"weight_decay": (0.0, 1e-5, 1e-4, 1e-3)},
        {**_BASELINE, "decay_all": True},
        note="Adam adds the decay to the gradient (L2), as the study's baseline would have",
    ),
    "schedules": Sweep(
        "ResNet-34 on ImageNet-100 by schedule: constant, cosine, a tenth every 10 epochs",
        "imagenet100-resnet34",
        {"schedule": ("constant", "cosine", "step")},
        {**_BASELINE, "step_epochs": 10.0, "gamma": 0.1},
    ),
    "batch": Sweep(
        "ResNet-34 on ImageNet-100 by batch",
        "imagenet100-resnet34",
        {"batch": (16, 32, 64)},
        _BASELINE,
    ),
    "augmentation-imagenet100": Sweep(
        "ResNet-34 on ImageNet-100 by augmentation",
        "imagenet100-resnet34",
        {"augment": ("none", "flip", "resized_crop", "resized_crop+flip", "resized_crop+flip+rotate:15")},
        _BASELINE,
    ),
    "optimizers-imagenet100": Sweep(
        "ResNet-34 on ImageNet-100 by optimiser and learning rate",
        "imagenet100-resnet34",
        {"optimizer": ("adam", "sgd", "rmsprop"), "lr": (1e-4, 1e-2)},
        _BASELINE,
        note="two rates each, since no single rate suits all three; SGD and RMSprop have a momentum of 0.9",
    ),
}
