"""Recipes are strict: every key is known, every value fits, and TOML brings back what was written."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models import zoo
from models.errors import ModelError
from models.training.recipe import ARGUMENTS, Recipe, load, names, parse, parse_setting, shortened, to_toml

FULL = Recipe(
    model="res_512_d",
    arguments={"activation": "gelu", "widths": (64, 128, 512)},
    sizes=((1, 16), (5, 32)),
    milestones=(10.0, 20.5),
    teacher='a "quoted" \\ path',
    ema=0.999,
)


def test_toml_brings_back_the_recipe() -> None:
    text = to_toml(FULL, ["a comment"])
    assert text.startswith("# a comment\n")
    assert parse(text, "text") == FULL


@pytest.mark.parametrize("name", names())
def test_every_recipe_that_comes_along_survives_a_round_trip(name: str) -> None:
    recipe = load(name)
    assert parse(to_toml(recipe), name) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "names no model"),
        ("model = ", "not valid TOML"),
        ("model = 'lenet'\nepoch = 3", "unknown recipe key epoch .* did you mean epochs"),
        ("model = 'lenet'\nepochs = 'three'", "epochs .* a whole number"),
        ("model = 'lenet'\nepochs = 2.5", "epochs .* a whole number"),
        ("model = 'lenet'\nepochs = inf", "epochs .* a whole number"),
        ("model = 'lenet'\nnesterov = 1", "nesterov .* true or false"),
        ("model = 'lenet'\nlr = true", "lr .* a number"),
        ("model = 'lenet'\naugment = 3", "augment .* text"),
        ("model = 'lenet'\narguments = 3", "arguments .* a table"),
        ("model = 'lenet'\nevaluation = 'middle'", "evaluation"),
        ("model = 'lenet'\n[published]\ntop2 = 1", "unknown key top2"),
        (
            "model = 'lenet'\n[published]\ntop1 = 'high'",
            r"top1 in \[published\] of text is 'high'; it must be a number",
        ),
        ("model = 'lenet'\n[published]\nstudy = 'mine'", "study"),
        ("model = 'lenet'\nsizes = [16, 32]", r"sizes .* such as sizes=\[\[1, 16\], \[5, 32\]\]"),
        ("model = 'lenet'\nmilestones = 'foo'", r"milestones .* such as milestones=\[10, 20\]"),
        ("model = 'lenet'\nmilestones = [inf]", "milestones .* finite"),
        ("model = 'lenet'\nlr = nan", "lr is nan; it must be finite"),
        ("model = 'lenet'\ndropout = 0.5", "did you mean model.block_dropout or model.head_dropout"),
        ("model = 'lenet'\none_at_a_time = true\naccumulate = 2", "one_at_a_time"),
    ],
)
def test_faults_are_named(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse(text, "text")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"holdout": 1.5}, "holdout is 1.5"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"batch": 0}, "batch is 0"),
        ({"tta": "rotate"}, "tta"),
        ({"sizes": ((2, 16),)}, "sizes"),
        ({"optimizer": "sdg"}, "did you mean sgd"),
        ({"lr": 0.0}, "lr is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"bias_lr_factor": 0.0}, "bias_lr_factor"),
        ({"beta2": 1.5}, "beta2"),
        ({"sam_interval": 0}, "sam_interval"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs momentum"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"schedule_per": "batch"}, "step"),
        ({"warmup_epochs": 5.0, "epochs": 5}, "warmup_epochs is 5.0; give fewer than the 5 epochs"),
        ({"schedule": "step"}, "step_epochs"),
        ({"schedule": "multistep"}, "milestones"),
        ({"milestones": (5.0, 3.0)}, "rising"),
        ({"schedule": "plateau", "gamma": 1.0}, "gamma"),
        ({"schedule": "onecycle", "epochs": 9, "warmup_epochs": 2.0}, "its own warm-up"),
        ({"pct_start": 2.0}, "pct_start"),
        ({"min_lr_factor": -1.0}, "min_lr_factor"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"distill_weight": 1.5}, "distill_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"mixup": -1.0}, "mixup is -1"),
        ({"ema_every": 0}, "ema_every"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Recipe("lenet", **wrong)


def test_settings_are_read_as_toml_and_else_as_text() -> None:
    assert parse_setting("lr=0.1") == ("lr", 0.1)
    assert parse_setting("nesterov=true") == ("nesterov", True)
    assert parse_setting("sizes=[[1, 16], [3, 32]]") == ("sizes", [[1, 16], [3, 32]])
    assert parse_setting("model.activation=gelu") == ("model.activation", "gelu")
    assert parse_setting("augment=crop+flip") == ("augment", "crop+flip")
    with pytest.raises(ModelError, match="key=value"):
        parse_setting("lr")


def test_changes_reach_keys_and_the_networks_arguments() -> None:
    changed = FULL.replaced({"lr": 1, "model.activation": "tanh", "model.block_dropout": 0.2, "epochs": 7.0})
    assert changed.lr == 1.0
    assert changed.epochs == 7
    assert changed.arguments == {"activation": "tanh", "widths": (64, 128, 512), "block_dropout": 0.2}
    assert changed.replaced({"model": "lenet"}).model == "lenet"
    with pytest.raises(ModelError, match="unknown recipe key speed"):
        FULL.replaced({"speed": 1})


def test_an_unknown_key_is_answered_in_a_line_with_arguments_that_networks_have() -> None:
    with pytest.raises(ModelError) as caught:
        FULL.replaced({"speed": 1})
    assert len(str(caught.value)) < 300
    known = {name for model in ("lenet", "narrow_resnet34_se") for name in zoo.known_arguments(model)}
    assert set(ARGUMENTS) <= known


def test_fewer_epochs_shorten_what_is_counted_in_them() -> None:
    recipe = Recipe("lenet", epochs=20, warmup_epochs=2, milestones=(10, 15), step_epochs=4, stop_epoch=10)
    short = shortened(replace(recipe, sizes=((1, 16), (11, 32))), 2)
    assert (short.epochs, short.warmup_epochs, short.milestones, short.step_epochs) == (2, 0.2, (1, 1.5), 0.4)
    assert (short.stop_epoch, short.sizes) == (1, ((1, 16), (2, 32)))
    assert (short.evaluate_every, short.patience) == (recipe.evaluate_every, recipe.patience)


def test_sizes_follow_the_epoch() -> None:
    assert [FULL.size_at(epoch) for epoch in (1, 4, 5, 99)] == [16, 16, 32, 32]
    assert Recipe(model="lenet", size=32).size_at(3) == 32


def test_an_unknown_recipe_is_answered_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="under-5m-res_512_d"):
        load("under-5m-res512_d")
    with pytest.raises(ModelError, match="cannot read recipe"):
        load(tmp_path / "none.toml")


def test_reading_a_recipe_imports_no_torch() -> None:
    code = "import sys; from models.training.recipe import load, names; load(names()[0]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], capture_output=True)
    assert done.stdout.strip() == b"False"
