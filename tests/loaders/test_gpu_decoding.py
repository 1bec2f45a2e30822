"""What a GPU decodes is compared with a CPU's pixels; stand-ins for the GPU decode correctly or not."""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from loaders import engines, gpu_decoding
from loaders.datasets import Dataset, open_dataset
from loaders.errors import DataError
from loaders.options import LoaderOptions

OPTIONS = LoaderOptions(batch=4, size=64, decoder="mixed")


@pytest.fixture
def pictures(tmp_path: Path) -> Dataset:
    (tmp_path / "one").mkdir()
    for number, size in enumerate([(80, 60), (50, 120), (40, 40), (100, 90)]):
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "one" / f"{number}.jpg")
    (tmp_path / "one" / "9.jpg").write_bytes(b"no picture")
    return open_dataset(tmp_path, "train")


class Decoder:
    """A loader whose GPU side changes what the CPU side decoded."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.closed = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.images, torch.zeros(len(self.images))

    def close(self) -> None:
        self.closed = True


def decoding(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> list[Decoder]:
    right = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 0.225
    opened: list[Decoder] = []

    def build(name: str, dataset: Any, options: LoaderOptions) -> Decoder:
        opened.append(Decoder(change(right.clone()) if options.decoder != "cpu" else right))
        return opened[-1]

    monkeypatch.setattr(engines, "build", build)
    return opened


def test_the_roundings_of_another_decoder_pass(monkeypatch: pytest.MonkeyPatch, pictures: Dataset) -> None:
    two_levels = 2 / 255 / 0.225
    opened = decoding(monkeypatch, lambda images: images + two_levels * (2 * torch.rand_like(images) - 1))
    assert 0.5 < gpu_decoding.check(pictures, OPTIONS) < 2.5
    assert [decoder.closed for decoder in opened] == [True, True]


def swapped(images: Tensor) -> Tensor:
    return images[[1, 0, 2, 3]]


def with_a_missing_block(images: Tensor) -> Tensor:
    images[2, :, 16:32, 40:56] = 0
    return images


def with_no_number(images: Tensor) -> Tensor:
    images[3, 0, 5, 5] = torch.nan
    return images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, "2 of 4 images decoded by the GPU differ"),
        (with_a_missing_block, "1 of 4 images.*number 2"),
        (with_no_number, "number 3"),
    ],
)
def test_wrong_pixels_are_found(
    monkeypatch: pytest.MonkeyPatch, pictures: Dataset, change: Callable[[Tensor], Tensor], message: str
) -> None:
    opened = decoding(monkeypatch, change)
    with pytest.raises(DataError, match=message):
        gpu_decoding.check(pictures, OPTIONS)
    assert all(decoder.closed for decoder in opened)


def test_buffers_are_for_the_largest_image_and_bad_files_are_passed_over(pictures: Dataset) -> None:
    assert gpu_decoding.largest_image(pictures) == (100, 120)
    found = gpu_decoding.on_gpu(LoaderOptions(), pictures, 0.8)
    assert (found.decoder, found.hw_decoder_load) == ("mixed-whole", 0.8)
    assert (found.preallocate_width, found.preallocate_height) == (100, 120)
    assert gpu_decoding.on_gpu(LoaderOptions(), pictures, None).hw_decoder_load == gpu_decoding.DEFAULT_LOAD


@pytest.mark.parametrize(("engine", "device"), [("dali", "cpu"), ("torchvision", "cuda")])
def test_others_decode_where_they_are(engine: str, device: str, pictures: Dataset) -> None:
    options = LoaderOptions(device=device)
    assert gpu_decoding.decoding_there(engine, options, pictures) is options


def test_a_gpu_is_compared_before_it_is_used(monkeypatch: pytest.MonkeyPatch, pictures: Dataset) -> None:
    monkeypatch.setattr(gpu_decoding, "key_of", lambda device: "A")
    monkeypatch.setattr(gpu_decoding, "remembered", {"A": 0.9}.get)
    monkeypatch.setattr(gpu_decoding, "remembered_way", {"A": "mixed"}.get)
    options = LoaderOptions(device="cuda", batch=4, size=64, augment="autoaugment")
    decoding(monkeypatch, lambda images: images)
    found = gpu_decoding.decoding_there("dali", options, pictures)
    assert (found.decoder, found.hw_decoder_load, found.augment) == ("mixed", 0.9, "autoaugment")


@pytest.mark.parametrize(
    ("first", "right", "chosen", "said"),
    [
        ("mixed-whole", ("mixed-whole", "mixed"), "mixed-whole", 0),
        ("mixed-whole", ("mixed",), "mixed", 1),
        ("mixed-whole", (), "cpu", 2),
        ("mixed", (), "cpu", 1),
        ("cpu", ("mixed",), "cpu", 0),
    ],
)
def test_where_a_way_decodes_wrongly_the_next_one_is_taken_and_that_is_said(
    first: str,
    right: tuple[str, ...],
    chosen: str,
    said: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: Dataset,
) -> None:
    monkeypatch.setattr(gpu_decoding, "key_of", lambda device: "A")
    monkeypatch.setattr(gpu_decoding, "remembered", lambda key: None)
    monkeypatch.setattr(gpu_decoding, "remembered_way", lambda key: first)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 0.225

    def build(name: str, dataset: Any, options: LoaderOptions) -> Decoder:
        return Decoder(images if options.decoder in ("cpu", *right) else swapped(images))

    monkeypatch.setattr(engines, "build", build)
    found = gpu_decoding.decoding_there("dali", LoaderOptions(device="cuda", batch=4, size=64), pictures)
    assert found.decoder == chosen
    assert capsys.readouterr().err.count("note: 2 of 4 images decoded by the GPU differ") == said


def test_shares_are_remembered_for_each_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gpu_decoding.remembered("A") is None
    gpu_decoding.remember("A", 0.8)
    gpu_decoding.remember("B", 0.5)
    assert (gpu_decoding.remembered("A"), gpu_decoding.remembered("B")) == (0.8, 0.5)
    left = {path.name for path in (tmp_path / "pixbench").iterdir()}
    assert left == {"hw_decoder_load.json", ".hw_decoder_load.json.lock"}
    for text in ("{", "[]", '{"A": 3}', '{"A": "x"}'):
        (tmp_path / "pixbench" / gpu_decoding.FILE).write_text(text)
        assert gpu_decoding.remembered("A") is None
    gpu_decoding.remember("A", 0.25)
    assert gpu_decoding.remembered("A") == 0.25


def test_where_the_cache_cannot_be_written_a_temporary_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pixbench").write_text("a file")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    gpu_decoding.remember("A", 0.5)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'pixbench'} is not a folder" in said
    assert str(tmp_path / "temporary") in said
    assert gpu_decoding.remembered("A") == 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_decodes_the_right_pixels(pictures: Dataset) -> None:
    good = pictures.select(range(4), "good")
    for load in (0.0, 1.0):
        options = LoaderOptions(batch=4, size=64, device="cuda", threads=1)
        gpu_decoding.check(good, gpu_decoding.on_gpu(options, good, load))


def test_the_way_that_a_process_survives_is_taken_and_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Dataset
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tried: list[str] = []

    def survives(dataset: Dataset, options: LoaderOptions) -> bool:
        tried.append(options.decoder)
        assert len(dataset) == 2 * options.batch
        return options.decoder in working

    monkeypatch.setattr(gpu_decoding, "survives", survives)
    working: tuple[str, ...] = ("mixed-whole",)
    options = LoaderOptions(batch=4, device="cuda")
    assert [gpu_decoding.way_of("A", pictures, options) for _ in range(2)] == ["mixed-whole"] * 2
    assert tried == ["mixed-whole"]
    gpu_decoding.remember("A", 0.7)
    assert (gpu_decoding.remembered("A"), gpu_decoding.remembered_way("A")) == (0.7, "mixed-whole")
    working = ()
    assert gpu_decoding.way_of("B", pictures, options) == "cpu"
    monkeypatch.setattr(gpu_decoding, "key_of", lambda device: "B")
    assert gpu_decoding.decoding_there("dali", options, pictures) is options


@pytest.mark.parametrize(
    ("decode", "seconds", "survives"),
    [
        (lambda dataset, options: None, 180, True),
        (lambda dataset, options: 1 / 0, 180, False),
        (lambda dataset, options: os.kill(os.getpid(), signal.SIGKILL), 180, False),
        (lambda dataset, options: threading.Event().wait(), 0.2, False),
    ],
    ids=["well", "error", "crash", "hang"],
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_decoder_that_takes_its_process_with_it_is_seen(
    decode: Callable[[Dataset, LoaderOptions], Any],
    seconds: float,
    survives: bool,
    pictures: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    monkeypatch.setattr(gpu_decoding, "_decode", decode)
    assert gpu_decoding.survives(pictures, OPTIONS, seconds) == survives


@pytest.mark.slow  # a new process imports torch and DALI
def test_a_new_process_decodes(pictures: Dataset) -> None:
    good = pictures.select([0, 1, 2, 3] * 4, pictures.name)
    assert gpu_decoding.survives(good, LoaderOptions(batch=4, size=32, threads=1))


def test_colours_that_decoders_choose_are_not_compared(monkeypatch: pytest.MonkeyPatch, pictures: Dataset) -> None:
    for path in pictures.files[:4]:
        Image.new("CMYK", (40, 40)).save(path)
    decoding(monkeypatch, lambda images: images)
    with pytest.raises(DataError, match="holds no file in which a GPU's decoding can be compared"):
        gpu_decoding.check(pictures, OPTIONS)


def test_windows_cut_out_of_whole_images_are_the_windows(tmp_path: Path) -> None:
    """On a CPU both ways can be compared."""
    (tmp_path / "one").mkdir()
    for number in range(4):
        picture = Image.effect_noise((90 + 8 * number, 80), 60).resize((180, 160)).convert("RGB")
        picture.save(tmp_path / "one" / f"{number}.jpg", quality=95, subsampling=0)
    dataset = open_dataset(tmp_path, "train")
    batches = []
    for decoder in gpu_decoding.WAYS:
        loader = engines.build("dali", dataset, LoaderOptions(batch=4, size=48, decoder=decoder, threads=1))
        batches.append(next(iter(loader))[0].clone())
        loader.close()
    difference = gpu_decoding.tile_differences(batches[0], batches[1], LoaderOptions().std)
    assert float(difference.max()) < 1.0
