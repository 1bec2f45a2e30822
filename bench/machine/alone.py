"""Measurements have this machine to themselves: one at a time, and none beside a training."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.errors import UsageError
from bench.locks import HeldError, hold
from bench.screen import Say


def lock_file(device: str) -> Path:
    """The lock of a device. On this host, not in a home folder: many hosts may share one of those."""
    user = os.getuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}"
    if os.access(runtime, os.W_OK):
        return Path(runtime) / "pixbench" / f"{device}.lock"
    return Path(tempfile.gettempdir()) / f"pixbench-{user}" / f"{device}.lock"


def user() -> str | None:
    """A name for a process that measures or trains on this machine, None if there is none."""
    for device in ("cpu", "cuda"):
        try:
            with contextlib.suppress(OSError), _held(device, None):
                pass
        except HeldError as error:
            return error.who
    return None


@contextlib.contextmanager
def measuring(device: str, say: Say, wait: bool = True, force: bool = False) -> Iterator[None]:
    """Have a device alone. Waits, after saying for whom, until other measurements and trainings on it have ended.

    Args:
        wait: whether it waits at all.
        force: go on beside them.

    Raises:
        UsageError: they have not ended, and `wait` is off.
    """

    def waiting(who: str) -> None:
        say(f"waiting for {who}, which measures or trains on this {device}, to end")

    with contextlib.ExitStack() as stack:
        with _noted(say):
            try:
                stack.enter_context(_held(device, waiting if wait and not force else None))
            except HeldError as error:
                if not force:
                    raise UsageError(
                        f"{error.who} measures or trains on this {device}; let it end, or leave out --no-wait"
                    ) from None
                say(f"note: {error.who} measures or trains on this {device} at the same time")
        yield


@contextlib.contextmanager
def training(device: str, say: Say) -> Iterator[None]:
    """Train on a device, beside other trainings but no measurement, for whose end it waits; loaders need the CPU."""

    def waiting(who: str) -> None:
        say(f"waiting for {who}, which measures on this machine, to end")

    with contextlib.ExitStack() as stack:
        for name in dict.fromkeys(("cpu", device)):
            with _noted(say):
                stack.enter_context(_held(name, waiting, shared=True))
        yield


@contextlib.contextmanager
def _noted(say: Say) -> Iterator[None]:
    """Where no lock can be written nobody is kept apart, which is no reason to refuse all work, but to say it."""
    try:
        yield
    except OSError as error:
        say(f"note: other measurements are not kept away: cannot write {error.filename}: {error.strerror}")


def _held(device: str, waiting: Say | None, shared: bool = False) -> contextlib.AbstractContextManager[int]:
    path = lock_file(device)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return hold(path, waiting, shared)
