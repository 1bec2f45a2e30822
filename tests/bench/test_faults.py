"""What commands that write do on a full disk, in a read-only folder, and where their folder is removed meanwhile.

No traceback, exit code 2 in one plain line, and what was there before is as it was.
"""

import contextlib
import importlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, Ended, bench_here
from PIL import Image

pytestmark = pytest.mark.slow

OLD = b"what was here before\n" * 20
TINY = ["--model", "lenet", "--config", "naive", "--batch", "8", "--threads", "1", "--device", "cpu"]
SHORT = ["--epochs", "1", "--lr", "0.01", "--no-report"]
QUICK = ["--size", "8", "--batch", "4", "--rounds", "2", "--budget", "0", "--threads", "1", "--device", "cpu"]
WORKLOAD = "inference/lenet@fp32-nchw-eager/b1/s32/c10/cpu"
# Command -> its words; PLACE is the folder that something is wrong with.
COMMANDS: dict[str, list[str]] = {
    "train": ["train", *TINY, *SHORT, "--data", "DATA", "--runs", "PLACE", "--name", "new"],
    "resume": ["train", "--resume", "PLACE/run", "--epochs", "3", "--no-report"],
    "lr-find": ["lr-find", *TINY, "--data", "DATA", "--schedule", "-o", "PLACE/old.png"],
    "evaluate": ["evaluate", "RUN", "--data", "DATA", "--config", "naive", "-o", "PLACE/old.txt"],
    "predictions": ["evaluate", "RUN", "--data", "DATA", "--config", "naive", "--predictions", "PLACE/old.txt"],
    "confusion": ["evaluate", "RUN", "--data", "DATA", "--config", "naive", "--confusion", "PLACE/old.png"],
    "predict": ["predict", "RUN", "DATA/val/a/0.png", "--config", "naive", "-o", "PLACE/old.txt"],
    "export": ["export", "lenet", "--to", "torch-export", "-o", "PLACE/old.pt2"],
    "compare": ["compare", "normalize@torch-float32", *QUICK, "--store", "STORE", "-o", "PLACE/old.txt"],
    "compare --store": ["compare", "normalize@torch-float32", *QUICK, "--store", "PLACE/store"],
    "report": ["report", "STORE", "-o", "PLACE/old.html"],
    "trend": ["trend", "--store", "STORE", "-o", "PLACE/old.txt"],
    "cost": ["cost", "lenet", "-o", "PLACE/old.txt"],
    "diagram": ["cost", "lenet", "--diagram", "PLACE/old.svg"],
    "data make": ["data", "make", "PLACE/made", "--images", "20"],
    "data make --like": ["data", "make", "PLACE/made", "--like", "cifar10", "--images", "60"],
    "data show": ["data", "show", "flip", "--images", "4", "-o", "PLACE/old.png"],
    "data info": ["data", "info", "DATA", "-o", "PLACE/old.txt"],
    "list": ["list", "-o", "PLACE/old.txt"],
    "check": ["check", "--base", "HEAD", "--exact", "--no-store", "--workloads", WORKLOAD, "-o", "PLACE/old.txt"],
    "tune": ["tune", "lenet", "--tasks", "latency", "--budget", "1", "--size", "32", "--threads", "1"],
}
TUNING_AT_NIGHT = [pytest.param(name, marks=pytest.mark.night if name == "tune" else ()) for name in COMMANDS]
# What `bench check` measures is the repository that it is started in.
IN_REPOSITORY = {"check"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images, a run that was trained on them, and a stored comparison."""
    root = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    places = {"DATA": root / "data", "RUN": root / "runs" / "run", "STORE": root / "store"}
    words = ["train", *TINY, *SHORT, "--data", str(places["DATA"])]
    done = bench_here(*words, "--runs", root / "runs", "--name", "run", cwd=root)
    assert done.returncode == 0, done.stderr
    done = bench_here("compare", "normalize@torch-float32", *QUICK, "--store", root / "store", cwd=root)
    assert done.returncode == 0, done.stderr
    return places


def run(name: str, made: dict[str, Path], place: Path, work: Path) -> Ended:
    """A command whose folder is `place`, where files lie already that it is to replace."""
    words = []
    for word in COMMANDS[name]:
        for key, path in {**made, "PLACE": place}.items():
            word = word.replace(key, str(path))
        words.append(word)
    # Only what a winner is remembered in: other commands need their cache.
    cache = (place if name == "tune" else work) / "cache"
    return bench_here(*words, cwd=ROOT if name in IN_REPOSITORY else work, XDG_CACHE_HOME=str(cache))


def prepare(name: str, made: dict[str, Path], place: Path) -> dict[Path, bytes]:
    """Put what the command is to replace or to go on with into its folder; the files and what they hold."""
    for word in COMMANDS[name]:
        if word.startswith("PLACE/old"):
            (place / Path(word).name).write_bytes(OLD)
    if name == "resume":
        shutil.copytree(made["RUN"], place / "run")
    if name == "tune":
        (place / "cache" / "pixbench").mkdir(parents=True)
        (place / "cache" / "pixbench" / "tuned.json").write_text("{}\n")
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def check_end(done: Ended, before: dict[Path, bytes], name: str) -> None:
    """The command ended in one line, and what was there is there still."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("bench: ")]
    assert len(said) == 1, done.stderr
    assert "unexpected" not in said[0]
    for path, content in before.items():
        # Logs grow, and are cut back to the last stored step when the run goes on.
        if name != "resume" or path.suffix in (".safetensors", ".pt", ".json", ".toml"):
            assert path.read_bytes() == content, path


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file becomes longer than so many bytes, in this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[None]:
    """A small file system of its own. Skips where it cannot be mounted."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize("name", TUNING_AT_NIGHT)
def test_a_full_disk(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "place"
    with mounted(place):
        before = prepare(name, made, place)
        with contextlib.suppress(OSError), (place / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        check_end(run(name, made, place, tmp_path), before, name)
        if name == "resume":
            (place / "fill").unlink()
            assert run(name, made, place, tmp_path).returncode == 0


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize("name", TUNING_AT_NIGHT)
def test_a_read_only_folder(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "place"
    with mounted(place):
        before = prepare(name, made, place)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        done = run(name, made, place, tmp_path)
        if name == "tune":
            # Another cache stands in.
            assert "note: the cache folder" in done.stderr
            return
        check_end(done, before, name)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("check", "tune", "compare")])
def test_files_that_cannot_grow(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    """A full disk where nothing can be mounted: measuring processes could not even print."""
    place = tmp_path / "place"
    place.mkdir()
    before = prepare(name, made, place)
    with small_files(20):
        done = run(name, made, place, tmp_path)
    check_end(done, before, name)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("resume", "tune")])
def test_a_folder_that_is_removed_meanwhile(
    name: str, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    module = importlib.import_module(f"bench.commands.{COMMANDS[name][0].replace('-', '_')}")
    if hasattr(module, "check_output"):
        # It is looked at before the work begins.
        monkeypatch.setattr(module, "check_output", lambda output: shutil.rmtree(place, ignore_errors=True))
    done = run(name, made, place, tmp_path)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 2), done.stderr
    if done.returncode:
        assert sum(line.startswith("bench: ") for line in done.stderr.splitlines()) == 1, done.stderr
        assert "unexpected" not in done.stderr
    else:
        assert place.is_dir()
        assert os.listdir(place)
