"""Traces as files: blocks of identical code against itself, as `bench check` measures them, one line a block.

A trace is gzip over JSON lines: a header, then a line for each block. Every line is a gzip member of its own and is on
the disk before the next block begins, so a killed recording loses only the block it was in; members that were packed
together afterwards read the same. Nothing is rounded but single times: they are whole ten thousandths of their slice's
mean away from it, which is below what the clock resolves in a step of milliseconds and keeps a trace small.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bench.timing.clock import Slice
from bench.timing.duel import Round
from results.errors import RecordError
from results.store import GrowingFile

SCHEMA = 1
SIDES = ("base", "head")
SAMPLE_SECONDS = 0.01
"""Shortest time stored as one sample: asv's sample_time, the finest grain that any of the judged rules asks for."""
STEP = 1e-4


@dataclass(frozen=True)
class Header:
    """What a whole trace was recorded with.

    Attributes:
        created: when, as in a record.
        machine: as in a record.
        load: "none", or "core" for a process that keeps one core busy now and then.
        workloads: ids, in the order that blocks list them.
        slice_seconds: aimed at for a side's turn.
        sample_seconds: steps shorter than this are averaged up to it in what is stored as single times.
        sampled_rounds: rounds of a block whose single times are stored, counted from the first.
        threads, seed: see Conditions.
        code: digest of the code that was measured.
    """

    created: str
    machine: Mapping[str, Any]
    load: str
    workloads: tuple[str, ...]
    slice_seconds: float
    sample_seconds: float
    sampled_rounds: int
    threads: int
    seed: int
    code: str


@dataclass(frozen=True)
class Block:
    """A fresh pair of processes.

    Attributes:
        start: Unix time, seconds.
        seconds: it took in all.
        foreign: share of the machine that others had meanwhile, 0..1; None where the system does not say.
        reference: seconds of one step of the pinned reference, measured when the block began.
        rounds: for each workload its rounds, each side's slice by name; empty where it gave none.
    """

    start: float
    seconds: float
    foreign: float | None
    reference: float
    rounds: tuple[tuple[Round, ...], ...]


@dataclass(frozen=True)
class Trace:
    """A file, read.

    Attributes:
        path: where from.
        header, blocks: what it holds.
        whole: bytes up to the end of the last whole line; what follows was torn by a kill.
        torn: bytes after that.
    """

    path: Path
    header: Header
    blocks: tuple[Block, ...]
    whole: int
    torn: int

    def of(self, workload: str) -> list[Sequence[Round]]:
        """Rounds of each block that measured a workload, in the order of time. Raises RecordError for an unknown id."""
        if workload not in self.header.workloads:
            raise RecordError(f"{self.path} holds no {workload}; it holds {', '.join(self.header.workloads)}")
        place = self.header.workloads.index(workload)
        return [block.rounds[place] for block in self.blocks if block.rounds[place]]


class TraceWriter(GrowingFile):
    """Adds blocks to a trace; a new file gets its header, an old one goes on behind its last whole line.

    Raises RecordError where the file cannot be written, and for a file that is no trace.
    """

    def __init__(self, path: Path, header: Header) -> None:
        found = read(path) if path.exists() and path.stat().st_size else None
        super().__init__(path, binary=True)
        self._header = found.header if found else header
        with self._writing():
            if found and found.torn:
                self._file.truncate(found.whole)
            if found is None:
                self._line({"trace": SCHEMA, **asdict(header)})

    def add(self, block: Block) -> None:
        """Store a block; on return it is on the disk."""
        self._line(
            {
                "start": round(block.start, 3),
                "seconds": round(block.seconds, 3),
                "foreign": None if block.foreign is None else round(block.foreign, 4),
                "reference": float(f"{block.reference:.7g}"),
                "rounds": [_packed(rounds, self._header) for rounds in block.rounds],
            }
        )

    def _line(self, data: Mapping[str, Any]) -> None:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n"
        with self._writing():
            self._file.write(gzip.compress(text.encode(), 9, mtime=0))
        self.flush()


