"""The same work on many files, in threads: decoding and encoding release the interpreter's lock."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> list[Result]:
    """The results of `work` in the order of `items`.

    Args:
        threads: by default one for each core this process may use.

    Raises:
        whatever `work` raised first.
    """
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(work, items))


def lone_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Running threads in each of which torch's operators stay on that thread.

    A single image is too small to share; the threads of a team would compete with the others for the cores.

    Args:
        count: of threads.
        name: in front of their numbers, for debuggers.
    """
    import torch

    def work_alone() -> None:
        torch.set_num_threads(1)
        # A thread adopts the process-wide default at its first query; after this one it keeps the 1.
        torch.get_num_threads()

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, name, work_alone)
    together = threading.Barrier(count)
    # Each waits for the others: otherwise one thread could answer several calls and the rest start later.
    list(pool.map(lambda _: together.wait(), range(count)))
    # OpenMP's thread count belongs to each thread, torch's default for new threads to the process: the threads
    # lowered both for themselves, the default is restored here.
    torch.set_num_threads(threads)
    return pool
