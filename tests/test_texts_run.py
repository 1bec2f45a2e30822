"""Every command in the fenced blocks of README and docs is run, in its order, in a folder with what they name.

What they name is made small (a repository, images, runs, exported files), and what they measure or train is cut short
by variables, which every option has. `make test-night` does it.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from texts import ROOT, TEXTS, commands

PAGES = {path.stem: path for path in TEXTS if any(commands(path.read_text("utf-8")))}
SHORT = {
    "BENCH_COMPARE_QUICK": "1",
    "BENCH_COMPARE_SIZE": "32",
    "BENCH_COMPARE_IMAGES": "64",
    "BENCH_CHECK_LOOKS": "1",
    "BENCH_CHECK_BUDGET": "1",
    "BENCH_PROFILE_SIZE": "32",
    "BENCH_PROFILE_BATCH": "2",
    "BENCH_TUNE_SIZE": "32",
    "BENCH_TUNE_BATCH": "2",
    "BENCH_TUNE_BUDGET": "30",
    "BENCH_TUNE_TASKS": "inference",
    "BENCH_TRAIN_MAX_MINUTES": "0.05",
    "BENCH_TRAIN_BATCH": "16",
    "BENCH_TRAIN_SIZE": "32",
    "BENCH_STUDY_SCALE": "0.02",
}
ID = "inference/net@fp32-nchw-eager/b2/s32/c10/cpu"
# What stands for something of the reader's own.
STANDS_FOR = {
    "DIR": "data",
    "OUT": "packed",
    "IMAGE...": "one.png two.png",
    "pickle:FILE": "pickle:unlabelled.pkl",
    "RECORD.json": "a.json",
    "imagenet-sample": "photos",
    "ID": ID,
    "SHARED": "shared",
}
NEEDS = {
    "openvino": "openvino",
    ".xml": "openvino",
    "onnxruntime": "onnxruntime",
    ".onnx": "onnxruntime",
    "timm": "timm",
    "bench export": "onnx",
}
NETWORK = re.compile(r"```python\n(# mynet.py\n.*?)```", re.DOTALL)
LOADER = """import torch


def train_loader(batch, size, device):
    return [(torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device) % 10)] * 8
"""
STEPS = """import torch

weights = torch.randn(64, 64)


def old():
    return (weights @ weights).shape[0]


def new():
    return (weights @ weights).shape[0]
"""
SETTINGS = """[models]
net = "mynet.py:Net"

