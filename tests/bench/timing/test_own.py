"""Loaders and steps of the user's: told apart, taken as they are, and what is wrong with them said."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.errors import WorkloadError
from bench.timing.own import OwnLoader, OwnStep, kind, step_facts
from bench.timing.step import build
from bench.timing.workload import OWN, Conditions, StepUnits, Workload
from models import code

CODE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torn = []
batches = [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))] * 3
once = iter(batches)
number = 3


class Net(nn.Module):
    pass


def network(classes):
    return nn.Linear(classes, 2)


def loader(batch, size, images=12):
    data = TensorDataset(torch.zeros(images, 3, size, size), torch.arange(images))
    return DataLoader(data, batch)


def made():
    return loader(4, 8)


def stream(batch, size):
    for _ in range(2):
        yield torch.zeros(batch, 3, size, size), torch.zeros(batch)


def dicts(batch):
    return [{"image": 1, "label": 2}]


def triples(batch):
    return [(1, 2, 3)]


def lists(batch):
    return [([1], [2])]


def no_batches(batch):
    return []


def text(batch):
    return "batches"


def step():
    return torch.ones(4) @ torch.arange(4.0), torch.arange(8.0)


step.tokens = 512


def same():
    return torch.tensor(6.0), torch.arange(8.0)


def shifted():
    return torch.tensor(6.5), torch.arange(8.0)


def constant():
    return torch.ones(3)


def noisy():
    return torch.tensor(6.0), torch.randn(8)


def counts():
    return 7


def squared(side=16):
    x = torch.ones(side, side)
    return x @ x


def prepared():
    x = torch.arange(3.0)
    yield lambda: x * 2
    torn.append(True)


def yields_data():
    yield 3
"""


@pytest.fixture(autouse=True)
def _code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("own_code.py").write_text(CODE)
    for name in ("_aliases", "_loaded", "_failed", "_facts"):
        monkeypatch.setattr(code, name, {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_code", None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("Net", "model"), ("network", "model"), ("loader", "loader"), ("made", "loader"), ("batches", "loader")),
        *(("stream", "loader"), ("step", "step"), ("prepared", "step"), ("squared[side=2]", "step")),
    ],
)
def test_kinds_are_told_apart(name: str, expected: str) -> None:
    assert kind(f"own_code.py:{name}") == expected


def test_what_is_nothing_to_measure_is_refused() -> None:
    with pytest.raises(WorkloadError, match=r"own_code.py:number is of type int; what can be measured is"):
        kind("own_code.py:number")


@pytest.mark.parametrize("name", ["loader", "made", "batches", "stream"])
def test_a_loader_goes_on_epoch_after_epoch(name: str) -> None:
    batches = iter(OwnLoader(f"own_code.py:{name}", 4, 8, "cpu"))
    for _ in range(8):
        images, labels = next(batches)
        assert (list(images.shape), len(labels)) == ([4, 3, 8, 8], 4)


@pytest.mark.parametrize(
    ("name", "batch", "taken", "message"),
    [
        ("dicts", 4, 1, "gives dicts of image, label; .* yield those two"),
        ("triples", 4, 1, "gives a tuple of 3; what is measured here are pairs"),
        ("lists", 4, 1, r"gives \(list, list\); both must be tensors"),
        ("no_batches", 4, 1, "gave no batch in an epoch"),
        ("text", 4, 1, "returns a str, not an iterable of"),
        ("batches", 3, 1, "gives batches of 4 images and not 3; give --batch 4"),
        ("loader[images=10]", 4, 3, "differ in size: 4 images, then 2; drop the last one of an epoch"),
        ("once", 4, 4, "ended after 3 batches and cannot be begun again"),
    ],
)
def test_what_is_wrong_with_a_loader_is_said(name: str, batch: int, taken: int, message: str) -> None:
    def take() -> None:
        batches = iter(OwnLoader(f"own_code.py:{name}", batch, 8, "cpu"))
        for _ in range(taken):
            next(batches)

    with pytest.raises(WorkloadError, match=message):
        take()


def test_a_network_gets_batches_as_it_takes_them() -> None:
    loader = OwnLoader("own_code.py:loader", 4, 8, "cpu")
    fed = loader.fed(8, 3, torch.device("cpu"), torch.bfloat16, torch.channels_last)
    images, labels = next(fed)
    assert images.dtype == torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 1, 2, 0]
    with pytest.raises(WorkloadError, match=r"gives images \[4, 3, 8, 8\], and the network takes 16 px"):
        next(loader.fed(16, 3, torch.device("cpu"), torch.float32, torch.channels_last))


def test_own_loaders_and_steps_are_workloads_like_others() -> None:
    loading = Workload("loading", "own_code.py:loader", OWN, 4, 8)
    assert loading.id == "loading/own_code.py:loader@own/b4/s8/cpu"
    fed = Workload.from_id("end_to_end/lenet@fp32-nchw-eager/b4/s32/c10/a/own_code.py:loader/cpu")
    assert (fed.loader, fed.data) == ("a/own_code.py:loader", "")
    step = Workload("step", "own_code.py:step", StepUnits("tokens"), 512, 1)
    assert step.id == "step/own_code.py:step@tokens/b512/s1/cpu"
    for workload in (loading, step):
        assert Workload.from_id(workload.id) == Workload.from_json(workload.to_json()) == workload
        [built] = build([workload], Conditions())
        built.call()
        built.close()


def test_a_step_sets_up_and_tears_down() -> None:
    step = OwnStep("own_code.py:prepared")
    assert torch.equal(step.call(), torch.tensor([0.0, 2.0, 4.0]))  # type: ignore[arg-type]
    assert code.load("own_code.py:torn") == []
    step.close()
    assert code.load("own_code.py:torn") == [True]
    with pytest.raises(WorkloadError, match="yields a int; after its set-up it must yield the step"):
        OwnStep("own_code.py:yields_data")


def test_units_come_from_an_attribute_or_the_result() -> None:
    assert OwnStep("own_code.py:step").count("tokens") == 512
    assert OwnStep("own_code.py:counts").count("tokens") == 7
    assert OwnStep("own_code.py:same").count("") == 1
    with pytest.raises(WorkloadError, match="--units words: own_code.py:step neither has an attribute words nor"):
        OwnStep("own_code.py:step").count("words")


def test_steps_that_return_the_same_are_told_from_those_that_do_not() -> None:
    names = [f"own_code.py:{name}" for name in ("step", "same", "shifted", "noisy", "constant", "counts")]
    first, same, shifted, noisy, constant, counts = step_facts(names, "", 0)
    assert first["differs"] is None
    assert same["differs"] < 1e-6
    assert shifted["differs"] > 0.01
    assert noisy["why"] == "its result differs from call to call"
    assert constant["why"].startswith("the shapes differ")
    assert counts["why"] == "only one of both returns tensors"
    two = step_facts(["own_code.py:constant", "own_code.py:constant"], "", 0)[1]
    assert (two["differs"], two["why"]) == (None, "all values are the same, so that two results could not differ")


def test_products_of_a_step_are_counted() -> None:
    assert step_facts(["own_code.py:squared[side=10]"], "", 0)[0]["flops"] == 2 * 10**3
