"""A run's record while it grows: stored again after every row, so that an interruption loses nothing."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.inspecting import reference
from bench.locks import HeldError, hold
from bench.screen import Screen
from results import store
from results.errors import RecordError
from results.record import Metric, Record, utc_now


class Growing(Protocol):
    """What a run log follows: something that knows its machine and can be continued from its state."""

    machine: dict[str, Any]
    references: list[float]

    def state(self) -> dict[str, Any]: ...


class RunLog:
    """Collects metrics and stores them.

    Args:
        kind: "compare".
        command: as the user typed it.
        operands: labels, the reference first.
        settings: must agree for a run to be continued.
        folder: of stored runs; None is store.FOLDER.
        stored: whether anything is written there.
        again: how a run that was interrupted is continued, in words.
        tag: the name that the stored result shall have; "" for one made of the time.

    Raises:
        RecordError: no result can have this name.

    Attributes:
        failure: why the latest attempt to store failed, "" if it did not. Measuring goes on: what could not be stored
            can still be printed.
        taken: why the result does not have the name that it was to have, "" if it does.
    """

    def __init__(
        self,
        kind: str,
        command: str,
        operands: Sequence[str],
        settings: Mapping[str, Any],
        folder: Path | None,
        stored: bool = True,
        again: str = "the same command with --resume goes on",
        tag: str = "",
    ) -> None:
        self.kind = kind
        self.command = command
        self.operands = tuple(operands)
        self.settings = dict(settings)
        self.folder = folder or store.FOLDER
        self.stored = stored
        self.again = again
        self.path = store.tagged_path(tag, self.folder) if tag else store.new_path(kind, self.folder)
        self.created = utc_now()
        self.metrics: dict[str, Metric] = {}
        self.failure = ""
        self.taken = ""
        # Whether the file of `path` is this run's.
        self._owned = False
        self.source: Growing | None = None
        self._locks = contextlib.ExitStack()

    def follow(self, source: Growing) -> None:
        """Take machine and state from `source` whenever the record is stored."""
        self.source = source

    def resume(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The state of the newest interrupted run with the same operands and settings, whose file is then continued.

        None, said aloud, if there is none. One that another process is measuring has not been interrupted.
        """
        stored, skipped = store.list_records(self.folder) if Path(self.folder).is_dir() else ([], [])
        for path, reason in skipped:
            say(f"skipped {path}: {reason}")
        for path, found in reversed(stored):
            if not self._continues(found):
                continue
            try:
                self._hold(path)
            except HeldError as error:
                say(f"{path} is being measured by {error.who}")
                continue
            # Whoever held it until now may have gone on with it.
            record = store.load(path)
            if not self._continues(record):
                self._let_go()
                continue
            self.path, self.created, self._owned = path, record.created, True
            say(f"going on with {path}")
            state: dict[str, Any] = record.settings.get("state", {})
            return state
        say("nothing to resume: no comparison with these settings was interrupted; starting from the beginning")
        return None

    def _continues(self, record: Record) -> bool:
        """Whether a stored run was interrupted and had the same operands and settings."""
        same = {k: v for k, v in record.settings.items() if k not in ("state", "reference")} == self.settings
        return record.kind == self.kind and not record.complete and record.operands == self.operands and same

    def _hold(self, path: Path) -> None:
        """Keep other processes from continuing a run's file. Raises HeldError: another one does."""
        lock = path.with_name(f".{path.name}{store.LOCK}")
        # Where nothing can be written, nothing can be continued either; storing will say so.
        with contextlib.suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            self._locks.enter_context(hold(lock))
            self._locks.callback(lock.unlink, missing_ok=True)

    def _begin(self) -> None:
        """Keep the new file for this process. Raises TakenError: another one has the name that it was to have."""
        try:
            self._hold(self.path)
        except HeldError as error:
            raise store.TakenError(f"{self.path} is being measured by {error.who}; choose another --tag") from None
        try:
            store.refuse_taken(self.path)
        except RecordError:
            self._let_go()
            raise

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self._locks.close()

    @contextlib.contextmanager
    def kept(self, screen: Screen) -> Iterator[None]:
        """Store what was measured when the block ends: as complete, or after an error or interruption as begun."""
        if self.stored and not self._owned:
            self._begin()
        try:
            yield
        except BaseException:
            screen.clear()
            if self.stored and self.metrics:
                self.save(complete=False)
                screen.say(f"kept what was measured in {self.path}; {self.again}")
            raise
        else:
            screen.clear()
            self.save(complete=True)
        finally:
            self._let_go()

    def add(self, metric: Metric) -> None:
        """Keep a metric (a later one of the same name replaces it) and store the record."""
        self.metrics[metric.name] = metric
        self.save(complete=False)

    def record(self, complete: bool) -> Record:
        """The record as it stands; an incomplete one carries what a later run needs to go on."""
        machine = dict(self.source.machine) if self.source else {}
        settings = dict(self.settings)
        if not complete and self.source:
            settings["state"] = self.source.state()
        if self.source and self.source.references:
            settings["reference"] = reference.to_record(self.source.references)
        return Record(
            kind=self.kind,
            created=self.created,
            command=self.command,
            commit=machine.pop("commit", None),
            machine=machine,
            operands=self.operands,
            metrics=tuple(self.metrics.values()),
            complete=complete,
            settings=settings,
        )

    def save(self, complete: bool) -> None:
        """Store, if that is wanted; a failure is kept in `failure`, not raised."""
        if not self.stored:
            return
        try:
            store.save(self.record(complete), self.path, new=not self._owned)
            self._owned, self.failure = True, ""
        except store.TakenError:
            # Without locks another process may come first. What was measured keeps a name of its own.
            mine = store.new_path(self.kind, self.folder)
            self.taken = f"{self.path} was written by another command meanwhile, so this result is {mine}"
            self.path = mine
            self.save(complete)
        except RecordError as error:
            self.failure = str(error)
