"""DALI against torchvision: the same windows of the same images, to a bounded number of grey levels."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

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
    common = {"batch": 23, "size": 64, "train": train}
    ours = engines.build("dali", dataset, LoaderOptions(**{"threads": 2, **common, **options}))  # type: ignore[arg-type]
    theirs = engines.build("torchvision", dataset, LoaderOptions(**common, threads=0))  # type: ignore[arg-type]
    rows = []
    for (images, labels), (expected, known) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, known)
        rows.append(((images.float() - expected) * STD * 255).abs().flatten(1))
    ours.close()
    return torch.cat(rows)


@pytest.mark.parametrize(("train", "threads"), [(True, 1), (True, 8), (False, 4)])
def test_default_equals_torchvision_whatever_the_threads(dataset: Dataset, train: bool, threads: int) -> None:
    error = grey_levels(dataset, train, threads=threads)
    assert error.max() < 0.01, "same decoder, same resize: nothing but the rounding of floats"


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


def threads_of_dali() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dali-")]


def test_the_threads_leave_torch_its_own_and_end(dataset: Dataset) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    loader = engines.build("dali", dataset, LoaderOptions(batch=8, size=32, threads=8))
    next(iter(loader))
    with ThreadPoolExecutor(1) as pool:
        assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 3
    assert len(threads_of_dali()) == 3, "one that assembles batches, two that fill them"
    loader.close()
    loader.close()
    assert threads_of_dali() == []
    torch.set_num_threads(before)


def test_a_forgotten_loader_ends_its_threads(dataset: Dataset) -> None:
    loader = engines.build("dali", dataset, LoaderOptions(batch=8, size=32, threads=1))
    next(iter(loader))
    del loader
    gc.collect()
    assert threads_of_dali() == []


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