def read(path: Path) -> Trace:
    """A trace, without a last line that a kill has torn.

    Raises:
        RecordError: no such file, no trace, a newer form, or damage before the end.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror or error}") from error
    text, whole = _unpacked(data, path)
    lines = text.splitlines()
    if not lines:
        raise RecordError(f"{path} holds no trace: not even its header is whole; delete it and record again")
    try:
        header = _header(json.loads(lines[0]), path)
        blocks = tuple(_block(json.loads(line), header) for line in lines[1:])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RecordError(f"{path} is no trace of this program: {error!r}; name a file that record wrote") from error
    return Trace(path, header, blocks, whole, len(data) - whole)


def _unpacked(data: bytes, path: Path) -> tuple[str, int]:
    """Text of the whole gzip members, and the number of bytes that they fill."""
    parts: list[bytes] = []
    whole = 0
    while whole < len(data):
        member = zlib.decompressobj(wbits=31)
        try:
            part = member.decompress(data[whole:])
        except zlib.error as error:
            raise RecordError(f"{path} is damaged at byte {whole}: {error}; it cannot be used") from error
        if not member.eof:
            break
        parts.append(part)
        whole = len(data) - len(member.unused_data)
    try:
        return b"".join(parts).decode(), whole
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is no trace: {error}") from error


def _header(data: Mapping[str, Any], path: Path) -> Header:
    known = [field.name for field in fields(Header)]
    if not isinstance(data, dict) or data.get("trace") != SCHEMA:
        found = data.get("trace") if isinstance(data, dict) else None
        raise RecordError(f"{path}: its first line says trace {found!r}; this program reads trace {SCHEMA}")
    wrong = set(data) ^ {"trace", *known}
    if wrong:
        raise RecordError(f"{path}: the header has {', '.join(sorted(wrong))} too much or too little")
    return Header(**{**{name: data[name] for name in known}, "workloads": tuple(data["workloads"])})


def _block(data: Mapping[str, Any], header: Header) -> Block:
    rounds = tuple(_rounds(packed) for packed in data["rounds"])
    if len(rounds) != len(header.workloads):
        raise ValueError(f"a block of {len(rounds)} workloads where the header names {len(header.workloads)}")
    return Block(data["start"], data["seconds"], data["foreign"], data["reference"], rounds)


def _packed(rounds: Sequence[Round], header: Header) -> dict[str, Any] | None:
    """Steps of a slice, and by side lists over rounds: seconds a step, single times, clock and throttling if read."""
    if not rounds:
        return None
    slices = {side: [turns[side] for turns in rounds] for side in SIDES}
    packed: dict[str, Any] = {"steps": slices["base"][0].steps}
    for side, turns in slices.items():
        if {turn.steps for turn in turns} != {packed["steps"]}:
            raise ValueError("slices of a block differ in their number of steps")
        kept: dict[str, Any] = {
            "seconds": [float(f"{turn.seconds_per_step:.7g}") for turn in turns],
            "samples": [
                _samples(turn, header.sample_seconds) if number < header.sampled_rounds else []
                for number, turn in enumerate(turns)
            ],
        }
        if any(turn.clock_hertz is not None for turn in turns):
            kept["clock_hertz"] = [turn.clock_hertz for turn in turns]
        if any(turn.throttled for turn in turns):
            kept["throttled"] = [turn.throttled for turn in turns]
        packed[side] = kept
    return packed


def _samples(turn: Slice, least: float) -> list[int]:
    """Single times in ten thousandths of the mean away from it, neighbours averaged where a step is too short."""
    times = turn.samples
    if not times:
        return []
    mean = float(f"{turn.seconds_per_step:.7g}")
    count = max(1, min(len(times), int(turn.seconds / least)))
    edges = [number * len(times) // count for number in range(count + 1)]
    return [round((sum(times[a:b]) / (b - a) / mean - 1) / STEP) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _rounds(packed: Mapping[str, Any] | None) -> tuple[Round, ...]:
    if packed is None:
        return ()
    sides = {side: _slices(packed["steps"], packed[side]) for side in SIDES}
    return tuple({"base": a, "head": b} for a, b in zip(sides["base"], sides["head"], strict=True))


def _slices(steps: int, packed: Mapping[str, Any]) -> list[Slice]:
    rounds = len(packed["seconds"])
    clocks = packed.get("clock_hertz", [None] * rounds)
    throttled = packed.get("throttled", [False] * rounds)
    return [
        Slice(
            mean * steps,
            steps,
            samples=tuple(mean * (1 + STEP * away) for away in samples),
            clock_hertz=clock,
            throttled=slow,
        )
        for mean, samples, clock, slow in zip(packed["seconds"], packed["samples"], clocks, throttled, strict=True)
    ]
