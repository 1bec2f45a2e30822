"""The recipes that come with pixbench, and the studies and sweeps that are made of them.

The published figures are written down here a second time, on purpose.
"""

import itertools
import tomllib
from dataclasses import fields

import pytest
import torch

from bench.commands.list import first_comment
from loaders import policies
from models import studies, zoo
from models.training import recipe
from models.training.recipe import Published, Recipe
from models.training.schedules import factor
from results.runs import RunSummary

# recipe -> last and best accuracy on the study's test or validation images, on its training images, lowest or last
# test loss; epochs, seconds of training, seconds an epoch
PUBLISHED = {
    "imagenet100-resnet34": (0.6268, None, None, None, 30, 31906.43, 1063.5),
    "imagenet100-resnet50": (0.5818, 0.5880, None, None, 30, 27032.31, 901.1),
    "imagenet100-efficientnet_b0": (0.4772, None, None, None, 30, 25004.28, 833.5),
    "imagenet100-resnet18": (0.5830, None, None, None, 30, 40397.59, 1346.6),
    "imagenet100-resnet34_se": (0.6168, 0.6212, None, None, 30, 24187.11, 806.2),
    "imagenet100-resnet50-cosine": (0.6566, None, None, None, 50, 41864.76, 837.3),
    "narrow-resnet34-200": (0.9512, None, 0.9998, 0.647, 200, None, None),
    "narrow-resnet34-100": (0.91, None, None, None, 100, None, None),
    "narrow-resnet26-100": (0.9029, None, 0.96616, 0.735, 100, None, None),
    "narrow-resnet50-300": (0.9559, 0.9570, 0.99992, 0.203, 300, 4.38 * 3600, 52.6),
    "four-families-lenet": (0.6481, None, 0.7612, None, 20, None, None),
    "four-families-resnet18": (0.7824, None, 0.9730, None, 10, None, None),
    "four-families-resnext29": (0.7790, None, 0.9691, None, 36, None, None),
    "four-families-densenet121": (0.8206, None, 0.9524, None, 13, None, None),
    "imagenet-resnet50": (0.7282, None, 0.7107, None, 67, 26.571 * 3600, None),
    "imagenet-resnet50-phase1": (0.5300, None, None, None, 38, None, 1614.1),
    "imagenet-resnet50-phase2": (None, None, None, None, 55, None, 1066.8),
    "imagenet-resnet50-phase3": (0.7282, None, 0.7107, None, 67, None, 1066.8),
    "under-5m-og_resnet": (None, 0.8513, 0.977, 0.531, 200, 35 * 60 + 28, 10.64),
    "under-5m-og_64_resnet": (None, 0.8588, 0.983, 0.513, 200, 31 * 60 + 41, 9.51),
    "under-5m-res_block": (None, 0.8323, 0.855, 1.629, 200, 36 * 60 + 26, 10.93),
    "under-5m-res_512": (None, 0.8612, 0.987, 0.512, 200, 32 * 60 + 24, 9.72),
    "under-5m-res_512_d": (None, 0.8667, 0.958, 0.490, 200, 31 * 60 + 46, 9.53),
}
PARAMS = {
    "imagenet100-resnet18": 11_227_812,
    "imagenet100-resnet34": 21_335_972,
    "imagenet100-resnet50": 23_712_932,
    "imagenet100-efficientnet_b0": 4_135_648,
    "imagenet100-resnet34_se": 21_497_168,
    "narrow-resnet34-200": 4_348_082,
    "narrow-resnet26-100": 4_196_906,
    "narrow-resnet50-300": 4_815_794,
    "four-families-lenet": 62_006,
    "four-families-resnet18": 11_173_962,
    "four-families-resnext29": 4_774_218,
    "four-families-densenet121": 6_956_298,
    "imagenet-resnet50": 25_557_032,
    "under-5m-og_resnet": 4_997_802,
    "under-5m-og_64_resnet": 4_926_282,
    "under-5m-res_block": 4_979_498,
    "under-5m-res_512": 4_961_610,
    "under-5m-res_512_d": 4_961_610,
}
FIGURES = ("top1", "top1_best", "train_top1", "test_loss", "epochs", "seconds", "seconds_per_epoch")
STUDIED = [name for study in studies.STUDIES.values() for name in (*study.recipes, *study.fast)]


@pytest.mark.parametrize("name", STUDIED)
def test_a_recipe_is_complete(name):
    path = recipe.folder() / f"{name}.toml"
    text = path.read_text(encoding="utf-8")
    table = tomllib.loads(text)
    assert text.startswith("# ")
    assert len(first_comment(path)) <= 100
    assert set(table) <= {field.name for field in fields(Recipe)}
    assert set(table["published"]) <= {field.name for field in fields(Published)}
    loaded = recipe.load(name)
    zoo.check(loaded.model)
    policies.parse(loaded.augment)
    assert loaded.classes == (100 if loaded.data == "imagenet100" else zoo.default_classes(loaded.model))
    assert loaded.size == zoo.default_size(loaded.model)
    assert name.startswith(loaded.published.study.removesuffix("s"))
    assert (loaded.evaluation == "whole") == (loaded.data == "cifar10")
    assert loaded.published.source
    assert loaded.published.note


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_are_those_of_the_study(name):
    published = recipe.load(name).published
    assert published.form == "published"
    for figure, expected in zip(FIGURES, PUBLISHED[name], strict=True):
        assert getattr(published, figure) == pytest.approx(expected), figure


