"""Windows out of the bordered image, the same as a loop would cut; those of larger images are torchvision's."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from kernels import runtime
from kernels.augment import augment
from loaders import device_images, engines, resident
from loaders.augment import Augmentation
from loaders.datasets import Dataset
from loaders.device_images import on_device
from loaders.epochs import Batch, Epochs, flips
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
    monkeypatch.setattr(device_images, "free_bytes", lambda device: 100_000)
    with pytest.raises(DataError, match=r"needs 73,728 bytes \(0\.0 GiB\) on cpu.*use dali"):
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


# In their own aspect; none of the images of `dataset` is as large as 200 pixels.
LARGE = LoaderOptions(batch=6, size=80, stored_size=200, threads=0)
POLICIES: dict[str, dict[str, Any]] = {
    "standard": {},
    "alternating_flip": {"augment": "resized_crop:0.3+alternating_flip"},
    "cutout": {"augment": "resized_crop+flip+cutout:9"},
    "no window": {"augment": "flip+rotate:9"},
    "border": {"augment": "crop:9+flip"},
    "none": {"augment": "none"},
    "evaluation": {"train": False},
    "whole": {"train": False, "eval_margin": 1.0},
    "random evaluation": {"train": False, "random_eval": True},
    "per image": {"normalization": "per_image"},
    "nchw": {"layout": "nchw", "dtype": "bfloat16"},
}


def pairs(ours: Iterable[Batch], theirs: Iterable[Batch]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of two loaders whose labels, dtypes and memory orders are the same."""
    result = []
    for (images, labels), (expected, known) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, known)
        assert (images.dtype, images.stride()) == (expected.dtype, expected.stride())
        result.append((images, expected))
    return result


@pytest.mark.parametrize("policy", POLICIES)
def test_images_of_many_sizes_are_torchvisions(dataset: Dataset, policy: str) -> None:
    options = replace(LARGE, **POLICIES[policy])
    ours, theirs = (engines.build(name, dataset, options) for name in ("resident", "torchvision"))
    assert all(torch.equal(images, expected) for images, expected in pairs(ours, theirs))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_kernel_is_given_the_same_windows(dataset: Dataset, policy: str) -> None:
    """What a GPU does; the kernel's twin computes it here."""
    options = replace(LARGE, **POLICIES[policy])
    ours, theirs = (engines.build(name, dataset, options) for name in ("resident", "torchvision"))
    ours._engine._one_by_one = False  # type: ignore[attr-defined]
    # A level of 255, divided by the deviation; that of an image may be small.
    level = 0.05 if policy == "per image" else 1.01 / (255 * min(options.std)) + (0.02 if policy == "nchw" else 0)
    for images, expected in pairs(ours, theirs):
        off = (images.float() - expected.float()).abs()
        # Values that lie on the edge of a rounding move whole pixels of a rotation no further.
        assert off.max() < level
        assert off.mean() < level / 3


def test_large_images_are_kept_at_the_size_of_an_evaluation(dataset: Dataset) -> None:
    options = replace(LARGE, size=70, stored_size=0, train=False)
    ours, theirs = (engines.build(name, dataset, options) for name in ("resident", "torchvision"))
    # Shorter sides of the images are 60 to 112; an evaluation at 70 pixels resizes them to 80.
    for images, expected in pairs(ours, theirs):
        assert torch.equal(images, expected)
    assert ours._engine._images.heights.max() > 80  # type: ignore[attr-defined]
    sides = np.minimum(ours._engine._images.heights, ours._engine._images.widths)  # type: ignore[attr-defined]
    assert sides.max() == 80
    assert sides.min() == 60


class Several:
    """Images of different sizes, one by one, as a data set may bring them."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images
        self.heights = np.array([image.shape[0] for image in images])
        self.widths = np.array([image.shape[1] for image in images])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index]


def test_arrays_of_many_sizes_are_read_as_files_are(dataset: Dataset) -> None:
    pixels: Any = Several([resident.decode(path).permute(1, 2, 0).numpy() for path in dataset.files])
    arrays = replace(dataset, files=(), pixels=pixels)
    ours, theirs = (engines.build("resident", one, LARGE) for one in (arrays, dataset))
    assert all(torch.equal(images, expected) for images, expected in pairs(ours, theirs))


def test_images_on_the_device_serve_every_size_and_split(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    there = on_device(dataset, LARGE)
    some = there.select([40, 3, 17])
    monkeypatch.setattr(device_images, "decode", lambda *arguments: pytest.fail("decoded again"))
    for options in (LARGE, replace(LARGE, size=64), replace(LARGE, train=False)):
        ours, theirs = (engines.build(name, there, options) for name in ("resident", "torchvision"))
        assert all(torch.equal(images, expected) for images, expected in pairs(ours, theirs))
    ((images, labels),) = engines.build("resident", some, replace(LARGE, train=False))
    ((expected, _),) = engines.build("torchvision", dataset.select([40, 3, 17]), replace(LARGE, train=False))
    assert torch.equal(images, expected)
    assert labels.tolist() == [dataset.labels[i] for i in (40, 3, 17)]


def test_each_shard_keeps_and_draws_from_its_own_part(dataset: Dataset) -> None:
    numbered = replace(dataset, labels=tuple(range(46)), classes=tuple(map(str, range(46))))
    for shard in range(3):
        options = replace(LARGE, shard=shard, shards=3, batch=5)
        part = on_device(numbered, options)
        loader = engines.build("resident", part, options)
        held: Any = part.pixels
        assert np.flatnonzero(held.offsets >= 0).tolist() == list(range(shard, 46, 3))
        assert (len(loader), loader.images) == (3, 15)
        epochs = [torch.cat([labels for _, labels in loader]).tolist() for _ in range(2)]
        for drawn in epochs:
            assert len(set(drawn)) == 15
            assert {label % 3 for label in drawn} == {shard}
        assert epochs[0] != epochs[1]
        resumed = engines.build("resident", part, options)
        resumed.restore({"epoch": 1, "batch": 1})
        assert torch.cat([labels for _, labels in resumed]).tolist() == epochs[1][5:]


def test_images_that_another_process_holds_are_decoded(dataset: Dataset) -> None:
    part = on_device(dataset, replace(LARGE, shard=1, shards=3))
    options = replace(LARGE, train=False)
    ours, theirs = (engines.build(name, one, options) for name, one in (("resident", part), ("torchvision", dataset)))
    assert all(torch.equal(images, expected) for images, expected in pairs(ours, theirs))


def test_the_standard_policy_is_that_of_the_size(dataset: Dataset, arrays: Dataset) -> None:
    for set_, size, same, other in ((arrays, 32, "cifar", "imagenet"), (dataset, 65, "imagenet", "cifar")):
        options = LoaderOptions(batch=8, size=size, threads=0)
        standard, named, different = (
            next(iter(engines.build("resident", set_, replace(options, augment=policy))))[0]
            for policy in ("standard", same, other)
        )
        assert torch.equal(standard, named)
        assert not torch.equal(standard, different)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "per image"])
def test_a_gpu_cuts_what_a_cpu_cuts(dataset: Dataset, policy: str) -> None:
    options = replace(LARGE, **POLICIES[policy])
    ours, theirs = (engines.build("resident", dataset, replace(options, device=device)) for device in ("cuda", "cpu"))
    for (images, labels), (expected, known) in zip(ours, theirs, strict=True):
        assert torch.equal(labels.cpu(), known)
        assert images.stride() == expected.stride()
        assert (images.cpu().float() - expected.float()).abs().max() < 1.01 / (255 * min(options.std)) + 0.02
