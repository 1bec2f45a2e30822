"""Files for other engines, run again and compared; and what cannot be exported said in words."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from models import export as exporting
from models import zoo
from models.errors import ModelError
from models.export import FORMATS, export


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.filterwarnings("ignore")
def test_each_format_gives_the_same_logits(format: str, dynamic: bool, tmp_path: Path) -> None:
    needs(*FORMATS[format][1])
    path = tmp_path / f"net{FORMATS[format][0]}"
    done = export(zoo.build("lenet", 7), format, path, 32, 3, dynamic)
    assert done.files[0] == path
    assert all(file.stat().st_size > 0 for file in done.files)
    if done.error is not None:
        assert done.error < 1e-3
    if format == "torch-export":
        # With any number of images, the file takes one that it was not made with.
        logits = torch.export.load(path).module()(torch.zeros(5 if dynamic else 3, 3, 32, 32))
        assert logits.shape == (5 if dynamic else 3, 7)


class Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be exported to torch-export: .+"):
        export(Branching(), "torch-export", tmp_path / "x.pt2", 8, 1, False)


def test_a_missing_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs onnx, which is not installed; pip install 'pixbench\[peers\]'"):
        export(zoo.build("lenet", 7), "onnx", tmp_path / "x.onnx", 32, 1, False)


def test_an_export_that_ends_early_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("earlier")

    def ended(model: nn.Module, example: torch.Tensor, draft: Path, dynamic: bool) -> None:
        draft.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(exporting._WRITERS, "torch-export", ended)
    with pytest.raises(KeyboardInterrupt):
        export(zoo.build("lenet", 7), "torch-export", path, 32, 1, False)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pair_of_files_never_stands_half_beside_an_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        for name in ("net.xml", "net.bin"):
            (folder / name).write_text(folder.name)
    seen = []
    replace = Path.replace

    def watched(draft: Path, file: Path) -> Path:
        done = replace(draft, file)
        seen.append({path.name: path.read_text() for path in old.iterdir()})
        return done

    monkeypatch.setattr(Path, "replace", watched)
    assert exporting._put([new / "net.xml", new / "net.bin"], old) == (old / "net.xml", old / "net.bin")
    assert seen == [{"net.bin": "new"}, {"net.xml": "new", "net.bin": "new"}]


def test_a_file_that_is_there_stays_until_another_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(b"old")

    def full(model: nn.Module, example: torch.Tensor, path: Path, dynamic: bool) -> None:
        path.write_bytes(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(exporting._WRITERS, "torch-export", full)
    with pytest.raises(ModelError, match=r"cannot write .*x\.pt2: No space left on device; free some space"):
        export(zoo.build("lenet", 7), "torch-export", path, 32, 1, False)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"
