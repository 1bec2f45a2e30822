"""What later parts measure is compiled before, many at a time; stand-ins compile nothing."""

import threading
from typing import Any

from workloads import workload_of

from bench.errors import WorkerError
from bench.gpu.warming import at_once, warm, workloads
from bench.timing.workload import Workload
from models.configuration import Device, check

GPU = Device("cuda", bf16=True, compiler=True)


def test_everything_that_a_part_compiles_without_timing_is_there_once() -> None:
    expected = {
        # The graph of an update replays the same program.
        "training": {"amp-nhwc-compile"},
        "inference": {"amp-nhwc-compile", "amp-nhwc-graphs-freeze"},
        "latency": {"amp-nhwc-compile", "amp-nhwc-graphs-freeze"},
    }
    for task, texts in expected.items():
        made = workloads(["resnet18"], 64, 0, task, "cuda")
        assert sorted(w.configuration.text for w in made) == sorted(texts)
        assert {(w.task, w.batch) for w in made} == {(task, 1 if task == "latency" else 64)}
        for w in made:
            check(w.network, GPU, w.training)
    assert [w.configuration.text for w in workloads(["lenet"], 4, 32, "training", "cpu")] == ["amp-nhwc-compile"]


def test_as_many_as_cores_and_memory_hold() -> None:
    assert [at_once(*of) for of in ((16, 140 << 30), (16, 80 << 30), (4, 140 << 30), (2, None), (1, 8 << 30))] == [
        7,
        4,
        2,
        1,
        1,
    ]


def test_one_that_fails_leaves_the_others() -> None:
    together = threading.Barrier(2, timeout=30)
    closed: list[str] = []

    class Compiler:
        def __init__(self, name: str, environment: dict[str, str]) -> None:
            self.name = name

        def greet(self, needs: dict[str, Any]) -> None:
            assert needs["models"] == ("lenet",)

        def greeted(self) -> None:
            pass

        def build(self, wanted: list[Workload], conditions: Any) -> None:
            together.wait()
            if wanted[0].task == "training":
                raise WorkerError("it ended\nand more")

        def close(self) -> None:
            closed.append(self.name)

    wanted = [workload_of(task, "lenet", "amp-nhwc-compile", 4, 32, 10) for task in ("training", "inference")]
    done = warm(wanted, 2, lambda text: None, Compiler)
    assert [(one.workload, one.reason) for one in done] == [(wanted[0].id, "it ended"), (wanted[1].id, "")]
    assert sorted(closed) == sorted(w.id for w in wanted)
