"""Workloads that a repository's settings list, and workloads named loosely."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.errors import WorkloadError
from bench.timing.listed import chosen, listed
from bench.timing.workload import Workload
from models.configuration import Device
from models.errors import ModelError
from models.project import Project

DEVICE = Device("cpu", bf16=False, compiler=True)


def project(*tables: Mapping[str, Any]) -> Project:
    return Project(Path(), Path("pixbench.toml"), workloads=tables)


def describe(names: Sequence[str]) -> Sequence[Mapping[str, int]]:
    return [{"size": 96, "classes": 7} for _ in names]


def test_what_is_left_out_is_filled_in() -> None:
    found = listed(
        project(
            {"model": "mine", "configuration": "naive"},
            {"task": "training", "model": "mine", "size": 64, "classes": 3, "batch": 4, "configuration": "naive"},
            {"task": "latency", "model": "mine", "batch": 4, "configuration": "naive", "margin": 0.1},
            {"task": "end_to_end", "model": "mine", "configuration": "naive"},
            {"task": "loading", "loader": "pil", "batch": 16},
            {"task": "loading", "loader": "data.py:train", "batch": 16, "size": 32},
            {"task": "step", "step": "ops.py:old"},
        ),
        DEVICE,
        "photos",
        describe,
    )
    assert {workload.id: margin for workload, margin in found.items()} == {
        "inference/mine@fp32-nchw-eager/b8/s96/c7/cpu": 0.02,
        "training/mine@fp32-nchw-eager/b4/s64/c3/cpu": 0.02,
        "latency/mine@fp32-nchw-eager/b1/s96/c7/cpu": 0.1,
        "end_to_end/mine@fp32-nchw-eager/b8/s96/c7/dali/photos/cpu": 0.03,
        "loading/pil@float32-nhwc/b16/s224/photos/cpu": 0.03,
        "loading/data.py:train@own/b16/s32/cpu": 0.03,
        "step/ops.py:old@call/b1/s1/cpu": 0.02,
    }


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"task": "fly", "model": "a"}, WorkloadError, "workload 1 of pixbench.toml: no task is called 'fly'"),
        ({"task": "loading", "model": "a"}, WorkloadError, "workload 1 of pixbench.toml names no loader"),
        ({"batch": 3}, WorkloadError, "names no model"),
        ({"model": "a", "configuration": "slow"}, ModelError, "unknown lever"),
    ],
)
def test_what_is_wrong_is_said(table: Mapping[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        listed(project(table), DEVICE, "", describe)


def test_the_same_twice_is_refused() -> None:
    with pytest.raises(WorkloadError, match="workload 2 of pixbench.toml is inference/a@.* again"):
        listed(project({"model": "a"}, {"model": "a"}), DEVICE, "", describe)


KNOWN = [
    Workload.from_id(text)
    for text in (
        "inference/lenet@fp32-nchw-eager/b8/s32/c10/cpu",
        "training/lenet@fp32-nchw-eager/b4/s32/c10/cpu",
        "inference/net.py:build[width=8]@fp32-nchw-eager/b8/s32/c10/cpu",
    )
]


@pytest.mark.parametrize(
    ("word", "picked"),
    [
        (KNOWN[1].id, [1]),
        ("lenet", [0, 1]),
        ("training", [1]),
        ("b8", [0, 2]),
        ("*/b8/*", [0, 2]),
        ("inference/*", [0, 2]),
        ("net.py:build[width=8]", [2]),
        ("net.py:build", [2]),
        ("*build[width=8]*", [2]),
        ("lenet@fp32-nchw-eager", [0, 1]),
    ],
)
def test_words_pick_workloads(word: str, picked: list[int]) -> None:
    assert chosen([word], KNOWN) == [KNOWN[number] for number in picked]


def test_words_add_up_and_unknown_ones_list_what_there_is() -> None:
    assert chosen(["training", "lenet"], KNOWN) == [KNOWN[1], KNOWN[0]]
    other = "inference/resnet18@fp32-nchw-eager/b8/s32/c10/cpu"
    assert chosen([other], KNOWN) == [Workload.from_id(other)]
    with pytest.raises(WorkloadError, match="'resnet' is no workload's id and picks none of inference/lenet"):
        chosen(["resnet"], KNOWN)
