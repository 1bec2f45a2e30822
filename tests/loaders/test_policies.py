"""Policy texts become operations, or an error that says which words there are."""

import pytest

from loaders import policies
from loaders.errors import DataError
from loaders.policies import Operation, parse


def test_names_stand_for_their_words() -> None:
    assert parse("cifar_rotate") == (Operation("crop", 4), Operation("flip"), Operation("rotate", 20))
    assert parse("cifar+cutout:8") == (Operation("crop_reflect", 4), Operation("flip"), Operation("cutout", 8))
    assert parse("none") == parse("") == ()


def test_standard_depends_on_where_the_images_lie() -> None:
    assert parse("standard") == parse("resized_crop+flip") == parse("imagenet")
    assert parse("standard", policies.STANDARD_RESIDENT) == parse("cifar")


def test_values_and_defaults() -> None:
    assert parse("rotate")[0].value == 15
    assert parse("crop")[0].pixels == 4
    assert parse("crop:2 + flip")[0].pixels == 2


@pytest.mark.parametrize("name", policies.names())
def test_every_policy_parses_and_is_described(name: str) -> None:
    parse(name)
    assert policies.describe(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotat:20", r"unknown augmentation rotat; did you mean rotate\? Policies: cifar, .*operations: affine"),
        ("cifr", r"did you mean cifar\?"),
        ("rotate:much", "not a number"),
        ("rotate:200", "out of range: 0 to 180"),
        ("flip:3", "takes no value"),
        ("crop:2.5", "whole number"),
        ("blur:4", "odd"),
        ("flip+flip", "flip twice"),
        ("cifar+flip", "flip twice"),
        ("crop+crop_reflect", "two windows, crop and crop_reflect"),
        ("flip+resized_crop", "comes first"),
        ("flip+alternating_flip", "keep one"),
        ("erasing+flip", "come last"),
    ],
)
def test_impossible_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(text)


def test_an_unknown_policy_is_not_described() -> None:
    with pytest.raises(DataError, match=r"unknown augmentation policy cifr; did you mean cifar\?"):
        policies.describe("cifr")


def test_policies_and_operations_have_different_names() -> None:
    assert not set(policies.POLICIES) & set(policies.OPERATIONS)
