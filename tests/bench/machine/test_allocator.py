import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from bench.machine import allocator
from bench.machine.allocator import chosen_by_user, keep_memory

SOURCE = Path(allocator.__file__).parents[1]

# Two large blocks, used and freed again and again: how often a page is touched for the first time.
FAULTS = """
import ctypes, resource, sys
from bench.machine.allocator import described, keep_memory
if sys.argv[1] == "keep":
    assert keep_memory({})
    assert described() == "keeps freed memory"
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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_not_cleared_again() -> None:
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], cwd=SOURCE, capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("keep", "default")
    }
    assert faults["default"] > 1000
    assert faults["keep"] < faults["default"] / 10


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [
        ({}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, True),
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
    monkeypatch.setattr(allocator, "_kept", False)
    monkeypatch.setattr(sys, "platform", "linux")
    library = Refusing()
    assert not keep_memory({}, library)
    assert library.asked == [(-1, -1)]
    assert not keep_memory({}, object())
    assert not keep_memory({"MALLOC_TRIM_THRESHOLD_": "1"}, library)
    assert len(library.asked) == 1
    assert allocator.described() == "default"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_memory({}, library)
    assert len(library.asked) == 1