@pytest.mark.parametrize("study", studies.STUDIES)
def test_every_published_form_has_a_corrected_one_with_the_same_figures_beside_it(study):
    recipes, fast = studies.STUDIES[study].recipes, studies.STUDIES[study].fast
    assert all(name in PUBLISHED for name in recipes)
    assert [f"{name}-fast" for name in recipes if "-phase" not in name] == list(fast)
    for name in fast:
        corrected, published = recipe.load(name), recipe.load(name.removesuffix("-fast"))
        assert corrected.published.form == "corrected"
        assert corrected.published.defects == ()
        assert corrected.published.study == published.published.study == study
        assert corrected.model == published.model
        assert corrected.epochs < published.epochs or study == "four-families"
        for figure in FIGURES:
            assert getattr(corrected.published, figure) == getattr(published.published, figure)


def test_corrected_forms_have_none_of_the_defects():
    for name in (name for study in studies.STUDIES.values() for name in study.fast):
        corrected = recipe.load(name)
        assert corrected.evaluation == ("whole" if corrected.data == "cifar10" else "center")
        assert not corrected.one_at_a_time
        assert not corrected.decay_all
        assert not corrected.arguments.get("softmax_output", False)
        assert corrected.select == "last"
        assert corrected.schedule in ("cosine", "onecycle")


def test_published_forms_name_the_switch_that_repeats_a_defect():
    def defects(name):
        return " ".join(recipe.load(name).published.defects)

    for name in studies.STUDIES["imagenet100"].recipes:
        assert recipe.load(name).evaluation == "random"
        assert 'evaluation = "random"' in defects(name)
        assert "no workers" in defects(name)
    for name in studies.STUDIES["four-families"].recipes[1:]:
        assert recipe.load(name).one_at_a_time
        assert "one_at_a_time = true" in defects(name)
    assert recipe.load("under-5m-res_block").arguments == {"softmax_output": True}
    assert "softmax_output = true" in defects("under-5m-res_block")
    for study in ("narrow-resnets", "under-5m"):
        for name in studies.STUDIES[study].recipes:
            assert recipe.load(name).select == "best"
            assert 'select = "best"' in defects(name)


def test_the_four_families_take_1666_steps_an_epoch():
    for name in studies.STUDIES["four-families"].recipes:
        chosen = recipe.load(name)
        assert int(50_000 * (1 - chosen.holdout)) // chosen.batch == 1_666


def test_the_first_phase_follows_the_rates_of_the_log():
    chosen = recipe.load("imagenet-resnet50-phase1")
    assert chosen.lr * factor(chosen, 0.0, 10_009) == pytest.approx(0.0040, abs=5e-5)
    assert chosen.lr * factor(chosen, 38.0, 10_009) == pytest.approx(0.0530, abs=5e-5)


@pytest.mark.parametrize("name", PARAMS)
def test_recipes_train_networks_of_the_published_size(name):
    chosen = recipe.load(name)
    with torch.device("meta"):
        network = zoo.build(chosen.model, chosen.classes, **chosen.arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMS[name]


def points(sweep):
    """The changed keys of every run of a sweep."""
    return [dict(zip(sweep.over, values, strict=True)) for values in itertools.product(*sweep.over.values())]


def labels(sweep):
    return [",".join(map(str, point.values())) for point in points(sweep)]


@pytest.mark.parametrize("name", studies.SWEEPS)
def test_a_sweep_changes_its_recipe(name):
    sweep = studies.SWEEPS[name]
    base = recipe.load(sweep.recipe)
    runs = [base.replaced({**sweep.settings, **point}) for point in points(sweep)]
    assert len({str(run) for run in runs}) == len(runs)
    assert len(set(labels(sweep))) == len(runs)
    assert set(sweep.published) <= set(labels(sweep))
    for augment in sweep.over.get("augment", ()):
        policies.parse(augment)
    arguments = {key.partition(".")[2] for key in (*sweep.over, *sweep.settings) if key.startswith("model.")}
    assert arguments <= set(zoo.known_arguments(base.model))


def test_sweeps_carry_the_published_figures():
    assert studies.SWEEPS["activations"].published == {
        "leaky_relu": 0.8511,
        "gelu": 0.8473,
        "relu": 0.8462,
        "tanh": 0.7875,
    }
    assert studies.SWEEPS["optimizers"].published == {
        "sgd": 0.8462,
        "adadelta": 0.8285,
        "adam": 0.8084,
        "rmsprop": 0.7801,
    }
    epochs = studies.SWEEPS["epochs"]
    assert list(epochs.published) == labels(epochs)
    assert list(epochs.published.values()) == [0.572, 0.603, 0.6481, 0.648, 0.630, 0.627, 0.622, 0.615]
    assert epochs.within_one_run


def test_sweeps_have_the_values_that_the_studies_name():
    assert studies.SWEEPS["dropout"].over["model.head_dropout"][1:] == (0.2, 0.4, 0.6)
    assert studies.SWEEPS["batch"].over["batch"] == (16, 32, 64)
    assert studies.SWEEPS["schedules"].over["schedule"] == ("constant", "cosine", "step")
    assert len(points(studies.SWEEPS["learning-rates"])) == 4


def test_studies_know_their_sweeps_and_figures():
    for study in studies.STUDIES.values():
        assert set(study.sweeps) <= set(studies.SWEEPS)
        assert set(study.metrics) <= {field.name for field in fields(RunSummary)}
    assert {name for study in studies.STUDIES.values() for name in study.sweeps} == set(studies.SWEEPS)
    assert not set(studies.STUDIES) & set(studies.SWEEPS)


def test_every_recipe_file_can_be_read_and_is_studied_or_stands_alone():
    for name in recipe.names():
        recipe.load(name)
    assert set(STUDIED) <= set(recipe.names())
    assert not [name for name in set(recipe.names()) - set(STUDIED) if recipe.load(name).published.study]
