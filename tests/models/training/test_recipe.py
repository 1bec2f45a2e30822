"""Recipes are strict: every key is known, every value fits, and TOML brings back what was written."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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
        ("model = 'lenet'\nepochs = 'three'", "epochs .* type int"),
        ("model = 'lenet'\nepochs = 2.5", "epochs .* type int"),
        ("model = 'lenet'\nnesterov = 1", "nesterov .* type bool"),
        ("model = 'lenet'\nlr = true", "lr .* type float"),
        ("model = 'lenet'\nevaluation = 'middle'", "evaluation"),
        ("model = 'lenet'\n[published]\ntop2 = 1", "unknown key top2"),
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
