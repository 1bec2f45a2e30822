"""The table of networks: names, sizes, and what happens to names and arguments that do not exist."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from models import zoo
from models.errors import ModelError

TORCHVISION = torchvision.models.list_models(module=torchvision.models)


def test_every_torchvision_classifier_is_named_and_no_other():
    ours = [name for name, network in zoo.NETWORKS.items() if network.builder == "models.torchvision:build"]
    assert sorted(ours) == sorted(TORCHVISION)


def test_names_are_unique_and_described_in_one_line():
    assert len(set(zoo.names())) == len(zoo.names())
    for name in zoo.names():
        zoo.check(name)
        line = zoo.describe(name)
        assert line
        assert "\n" not in line
        assert len(line) <= 90


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_sizes_are_those_of_its_first_weights(name):
    weights = torchvision.models.get_model_weights(name).__members__.get("IMAGENET1K_V1")
    assert zoo.default_size(name) == (weights.transforms().crop_size[0] if weights else 224)
    assert zoo.default_classes(name) == 1000


def check_published_parameters(name):
    # torchvision publishes Inception v3 with its auxiliary classifier.
    published = {"inception_v3": 23_834_568}
    weights = list(torchvision.models.get_model_weights(name))[-1]
    with torch.device("meta"):
        model = zoo.build(name)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert params == published.get(name, weights.meta["num_params"])


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "regnet_y_400mf", "vgg11"])
def test_torchvision_networks_have_the_published_parameters(name):
    check_published_parameters(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_all_torchvision_networks_have_the_published_parameters(name):
    check_published_parameters(name)


@pytest.mark.parametrize(
    ("name", "head"),
    [("lenet", "fc3"), ("resnet18", "fc"), ("squeezenet1_1", "classifier.1"), ("vit_b_32", "heads.head")],
)
def test_networks_answer_with_one_logit_a_class(name, head):
    with torch.device("meta"):
        model = zoo.build(name, 7).eval()
        size = zoo.default_size(name)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 7)
    assert 7 in model.get_submodule(head).weight.shape


def test_classes_default_to_the_networks_own():
    with torch.device("meta"):
        for name, classes in (("resnet34_se", 100), ("og_resnet", 10), ("resnet18", 1000)):
            assert zoo.build(name).fc.out_features == zoo.default_classes(name) == classes


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_classifiers_return_one_tensor_in_training(name):
    with torch.device("meta"):
        model = zoo.build(name, 5).train()
        size = zoo.default_size(name)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 5)


def test_unknown_model_names_near_ones():
    for function in (zoo.check, zoo.describe, zoo.default_size, zoo.default_classes, zoo.build):
        with pytest.raises(ModelError, match="unknown model 'resnt34'; did you mean resnet34"):
            function("resnt34")
    with pytest.raises(ModelError, match="resnet50"):
        zoo.check("ResNet-50")


def test_unknown_argument_lists_the_known_ones():
    with pytest.raises(ModelError, match="unknown argument of lenet 'widht'; did you mean widths.* hidden"):
        zoo.build("lenet", widht=(6, 16))
    with pytest.raises(ModelError, match="known: head_dropout"):
        zoo.build("resnet18", activation="gelu")


@pytest.mark.parametrize("classes", [0, -1, 2.5])
def test_classes_must_be_a_positive_whole_number(classes):
    with pytest.raises(ModelError, match="classes"):
        zoo.build("lenet", classes)


def test_values_that_no_network_can_be_built_from_are_model_errors():
    with pytest.raises(
        ModelError, match=r"widths of og_resnet is 3; give a list, such as model.widths=\[32, 64, 128, 256\]"
    ):
        zoo.build("og_resnet", widths=3)


def test_known_arguments_show_the_networks_own_defaults():
    known = zoo.known_arguments("res_512_d")
    assert known["block_dropout"] == 0.1
    assert known["activation"] == "leaky_relu"
    assert known["softmax_output"] is False
    assert zoo.known_arguments("resnet18") == {"head_dropout": None}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "replaced"),
        ("vit_b_32", "replaced"),
        ("maxvit_t", "replaced"),
        ("efficientnet_b0", "set"),
        ("googlenet", "set"),
        ("squeezenet1_1", "set"),
    ],
)
def test_head_dropout_of_torchvision_networks_keeps_names_and_counts(name, kind):
    with torch.device("meta"):
        plain, dropped = zoo.build(name), zoo.build(name, head_dropout=0.4)
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert {key: value.shape for key, value in dropped.state_dict().items()} == shapes
    if kind == "set":
        assert [module.p for module in dropped.modules() if isinstance(module, nn.Dropout)][-1] == 0.4
    else:
        assert [module for module in dropped.modules() if isinstance(module, nn.Linear)][-1].dropout == 0.4


def test_head_dropout_acts_in_training_only():
    torch.manual_seed(0)
    head = zoo.build("resnet18", 10, head_dropout=0.5).fc
    features = torch.ones(1, 512)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), nn.functional.linear(features, head.weight, head.bias))


def test_head_dropout_must_be_a_probability():
    for name in ("resnet18", "lenet"):
        with pytest.raises(ModelError, match="head_dropout is 1.5"):
            zoo.build(name, head_dropout=1.5)


def test_asking_about_networks_imports_no_torch():
    code = (
        "import sys; from models import zoo\n"
        "for name in zoo.names(): zoo.check(name), zoo.describe(name), zoo.default_size(name)\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=zoo.__file__.rsplit("/", 2)[0], timeout=60)


def fake_timm() -> ModuleType:
    timm = ModuleType("timm")
    timm.__spec__ = SimpleNamespace(name="timm")
    timm.is_model = lambda name: name == "tiny"
    timm.list_models = lambda: ["tiny"]
    timm.create_model = lambda name, pretrained, num_classes, drop_rate=0.0: nn.Sequential(
        nn.Dropout(drop_rate), nn.Linear(3, num_classes)
    )
    timm.models = SimpleNamespace(get_pretrained_cfg=lambda name: SimpleNamespace(input_size=(3, 288, 288)))
    return timm


def test_timm_networks_when_timm_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    zoo.check("timm:tiny")
    assert zoo.describe("timm:tiny") == "tiny (timm)"
    assert zoo.default_size("timm:tiny") == 288
    assert zoo.default_classes("timm:tiny") == 1000
    assert zoo.build("timm:tiny", 4)[1].out_features == 4
    assert zoo.build("timm:tiny", 4, head_dropout=0.3)[0].p == 0.3
    with pytest.raises(ModelError, match="unknown timm model 'tinny'; did you mean tiny"):
        zoo.build("timm:tinny")


def test_timm_networks_when_timm_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package timm, which is not installed: pip install timm"):
        zoo.build("timm:resnet34")
