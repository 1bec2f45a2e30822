"""Slices on a clock that only moves when the test says so."""

import pytest

from bench.timing.clock import Slice, time_slice


class FakeClock:
    """Reads as it is told; counts how often it was read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now


def test_a_slice_reads_the_clock_exactly_twice_so_no_synchronisation_falls_between_steps() -> None:
    clock = FakeClock()

    def step() -> None:
        clock.now += 0.5

    turn = time_slice(step, steps=7, drop=2, clock=clock)
    assert clock.reads == 2
    assert turn == Slice(seconds=3.5, steps=7)
    assert turn.seconds_per_step == 0.5


def test_dropped_steps_are_not_timed() -> None:
    clock = FakeClock()
    durations = iter([9.0, 9.0, 1.0, 1.0, 1.0])

    def step() -> None:
        clock.now += next(durations)

    assert time_slice(step, steps=3, drop=2, clock=clock).seconds == 3.0


def test_each_step_on_its_own_adds_up_to_the_slice() -> None:
    clock = FakeClock()
    durations = iter([1.0, 2.0, 4.0])

    def step() -> None:
        clock.now += next(durations)

    turn = time_slice(step, steps=3, drop=0, clock=clock, each=True)
    assert turn.samples == (1.0, 2.0, 4.0)
    assert turn.seconds == sum(turn.samples)
    # One reading between two steps: a pause between them would be charged to neither.
    assert clock.reads == 4


def test_an_empty_slice_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        time_slice(lambda: None, steps=0, drop=0, clock=FakeClock())


def test_the_gpu_clock_waits_for_the_device_before_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from bench.timing import clock

    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("synchronize"))
    monkeypatch.setattr(clock, "perf_counter", lambda: order.append("read") or 1.0)
    assert clock.cuda_clock() == 1.0
    assert order == ["synchronize", "read"]


def test_a_slice_that_an_older_version_stored_is_read_without_what_it_had_besides() -> None:
    stored = {"seconds": 1.0, "steps": 4, "device_seconds": None, "samples": [0.25] * 4, "throttled": True}
    assert Slice.from_json(stored) == Slice(1.0, 4, (0.25,) * 4, throttled=True)
