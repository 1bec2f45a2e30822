"""Whether a process keeps the memory that a step frees, because the next step needs as much."""

import ctypes
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import WorkloadError
from models.configuration import has_glibc

# M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_MMAP_MAX of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
_LARGEST_KEPT = 1 << 30
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20

# What does the same for a program of the user's: no block from mmap, and nothing given back from the heap's end. The
# threshold of keep_memory would do as well, but older versions of glibc silently refuse it.
FOR_SCRIPTS = "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
BY_LEVER = "keeps freed memory where the lever keep says so"
_CHOICES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_")

_kept = False
_scattered: list[Any] = []


def scatter_heap(generator: random.Random | None = None) -> None:
    """Give this forked process a heap of its own: blocks of random sizes, half of which stay allocated.

    Without keep, what glibc's heap happens to hold at its end decides how much of what a step frees goes back to the
    kernel, and so how long the step takes. Processes forked from one share its heap: all blocks of a run would agree
    on a time, and those of the next run on another. With a heap each they differ as processes of a user's do, and an
    interval over blocks holds what the next run will find.

    Args:
        generator: of the sizes; by default the system's, since a seeded one would be forked too.
    """
    import torch

    draw = generator or random.SystemRandom()
    # Up to 4 MB, small ones as often as large ones; untouched pages cost no memory.
    blocks = [torch.empty(draw.randrange(1, 1 << draw.randrange(10, 23)), dtype=torch.uint8) for _ in range(64)]
    draw.shuffle(blocks)
    _scattered[:] = blocks[::2]


def choose_memory(keep: bool, environ: Mapping[str, str] = os.environ) -> str:
    """Have this process keep freed memory from now on, or not, as the configuration says that it is to measure.

    Returns:
        what a reader of its numbers must know: that the user's environment decides instead; else "".

    Raises:
        WorkloadError: it is not to keep memory and does already, which cannot be taken back; or it cannot here.
    """
    if not keep:
        if _kept:
            raise WorkloadError(
                "this process keeps freed memory, because a configuration with keep came before; "
                "measure the one without keep first, or in a process of its own"
            )
        return ""
    if chosen_by_user(environ):
        return "keep: the environment decides what is done with freed memory (MALLOC_..., GLIBC_TUNABLES, LD_PRELOAD)"
    if not keep_memory(environ):
        raise WorkloadError("keep: this C library cannot be told to keep freed memory; leave out keep")
    return ""


def keep_memory(environ: Mapping[str, str] = os.environ, library: Any = None) -> bool:
    """Have this process keep freed blocks of up to 1 GiB; of its children only forked ones inherit that.

    By default glibc hands large blocks back to the kernel when a step frees its activations, and the next step pays a
    page fault for each page it touches. Afterwards the process holds its largest working set until it ends, in pages of
    2 MiB where the system gives them (see _ask_for_huge_pages). Nothing happens without glibc, with another allocator,
    or where the user has set these thresholds. Source: mallopt(3).

    Args:
        environ: the environment.
        library: the C library; by default the one of this process.

    Returns:
        whether the C library agreed.
    """
    global _kept
    if sys.platform != "linux" or chosen_by_user(environ):
        return False
    try:
        library = library or ctypes.CDLL(None)
        mallopt = library.mallopt
    except (AttributeError, OSError):
        return False
    # Setting either threshold stops glibc from adapting both, so both have to be set. Older versions of glibc refuse a
    # threshold as high; they are told to take no block from mmap.
    high = bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) or bool(mallopt(_MMAP_MAX, 0))
    before, _kept = _kept, high and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
    if _kept and not before:
        _ask_for_huge_pages(library)
    return _kept


def _ask_for_huge_pages(library: Any) -> None:
    """Have what malloc hands out from now on lie in pages of 2 MiB, so that a step misses the TLB far less often.

    A step of training reads and writes all of its memory several times, and a lookup of a page is longest in a virtual
    machine. glibc asks for such pages only where a variable says so before a process starts. Here the heap takes half
    of the machine's memory as addresses, asks for them, and frees them at once: nothing of it is touched, nothing goes
    back, and blocks are cut from its beginning. Source: Documentation/admin-guide/mm/transhuge.rst of Linux.
    """
    import resource

    unlimited = all(
        resource.getrlimit(kind)[0] == resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )
    if not unlimited or _counts_addresses():
        return
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = _LARGEST_KEPT - _HUGE_PAGE
    blocks = []
    for _ in range(memory // 2 // size):
        block = library.malloc(size)
        if block is None:
            break
        blocks.append(block)
        first, end = -(-block // _HUGE_PAGE) * _HUGE_PAGE, (block + size) // _HUGE_PAGE * _HUGE_PAGE
        library.madvise(first, end - first, _MADV_HUGEPAGE)
    for block in blocks:
        library.free(block)


def _counts_addresses(setting: Path = Path("/proc/sys/vm/overcommit_memory")) -> bool:
    """Whether the system promises memory for every address, used or not, so that none may be taken for nothing."""
    try:
        return setting.read_text().strip() == "2"
    except OSError:
        return True


def chosen_by_user(environ: Mapping[str, str]) -> bool:
    """Whether the environment chooses how memory is allocated; that choice is respected."""
    return (
        any(name in environ for name in _CHOICES)
        or "glibc.malloc." in environ.get("GLIBC_TUNABLES", "")
        or "malloc" in environ.get("LD_PRELOAD", "")
    )


def described(environ: Mapping[str, str]) -> str:
    """What a record says of the allocator of its processes."""
    if not has_glibc():
        return "not glibc's"
    return "chosen by the environment" if chosen_by_user(environ) else BY_LEVER
