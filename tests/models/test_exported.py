"""Networks in exported files: what they take, that they answer as the network did, and that nothing in them runs."""

import importlib.util
import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from models import zoo
from models.configuration import ONLY_INFERS, Configuration
from models.errors import ModelError
from models.export import FORMATS, export
from models.exported import facts
from models.names import Name
from models.prepare import prepare

ENDINGS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch-export"}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return zoo.build("lenet", 7).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one network in every format: two.* take two images at once, any.* any number."""
    made = tmp_path_factory.mktemp("exported")
    for ending, format in ENDINGS.items():
        if all(importlib.util.find_spec(needed) for needed in FORMATS[format][1]):
            export(network(), format, made / f"two{ending}", 32, 2, False)
            export(network(), format, made / f"any{ending}", 32, 1, True)
    return made


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def needed(file: str) -> None:
    if not Path(file).exists():
        pytest.skip(f"nothing here writes {Path(file).suffix}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", [f"{name}{ending}" for ending in ENDINGS for name in ("two", "any")])
def test_a_file_says_what_it_takes_and_answers_as_its_network_did(there: Path, file: str) -> None:
    needed(file)
    zoo.check(file)
    found = facts(Name(file))
    assert (found.classes, found.size, found.batch) == (7, 32, 2 if file.startswith("two") else 0)
    assert (zoo.default_classes(file), zoo.default_size(file)) == (7, 32)
    with torch.no_grad():
        torch.testing.assert_close(zoo.build(file)(IMAGES), network()(IMAGES), rtol=1e-3, atol=1e-5)
    with pytest.raises(ModelError, match=f"{file} gives 7 logits and not 5: leave out --classes"):
        zoo.build(file, 5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("file", "configuration"),
    [
        ("two.onnx", "onnxruntime-fp32"),
        ("any.onnx", "onnxruntime-fp32"),
        ("two.onnx", "openvino-fp32"),
        ("any.xml", "openvino-fp32"),
        ("two.pt2", "fp32-nhwc"),
        ("any.pt2", "amp"),
        ("any.pt2", "bf16-nhwc"),
    ],
)
def test_a_file_runs_as_it_is_configured(there: Path, file: str, configuration: str) -> None:
    needed(file)
    chosen = Configuration.from_text(configuration)
    prepared = prepare(zoo.build(file), chosen, torch.device("cpu"), False, tuple(IMAGES.shape))
    logits = prepared.forward(IMAGES.to(prepared.dtype)).float()
    with torch.no_grad():
        difference = (logits - network()(IMAGES)).abs().max()
    assert difference < (1e-4 if "fp32" in configuration else 0.02)


def test_what_a_file_does_not_take_is_said_in_one_line(there: Path) -> None:
    model, plain, cpu = zoo.build("two.pt2"), Configuration(), torch.device("cpu")
    with pytest.raises(ModelError, match="takes batches of 2: give --batch 2, or export it with --dynamic-batch"):
        prepare(model, plain, cpu, False, (8, 3, 32, 32))
    with pytest.raises(ModelError, match=r"two.pt2 takes images of 32 pixels: leave out --size, or export it at 64"):
        prepare(model, plain, cpu, False, (2, 3, 64, 64))
    with pytest.raises(ModelError, match=ONLY_INFERS):
        prepare(model, plain, cpu, True, (2, 3, 32, 32))


class Text(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float().mean(1, keepdim=True)


class Pair(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.mean((2, 3)), images.amax((2, 3))


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (Text(), torch.zeros(2, 7, dtype=torch.int64), r"takes tokens int64 \[2, 7\]"),
        (Pair(), torch.zeros(2, 3, 8, 8), r"gives \[2, 3\], \[2, 3\]"),
        (Text(), torch.zeros(2, 7, 8, 8), r"takes tokens float32 \[2, 7, 8, 8\]"),
    ],
)
def test_what_is_no_classifier_of_images_is_refused(
    model: nn.Module, example: torch.Tensor, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.export.save(torch.export.export(model, (example,)), tmp_path / "x.pt2")
    with pytest.raises(ModelError, match=words):
        facts(Name("x.pt2"))


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_damaged_and_missing_files(ending: str, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed(f"two{ending}")
    with pytest.raises(ModelError, match=rf"gone{ending} does not exist; this folder has any{ending}, two{ending}"):
        zoo.check(f"gone{ending}")
    monkeypatch.chdir(tmp_path)
    Path(f"x{ending}").write_bytes(b"nothing of that kind")
    with pytest.raises(ModelError, match=rf"^x{ending} cannot be read"):
        facts(Name(f"x{ending}"))
    with pytest.raises(ModelError, match="takes no arguments in brackets"):
        zoo.check(f"x{ending}[width=3]")


def test_a_missing_engine_is_named(there: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    for ending, engine in ((".xml", "openvino"), (".onnx", "onnxruntime or openvino")):
        Path(f"x{ending}").touch()
        with pytest.raises(ModelError, match=f"needs {engine}, which is not installed; pip install"):
            facts(Name(f"x{ending}"))


class Opened:
    """Pickled, it is a call that leaves a trace."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("opened",)


def pickled() -> bytes:
    data = io.BytesIO()
    torch.save(((Opened(),), {}), data)
    return data.getvalue()


@pytest.mark.parametrize(
    ("entry", "old", "new", "words"),
    [
        ("model.json", b"torch.ops.aten.conv2d.default", b"torch.os.mkdir", "the operator torch.os.mkdir"),
        ("model.json", b'"as_int": 32}', b'"as_expr": {"expr_str": "open(\'opened\', \'w\')"}}', "the expression open"),
        ("sample_inputs/model.pt", b"", pickled(), "pickled sample inputs"),
        ("weights_config.json", b'"use_pickle": false', b'"use_pickle": true', "pickled weights"),
        ("archive_version", b"", b"", "data/aotinductor/model.so"),
    ],
)
def test_no_code_in_a_program_runs(
    entry: str, old: bytes, new: bytes, words: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(folder / "two.pt2") as good, zipfile.ZipFile("bad.pt2", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name.endswith(entry) and (new or old):
                data = data.replace(old, new, 1) if old else new
            bad.writestr(name, data)
        if not new:
            bad.writestr("archive/data/aotinductor/model.so", b"")
    with pytest.raises(ModelError, match=rf"bad.pt2 was not opened: it holds {words}"):
        facts(Name("bad.pt2"))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt2"]
