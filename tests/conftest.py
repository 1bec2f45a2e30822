"""What every test is given: its markers, and beside other test processes its share of the cores."""

import os
import signal
import tempfile

import pytest

from bench.machine import allocator
from bench.machine.cpu import usable_cores

REASON = "needs a CUDA device"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # A shell has its background jobs ignore Ctrl-C, and the commands that tests interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests run beside each other, and would wait for one another as measurements do. Where a test's own process is
    # started, it finds the same place.
    locks = tempfile.TemporaryDirectory(prefix="pixbench-tests-")
    os.environ["XDG_RUNTIME_DIR"] = locks.name
    config.add_cleanup(locks.cleanup)
    if hasattr(config, "workerinput"):
        _share_the_cores()


def _share_the_cores() -> None:
    """Beside other test processes (pytest-xdist) take a share of the cores, before anything loads OpenMP."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    # A test may start pytest itself: pytest-benchmark measures nothing where these say that others run beside it.
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def _memory_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a process of its own in that nobody has told it to keep freed memory."""
    monkeypatch.setattr(allocator, "_kept", False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a GPU, so that a GPU host can run these alone: `pytest tests -m gpu`."""
    for item in items:
        if any(mark.kwargs.get("reason") == REASON for mark in item.iter_markers("skipif")):
            item.add_marker("gpu")
