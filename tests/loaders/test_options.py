"""LoaderOptions refuses what no engine could honour, and says what is known."""

import pytest

from loaders.errors import DataError
from loaders.options import LoaderOptions


def test_defaults_are_valid() -> None:
    options = LoaderOptions()
    assert (options.batch, options.size, options.layout) == (32, 224, "nhwc")


def test_a_border_that_can_hold_a_whole_window_is_refused() -> None:
    with pytest.raises(DataError, match=r"crop:32 puts a border around images of 32 px .* use at most 31"):
        LoaderOptions(size=32, augment="crop:32")
    LoaderOptions(size=32, augment="crop_reflect:31+flip")
    LoaderOptions(size=32, augment="crop:32", train=False)
    LoaderOptions(size=16, stored_size=64, augment="crop:32")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("size", 0),
        ("threads", -1),
        ("prefetch", 0),
        ("shards", 0),
        ("shard", 1),
        ("dtype", "int8"),
        ("layout", "hwc"),
        ("decoder", "gpu"),
        ("resize", "pil"),
        ("device", "tpu"),
        ("hw_decoder_load", 1.5),
        ("augment", "cifarr"),
        ("eval_margin", 0.9),
        ("normalization", "batch"),
        ("random_eval", True),
        ("stored_size", -1),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(DataError, match=name):
        LoaderOptions(**{name: value})


def test_an_evaluation_is_augmented_only_if_that_is_asked_for() -> None:
    assert LoaderOptions().augmented
    assert not LoaderOptions(train=False).augmented
    assert LoaderOptions(train=False).operations() == ()
    assert LoaderOptions(train=False, random_eval=True).augmented


def test_a_border_keeps_the_whole_image_in_view() -> None:
    assert LoaderOptions(augment="flip", eval_margin=1.2).margin == 1.2
    assert LoaderOptions(augment="crop+flip", eval_margin=1.2).margin == 1
    assert LoaderOptions(augment="crop+flip", eval_margin=1.2, train=False).margin == 1.2
