"""Real measuring processes, on the smallest network."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from workloads import workload_of

from bench.errors import OutOfMemoryError, WorkerError, WorkloadError
from bench.machine.cpu import usable_cores
from bench.processes import SOURCE
from bench.sides.process import Worker
from bench.timing.duel import SlicePlan
from bench.timing.workload import Conditions
from models.configuration import has_glibc

LENET = workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10)


@pytest.fixture(scope="module")
def worker():
    worker = Worker("lenet")
    worker.greet({"models": ["lenet"], "loaders": [], "training": True, "compiler": False})
    worker.greeted()
    yield worker
    worker.close()


def test_a_process_builds_warms_and_times_a_step(worker: Worker) -> None:
    built = worker.build([LENET], Conditions())
    assert built.compile_seconds == 0.0
    assert built.cache == "none"
    assert worker.warm(LENET, cap=0.05).seconds_per_step > 0
    turn = worker.slice(LENET, SlicePlan(5, 1), each=True)
    assert turn.steps == len(turn.samples) == 5
    assert turn.seconds == pytest.approx(sum(turn.samples))


def test_training_and_end_to_end_share_one_network(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for i in range(4):
        Image.new("RGB", (48, 40), (60 * i, 10, 200)).save(tmp_path / "one" / f"{i}.jpg")
    training = workload_of("training", "lenet", "amp-nhwc-eager", 2, 32, 10)
    fed = workload_of("end_to_end", "lenet", "amp-nhwc-eager", 2, 32, 10, "pil", "one")
    built = worker.build([training, fed], Conditions(data_root=str(tmp_path), threads=1))
    assert built.prefetch[training.id] == 0
    assert built.prefetch[fed.id] > 0
    for workload in (training, fed):
        assert worker.slice(workload, SlicePlan(2)).seconds > 0
    memory = worker.ask("memory", id=training.id)
    assert memory["weights"] == memory["gradients"] == memory["optimizer"] == 62006 * 4
    parts = ("weights", "gradients", "optimizer", "inputs", "workspace", "slack")
    assert memory["peak"] == sum(memory[part] for part in parts)
    worker.ask("release", ids=[training.id, fed.id])


def faults_of(pid: int) -> int:
    """How often a process has touched a page for the first time (proc(5), stat: minflt)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.skipif(not has_glibc(), reason="needs glibc")
def test_only_what_says_so_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    # Maps of 77 MB: larger than any block that glibc keeps by itself.
    plain = workload_of("inference", "lenet", "fp32-nchw-eager", 4096, 32, 10)
    kept = workload_of("inference", "lenet", "fp32-nchw-eager-keep", 4096, 32, 10)
    faults = {}
    fresh = Worker("lenet")
    try:
        fresh.greet({"models": ["lenet"], "loaders": [], "training": False, "compiler": False})
        fresh.greeted()
        for workload in (plain, kept):
            fresh.build([workload], Conditions())
            fresh.slice(workload, SlicePlan(2))
            before = faults_of(fresh.pid)
            fresh.slice(workload, SlicePlan(2))
            faults[workload.id] = faults_of(fresh.pid) - before
            fresh.ask("release", ids=[workload.id])
        with pytest.raises(WorkloadError, match="measure the one without keep first"):
            fresh.build([plain], Conditions())
    finally:
        fresh.close()
    assert faults[plain.id] > 2 * (77 << 20) / os.sysconf("SC_PAGE_SIZE")
    assert faults[kept.id] < faults[plain.id] / 10


def test_naive_has_torch_s_settings_of_a_first_script(worker: Worker) -> None:
    worker.build([LENET], Conditions(threads=usable_cores()))
    ours = worker.ask("machine")["settings"]
    script = (
        "import json, os, torch; from bench.machine.software import settings; print(json.dumps(settings(True, {})))"
    )
    words = [sys.executable, "-c", script]
    first = json.loads(subprocess.run(words, cwd=SOURCE, capture_output=True, text=True, check=True).stdout)
    # With simultaneous multithreading torch takes a thread for each physical core, as --threads does when told.
    told = {"threads", "environment"}
    assert {name: ours[name] for name in ours if name not in told} == {
        name: first[name] for name in first if name not in told
    }
    assert set(ours["environment"]) - {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} <= set(os.environ)


def test_code_that_lacks_a_lever_is_not_told_of_it(worker: Worker) -> None:
    described = worker.described(workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10))
    assert described["configuration"] == "fp32-nchw-eager"
    for text, task in (("float32-nhwc", "loading"), ("torch-float32", "kernel")):
        assert worker.described(workload_of(task, "normalize", text, 2, 32))["configuration"] == text


