"""Which images a measurement reads, and what it says about those that it does not."""

from pathlib import Path

from PIL import Image

from bench.timing.images import find_data


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    (folder / "two.heic").write_bytes(b"\0")
    said: list[str] = []
    assert find_data(tmp_path, said.append)[1] == tmp_path
    assert len(said) == 1
    assert "1 file left out" in said[0]
