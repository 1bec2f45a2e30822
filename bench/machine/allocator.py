"""The C library's allocator, told to keep what a step frees: the next step needs just as much."""

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
    """Have this process keep freed memory, blocks of up to 1 GiB; those it starts inherit it by fork only.

    glibc hands large blocks back to the kernel when a step frees its activations, and the next step's first touch of
    each page is a fault that clears it. The process then holds its largest working set until it ends. Nothing happens
    without glibc, beside another allocator, and where the user has set these thresholds. Source: mallopt(3).

    Args:
        environ: the environment.
        library: the C library; the one of this process by default.

    Returns:
        whether it does.
    """
    global _kept
    if sys.platform != "linux" or chosen_by_user(environ):
        return False
    try:
        mallopt = (library or ctypes.CDLL(None)).mallopt
    except (AttributeError, OSError):
        return False
    # Either one ends glibc's own guess of both thresholds, so the second must not be missing.
    _kept = bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT))
    return _kept


def chosen_by_user(environ: Mapping[str, str]) -> bool:
    """Whether the environment says how memory is allocated: then it is obeyed."""
    return (
        any(name in environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"))
        or "glibc.malloc." in environ.get("GLIBC_TUNABLES", "")
        or "malloc" in environ.get("LD_PRELOAD", "")
    )


def described() -> str:
    """For a record: what this process was told."""
    return "keeps freed memory" if _kept else "default"
