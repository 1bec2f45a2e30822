"""What every engine promises, whatever it is made of."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loaders import engines
from loaders.datasets import Dataset, open_dataset, placeholder
from loaders.epochs import Loader
from loaders.errors import DataError
from loaders.options import LoaderOptions

FILE_ENGINES = ["dali", "nvjpeg", "packed", "pil", "spdl", "torchvision", "resident"]
SIZE = 24
# Python 3.12 warns about any fork of a process with threads; the workers here import nothing and hold no lock.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@contextmanager
def opened(name: str, dataset: Dataset, **options: object) -> Iterator[Loader]:
    reason = engines.missing(name)
    if reason is not None:
        pytest.skip(reason)
    defaults: dict[str, object] = {"batch": 8, "size": SIZE, "threads": 0 if name in ("pil", "torchvision") else 1}
    loader = engines.build(name, dataset, LoaderOptions(**(defaults | options)))
    try:
        yield loader
    finally:
        loader.close()


def epoch(loader: Loader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(loader)


def same(one: list[tuple[torch.Tensor, torch.Tensor]], other: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_names_describe_and_unknown() -> None:
    assert {"dali", "nvjpeg", "packed", "pil", "resident", "spdl", "synthetic", "torchvision"} == set(engines.names())
    assert all(engines.describe(name) for name in engines.names())
    with pytest.raises(DataError, match=r"unknown loader foo\. Known: dali"):
        engines.check("foo")
    with pytest.raises(DataError, match=r"unknown loader dalli; did you mean dali\?"):
        engines.describe("dalli")
    with pytest.raises(DataError, match="Known: dali, nvjpeg, packed, pil"):
        engines.missing("tensorflow")


def test_listing_engines_and_checking_options_imports_nothing_heavy() -> None:
    code = (
        "import sys; from loaders import engines; [engines.describe(n) for n in engines.names()];"
        "from loaders.options import LoaderOptions; LoaderOptions(augment='cifar_heavy');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'nvidia.dali', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_an_engine_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    import loaders.dali

    monkeypatch.setattr(loaders.dali, "missing", lambda: "no such library")
    with pytest.raises(DataError, match="loader dali cannot run here: no such library"):
        engines.build("dali", dataset, LoaderOptions())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["dali", "nvjpeg", "packed", "pil", "resident", "synthetic", "torchvision"])
def test_cuda_without_a_gpu_is_missing(name: str) -> None:
    assert engines.missing(name) is None
    assert engines.missing(name, "cuda:0") == "there is no CUDA device"


@pytest.mark.parametrize("name", [*FILE_ENGINES, "synthetic"])
@pytest.mark.parametrize(
    ("layout", "dtype"), [("nhwc", "float32"), ("nchw", "float32"), ("nhwc", "bfloat16"), ("nchw", "float16")]
)
def test_shape_type_and_strides(name: str, layout: str, dtype: str, dataset: Dataset) -> None:
    with opened(name, dataset, layout=layout, dtype=dtype) as loader:
        images, labels = next(iter(loader))
    assert images.shape == (8, 3, SIZE, SIZE)
    assert images.dtype == getattr(torch, dtype)
    order = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    assert images.is_contiguous(memory_format=order)
    assert labels.shape == (8,)
    assert labels.dtype == torch.int64
    assert images.isfinite().all()


@pytest.mark.parametrize("name", FILE_ENGINES)
def test_training_epoch_has_full_batches_that_are_never_written_again(name: str, dataset: Dataset) -> None:
    with opened(name, dataset, prefetch=1) as loader:
        batches = [(images, images.clone(), labels) for images, labels in loader]
        assert len(batches) == len(loader) == 46 // 8
        assert loader.images == 40
        assert all(len(images) == len(labels) == 8 for images, _, labels in batches)
        for _ in range(2):
            next(iter(loader))
        assert len(epoch(loader)) == 5, "an epoch left early can be followed by another"
    assert all(torch.equal(images, copy) for images, copy, _ in batches)


@pytest.mark.parametrize("name", [*FILE_ENGINES, "synthetic"])
def test_evaluation_gives_every_image_once_and_a_short_last_batch(name: str, dataset: Dataset) -> None:
    with opened(name, dataset, train=False) as loader:
        first, second = epoch(loader), epoch(loader)
        assert [len(images) for images, _ in first] == [8, 8, 8, 8, 8, 6]
        assert loader.images == 46
    assert same(first, second), "evaluation must be the same each time"
    if name != "synthetic":
        assert torch.cat([labels for _, labels in first]).tolist() == list(dataset.labels)


@pytest.mark.parametrize("name", FILE_ENGINES)
def test_one_seed_one_epoch_and_another_seed_another(name: str, dataset: Dataset) -> None:
    with opened(name, dataset) as one, opened(name, dataset) as two, opened(name, dataset, seed=1) as other:
        first = epoch(one)
        assert same(first, epoch(two))
        assert not same(first, epoch(other))
        assert not same(first, epoch(one)), "the next epoch must be shuffled and cropped anew"


@pytest.mark.parametrize("name", FILE_ENGINES)
def test_resumed_loader_gives_the_same_images(name: str, dataset: Dataset) -> None:
    with opened(name, dataset) as straight, opened(name, dataset) as stopped, opened(name, dataset) as resumed:
        epoch(straight)
        second = epoch(straight)
        epoch(stopped)
        assert stopped.state() == {"epoch": 1, "batch": 0}
        for _, _batch in zip(range(2), stopped, strict=False):
            pass
        assert stopped.state() == {"epoch": 1, "batch": 2}
        resumed.restore(stopped.state())
        assert same(second[2:], epoch(resumed))
        # On an engine that already has batches of another place on the way, too.
        stopped.restore({"epoch": 1, "batch": 0})
        assert same(second, epoch(stopped))


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("name", ["pil", "torchvision"])
def test_an_epoch_leaves_the_callers_random_numbers_alone(name: str, threads: int, dataset: Dataset) -> None:
    """A resumed run opens a loader where an undisturbed one did not; its dropout must draw the same."""
    before = torch.random.get_rng_state()
    with opened(name, dataset, threads=threads) as loader:
        epoch(loader)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", FILE_ENGINES)
def test_shards_part_the_set(name: str, dataset: Dataset) -> None:
    seen: list[int] = []
    for shard in range(3):
        with opened(name, dataset, train=False, shard=shard, shards=3) as loader:
            labels = torch.cat([labels for _, labels in epoch(loader)]).tolist()
            assert labels == list(dataset.labels[shard::3])
            seen += labels
    assert sorted(seen) == sorted(dataset.labels)


@pytest.mark.parametrize("name", FILE_ENGINES)
def test_a_set_smaller_than_a_batch_still_trains(name: str, dataset: Dataset) -> None:
    with opened(name, dataset.select([0, 45]), batch=5) as loader:
        ((images, labels),) = epoch(loader)
        assert len(images) == 5
        assert set(labels.tolist()) == {dataset.labels[0], dataset.labels[45]}


@pytest.mark.parametrize("name", ["pil", "torchvision"])
def test_worker_processes_give_the_same_order_and_survive_an_early_end(name: str, dataset: Dataset) -> None:
    with opened(name, dataset, threads=2) as many, opened(name, dataset) as none:
        next(iter(many))
        next(iter(none))
        ours, theirs = epoch(many), epoch(none)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))
    if name == "torchvision":
        assert same(ours, theirs)


@pytest.mark.parametrize("name", FILE_ENGINES)
@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0garbage"], ids=["empty", "text", "cut"])
def test_an_unreadable_file_is_an_error_that_names_it(
    name: str, content: bytes, dataset: Dataset, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.JPEG"
    bad.write_bytes(content)
    broken = Dataset("broken", "", "all", (*dataset.files[:6], str(bad)), (0,) * 7, ("a",))
    with pytest.raises(DataError, match=r"bad\.JPEG"), opened(name, broken, train=False, batch=4) as loader:
        epoch(loader)


@pytest.mark.parametrize("name", ["pil", "torchvision"])
def test_an_unreadable_file_in_a_worker_process_is_named(name: str, dataset: Dataset, tmp_path: Path) -> None:
    bad = tmp_path / "bad.JPEG"
    bad.write_bytes(b"not an image")
    broken = Dataset("broken", "", "all", (*dataset.files[:4], str(bad)), (0,) * 5, ("a",))
    with (
        pytest.raises(DataError, match=r"^cannot decode .*bad\.JPEG") as caught,
        opened(name, broken, train=False, batch=4, threads=1) as loader,
    ):
        epoch(loader)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("name", ["dali", "nvjpeg", "spdl"])
def test_array_data_is_refused_by_file_engines(name: str) -> None:
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    arrays = Dataset("cifar10/train", "", "train", (), (0,) * 4, ("a",), pixels)
    with pytest.raises(DataError, match="use packed, resident"), opened(name, arrays):
        pass


@pytest.mark.parametrize("name", ["pil", "torchvision"])
@pytest.mark.parametrize("threads", [0, 1])
def test_arrays_are_read_as_files_would_be(name: str, threads: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    arrays = Dataset("cifar10/train", "", "train", (), tuple(range(12)), tuple("abcdefghijkl"), pixels)
    with opened(name, arrays, size=32, train=False, eval_margin=1.0, threads=threads) as loader:
        batches = epoch(loader)
    with opened("resident", arrays, size=32, train=False) as loader:
        for (ours, labels), (theirs, known) in zip(batches, loader, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
            assert torch.equal(labels, known)


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Red on the left, blue on the right, with a gradient downwards."""
    rows = np.zeros((height, width, 3), np.uint8)
    rows[:, : width // 2, 0] = 200
    rows[:, width // 2 :, 2] = 200
    rows[..., 1] = np.linspace(0, 200, height).astype(np.uint8)[:, None]
    return Image.fromarray(rows)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One image of every kind that is not a plain JPEG."""
    folder = tmp_path_factory.mktemp("odd") / "a"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().convert("CMYK").save(folder / "0-cmyk.JPEG", quality=95)
    picture().convert("L").save(folder / "1-gray.JPEG", quality=95)
    picture().save(folder / "2-exif-rotated.JPEG", quality=95, exif=exif)
    picture().save(folder / "3-png-named-jpeg.JPEG", "PNG")
    picture().convert("RGBA").save(folder / "4-png-alpha.JPEG", "PNG")
    picture().save(folder / "5-progressive.JPEG", quality=95, progressive=True)
    picture(1, 1).save(folder / "6-one-pixel.JPEG", quality=95)
    return open_dataset(folder.parent)


@pytest.mark.parametrize("name", FILE_ENGINES)
def test_odd_images_decode_to_what_pillow_sees(name: str, odd: Dataset) -> None:
    with opened(name, odd, size=28, batch=7) as loader:
        ((images, _),) = epoch(loader)
    assert images.isfinite().all()
    with opened(name, odd, train=False, size=28, batch=7) as ours, opened("pil", odd, train=False, size=28) as pillow:
        ((images, _),), ((expected, _),) = epoch(ours), epoch(pillow)
    assert images.shape == expected.shape
    if name == "resident":
        return  # it crops nothing, so only the decoding is shared
    # In grey levels; CMYK becomes RGB by one of two formulas, rounded differently by each library.
    allowed = torch.tensor([8.0] + 6 * [8.0 if name == "spdl" else 0.6])
    assert ((images - expected).abs().mean((1, 2, 3)) * 255 * 0.225 < allowed).all()


def test_synthetic_needs_no_files_and_hands_out_one_batch() -> None:
    with opened("synthetic", placeholder(100, 7)) as loader:
        batches = epoch(loader)
    assert len(batches) == 12
    assert all(images is batches[0][0] for images, _ in batches)
    assert 0 <= int(batches[0][1].min()) <= int(batches[0][1].max()) < 7
    assert abs(batches[0][0].mean().item()) < 0.05
