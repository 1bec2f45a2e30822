"""Trace files: what goes in comes out, a torn end is passed over, damage is not."""

import gzip
import json
from pathlib import Path

import pytest

from bench.selfcheck.traces import Block, Header, TraceWriter, read
from bench.timing.clock import Slice
from results.errors import RecordError

HEADER = Header(
    created="2026-01-01T00:00:00Z",
    machine={"fingerprint": {"device": "fake"}},
    load="core",
    workloads=("inference/a@x/b1/s8/c10/cpu", "loading/pil@x/b1/s8/d/cpu"),
    slice_seconds=0.15,
    sample_seconds=0.01,
    sampled_rounds=2,
    threads=2,
    seed=0,
    code="abc",
)


def turn(step: float, **more: object) -> Slice:
    samples = (step * 0.98, step * 1.01, step * 1.01)
    return Slice(sum(samples), 3, samples=samples, **more)  # type: ignore[arg-type]


def block(start: float = 1.7e9) -> Block:
    rounds = tuple({"head": turn(0.0203456789 + i / 1000), "base": turn(0.02)} for i in range(3))
    return Block(start, 12.5, 0.25, 0.001, (rounds, ()))


def write(path: Path, blocks: int) -> None:
    with TraceWriter(path, HEADER) as writer:
        for number in range(blocks):
            writer.add(block(1.7e9 + number))


def test_a_trace_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    write(path, 2)
    trace = read(path)
    assert trace.header == HEADER
    assert (trace.torn, trace.whole) == (0, path.stat().st_size)
    assert [b.start for b in trace.blocks] == [1.7e9, 1.7e9 + 1]
    assert (trace.blocks[0].foreign, trace.blocks[0].reference) == (0.25, 0.001)
    first, old = trace.blocks[0].rounds[0][1], block().rounds[0][1]
    for side in ("base", "head"):
        assert first[side].seconds_per_step == pytest.approx(old[side].seconds_per_step, rel=1e-6)
        assert first[side].steps == 3
        assert first[side].samples == pytest.approx(old[side].samples, rel=6e-5)
    assert trace.blocks[0].rounds[1] == ()
    assert trace.of(HEADER.workloads[1]) == []


def test_single_times_are_kept_for_the_sampled_rounds_only(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    write(path, 1)
    assert [len(turns["base"].samples) for turns in read(path).blocks[0].rounds[0]] == [3, 3, 0]


def test_steps_too_short_for_a_sample_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    short = Slice(0.04, 40, samples=tuple([0.0005] * 20 + [0.0015] * 20))
    with TraceWriter(path, HEADER) as writer:
        writer.add(Block(0.0, 1.0, None, 0.001, (({"base": short, "head": short},), ())))
    found = read(path).blocks[0].rounds[0][0]["base"].samples
    assert found == pytest.approx((0.0005, 0.0005, 0.0015, 0.0015), rel=1e-4)


def test_clocks_and_throttling_are_kept_where_they_were_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    slow = {"base": turn(0.02, clock_hertz=1e9, throttled=True), "head": turn(0.02, clock_hertz=2e9)}
    with TraceWriter(path, HEADER) as writer:
        writer.add(Block(0.0, 1.0, None, 0.001, ((slow,), ())))
    found = read(path).blocks[0].rounds[0][0]
    assert (found["base"].clock_hertz, found["base"].throttled) == (1e9, True)
    assert (found["head"].clock_hertz, found["head"].throttled) == (2e9, False)


@pytest.mark.parametrize("lost", [1, 20, 100])
def test_a_torn_last_line_is_passed_over_and_written_anew(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "t.json.gz"
    write(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    torn = read(path)
    assert len(torn.blocks) == 1
    assert torn.torn > 0
    with TraceWriter(path, HEADER) as writer:
        writer.add(block(1.7e9 + 1))
    assert path.read_bytes() == whole


def test_a_trace_packed_as_one_member_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    write(path, 3)
    before = read(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    after = read(path)
    assert (after.header, after.blocks) == (before.header, before.blocks)


def test_damage_before_the_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    write(path, 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(RecordError, match="damaged at byte"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"trace": 99}, "trace 99"),
        ({"trace": 1, "colour": "red"}, "colour"),
        ([1], "trace None"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, line: object, message: str) -> None:
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(json.dumps(line).encode()))
    with pytest.raises(RecordError, match=message):
        read(path)


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read"):
        read(tmp_path / "none.json.gz")
    path = tmp_path / "t.json.gz"
    write(path, 1)
    with pytest.raises(RecordError, match="holds no kernel"):
        read(path).of("kernel")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(RecordError, match="holds no trace"):
        read(tmp_path / "empty")