[[workloads]]
task = "inference"
model = "net"
configuration = "naive"
batch = 2
size = 32
classes = 10
"""


def run(words: Sequence[str], folder: Path, **changes: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    known = {name: value for name, value in os.environ.items() if not name.startswith("BENCH_")}
    environment = {**known, "PATH": path, "PYTHONPATH": str(ROOT), **changes}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900)


def made(line: str, folder: Path, **changes: str) -> None:
    done = run(shlex.split(line), folder, **changes)
    assert done.returncode == 0, f"{line}: {done.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with everything that the texts name."""
    here = tmp_path_factory.mktemp("reader")
    text = NETWORK.search((ROOT / "docs/own-network.md").read_text("utf-8"))
    assert text is not None
    (here / "mynet.py").write_text(text[1], "utf-8")
    (here / "mydata.py").write_text(LOADER, "utf-8")
    (here / "steps.py").write_text(STEPS, "utf-8")
    (here / "mypackage").mkdir()
    (here / "mypackage/__init__.py").touch()
    (here / "mypackage/nets.py").write_text(text[1] + "\n\ndef build(classes):\n    return Net(classes)\n", "utf-8")
    (here / "pixbench.toml").write_text(SETTINGS, "utf-8")
    (here / ".gitignore").write_text("*\n!*.py\n!*.toml\n!mypackage/\n", "utf-8")
    git = "git -c user.name=reader -c user.email=reader@example.com"
    for line in ("git init -q -b main", "git add .", f"{git} commit -qm one", "git tag v1.0", "git tag checked"):
        made(line, here)
    made("git update-ref refs/remotes/origin/main main", here)
    made("git checkout -qb work", here)
    (here / "mynet.py").write_text(text[1].replace("depth=2", "depth=4"), "utf-8")
    made(f"{git} commit -qam two", here)
    for name in ("one.png", "two.png"):
        Image.new("RGB", (80, 60), "red").save(here / name)
    for number in range(24):
        photo = here / "photos" / ("train" if number < 16 else "val") / "ab"[number % 2] / f"{number}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((80, 60), 20 + number).convert("RGB").save(photo)
    (here / "fresh").mkdir()
    made("git init -q fresh", here)
    made("bench data make data --like cifar10 --images 720", here)
    program = (
        "import pickle, torch, numpy, mynet; torch.save(mynet.Net().state_dict(), 'trained.pth');"
        "torch.save(mynet.Net(10).state_dict(), 'net.pth');"
        "pickle.dump({b'data': numpy.zeros((4, 3072), 'uint8'), b'ids': [1, 2, 3, 4]}, open('unlabelled.pkl', 'wb'))"
    )
    made(f'python -c "{program}"', here)
    for name, end in (("A", "--epochs 1"), ("B", "--epochs 1"), ("NAME", "--epochs 40 --max-minutes 0.02")):
        made(f"bench train --model lenet --data data --batch 64 --name {name} {end}", here)
    for name in ("A", "B"):
        shutil.copytree(here / "runs" / name, here / "runs" / name.lower())
    made("bench compare resnet18 --quick --tasks training --size 32 --training-batch 2", here)
    published = ROOT / "results/published/intel-xeon-amx-2-cores"
    for name, record in (("a", "resnet34-naive-fast"), ("b", "efficientnet_b0-naive-fast")):
        shutil.copy(published / f"{record}.json", here / f"{name}.json")
    (here / "others.csv").write_text("ID,Labels\n1,1\n2,2\n3,3\n4,4\n")
    for kind, end in (("onnx", "onnx"), ("openvino", "xml"), ("torch-export", "pt2")):
        run(shlex.split(f"bench export mynet.py:Net --to {kind} -o model.{end}"), here)
    return here


def of_the_reader(line: str) -> list[str]:
    words = []
    for word in shlex.split(line):
        if words and words[-1] == "--name" and word == "NAME":
            # The run of that name is there, for what goes on with it.
            word = "another"
        words += STANDS_FOR[word].split(" ") if word in STANDS_FOR else [word]
    return words


def missing(line: str) -> str:
    """The package that a command needs and that is not here, "" if it can run."""
    needed = [package for mark, package in NEEDS.items() if mark in line]
    return next((name for name in needed if importlib.util.find_spec(name) is None), "")


@pytest.mark.night
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(page: str, folder: Path) -> None:
    failed, skipped = [], []
    for line in commands(PAGES[page].read_text("utf-8")):
        if package := missing(line):
            skipped.append(f"{line} ({package} is not installed)")
            continue
        words = of_the_reader(line)
        if words[:3] == ["bench", "data", "make"]:
            words[3] = "made"
        begin = time.monotonic()
        changes = SHORT if "--over" in words else {**SHORT, "BENCH_COMPARE_TRAINING_BATCH": "2"}
        # The repository has its settings already.
        done = run(words, folder / "fresh" if words[1] == "init" else folder, **changes)
        print(f"{time.monotonic() - begin:5.1f} s, exit code {done.returncode}: {shlex.join(words)}")
        # The repository has been made slower: that is what a check says with 1, and no baseline for others.
        slower = words[1] == "check" and (
            done.returncode == 1 or "holds no check that can be a baseline" in done.stderr
        )
        if done.returncode and not slower:
            failed.append(f"{line}\n{done.stderr[-600:]}")
    print("\n".join(skipped))
    assert not failed, "\n\n".join(failed)
