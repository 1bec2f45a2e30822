"""Shares of the JPEG engine in turns, with stand-ins for pipelines whose speed is known."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.inspecting import jpeg_share as module
from bench.inspecting.jpeg_share import LOADS, Rate, best, sweep
from loaders import engines, gpu_decoding
from loaders.datasets import Dataset, open_dataset
from loaders.errors import DataError
from loaders.options import LoaderOptions


@pytest.fixture
def pictures(tmp_path: Path) -> Dataset:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "one" / "1.jpg")
    return open_dataset(tmp_path, "train")


class Loader:
    prefetch = 1

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        time.sleep(self.seconds)
        yield 1

    def close(self) -> None:
        self.closed = True


def test_each_share_is_measured_and_one_that_decodes_wrongly_is_not(
    monkeypatch: pytest.MonkeyPatch, pictures: Dataset
) -> None:
    opened: list[Loader] = []
    way = "mixed-whole"

    def build(name: str, dataset: Any, options: LoaderOptions) -> Loader:
        # Best at 0.5, and 0 is decoding on the CPU.
        assert options.decoder in ("cpu", way)
        seconds = 0.004 if options.decoder == "cpu" else 0.001 + 0.004 * abs(options.hw_decoder_load - 0.5)
        opened.append(Loader(seconds))
        return opened[-1]

    def check(dataset: Any, options: LoaderOptions) -> float:
        if options.hw_decoder_load == 1.0:
            raise DataError("the GPU decodes 3 of 8 images otherwise\nand more")
        return 1.5

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(gpu_decoding, "check", check)
    monkeypatch.setattr(gpu_decoding, "key_of", lambda device: "A")
    monkeypatch.setattr(gpu_decoding, "way_of", lambda key, dataset, options: way)
    monkeypatch.setattr(module, "CLOCKS", {"cuda": time.perf_counter})
    rates = sweep(pictures, LoaderOptions(batch=8, device="cuda"), lambda text: None)
    assert [rate.load for rate in rates] == [None, *LOADS]
    assert best(rates) == 0.5
    by_load = {rate.load: rate for rate in rates}
    assert by_load[1.0] == Rate(1.0, None, None, None, "the GPU decodes 3 of 8 images otherwise")
    assert by_load[0.5].difference == 1.5
    assert by_load[0.5].ratio is not None
    assert by_load[0.5].ratio > 2
    assert by_load[None].ratio == 1.0
    assert all(loader.closed for loader in opened)
    way = "cpu"
    messages: list[str] = []
    assert [rate.load for rate in sweep(pictures, LoaderOptions(batch=8, device="cuda"), messages.append)] == [None]
    assert "no method of decoding on this GPU works" in messages


def test_a_cpu_has_no_share(monkeypatch: pytest.MonkeyPatch, pictures: Dataset) -> None:
    monkeypatch.setattr(engines, "build", lambda name, dataset, options: Loader(0.0001))
    rates = sweep(pictures, LoaderOptions(batch=8), lambda text: None)
    assert [rate.load for rate in rates] == [None]
    assert best(rates) is None
