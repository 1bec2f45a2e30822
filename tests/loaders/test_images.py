"""Unreadable files are all found, with a reason, and refused; readable ones come as three planes of bytes."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_files import Odd, all_files, png
from PIL import Image

from loaders import engines
from loaders.datasets import Dataset, open_dataset
from loaders.errors import DataError
from loaders.images import (
    MOST_PIXELS,
    check,
    decode,
    is_plain,
    is_plain_png,
    opened,
    orientation,
    require_readable,
    rgb,
)
from loaders.options import LoaderOptions
from loaders.wholeness import jpeg_ends, png_has_all_rows


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


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def test_plain_files_are_those_that_fast_decoders_read_alike() -> None:
    picture, exif = Image.effect_noise((20, 10), 60), Image.Exif()
    exif[0x0112] = 6
    for mode in ("L", "RGB"):
        assert is_plain(saved(picture.convert(mode), "JPEG"), "apply")
        assert is_plain(saved(picture.convert(mode), "JPEG", progressive=True))
        assert is_plain_png(saved(picture.convert(mode), "PNG"))
    assert is_plain(saved(picture, "JPEG", exif=exif))
    assert not is_plain(saved(picture, "JPEG", exif=exif), "apply")
    assert not is_plain(saved(picture.convert("CMYK"), "JPEG"))
    for mode in ("1", "P", "LA", "RGBA", "I;16"):
        assert not is_plain_png(saved(picture.convert(mode), "PNG"))
    assert is_plain(saved(picture.convert("RGB"), "WEBP"))
    for options in ({"exif": exif}, {"save_all": True, "append_images": [picture.convert("RGB").rotate(180)]}):
        assert not is_plain(saved(picture.convert("RGB"), "WEBP", **options))
    assert not is_plain(saved(picture, "BMP"))
    assert not is_plain(b"")


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_header_that_ends_anywhere_is_not_plain_or_does_not_decode(cut: int, tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        path = tmp_path / kind
        path.write_bytes(saved(Image.effect_noise((80, 60), 60).convert("RGB"), kind)[:cut])
        with pytest.raises(DataError, match=kind):
            decode(str(path))


def test_pixels_come_as_three_planes_of_bytes_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.io

    path = tmp_path / "x.jpg"
    Image.effect_noise((8, 6), 60).save(path)
    assert decode(str(path)).shape == (3, 6, 8)
    for wrong in (torch.zeros(3, 6, 8, dtype=torch.uint16), torch.zeros(2, 3, 6, 8, dtype=torch.uint8)):
        monkeypatch.setattr(torchvision.io, "decode_image", lambda content, mode, wrong=wrong: wrong)
        with pytest.raises(DataError, match=r"x\.jpg: it decodes to \["):
            decode(str(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_is_no_orientation() -> None:
    picture = Image.effect_noise((20, 10), 60)
    for block in (b"Exif\0\0", b"Exif\0\0MM\0*\0\0", b"nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        content = saved(picture, "JPEG", exif=block)
        with Image.open(io.BytesIO(content)) as image:
            assert orientation(image) == 1
            assert rgb(image, "apply").size == (20, 10)


def test_a_png_with_a_damaged_byte_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.effect_noise((11, 9), 60).convert("RGB").save(path)
    whole = path.read_bytes()
    reasons = set()
    for place in range(33, len(whole) - 12, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        reasons |= {image.reason for image in check([str(path)])}
    assert reasons
    assert all("does not decode" in text for text in reasons)


@pytest.mark.parametrize("odd", [odd for odd in all_files() if "182 million" in odd.name], ids=lambda odd: odd.name)
def test_an_image_with_too_many_pixels_is_refused_for_that(odd: Odd, tmp_path: Path) -> None:
    path = tmp_path / f"x{odd.ending}"
    path.write_bytes(odd.content)
    (bad,) = check([str(path)])
    assert f"the {MOST_PIXELS:,} that are allowed" in bad.reason
    for engine in ("dali", "pil", "resident", "torchvision"):
        with pytest.raises(DataError, match=r"that are allowed; find all with: bench data check"):
            list(
                engines.build(
                    engine,
                    Dataset("x", "", "all", (str(path),), (0,), ("a",)),
                    LoaderOptions(batch=1, size=8, threads=0),
                )
            )


def test_pillow_has_nothing_to_say_about_an_image_of_up_to_as_many(recwarn: pytest.WarningsRecorder) -> None:
    # Asked to be quiet once, and overruled since.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.simplefilter("default")
    white = Image.new("1", (MOST_PIXELS // 10_000, 10_000), 1)
    with opened(io.BytesIO(saved(white, "PNG"))) as image:
        assert image.size == white.size
        image.crop((0, 0, *image.size))
    # Others may warn meanwhile, of what the garbage collector finds.
    assert [one for one in recwarn if issubclass(one.category, Image.DecompressionBombWarning)] == []


def test_only_the_end_of_the_picture_itself_counts_as_a_jpegs_end() -> None:
    preview = saved(Image.effect_noise((8, 6), 60), "JPEG")
    whole = saved(Image.effect_noise((80, 60), 60), "JPEG", exif=b"Exif\0\0" + preview)
    film = bytes(range(255)) * 900
    assert jpeg_ends(whole)
    assert jpeg_ends(whole + film)
    assert not jpeg_ends(whole[:-2])
    assert not jpeg_ends(whole[: len(whole) // 2])
    assert not jpeg_ends(b"")


def test_the_rows_of_a_png_are_counted_whatever_its_form() -> None:
    for side in (1, 2, 5, 8, 9):
        for interlaced in (False, True):
            for dtype in (np.uint8, np.uint16):
                samples = np.zeros((side, side + 3, 3), dtype)
                assert png_has_all_rows(png(samples, interlaced=interlaced))
                assert not png_has_all_rows(png(samples, interlaced=interlaced, rows=0.9))
    # Rows that look like those that were never decoded.
    for mode, colour in (("RGB", (1, 0, 0)), ("L", 1), ("P", 1), ("1", 1), ("RGBA", (1, 0, 0, 0))):
        assert rgb(Image.open(io.BytesIO(saved(Image.new(mode, (9, 7), colour), "PNG")))).size == (9, 7)
