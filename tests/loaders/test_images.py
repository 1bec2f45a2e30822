"""Unreadable files are all found, with a reason, and refused."""

from pathlib import Path

import pytest
from PIL import Image

from loaders.datasets import Dataset, open_dataset
from loaders.errors import DataError
from loaders.images import check, require_readable


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four good images in four formats and six bad ones."""
    folder = tmp_path / "set" / "class"
    folder.mkdir(parents=True)
    picture = Image.effect_noise((80, 60), 60).convert("RGB")
    picture.save(folder / "good.jpg", quality=90)
    picture.save(folder / "png_inside.JPEG", "PNG")
    picture.save(folder / "good.bmp")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    content = (folder / "good.jpg").read_bytes()
    (folder / "bad_cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "bad_end.jpg").write_bytes(content[:-2])
    (folder / "bad_empty.jpg").write_bytes(b"")
    (folder / "bad_text.jpg").write_text("<html>404</html>")
    (folder / "bad_header.jpg").write_bytes(content[:20])
    (folder / "bad_png.png").write_bytes((folder / "png_inside.JPEG").read_bytes()[:200])
    return tmp_path / "set"


def test_all_bad_files_are_listed_in_order_with_reasons(mixed: Path) -> None:
    bad = check(open_dataset(mixed), threads=2)
    found = {Path(image.path).stem: image.reason for image in bad}
    assert list(found) == ["bad_cut", "bad_empty", "bad_end", "bad_header", "bad_png", "bad_text"]
    assert "end-of-image marker" in found["bad_cut"]
    assert found["bad_empty"] == "empty file"
    assert "not an image" in found["bad_text"]
    assert "does not decode" in found["bad_png"]


def test_missing_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    bad = check([str(tmp_path / "gone.jpg"), str(tmp_path / "folder.jpg")])
    assert [image.reason for image in bad] == ["No such file or directory", "Is a directory"]


def test_trailing_bytes_after_the_image_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.effect_noise((80, 60), 60).save(path)
    path.write_bytes(path.read_bytes() + b"\0" * 64)
    assert check([str(path)]) == []


def test_the_first_few_unreadable_files_are_named_and_all_are_counted(mixed: Path, dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"6 of 10 images cannot be decoded: .*bad_cut.*; and 3 more"):
        require_readable(open_dataset(mixed))
    require_readable(dataset)
