"""Which runs a study consists of, what they are called, and what cannot be planned."""

from collections.abc import Callable
from typing import Any

import pytest

from bench.errors import UsageError
from bench.runs.plan import FORMS, check_arguments, parse_over, plan_runs, scaled
from models.errors import ModelError
from models.studies import STUDIES, SWEEPS
from models.training import recipe as recipes
from models.training.recipe import Recipe

FOUR = STUDIES["four-families"]
LENET = Recipe(model="lenet")


@pytest.mark.parametrize("name", [*STUDIES, *SWEEPS])
@pytest.mark.parametrize("forms", [FORMS[:1], FORMS[1:], FORMS])
def test_every_study_can_be_planned_whole_and_as_a_trial(name: str, forms: tuple[str, ...]) -> None:
    for scale in (1.0, 0.01):
        runs = plan_runs(name, None, forms, scale, (), 50_000, 10).runs
        assert runs
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            assert "/" not in run.name
            assert recipes.parse(recipes.to_toml(run.recipe), run.name) == run.recipe


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("four-families",), FOUR.recipes),
        (("four-families", None, FORMS[1:]), FOUR.fast),
        (("four-families", None, FORMS), (*FOUR.recipes, *FOUR.fast)),
        # Its phases start from one another's weights.
        (("imagenet-resnet50",), ("imagenet-resnet50",)),
        (("learning-rates",), ("sgd+lr-0.001", "sgd+lr-0.0001", "adam+lr-0.001", "adam+lr-0.0001")),
        (("optimizers",), ("sgd", "adam", "rmsprop", "adadelta", "adagrad")),
        (("optimizers", {"optimizer": ("adam", "sgd"), "epochs": (1,)}), ("adam", "sgd")),
    ],
)
def test_runs_are_named_by_what_distinguishes_them(arguments: tuple[Any, ...], names: tuple[str, ...]) -> None:
    assert tuple(run.name for run in plan_runs(*arguments).runs) == names


def test_a_sweep_has_its_own_published_figures_and_not_the_recipe_s() -> None:
    runs = {run.name: run.recipe for run in plan_runs("optimizers").runs}
    assert runs["sgd"].published.top1 == 0.8462
    assert runs["adagrad"].published.study == ""
    assert {recipe.epochs for recipe in runs.values()} == {50}


def test_over_makes_a_grid_a_single_value_is_a_setting_and_seeds_multiply() -> None:
    plan = plan_runs("four-families-lenet", parse_over(["lr=0.1,0.2", "batch=16,32", "epochs=3"]), seeds=(0, 7))
    assert plan.name == "four-families-lenet-lr-batch"
    assert [run.name for run in plan.runs[:2]] == ["lr-0.1+batch-16-seed0", "lr-0.1+batch-16-seed7"]
    assert plan.runs[2].name == "lr-0.1+batch-32-seed0"
    assert len(plan.runs) == 8
    assert {run.recipe.epochs for run in plan.runs} == {3}
    assert plan.runs[1].recipe.seed == 7
    assert plan.runs[0].recipe.published.study == ""


def test_epochs_are_one_run_where_the_rate_is_constant_and_runs_of_their_own_otherwise() -> None:
    (run,) = plan_runs("epochs").runs
    assert (run.recipe.epochs, run.recipe.checkpoint_epochs, run.recipe.evaluate_every) == (95, 5, 1)
    assert plan_runs("epochs").epochs == (5, 10, 20, 30, 40, 55, 70, 95)
    corrected = plan_runs("epochs", None, FORMS[1:])
    assert [run.recipe.epochs for run in corrected.runs] == [5, 10, 20, 30, 40, 55, 70, 95]
    assert corrected.epochs == ()


def test_values_are_split_outside_of_brackets_and_quotes() -> None:
    assert parse_over(["sizes=[[1,16],[2,32]],[[1,32]]", 'augment=none,"a,b"']) == {
        "sizes": ([[1, 16], [2, 32]], [[1, 32]]),
        "augment": ("none", "a,b"),
    }


TYPO = {"model.activation": ("relu", "gelu"), "model.activatoin": ("relu",)}


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        (lambda: parse_over(["lr"]), UsageError, "write key=value"),
        (lambda: parse_over(["lr=1,,2"]), UsageError, "write key=value"),
        (lambda: parse_over(["lr=1", "lr=2"]), UsageError, "twice"),
        (lambda: parse_over(["lr=1,1"]), UsageError, "twice"),
        (lambda: plan_runs("optimisers"), ModelError, "did you mean optimizers"),
        (lambda: plan_runs("four-families-lenet"), UsageError, "--over"),
        (lambda: plan_runs("four-families-lenet", {"lrr": (1, 2)}), ModelError, "did you mean lr"),
        (lambda: plan_runs("nowhere.toml", {"lr": (1, 2)}), ModelError, "cannot read"),
        (lambda: check_arguments(plan_runs("activations", TYPO), TYPO), ModelError, "did you mean activation"),
    ],
)
def test_mistakes_are_found_before_a_run_is_started(plan: Callable[[], Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        plan()


def test_a_trial_shortens_all_that_is_counted_in_epochs_alike() -> None:
    recipe = Recipe(
        model="lenet", epochs=100, warmup_epochs=5.0, milestones=(50.0, 80.0), step_epochs=10.0, patience=5,
        sizes=((1, 16), (40, 24), (90, 32)), evaluate_every=20, checkpoint_epochs=50,
    )  # fmt: skip
    small = scaled(recipe, 0.1, 50_000, 10)
    assert (small.epochs, small.divide, small.evaluate_every, small.checkpoint_epochs) == (10, 10, 2, 10)
    assert (small.warmup_epochs, small.milestones, small.step_epochs) == (0.5, (5.0, 8.0), 1.0)
    assert small.sizes == ((1, 16), (5, 24), (10, 32))
    assert scaled(recipe, 0.001, 50_000, 10).sizes == ((1, 32),)
    assert scaled(recipe, 0.001, 50_000, 10).epochs == 1


@pytest.mark.parametrize(("holdout", "images", "divide"), [(0, 50_000, 1000), (0, 500, 25), (0.2, 500, 20), (0, 10, 1)])
def test_a_trial_keeps_two_images_a_class(holdout: float, images: int, divide: int) -> None:
    assert scaled(LENET.replaced({"holdout": float(holdout)}), 0.001, images, 10).divide == divide
