"""Damaged and hostile files, drawn at random: every reader answers, or says in words what is wrong.

No traceback, no hang, and nothing is run that a file asks for. `make fuzz` draws for about ten minutes; what it finds
becomes an example below.
"""

import io
import json
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.errors import BenchError
from bench.machine import tuned
from bench.runs.folder import RunRecord
from loaders import packing, splits
from loaders.contents import examine
from loaders.datasets import Dataset, open_dataset, open_splits, read_batch
from loaders.errors import DataError
from loaders.identity import identify
from loaders.images import check as check_images
from models import zoo
from models.errors import ModelError
from models.training import checkpoint, recipe
from models.training.checkpoint import Card
from results import report, runs, series, store, submissions
from results.classification import read_confusion
from results.errors import RecordError
from results.history import History, load_steps

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))  # of each reader
SECONDS = 20.0  # for one file: a reader that takes longer hangs
IN_WORDS = (BenchError, DataError, ModelError, RecordError)
PUBLISHED = Path(__file__).parents[2] / "results" / "published"

RUNNING = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect"}
_run: list[str] = []
sys.addaudithook(lambda event, arguments: _run.append(event) if event in RUNNING else None)


class Evil:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


@contextmanager
def harmless() -> Iterator[None]:
    """What happens inside ends in time, fails in words only, and runs nothing."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"it takes more than {SECONDS:.0f} s")

    _run.clear()
    said = "nothing was wrong"
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except IN_WORDS as error:
        said = str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert said.strip()
    assert not _run


def picture(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def cifar(**changed: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3072), np.uint8)
    return pickle.dumps({b"data": pixels, b"labels": [0, 1, 0, 1], **changed}, protocol=2)


@cache
def lenet() -> tuple[bytes, str, bytes]:
    """The files of a run that can be resumed: weights, the name of its state, and the state."""
    model = zoo.build("lenet", 3)
    card = Card(model="lenet", classes=("a", "b", "c"), size=32, data="")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_run(Path(folder), checkpoint.weights_of(model), card, {"epoch": 1})
        [state] = Path(folder).glob("state-*.pt")
        return (Path(folder) / checkpoint.LAST).read_bytes(), state.name, state.read_bytes()


@cache
def packed() -> dict[str, bytes]:
    """The files of a packed data set."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 7, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset("four", "", "all", (), (0, 1, 0, 1), ("a", "b"), pixels)
        packing.pack([(dataset, ("all",))], Path(folder) / "out")
        return {path.name: path.read_bytes() for path in Path(folder, "out").iterdir()}


def packed_beside(path: Path) -> None:
    """Read a packed data set of which one file is given."""
    for name, content in packed().items():
        if name != path.name:
            (path.parent / name).write_bytes(content)
    dataset = open_dataset(path.parent)
    check_images(dataset, 1)
    identify(dataset)
    examine(dataset)


def published(name: str) -> Callable[[], bytes]:
    return (PUBLISHED / name).read_bytes


def resumed(path: Path) -> None:
    """Read a run's state beside its whole weights."""
    weights, name, _ = lenet()
    (path.parent / checkpoint.LAST).write_bytes(weights)
    path.rename(path.with_name(name))
    checkpoint.load_run(path.parent)


def recalled(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "path", lambda: path)
        tuned.recall({}, "lenet", "inference")


AMD, INTEL = "amd-epyc-zen4-2-cores/", "intel-xeon-amx-2-cores/"
RUN = AMD + "res_512_d-16/"
PROFILE = INTEL + "profile-resnet34/profile.json"

# What is read -> the file's name, a whole one, and the readers of it.
READERS: dict[str, tuple[str, Callable[[], bytes], tuple[Callable[[Path], Any], ...]]] = {
    "record": (
        "a.json",
        published(INTEL + "efficientnet_b0-naive-keep.json"),
        (store.load, lambda p: report.from_file(p, {}), lambda p: series.collect(p.parent)),
    ),
    "profile": ("profile.json", published(PROFILE), (lambda p: report.from_file(p, {}),)),
    "summary": (
        "summary.json",
        published(RUN + "summary.json"),
        (runs.RunSummary.load, lambda p: runs.list_runs(p.parent), lambda p: report.from_folder(p.parent, {})),
    ),
    "run": ("run.json", published(RUN + "run.json"), (lambda p: RunRecord.load(p.parent),)),
    "history": ("history.csv", published(RUN + "history.csv"), (History.load,)),
    "steps": ("steps.csv", published(RUN + "history.csv"), (load_steps,)),
    "confusion": ("confusion.csv", published(RUN + "confusion.csv"), (read_confusion,)),
    "recipe": ("recipe.toml", published(RUN + "recipe.toml"), (recipe.load,)),
    "submission": ("a.csv", lambda: b"ID,Labels\n0,3\n1,4\n2,9\n", (submissions.read,)),
    "labels": ("a.txt", lambda: b"3\n4\n9\n", (submissions.read,)),
    "tuned": ("tuned.json", lambda: b'{"a": {"model": "lenet"}}', (recalled,)),
    "CIFAR batch": ("data_batch_1", cifar, (read_batch, lambda p: open_dataset(p.parent))),
    "weights": ("last.safetensors", lambda: lenet()[0], (checkpoint.read_card, checkpoint.load_weights)),
    "state": ("state", lambda: lenet()[2], (resumed,)),
    "packed": ("packed.json", lambda: packed()["packed.json"], (packed_beside,)),
    "packed index": ("index.npy", lambda: packed()["index.npy"], (packed_beside,)),
    "packed pixels": ("pixels.npy", lambda: packed()["pixels.npy"], (packed_beside,)),
    "JPEG": ("a.jpg", lambda: picture("JPEG"), (lambda p: check_images([str(p)], 1),)),
    "CMYK JPEG": ("a.jpg", lambda: picture("JPEG", "CMYK"), (lambda p: check_images([str(p)], 1),)),
    "PNG": ("a.png", lambda: picture("PNG"), (lambda p: check_images([str(p)], 1),)),
    "GIF": ("a.gif", lambda: picture("GIF"), (lambda p: check_images([str(p)], 1),)),
    "BMP": ("a.bmp", lambda: picture("BMP"), (lambda p: check_images([str(p)], 1),)),
    "TIFF": ("a.tiff", lambda: picture("TIFF"), (lambda p: check_images([str(p)], 1),)),
    "WebP": ("a.webp", lambda: picture("WEBP"), (lambda p: check_images([str(p)], 1),)),
}
JSON = ("record", "profile", "summary", "run", "tuned", "packed")

