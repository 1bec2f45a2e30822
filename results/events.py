"""Training figures as TensorBoard event files, written without torch and without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from results.errors import RecordError
from results.history import Epoch, Step
from results.store import GrowingFile, write_whole

_VERSION = "brain.Event:2"
_EPOCH = (
    *("lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5"),
    *("seconds", "loader_seconds", "step_seconds", "evaluation_seconds", "images_per_second"),
)
_STEP = ("lr", "loss", "top1")


class EventWriter(GrowingFile):
    """Writes `epoch/...` figures against the epoch and `step/...` figures against the step.

    What is written stays in memory until `flush`; a kill loses the rest, and readers skip a record that broke.
    """

    def __init__(self, folder: Path | str, after_epoch: int | None = None, after_step: int | None = None) -> None:
        """Opens a new event file in `folder`.

        A run that goes on names the epoch and step it goes on from: events up to there move from the folder's
        older files into the new one with the times they had, later ones are dropped with those files. Raises
        RecordError for a folder that holds events although nothing is gone on from, and for one that cannot be
        written.
        """
        self._folder = Path(folder)
        older = sorted(self._folder.glob("events.out.tfevents.*")) if self._folder.is_dir() else []
        if older and after_epoch is None and after_step is None:
            raise RecordError(
                f"{self._folder} already holds the events of a run ({older[0].name}); resume it or choose another"
            )
        last = {"epoch": after_epoch or 0, "step": after_step or 0}
        # Once each: a kill between writing the new file and removing the old ones leaves them in both.
        records = {data: path for path in older for data in _records(path)}
        kept = [data for data, path in records.items() if _wanted(_event_of(data, path), last)]
        path = self._new_path(older)
        opening = _event(time.time())
        opening.file_version = _VERSION
        start = io.BytesIO()
        for data in (opening.SerializeToString(), *kept):
            _write(start, data)
        write_whole(path, start.getvalue())
        for file in older:
            file.unlink(missing_ok=True)
        super().__init__(path, binary=True)

    def epoch(self, row: Epoch) -> None:
        """Adds an epoch's figures; those it lacks are left out."""
        self._add("epoch", row.epoch, row, _EPOCH)

    def step(self, row: Step) -> None:
        """Adds a step's figures."""
        self._add("step", row.step, row, _STEP)

    def _add(self, group: str, at: int, row: Epoch | Step, names: tuple[str, ...]) -> None:
        event = _event(time.time(), at)
        for name in names:
            x = getattr(row, name)
            if x is not None:
                event.summary.value.add(tag=f"{group}/{name}", simple_value=_single(x))
        with self._writing():
            _write(self._file, event.SerializeToString())

    def _new_path(self, older: list[Path]) -> Path:
        # TensorBoard reads a folder's files in the order of their names, so a later one must sort after the others.
        for second in itertools.count(int(time.time())):
            path = self._folder / f"events.out.tfevents.{second:010d}.{os.getpid()}"
            if not older or path.name > older[-1].name:
                return path
        raise AssertionError("itertools.count ended")


def _event(wall_time: float, step: int = 0) -> Any:
    # Imported here: protocol buffers take a tenth of a second that reading a history should not cost.
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=wall_time, step=step)


def _event_of(data: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    event = _event(0.0)
    try:
        event.ParseFromString(data)
    except DecodeError as error:
        raise RecordError(f"{path}: not an event file; move it away") from error
    return event


def _wanted(event: Any, last: Mapping[str, int]) -> bool:
    groups = [value.tag.split("/")[0] for value in event.summary.value]
    return bool(groups) and bool(event.step <= last.get(groups[0], 0))


def _single(x: float) -> float:
    """The number as far as the format's 4-byte float reaches; beyond it is infinite, as a cast would have it."""
    return math.copysign(math.inf, x) if math.isfinite(x) and abs(x) > 3.4028234663852886e38 else x


def _write(file: IO[bytes], data: bytes) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    RecordWriter(file).write(data)


def _records(path: Path) -> Iterator[bytes]:
    """The whole records of a file; what follows the last of them was cut off by a kill and is left out."""
    from tensorboard.compat.tensorflow_stub.errors import DataLossError, OutOfRangeError
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    reader = PyRecordReader_New(str(path))
    with contextlib.closing(reader.file_handle), contextlib.suppress(DataLossError, OutOfRangeError):
        while True:
            reader.GetNext()
            yield reader.record()
