"""Memory of a step: counted to the byte, and measured where it cannot be counted."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from workloads import workload_of

from bench.errors import WorkloadError
from bench.inspecting import memory
from bench.inspecting.exact import eager_facts
from bench.inspecting.memory import counted_workspace, engine_readings, measure, resident_readings
from bench.processes import SOURCE
from bench.timing.step import Step, build
from bench.timing.workload import Conditions, Workload
from models.prepare import Prepared

MIB = 1 << 20

COUNT = """
import sys, torch
from bench.inspecting.memory import measure
from bench.timing.step import build
from bench.timing.workload import Conditions, Workload
for id in sys.argv[1:]:
    [step] = build([Workload.from_id(id)], Conditions(threads=1))
    step.call()
    found = measure(step, readings=0)
    assert found.counted and found.process is None
    print(id, found.peak, found.workspace)
"""


def step_of(*described: Any) -> Step:
    [step] = build([workload_of(*described)], Conditions(threads=1))
    step.call()
    return step


def counts_of_a_fresh_process(workloads: list[Workload]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *(workload.id for workload in workloads)],
        cwd=SOURCE, text=True, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == len(workloads)
    return done.stdout


@pytest.mark.parametrize(
    "configurations",
    [
        ("fp32-nchw-eager", "amp-nhwc-eager"),
        pytest.param(("amp-nhwc-compile",), marks=pytest.mark.night),
    ],
)
def test_two_fresh_processes_count_the_same_bytes(configurations: tuple[str, ...]) -> None:
    workloads = [
        workload_of(task, "resnet18", configuration, 4, 64, 10)
        for configuration in configurations
        for task in ("inference", "training")
    ]
    counts = counts_of_a_fresh_process(workloads)
    assert counts == counts_of_a_fresh_process(workloads)
    assert len({line.split()[-1] for line in counts.splitlines()}) > len(workloads) // 2


def test_the_highest_point_is_counted_not_the_sum() -> None:
    def call() -> None:
        torch.empty(1000)
        both = torch.empty(500), torch.empty(250, dtype=torch.float64)
        del both
        torch.empty(10)

    assert counted_workspace(call) == 4000


def test_what_a_step_replaces_is_not_counted_twice() -> None:
    """As gradients are: they live from one step to the next and are set to None before they are made again."""
    held: list[Tensor] = []

    def call() -> None:
        held.clear()
        held.append(torch.empty(1000))
        torch.empty(25)

    call()
    assert counted_workspace(call) == 100


def test_other_steps_in_the_process_do_not_change_the_count() -> None:
    described = ("training", "lenet", "amp-nhwc-eager", 4, 32, 10)
    alone = measure(step_of(*described), readings=0)
    other = step_of("inference", "resnet18", "fp32-nchw-eager", 2, 64, 10)
    assert measure(step_of(*described), readings=0) == alone
    assert measure(other, readings=0).weights > alone.weights


def test_parts_add_up_and_a_training_step_holds_what_it_saves() -> None:
    step = step_of("training", "lenet", "fp32-nchw-eager", 256, 32, 10)
    found = measure(step)
    parts = (found.weights, found.gradients, found.optimizer, found.inputs, found.workspace, found.slack, found.engine)
    assert found.peak == sum(parts)
    assert found.weights == found.gradients == found.optimizer == 62006 * 4
    assert found.counted
    assert not found.peaks
    assert len(found.processes) == memory.READINGS
    assert min(found.processes) <= found.process <= max(found.processes)
    assert found.residue == found.process - found.peak
    saved = eager_facts(step)["saved_bytes"] - found.inputs  # the batch, which the first convolution saves
    assert 0.8 * saved < found.workspace + found.gradients < 2 * saved


# What models.max_pool saves of resnet34's: its input of 64 x 112 x 112 in bfloat16, and 7 of the 8 bytes of each place.
POOLED = 8 * 64 * (112 * 112 * 2 + 56 * 56 * 7) / MIB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "saved", "highest"), [("resnet34", 171 - POOLED, 199 - POOLED), ("efficientnet_b0", 347, 386)]
)
def test_training_needs_what_an_independent_count_found(model: str, saved: float, highest: float) -> None:
    """MiB that autograd saves, and of the allocator's peak above weights, optimiser and input."""
    step = step_of("training", model, "amp-nhwc-eager", 8, 224, 1000)
    found = measure(step, readings=0)
    assert (found.workspace + found.gradients) / MIB == pytest.approx(highest, rel=0.05)
    assert eager_facts(step)["saved_bytes"] / MIB == pytest.approx(saved, rel=0.05)


def test_where_the_resident_set_cannot_be_read_the_count_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert resident_readings(lambda: None, 3) == []
    found = measure(step_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10))
    assert found.counted
    assert found.peak > found.weights
    assert found.process is found.residue is None


class Engine:
    """In place of a converted network: holds so many MiB of its own, and needs more while it works."""

    def __init__(self, held: int, working: int) -> None:
        self.held = torch.ones(held * MIB // 4)
        self.working = working

    def __call__(self, images: Tensor) -> Tensor:
        return torch.ones(self.working * MIB // 4)[:1]


def converted_step(device: str = "cpu") -> Step:
    workload = Workload.from_id(f"inference/lenet@openvino-fp32/b2/s32/c10/{device}")
    return Step(workload, lambda: None, 2, torch.nn.Linear(2, 2), inputs=(torch.zeros(1024),), converted=True)


def test_what_an_engine_holds_is_measured_without_torchs_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(module: Any, *_: object) -> Prepared:
        return Prepared(module, Engine(48, 16), torch.float32, torch.contiguous_format, None)

    monkeypatch.setattr(memory, "prepare", prepared)
    found = measure(converted_step())
    assert found.engine == pytest.approx(64 * MIB, rel=0.1)
    assert found.weights == found.workspace == 0
    assert found.inputs == 4096
    assert found.peak == found.inputs + found.engine
    assert not found.counted
    assert len(found.peaks) == memory.READINGS
    assert min(found.peaks) <= found.peak <= max(found.peaks)


def test_an_engines_memory_that_cannot_be_measured_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkloadError, match="openvino on a GPU"):
        engine_readings(converted_step("cuda"), 1)

    def silent(*_: object) -> int:
        raise KeyError("VmHWM")

    monkeypatch.setattr(memory, "highest_resident", silent)
    monkeypatch.setattr(memory, "prepare", lambda module, *_: Prepared(module, Engine(1, 1), *(None,) * 3))
    with pytest.raises(WorkloadError, match="cannot be read here"):
        engine_readings(converted_step(), 1)


def test_what_a_graph_keeps_for_its_replays_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [
        {"segment_pool_id": (0, 0), "total_size": 100 * MIB, "allocated_size": 60 * MIB},
        {"segment_pool_id": (0, 1), "total_size": 400 * MIB, "allocated_size": 50 * MIB},
    ]
    fakes = {
        **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats"), lambda: None),
        "max_memory_allocated": lambda: 110 * MIB,
        "max_memory_reserved": lambda: 500 * MIB,
        "memory_snapshot": lambda: segments,
        "mem_get_info": lambda: (0, 700 * MIB),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(memory, "process_bytes", lambda in_use: in_use)
    step = step_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10)
    # 60 and 50 MiB live, and the 350 that the graph's own pool holds beside them.
    assert memory._on_cuda(step) == (460 * MIB, 500 * MIB, 700 * MIB)
