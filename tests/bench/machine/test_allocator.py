import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import WorkloadError
from bench.machine import allocator
from bench.machine.allocator import FOR_SCRIPTS, choose_memory, chosen_by_user, described, keep_memory
from models.configuration import has_glibc

SOURCE = Path(allocator.__file__).parents[1]

# Two large blocks, used and freed again and again: how often a page is touched for the first time.
FAULTS = """
import ctypes, resource, sys
from bench.machine.allocator import choose_memory
choose_memory(sys.argv[1] == "keep")
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    blocks = [libc.malloc(ctypes.c_size_t(64 << 20)) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, 64 << 20)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not has_glibc(), reason="needs glibc")
def test_freed_memory_is_not_cleared_again() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    by_hand = {**clean, **dict(setting.split("=", 1) for setting in FOR_SCRIPTS.split())}

    def faults(how: str, environment: dict[str, str]) -> int:
        words = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(words, cwd=SOURCE, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    default = faults("default", clean)
    assert default > 1000
    assert faults("keep", clean) < default / 10
    # What `bench doctor` advises does the same for a program that knows nothing of this one.
    assert faults("default", by_hand) < default / 10


# A large block that is used: how much of this process lies in huge pages, and how much memory it holds, in MiB.
HUGE = """
import ctypes, sys
from bench.machine.allocator import choose_memory, keep_memory
choose_memory(sys.argv[1] == "keep")
if sys.argv[1] == "keep":
    keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ctypes.memset(libc.malloc(ctypes.c_size_t(64 << 20)), 1, 64 << 20)
for line in open("/proc/self/smaps_rollup"):
    if line.startswith(("AnonHugePages", "Rss")):
        print(int(line.split()[1]) >> 10)
"""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not (has_glibc() and ENABLED.exists() and "[madvise]" in ENABLED.read_text()), reason="needs huge pages on request"
)
def test_kept_memory_lies_in_huge_pages_and_takes_no_more() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def pages(how: str, before: tuple[str, ...] = ()) -> list[int]:
        words = [*before, sys.executable, "-c", HUGE, how]
        done = subprocess.run(words, cwd=SOURCE, env=clean, capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.splitlines()]

    (memory, none), (kept, huge) = pages("default"), pages("keep")
    assert none == 0
    assert huge >= 48
    assert kept < memory + 16
    # Where addresses count, none are taken for nothing.
    assert pages("keep", ("prlimit", f"--as={16 << 30}"))[1] == 0


@pytest.mark.parametrize(("setting", "counts"), [("0\n", False), ("1\n", False), ("2\n", True), (None, True)])
def test_addresses_count_where_the_system_promises_memory_for_each(
    setting: str | None, counts: bool, tmp_path: Path
) -> None:
    path = tmp_path / "overcommit_memory"
    if setting is not None:
        path.write_text(setting)
    assert allocator._counts_addresses(path) is counts


# A network of 2 MB activations in processes forked from one: how often each step touches a page for the first time.
FORKED = """
import os, random, resource, sys
import torch
from bench.machine.allocator import scatter_heap
for seed in range(6):
    if os.fork():
        os.wait()
        continue
    if sys.argv[1] == "scattered":
        scatter_heap(random.Random(seed))
    torch.set_num_threads(1)
    layers = [torch.nn.Conv2d(64, 64, 3, 1, 1) for _ in range(6)]
    network, images = torch.nn.Sequential(*layers), torch.zeros(8, 64, 32, 32)
    with torch.inference_mode():
        for _ in range(3):
            network(images)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        network(images)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 100, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not has_glibc(), reason="needs glibc")
def test_forked_processes_have_a_heap_each() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def faults(how: str) -> list[int]:
        words = [sys.executable, "-c", FORKED, how]
        done = subprocess.run(words, cwd=SOURCE, env=clean, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    shared = faults("shared")
    assert len(shared) == 6
    assert max(shared) - min(shared) <= 1
    scattered = faults("scattered")
    assert max(scattered) - min(scattered) > 2


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [
        ({}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, True),
        ({"MALLOC_MMAP_MAX_": "0"}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4096"}, True),
        ({"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=512"}, False),
        ({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, True),
    ],
)
def test_whoever_chooses_an_allocator_is_obeyed(environ: dict[str, str], chosen: bool) -> None:
    assert chosen_by_user(environ) is chosen


class Refusing:
    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def mallopt(self, what: int, value: int) -> int:
        self.asked.append((what, value))
        return 0


def test_a_refusal_and_another_libc_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    library = Refusing()
    assert not keep_memory({}, library)
    assert library.asked == [(-3, 1 << 30), (-4, 0)]
    assert not keep_memory({}, object())
    assert not keep_memory({"MALLOC_TRIM_THRESHOLD_": "1"}, library)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_memory({}, library)
    assert len(library.asked) == 2
    with pytest.raises(WorkloadError, match="cannot be told to keep freed memory"):
        choose_memory(True, {})


class Old(Refusing):
    """Refuses a threshold above 32 MiB."""

    def mallopt(self, what: int, value: int) -> int:
        super().mallopt(what, value)
        return int(value <= 32 << 20)


def test_an_older_glibc_takes_nothing_from_mmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator, "_ask_for_huge_pages", lambda library: None)
    library = Old()
    assert keep_memory({}, library)
    assert library.asked == [(-3, 1 << 30), (-4, 0), (-1, -1)]


def test_a_process_makes_one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def told_to_keep(environ: object) -> bool:
        told.append(True)
        monkeypatch.setattr(allocator, "_kept", True)
        return True

    monkeypatch.setattr(allocator, "keep_memory", told_to_keep)
    assert choose_memory(False, {}) == ""
    assert told == []
    assert choose_memory(True, {}) == ""
    assert told == [True]
    with pytest.raises(WorkloadError, match="in a process of its own"):
        choose_memory(False, {})


def test_a_user_s_choice_is_told_where_keep_would_decide() -> None:
    environ = {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}
    assert "the environment decides" in choose_memory(True, environ)
    assert choose_memory(False, environ) == ""
    assert described(environ) == "chosen by the environment"
