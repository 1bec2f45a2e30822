"""Traces: files of blocks of code measured against itself, as `bench check` measures.

A trace is gzip over JSON lines: a header, then a line for each block. Every line is a gzip member of its own and is on
the disk before the next block begins, so that a killed recording loses only the block it was in; members that were
packed together afterwards read the same. Only single times are rounded: each is stored as its distance from its slice's
mean in whole ten thousandths of that mean, which is finer than the clock resolves in a step of milliseconds.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.timing.clock import Slice
from bench.timing.duel import Round
from results.errors import RecordError
from results.reading import read as read_object
from results.store import GrowingFile

SCHEMA = 1
SIDES = ("base", "head")
SAMPLE_SECONDS = 0.01
"""Shortest time stored as one sample: asv's sample_time, the finest that any of the judged rules needs."""
STEP = 1e-4


@dataclass(frozen=True)
class Header:
    """How a trace was recorded.

    Attributes:
        created: when, as in a record.
        machine: as in a record.
        load: "none", or "core" for a process that keeps one core busy now and then.
        workloads: ids, in the order that blocks list them.
        slice_seconds: intended length of a side's turn.
        sample_seconds: single times of steps shorter than this are averaged up to it.
        sampled_rounds: how many of a block's first rounds have their single times stored.
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
    """What a fresh pair of processes measured.

    Attributes:
        start: Unix time, seconds.
        seconds: how long it took in all.
        foreign: share of the machine that other programs used meanwhile, 0..1; None where that is not known.
        reference: seconds of one step of the pinned reference, measured when the block began.
        rounds: for each workload its rounds, each side's slice by name; empty where there were none.
    """

    start: float
    seconds: float
    foreign: float | None
    reference: float
    rounds: tuple[tuple[Round, ...], ...]


@dataclass(frozen=True)
class Trace:
    """A trace as read from its file.

    Attributes:
        path: of the file.
        header, blocks: what it holds.
        whole: bytes up to the end of the last whole line.
        torn: bytes after that, torn by a kill.
    """

    path: Path
    header: Header
    blocks: tuple[Block, ...]
    whole: int
    torn: int

    def of(self, workload: str) -> list[Sequence[Round]]:
        """Rounds of each block that measured a workload, oldest first. Raises RecordError for an unknown id."""
        if workload not in self.header.workloads:
            raise RecordError(f"{self.path} holds no {workload}; it holds {', '.join(self.header.workloads)}")
        place = self.header.workloads.index(workload)
        return [block.rounds[place] for block in self.blocks if block.rounds[place]]


class TraceWriter(GrowingFile):
    """Adds blocks to a trace: to a new file after its header, to an old one after its last whole line.

    Raises RecordError where the file cannot be written, and for a file that is not a trace.
    """

    def __init__(self, path: Path, header: Header) -> None:
        super().__init__(path, binary=True, alone=True)
        earlier = read(path) if path.stat().st_size else None
        self._header = earlier.header if earlier else header
        if earlier is None:
            self._line({"trace": SCHEMA, **asdict(header)})
        else:
            with self._writing():
                self._file.truncate(earlier.whole)

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
    """Read a trace, without a last line that a kill has torn.

    Raises:
        RecordError: no such file, not a trace, another version, or damage before the end.
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
        raise RecordError(f"{path} is not a trace: {error!r}; name a file that record wrote") from error
    return Trace(path, header, blocks, whole, len(data) - whole)


def _unpacked(data: bytes, path: Path) -> tuple[str, int]:
    """Text of the whole gzip members, and how many bytes these are."""
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
        raise RecordError(f"{path} is not a trace: {error}") from error


def _header(data: object, path: Path) -> Header:
    version = data.get("trace") if isinstance(data, dict) else None
    if version != SCHEMA:
        raise RecordError(f"{path}: its first line says trace {version!r}; this program reads trace {SCHEMA}")
    return read_object(Header, data, str(path), ignore=("trace",))


def _block(data: Mapping[str, Any], header: Header) -> Block:
    rounds = tuple(_rounds(packed) for packed in data["rounds"])
    if len(rounds) != len(header.workloads):
        raise ValueError(f"a block of {len(rounds)} workloads where the header names {len(header.workloads)}")
    return Block(data["start"], data["seconds"], data["foreign"], data["reference"], rounds)


def _packed(rounds: Sequence[Round], header: Header) -> dict[str, Any] | None:
    """Steps of a slice, and by side lists over rounds: seconds a step, single times, clock and throttling if known."""
    if not rounds:
        return None
    slices = {side: [turns[side] for turns in rounds] for side in SIDES}
    packed: dict[str, Any] = {"steps": slices["base"][0].steps}
    for side, turns in slices.items():
        if {turn.steps for turn in turns} != {packed["steps"]}:
            raise ValueError("slices of a block differ in their number of steps")
        lists: dict[str, Any] = {
            "seconds": [float(f"{turn.seconds_per_step:.7g}") for turn in turns],
            "samples": [
                _samples(turn, header.sample_seconds) if number < header.sampled_rounds else []
                for number, turn in enumerate(turns)
            ],
        }
        if any(turn.clock_hertz is not None for turn in turns):
            lists["clock_hertz"] = [turn.clock_hertz for turn in turns]
        if any(turn.throttled for turn in turns):
            lists["throttled"] = [turn.throttled for turn in turns]
        packed[side] = lists
    return packed


def _samples(turn: Slice, least: float) -> list[int]:
    """Distances of single times from their mean in its ten thousandths; neighbours averaged where a step is short."""
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
    base, head = (_slices(packed["steps"], packed[side]) for side in SIDES)
    return tuple({"base": a, "head": b} for a, b in zip(base, head, strict=True))


def _slices(steps: int, packed: Mapping[str, Any]) -> list[Slice]:
    means = packed["seconds"]
    clocks = packed.get("clock_hertz", [None] * len(means))
    throttled = packed.get("throttled", [False] * len(means))
    return [
        Slice(mean * steps, steps, tuple(mean * (1 + STEP * distance) for distance in distances), clock, slow)
        for mean, distances, clock, slow in zip(means, packed["samples"], clocks, throttled, strict=True)
    ]
