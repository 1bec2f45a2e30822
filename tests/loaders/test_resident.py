"""Windows out of the bordered image, one indexing for the whole batch: the same as a loop would cut."""

from typing import Any

import pytest
import torch
from torch.nn.functional import pad

from kernels import runtime
from kernels.augment import augment
from loaders import engines, resident
from loaders.augment import Augmentation
from loaders.datasets import Dataset
from loaders.epochs import Epochs, flips
from loaders.errors import DataError
from loaders.options import LoaderOptions


@pytest.mark.parametrize("border", [0, 4])
def test_windows_and_mirrors_equal_a_loop(arrays: Dataset, border: int) -> None:
    policy = f"crop_reflect:{border}+flip"
    options = LoaderOptions(batch=8, size=32, augment=policy, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    loader = engines.build("resident", arrays, options)
    epochs = Epochs(len(arrays), options)
    assert arrays.pixels is not None
    for number, (images, labels) in enumerate(loader):
        indices, draws = epochs.indices(0, number), epochs.draws(0, number)
        assert labels.tolist() == [arrays.labels[i] for i in indices]
        for image, index, row, mirror in zip(images, indices, draws, flips(draws), strict=True):
            whole = torch.from_numpy(arrays.pixels[index]).permute(2, 0, 1)[None].float()
            framed = pad(whole, (border,) * 4, mode="reflect")[0]
            top, left = (int(place * (2 * border + 1)) for place in row[-3:-1])
            window = framed[:, top : top + 32, left : left + 32]
            expected = window.flip(-1) if mirror else window
            assert torch.allclose(image * 255, expected, atol=1e-3)


def test_evaluation_is_the_image_itself(arrays: Dataset) -> None:
    options = LoaderOptions(batch=24, size=32, train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ((images, _),) = engines.build("resident", arrays, options)
    assert arrays.pixels is not None
    expected = torch.from_numpy(arrays.pixels).permute(0, 3, 1, 2)
    assert torch.allclose(images * 255, expected.float(), atol=1e-3)


def test_arrays_of_another_size_are_resized(arrays: Dataset) -> None:
    images, _ = next(iter(engines.build("resident", arrays, LoaderOptions(batch=4, size=24))))
    assert images.shape == (4, 3, 24, 24)


def test_a_set_too_large_for_the_memory_is_refused(arrays: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_free_bytes", lambda device: 100_000)
    with pytest.raises(DataError, match="GiB on cpu.*use dali"):
        engines.build("resident", arrays, LoaderOptions(size=32))


def test_a_border_wider_than_the_image_is_refused(arrays: Dataset) -> None:
    # The standard policy of this engine has a border, that of the others has none.
    with pytest.raises(DataError, match="crop_reflect:4 puts a border around images of 4 px"):
        engines.build("resident", arrays, LoaderOptions(size=4))


def test_the_widest_black_border_leaves_no_holes(arrays: Dataset) -> None:
    plain = LoaderOptions(size=32, batch=24, augment="crop:31", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, _ = next(iter(engines.build("resident", arrays, plain)))
    # Of the widest border a window holds at least one pixel of the image, and the rest is black.
    assert ((images >= 0) & (images <= 1)).all()
    assert (images.amax((1, 2, 3)) > 0).all()
    assert (images == 0).float().mean() > 0.3


@pytest.mark.parametrize(
    "policy",
    [
        "standard",
        "crop:3+flip",
        "flip+crop_reflect:5",
        "alternating_flip+crop+cutout:9",
        "flip+erasing:0.9",
        "cutout:6",
    ],
)
def test_one_pass_gives_the_same_bits(arrays: Dataset, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel is given on a GPU; its twin computes it here."""
    options = LoaderOptions(size=32, batch=8, augment=policy, dtype="bfloat16", mean=(0.2, 0.5, 0.7))
    step_by_step = list(engines.build("resident", arrays, options))
    monkeypatch.setattr(runtime, "default_implementation", lambda device: "triton")
    borders: list[str] = []

    def recorded(*arguments: Any, border: str) -> torch.Tensor:
        borders.append(border)
        return augment(*arguments, border=border, implementation="torch")

    monkeypatch.setattr(resident, "augment", recorded)
    loader = engines.build("resident", arrays, options)
    fused = list(loader)
    assert set(borders) == {"reflect" if policy == "standard" or "reflect" in policy else "black"}
    assert len(borders) == len(fused)
    for (images, labels), (expected, known) in zip(fused, step_by_step, strict=True):
        assert torch.equal(labels, known)
        assert torch.equal(images, expected)
        assert images.is_contiguous(memory_format=torch.channels_last) == expected.is_contiguous(
            memory_format=torch.channels_last
        )


@pytest.mark.parametrize("policy", ["crop+rotate:9", "jitter", "resized_crop", "flip+erasing+cutout"])
def test_what_one_pass_cannot_do_is_done_step_by_step(arrays: Dataset, policy: str) -> None:
    options = LoaderOptions(size=32, batch=8, augment=policy)
    assert Augmentation(options, Epochs(len(arrays), options), 32).fused_border is None


def test_decoding_once_serves_every_size(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    options = LoaderOptions(batch=46, size=40, train=False)
    ((expected, known),) = engines.build("resident", dataset, options)
    once = resident.decoded(dataset, 40)
    assert once.pixels is not None
    assert once.pixels.shape == (46, 40, 40, 3)
    assert (once.files, once.labels) == (dataset.files, dataset.labels)
    monkeypatch.setattr(resident, "decode", lambda *arguments: pytest.fail("decoded again"))
    ((images, labels),) = engines.build("resident", once, options)
    assert torch.equal(images, expected)
    assert torch.equal(labels, known)
    assert resident.decoded(once, 40) is once
    smaller, _ = next(iter(engines.build("resident", once, LoaderOptions(batch=8, size=24))))
    assert smaller.shape == (8, 3, 24, 24)


def test_arrays_of_the_right_size_are_not_copied(arrays: Dataset) -> None:
    loader = engines.build("resident", arrays, LoaderOptions(batch=4, size=32))
    assert arrays.pixels is not None
    assert loader._engine._images.data_ptr() == arrays.pixels.ctypes.data  # type: ignore[attr-defined]
