"""DALI against torchvision: the same windows of the same images, to a bounded number of grey levels."""

import gc
import threading

import pytest
import torch

from loaders import engines
from loaders.datasets import Dataset
from loaders.epochs import Epochs
from loaders.errors import DataError
from loaders.options import LoaderOptions

pytest.importorskip("nvidia.dali")

STD = torch.tensor(LoaderOptions().std).view(1, 3, 1, 1)


def grey_levels(dataset: Dataset, train: bool, **options: object) -> torch.Tensor:
    """Absolute differences from the torchvision engine in units of 1/255, one row an image."""
    common = {"batch": 16, "size": options.pop("size", 96), "train": train}
    ours = engines.build("dali", dataset, LoaderOptions.from_mapping({"threads": 2, **common, **options}))
    theirs = engines.build("torchvision", dataset, LoaderOptions.from_mapping({**common, "threads": 0}))
    rows = []
    for (images, labels), (expected, known) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, known)
        rows.append(((images.float() - expected) * STD * 255).abs().flatten(1))
    ours.close()
    return torch.cat(rows)


@pytest.mark.parametrize("train", [True, False])
def test_default_equals_torchvision(dataset: Dataset, train: bool) -> None:
    assert grey_levels(dataset, train).max() < 0.01, "same decoder, same resize: nothing but the rounding of floats"


@pytest.mark.parametrize("train", [True, False])
def test_inside_dali_is_within_a_grey_level(dataset: Dataset, train: bool) -> None:
    """The graph that a GPU runs, on the CPU."""
    error = grey_levels(dataset, train, resize="dali")
    assert error.mean() < 0.3
    assert error.mean(1).max() < 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("resize", ["torch", "dali"])
def test_half_precision_adds_only_its_rounding(dataset: Dataset, dtype: str, resize: str) -> None:
    # 2.64 is the largest normalised value; bfloat16 keeps 8 bits, so half a unit is 1/128, 0.45 grey levels
    assert grey_levels(dataset, False, resize=resize, dtype=dtype).mean() < 0.6


@pytest.mark.parametrize(("option", "mean", "worst"), [("fast_idct", 1.6, 3.0), ("antialias", 2.5, 14.0)])
def test_lossy_options_have_a_bounded_error(dataset: Dataset, option: str, mean: float, worst: float) -> None:
    """Grey levels on 150 ImageNet files: fast_idct 1.2 on average, 2.1 in the worst; antialias=False 1.3 and 11."""
    error = grey_levels(dataset, True, size=224, **{option: option == "fast_idct"})
    assert 0 < error.mean() < mean
    assert error.mean(1).max() < worst


@pytest.mark.parametrize("threads", [1, 4, 8])
def test_the_number_of_threads_changes_nothing(dataset: Dataset, threads: int) -> None:
    assert grey_levels(dataset, True, threads=threads).max() < 0.01


def test_the_thread_leaves_torch_its_threads_and_ends(dataset: Dataset) -> None:
    before = torch.get_num_threads()
    loader = engines.build("dali", dataset, LoaderOptions(batch=8, size=32, threads=1))
    next(iter(loader))
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == seen[0] == before
    assert any(thread.name == "dali-batches" for thread in threading.enumerate())
    loader.close()
    loader.close()
    assert not any(thread.name == "dali-batches" for thread in threading.enumerate())


def test_a_forgotten_loader_ends_its_thread(dataset: Dataset) -> None:
    loader = engines.build("dali", dataset, LoaderOptions(batch=8, size=32, threads=1))
    next(iter(loader))
    del loader
    gc.collect()
    assert not any(thread.name == "dali-batches" for thread in threading.enumerate())


def test_windows_alone_come_in_batches(dataset: Dataset) -> None:
    from loaders.dali import decode_windows

    options = LoaderOptions(batch=16, threads=1)
    windows = decode_windows(dataset, options, Epochs(len(dataset), options))
    assert [next(windows) for _ in range(3)] == [16, 16, 16]


def test_a_closed_loader_is_refused(dataset: Dataset) -> None:
    loader = engines.build("dali", dataset, LoaderOptions(batch=8, size=32, threads=1))
    loader.close()
    with pytest.raises(DataError, match="closed"):
        next(iter(loader))
