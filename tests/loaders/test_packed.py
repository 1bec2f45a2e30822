"""The engine packed gives what torchvision gives, and says in one line when its file is no longer what it was."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders import engines, packed, packing
from loaders.datasets import Dataset, open_dataset
from loaders.epochs import Loader
from loaders.errors import DataError
from loaders.options import LoaderOptions

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def out(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "out"
    packing.pack([(dataset, ("all",))], folder, 64)
    return folder


def built(engine: str, dataset: Dataset, **options: object) -> Loader:
    threads = 0 if engine == "torchvision" else 2
    values = {"batch": 8, "size": 24, "threads": threads, **PLAIN} | options
    return engines.build(engine, dataset, LoaderOptions(**values))  # type: ignore[arg-type]


def batches(engine: str, dataset: Dataset, epochs: int = 1, **options: object) -> list[torch.Tensor]:
    loader = built(engine, dataset, **options)
    try:
        return [tensor for _ in range(epochs) for batch in loader for tensor in batch]
    finally:
        loader.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train": False},
        {"train": False, "size": 56},
        {"train": False, "eval_margin": 1.0},
        {"train": False, "random_eval": True},
        {"augment": "flip"},
        {"augment": "resized_crop:0.5+alternating_flip"},
        {"augment": "crop_reflect+flip+rotate:20+cutout:8"},
        {"augment": "imagenet_jitter"},
        {"normalization": "per_image", "dtype": "bfloat16"},
        {"layout": "nchw", "dtype": "float16"},
        {"shard": 1, "shards": 3},
        {"threads": 0},
    ],
    ids=str,
)
def test_it_equals_torchvision_on_the_same_pixels(out: Path, options: dict[str, object]) -> None:
    dataset = open_dataset(out)
    torchvision = {name: value for name, value in options.items() if name != "threads"}
    ours, theirs = batches("packed", dataset, 2, **options), batches("torchvision", dataset, 2, **torchvision)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        # Of the same bytes: one product and sum is rounded once here, twice there.
        assert mine.dtype == other.dtype
        assert mine.stride() == other.stride()
        near = 1e-5 if mine.dtype == torch.float32 else 2**-7
        assert torch.allclose(mine.float(), other.float(), rtol=near, atol=1e-5)


def test_it_shows_the_windows_of_the_files_to_within_a_resize(dataset: Dataset, out: Path) -> None:
    again = open_dataset(out)
    # Evaluation crops out of the same shorter side: the packed pixels are torchvision's own.
    plain: dict[str, object] = {"train": False, "size": 56}
    ours, theirs = batches("packed", again, **plain), batches("torchvision", dataset, **plain)
    assert all(torch.equal(mine, other) for mine, other in zip(ours[1::2], theirs[1::2], strict=True))
    assert (torch.cat(ours[::2]) - torch.cat(theirs[::2])).abs().max() < 1e-6
    # Random windows were resized twice, and begin at another place by up to half a pixel.
    ours, theirs = batches("packed", again), batches("torchvision", dataset)
    assert [labels.tolist() for labels in ours[1::2]] == [labels.tolist() for labels in theirs[1::2]]
    mine, other = torch.cat(ours[::2]), torch.cat(theirs[::2])
    near = 255 * (mine - other).abs().mean()
    assert near < 8
    assert near < 255 * (mine - other.flip(0)).abs().mean() / 4


def test_files_are_packed_once_and_repeated_ones_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packed, "cache_folder", lambda: tmp_path)
    first = batches("packed", dataset.select([3, 1, 3, 2] * 4))
    said = capsys.readouterr().err
    assert "note: loader packed decodes each image once: packing 3 images of small" in said
    assert str(tmp_path) in said
    again = batches("packed", dataset.select([3, 1, 3, 2] * 4))
    assert capsys.readouterr().err == ""
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    os.utime(dataset.files[1], ns=(0, os.stat(dataset.files[1]).st_mtime_ns + 1))
    batches("packed", dataset.select([3, 1, 3, 2] * 4))
    assert "packing 3 images" in capsys.readouterr().err, "a file that was written again is decoded again"


def test_no_room_in_the_cache_is_said_in_one_line(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(packing, "_free", lambda out: 1000)
    with pytest.raises(DataError, match=r"packing small takes .* where 1\.0 KiB are free") as caught:
        built("packed", dataset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_file_cut_short_under_a_running_epoch_is_named(dataset: Dataset, tmp_path: Path, threads: int) -> None:
    packing.pack([(dataset, ("all",))], tmp_path / "out", 64)
    loader = built("packed", open_dataset(tmp_path / "out"), threads=threads, prefetch=1)
    running = iter(loader)
    next(running)
    with (tmp_path / "out" / "pixels.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"pixels\.npy was (changed|cut short) while it was in use") as caught:
        list(running)
    assert "\n" not in str(caught.value)
    loader.close()


@pytest.mark.parametrize("augment", ["standard", "imagenet_jitter"])
def test_a_file_written_to_under_a_running_training_is_named(dataset: Dataset, tmp_path: Path, augment: str) -> None:
    packing.pack([(dataset, ("all",))], tmp_path / "out", 64)
    loader = built("packed", open_dataset(tmp_path / "out"), augment=augment)
    list(loader)
    with (tmp_path / "out" / "pixels.npy").open("r+b") as file:
        file.seek(500)
        file.write(b"changed")
    with pytest.raises(DataError, match=r"pixels\.npy was changed while it was in use"):
        list(loader)
    loader.close()


def test_orientations_must_have_been_packed_as_they_are_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    from PIL import Image

    path, exif = tmp_path / "set" / "turned.jpg", Image.Exif()
    path.parent.mkdir()
    exif[0x0112] = 6
    with Image.open(dataset.files[0]) as image:
        image.save(path, exif=exif)
        tall, wide = image.height, image.width
    turned = Dataset("turned", str(path.parent), "all", (str(path),), (0,), ("a",))
    packing.pack([(turned, ("all",))], tmp_path / "out", exif="apply")
    images = open_dataset(tmp_path / "out")
    assert images.pixels is not None
    assert images.pixels.shape == (1, wide, tall, 3)
    batches("packed", images, exif="apply", batch=1)
    for engine in ("packed", "pil", "resident", "torchvision"):
        with pytest.raises(DataError, match="was packed with --exif apply, and 1 of its images are stored in another"):
            built(engine, images)


def test_a_closed_loader_says_so(out: Path) -> None:
    loader = built("packed", open_dataset(out))
    next(iter(loader))
    loader.close()
    loader.close()
    with pytest.raises(DataError, match="loader packed is closed"):
        next(iter(loader))


def test_memory_of_batches_is_used_again_only_when_they_are_gone(out: Path) -> None:
    loader = built("packed", open_dataset(out), prefetch=1)
    kept = [(images, images.clone()) for images, _ in loader]
    for _ in range(2):
        list(loader)
    assert all(torch.equal(images, copy) for images, copy in kept)
    assert len({images.data_ptr() for images, _ in kept}) == len(kept)
    loader.close()


def test_arrays_need_no_packing(arrays: Dataset) -> None:
    assert arrays.pixels is not None
    ours = batches("packed", arrays, train=False, size=32, eval_margin=1.0, batch=24)[0]
    assert np.allclose(255 * ours.permute(0, 2, 3, 1).numpy(), np.asarray(arrays.pixels), atol=1e-3)


@pytest.mark.parametrize("engine", ["pil", "resident", "torchvision"])
def test_other_engines_read_packed_images_too(dataset: Dataset, arrays: Dataset, tmp_path: Path, engine: str) -> None:
    for source, short in ((dataset, 28), (arrays, 256)):
        folder = tmp_path / source.name.partition("/")[0]
        packing.pack([(source, ("all",))], folder, short)
        values: dict[str, object] = {"train": False, "batch": 24, "threads": 1, "eval_margin": 1.0}
        ours, theirs = batches(engine, open_dataset(folder), **values), batches(engine, source, **values)
        assert [labels.tolist() for labels in ours[1::2]] == [labels.tolist() for labels in theirs[1::2]]
        assert 255 * (torch.cat(ours[::2]) - torch.cat(theirs[::2])).abs().mean() < 6
