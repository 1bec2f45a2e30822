"""Recording on fake processes: what is stored, what goes on, what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FakeWorker, Machine, keep_time
from workloads import workload_of

from bench.checking.trees import Tree
from bench.errors import BenchError, UsageError, WorkloadError
from bench.processes import SOURCE
from bench.selfcheck import record as record_module
from bench.selfcheck.traces import read
from bench.sides.load import competing
from bench.timing.workload import Conditions
from results.gate import Side

WORKLOADS = [
    workload_of("inference", "lenet", "fp32-nchw-eager", 1, 32, 10),
    workload_of("training", "lenet", "fp32-nchw-eager", 1, 32, 10),
]
TREE = Tree(Side("head", "", "0" * 40), Path("/nowhere"), "digest", sys.executable)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recording(
    path: Path, blocks: int, machine: Machine | None = None, said: list[str] | None = None, **more: Any
) -> int:
    on = machine or Machine(noise=0.01)
    options = {"fail": more.pop("fail")} if "fail" in more else {}

    def spawn(name: str, environment: Any, source: Path, python: str) -> FakeWorker:
        return FakeWorker(name, on, lambda side, workload: 0.02, source=source, **options)

    words: dict[str, Any] = {"seconds": 1e9, "load": "none", "workloads": WORKLOADS, **more}
    with pytest.MonkeyPatch.context() as patch:
        keep_time(on, patch, record_module)
        return record_module.record(
            path, TREE, blocks, words["seconds"], words["load"], words["workloads"], Conditions(), (said or []).append,
            words.get("sampled_rounds", 8), spawn,
        )  # fmt: skip


def test_a_block_is_a_fresh_process_for_each_workload(tmp_path: Path) -> None:
    machine = Machine(noise=0.01)
    path = tmp_path / "t.json.gz"
    assert recording(path, 3, machine) == 3
    # One answered what the machine is; of the other were forked one for the reference and one for each workload.
    assert (machine.opened, machine.alive) == (["base", "both"], 0)
    assert machine.forked == ["both"] * 3 * 3
    trace = read(path)
    assert trace.header.workloads == tuple(w.id for w in WORKLOADS)
    assert trace.header.machine["fingerprint"] == {"device": "fake", "cores": 2}
    assert trace.header.code == "digest"
    for workload in trace.header.workloads:
        # Two seconds of steps of 20 ms on both sides.
        assert all(16 <= len(rounds) <= 18 for rounds in trace.of(workload))
    turn = trace.blocks[0].rounds[1][3]["head"]
    assert len(turn.samples) == turn.steps
    assert turn.seconds_per_step == pytest.approx(0.02, rel=0.2)


def test_recording_goes_on_with_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    recording(path, 2)
    before = read(path).blocks
    path.write_bytes(path.read_bytes()[:-5])
    said: list[str] = [""]
    assert recording(path, 3, said=said) == 3
    after = read(path)
    assert after.blocks[0] == before[0]
    assert (len(after.blocks), after.torn) == (3, 0)
    assert any("ends within a block" in text for text in said)
    assert any("after block 1" in text for text in said)
    assert recording(path, 2) == 3, "nothing is measured when enough is there"


def test_time_that_is_up_ends_a_recording(tmp_path: Path) -> None:
    assert recording(tmp_path / "t.json.gz", 3, seconds=1e-9) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workloads": WORKLOADS[:1]}, "begun with workloads"),
        ({"sampled_rounds": 2}, "begun with sampled_rounds 8, not 2"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.json.gz"
    recording(path, 1)
    with pytest.raises(UsageError, match=message):
        recording(path, 2, **change)


def test_a_workload_that_fails_ends_the_recording_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    machine = Machine()
    broken = BenchError("no such thing")

    def fail(name: str, command: str, workload: Any) -> BenchError | None:
        return broken if command == "slice" and workload == WORKLOADS[1] else None

    with pytest.raises(WorkloadError, match=r"training/lenet.*no such thing"):
        recording(path, 2, machine, fail=fail)
    assert machine.alive == 0
    assert read(path).blocks == ()


def test_the_competitor_ends_with_the_block_and_with_its_stdin() -> None:
    with competing("none", 0):
        pass
    words = "from bench.sides.load import compete; compete(0, 0, 1e-3)"
    child = subprocess.run(
        [sys.executable, "-P", "-c", words],
        stdin=subprocess.DEVNULL,
        env={"PYTHONPATH": str(SOURCE)},
        timeout=60,
        check=False,
    )
    assert child.returncode == 0