def test_code_from_before_the_lever_keep_is_spoken_to_in_its_words(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker._channel, "levers", {})
    monkeypatch.setattr(worker._channel, "ids", {})
    kept = workload_of("inference", "lenet", "fp32-nchw-eager-keep", 2, 32, 10)
    assert worker.described(kept)["configuration"] == "fp32-nchw-eager"
    # The child builds what the text says, under the id that this has.
    assert worker.build([kept], Conditions()).prefetch == {kept.id: 0}
    assert worker.warm(kept, cap=0.05).seconds_per_step > 0
    assert worker.slice(kept, SlicePlan(2)).steps == 2
    worker.ask("release", ids=[kept.id])
    with pytest.raises(WorkerError, match="KeyError"):
        worker.slice(kept, SlicePlan(2))
    on_gpu = workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10, device="cuda")
    assert worker.described(on_gpu)["configuration"] == "fp32-nchw-eager"
    for text, task in (("fp32-nchw-eager", "inference"), ("float32-nhwc", "loading")):
        with pytest.raises(WorkloadError, match="always keeps freed memory"):
            worker.described(workload_of(task, "lenet", text, 2, 32))


def test_only_what_is_needed_is_imported() -> None:
    fresh = Worker("lenet")
    try:
        fresh.greet({"models": ["lenet"], "loaders": [], "training": False, "compiler": False})
        fresh.greeted()
        fresh.build([LENET], Conditions())
        fresh.ask("release", ids=[LENET.id])
        # Known by what these would map into the process.
        mapped = Path(f"/proc/{fresh.pid}/maps").read_text()
        assert "torchvision" not in mapped
        fresh.ask("imports", 120, models=["resnet18"], loaders=["torchvision"], training=True)
        assert "torchvision" in Path(f"/proc/{fresh.pid}/maps").read_text()
        with pytest.raises(WorkloadError, match="no-such-network"):
            fresh.ask("imports", 120, models=["no-such-network"], loaders=[], training=False)
    finally:
        fresh.close()


def test_what_the_user_can_mend_arrives_as_his_error(worker: Worker) -> None:
    with pytest.raises(WorkloadError, match="no CUDA device is available here"):
        worker.build([workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10, device="cuda")], Conditions())


def test_an_allocation_that_fails_is_out_of_memory(worker: Worker) -> None:
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        worker.build([workload_of("inference", "lenet", "fp32-nchw-eager", 2_000_000_000, 32, 10)], Conditions())
    # The process is still good for other rows.
    worker.build([LENET], Conditions())


def test_a_defect_arrives_with_its_traceback(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"KeyError(.|\n)*last output was(.|\n)*nothing-like-it"):
        worker.ask("slice", id="nothing-like-it", steps=1, drop=0, each=False)


def test_a_process_that_is_killed_is_reported_and_closes() -> None:
    worker = Worker("victim")
    os.kill(worker.pid, signal.SIGSEGV)
    with pytest.raises(WorkerError, match=r"victim (closed its input|ended) \(signal SIGSEGV\)"):
        worker.ask("hello")
    worker.close()
    worker.close()


def test_a_process_killed_by_the_kernel_is_taken_for_out_of_memory() -> None:
    worker = Worker("victim")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(OutOfMemoryError, match="most likely the machine ran out of memory"):
        worker.ask("hello")
    worker.close()


def test_a_process_that_hangs_is_reported() -> None:
    worker = Worker("sleeper")
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="sleeper did not answer within 0 s"):
        worker.ask("hello", timeout=0.2)
    worker.close()
    assert worker._channel.process.poll() is not None


def test_processes_die_with_their_parent() -> None:
    script = (
        "import os\nfrom bench.sides.process import Worker\nw = Worker('w')\n"
        "print(w.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the measuring process outlived its parent")


def test_answers_are_plain_json(worker: Worker) -> None:
    assert json.loads(json.dumps(worker.ask("machine")))["fingerprint"]


def test_batches_made_ahead_are_taken_before_a_loader_is_timed() -> None:
    """A queue that filled up while others were built would pass for the loader's rate."""
    from bench.sides.session import Session
    from bench.timing.step import Step

    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        # Three are ready; each further one takes a while.
        if calls > 3:
            time.sleep(0.002)

    workload = workload_of("loading", "pil", "float32-nhwc", 2, 32, data="x")
    session = Session()
    session.steps[workload.id] = Step(workload, call, 2, prefetch=3)
    assert session.warm(workload.id, cap=0.0)["seconds_per_step"] >= 0.002
