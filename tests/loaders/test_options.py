"""LoaderOptions refuses what no engine could honour, and says what is known."""

import pytest

from loaders.errors import DataError
from loaders.options import LoaderOptions


def test_defaults_are_valid() -> None:
    options = LoaderOptions()
    assert (options.batch, options.size, options.layout) == (32, 224, "nhwc")


def test_from_mapping_takes_every_field() -> None:
    assert LoaderOptions.from_mapping({"batch": 8, "resize": "dali"}) == LoaderOptions(batch=8, resize="dali")


def test_unknown_name_is_refused_with_the_near_and_the_known() -> None:
    with pytest.raises(DataError, match=r"unknown loader option bacth; did you mean batch\?.*Known: batch, size"):
        LoaderOptions.from_mapping({"bacth": 8})


def test_a_border_in_which_a_window_has_room_is_refused() -> None:
    with pytest.raises(DataError, match=r"crop:32 puts a border around images of 32 px .* give at most 31"):
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
        ("padding", -1),
        ("augment", "cifarr"),
        ("eval_margin", 0.9),
        ("normalization", "batch"),
        ("random_eval", True),
        ("stored_size", -1),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(DataError, match=name):
        LoaderOptions.from_mapping({name: value})


def test_an_evaluation_is_augmented_only_where_asked() -> None:
    assert LoaderOptions().augmented
    assert not LoaderOptions(train=False).augmented
    assert LoaderOptions(train=False, random_eval=True).augmented