PIECES = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r", b",", b'"', b"'", b"[", b"{", b"]", b"}", b"=", b"nan",
    b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"9" * 5000, b"\xed\xa0\x80", b"[" * 3000, b'{"a":' * 2000,
    b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04", b"a" * 200_000,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with up to four places changed."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(1, 40))
        match draw(st.sampled_from(("end", "cut", "flip", "put", "repeat"))):
            case "end":
                del data[at:]
            case "cut":
                del data[at : at + length]
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "put":
                data[at:at] = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)))
            case "repeat":
                data[at:at] = data[max(0, at - length) : at]
    return bytes(data)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([[], {}, [[]], [None], {"": 0}, "9" * 400, 10**400, -1, 0, 1e308, "\ud800", "../..", "a" * 5000]),
)  # fmt: skip


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield from _places(value, (*path, key))


@st.composite
def altered(draw: st.DrawFn, whole: bytes) -> bytes:
    """JSON in which up to three values are of another kind, or missing."""
    data = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        # Places near the top are few, so they are drawn as often as all those deep inside.
        deep = draw(st.integers(0, 5))
        places = [path for path in _places(data) if len(path) <= deep] or [()]
        path = draw(st.sampled_from(places))
        if not path:
            data = draw(ODD)
            break
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            parent[path[-1]] = draw(ODD)
        else:
            del parent[path[-1]]
    return json.dumps(data).encode()


def read(what: str, content: bytes) -> None:
    name, _, readers = READERS[what]
    for reader in readers:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            with harmless():
                reader(path)


drawn = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES < 100,  # the short form draws the same files everywhere
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("what", READERS)
def test_whole_files_are_read(what: str) -> None:
    """Else nothing behind the first check of a reader would be tried."""
    name, whole, readers = READERS[what]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(whole())
        if what not in ("steps", "CIFAR batch", "tuned"):
            for reader in readers:
                reader(path)


@pytest.mark.parametrize("what", READERS)
def test_damaged_files(what: str) -> None:
    @drawn
    @given(damaged(READERS[what][1]()))
    def draw(content: bytes) -> None:
        read(what, content)

    draw()


@pytest.mark.parametrize("what", JSON)
def test_values_of_another_kind(what: str) -> None:
    @drawn
    @given(altered(READERS[what][1]()))
    def draw(content: bytes) -> None:
        read(what, content)

    draw()


@drawn
@given(st.dictionaries(st.sampled_from([b"data", b"labels", b"ids", "data", 3]), ODD, max_size=4))
@example({b"data": Evil(), b"labels": [0]})
@example({b"data": np.zeros((2, 3072), np.uint8), b"labels": [Evil()]})
@example({b"data": np.zeros((2, 3072), np.float64), b"labels": [0, 10**9]})
def test_pickles_of_anything(content: Any) -> None:
    for protocol in (2, 4):
        read("CIFAR batch", pickle.dumps(content, protocol))


NAMES = (
    *("train", "val", "test", "valid", "train.X1", "train.X2", "images", "n01440764", "a", "b", "a,b", ".hidden"),
    *("ü", "猫", "x.jpg", "y.JPEG", "z.png", "w.gif", "v.jfif", "u.tiff"),
    *("val_annotations.txt", "val.txt", "LOC_val_solution.csv", "data_batch_1", "data_batch_2", "test_batch"),
    *("batches.meta", "meta", "cifar-10-batches-py", "cifar-100-python"),
)
KINDS = ("folder", "empty", "image", "text", "pickle", "itself", "nowhere", "closed", "pipe")


def build(root: Path, parts: tuple[str, ...], kind: str) -> None:
    """Put one thing into a folder; what stands in the way stays."""
    path = root.joinpath(*parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "folder":
                path.mkdir()
            case "closed":
                path.mkdir(mode=0)
            case "itself":
                path.symlink_to(".")
            case "nowhere":
                path.symlink_to("nothing here")
            case "pipe":
                os.mkfifo(path)
            case _:
                content = {"empty": b"", "image": picture("PNG"), "text": b"x.jpg\ta\t0\n", "pickle": cifar()}
                path.write_bytes(content[kind])
    except OSError:
        pass


@drawn
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple), st.sampled_from(KINDS)),
        max_size=12,
    )
)
@example([(("train", "a", "x.jpg"), "image"), (("train", "a", "b"), "itself")])
@example([(("train", "a", "x.jpg"), "pipe"), (("train", "b", "x.jpg"), "image")])
@example([(("data_batch_1",), "pipe")])
@example(
    [(("val", "val_annotations.txt"), "text"), (("train", "a", "x.jpg"), "image"), (("val", "a", "x.jpg"), "image")]
)
def test_folders_of_anything(entries: list[tuple[tuple[str, ...], str]]) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for parts, kind in entries:
            build(Path(folder), parts, kind)
        for look in (open_splits, splits.parts_of, lambda root: [examine(part) for part in open_splits(root)]):
            with harmless():
                look(Path(folder))
