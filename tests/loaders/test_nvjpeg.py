"""What a device decodes goes into the same windows; a stand-in for the GPU decodes on the CPU."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from loaders import engines, nvjpeg
from loaders.datasets import Dataset, open_dataset
from loaders.epochs import Batch
from loaders.errors import DataError
from loaders.options import LoaderOptions


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(80, 60), (50, 120), (40, 40), (100, 90), (64, 64), (33, 70)]):
        place = folder / "ab"[number % 2] / f"{number}.{'png' if number == 4 else 'jpg'}"
        place.parent.mkdir(exist_ok=True)
        Image.effect_noise(size, 60).convert("RGB").save(place)
    return open_dataset(folder)


def batches(name: str, dataset: Dataset, **options: object) -> list[Batch]:
    loader = engines.build(name, dataset, LoaderOptions(**{"batch": 3, "size": 32, "threads": 1, **options}))  # type: ignore[arg-type]
    try:
        return list(loader)
    finally:
        loader.close()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("changes", [{}, {"augment": "autoaugment"}, {"layout": "nchw"}, {"exif": "apply"}], ids=str)
def test_images_are_those_of_engine_torchvision(
    train: bool, changes: dict[str, str], pictures: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def decode(contents: Sequence[torch.Tensor], mode: object, device: torch.device) -> list[torch.Tensor]:
        asked.append(len(contents))
        return [nvjpeg.decoded(bytearray(content.numpy().tobytes()), "ignore") for content in contents]

    monkeypatch.setattr(nvjpeg, "decode_jpeg", decode)
    options = {"train": train, **changes}
    there = batches("nvjpeg", pictures, decoder="mixed-whole", **options)
    # All but the PNG.
    assert sum(asked) == 5
    here = batches("nvjpeg", pictures, **options)
    assert sum(asked) == 5
    expected = here if changes.get("augment") else batches("torchvision", pictures, **options)
    for ours, others, (images, labels) in zip(there, here, expected, strict=True):
        assert torch.equal(ours[0], others[0])
        assert ours[0].stride() == images.stride()
        torch.testing.assert_close(ours[0], images, rtol=0, atol=1.01 / 255 / 0.224)
        assert torch.equal(ours[1], labels)


def test_a_file_that_the_device_refuses_is_read_by_the_cpu_or_named(
    pictures: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(contents: Sequence[torch.Tensor], mode: object, device: torch.device) -> list[torch.Tensor]:
        raise RuntimeError("not supported")

    monkeypatch.setattr(nvjpeg, "decode_jpeg", refuse)
    there, here = (batches("nvjpeg", pictures, train=False, decoder=decoder) for decoder in ("mixed", "cpu"))
    assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(there, here, strict=True))
    bad = tmp_path / "bad.jpg"
    bad.touch()
    damaged = Dataset("damaged", "", "all", (*pictures.files[:2], str(bad)), (0, 0, 0), ("a",))
    monkeypatch.setattr(nvjpeg, "is_plain", lambda content, exif: True)
    bad.write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        batches("nvjpeg", damaged, train=False, decoder="mixed")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_decodes_what_the_cpu_does(pictures: Dataset) -> None:
    there, here = (
        batches("nvjpeg", pictures, train=False, device="cuda", decoder=decoder) for decoder in ("mixed", "cpu")
    )
    for ours, theirs in zip(there, here, strict=True):
        assert (ours[0] - theirs[0]).abs().mean() < 4 / 255 / 0.224
