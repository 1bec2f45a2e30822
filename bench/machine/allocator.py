"""Has the process keep the memory that a step frees, because the next step needs as much."""

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_NEVER = -1
_LARGEST_KEPT = 1 << 30

_kept = False


def keep_memory(environ: Mapping[str, str] = os.environ, library: Any = None) -> bool:
    """Have this process keep freed blocks of up to 1 GiB; of its children only forked ones inherit that.

    By default glibc hands large blocks back to the kernel when a step frees its activations, and the next step pays a
    page fault for each page it touches. Afterwards the process holds its largest working set until it ends. Nothing
    happens without glibc, with another allocator, or where the user has set these thresholds. Source: mallopt(3).

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
        mallopt = (library or ctypes.CDLL(None)).mallopt
    except (AttributeError, OSError):
        return False
    # Setting either threshold stops glibc from adapting both, so both have to be set.
    _kept = bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT))
    return _kept


def chosen_by_user(environ: Mapping[str, str]) -> bool:
    """Whether the environment chooses how memory is allocated; that choice is respected."""
    return (
        any(name in environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
        or "glibc.malloc." in environ.get("GLIBC_TUNABLES", "")
        or "malloc" in environ.get("LD_PRELOAD", "")
    )


def described() -> str:
    """What a record says of this process's allocator."""
    return "keeps freed memory" if _kept else "default"
