"""Sampling and energy, with scripted sensors."""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from fabricated_machine import FabricatedNvml, Gpu, roots

from bench.machine.telemetry import (
    CpuSensor,
    GpuSensor,
    Sample,
    Telemetry,
    idle_watts,
    measure_energy,
    sensor_for,
    summarise,
)


class ScriptedSensor:
    """Counts its readings; fails at reading number `fail_at`."""

    counter_seconds = 0.1
    missing: Mapping[str, str] = {"celsius": "not scripted"}

    def __init__(self, fail_at: int | None = None) -> None:
        self.readings = 0
        self.fail_at = fail_at
        self.seen = threading.Event()

    def sample(self) -> Sample:
        self.readings += 1
        if self.readings == self.fail_at:
            self.seen.set()
            raise OSError("sensor unplugged")
        if self.readings >= 3:
            self.seen.set()
        return Sample(seconds=float(self.readings), clock_hertz=1e9 + self.readings)

    def joules(self) -> float | None:
        return None


def test_summary_of_samples() -> None:
    samples = [
        Sample(0.0, clock_hertz=1e9, watts=100, celsius=50, throttle=0x0, memory_bytes=10, load=0.5, stolen=0.0),
        Sample(1.0, clock_hertz=2e9, watts=300, celsius=70, throttle=0x4, memory_bytes=30, load=1.0, stolen=0.2),
        Sample(2.0, clock_hertz=2e9, watts=None, celsius=60, throttle=0x0, memory_bytes=20),
    ]
    found = summarise(samples, {"x": "y"})
    assert (found.samples, found.seconds) == (3, 2.0)
    assert (found.clock_hertz, found.clock_lowest_hertz) == (2e9, 1e9)
    assert (found.watts, found.celsius, found.memory_bytes) == (200, 70, 30)
    assert (found.throttled, found.power_limited) == (False, True)
    assert (found.load, found.stolen) == (0.75, 0.1)
    assert found.missing == {"x": "y"}


@pytest.mark.parametrize("bits", [0x8, 0x20, 0x40, 0x80])
def test_throttling_is_seen_in_any_sample(bits: int) -> None:
    assert summarise([Sample(0, throttle=0), Sample(1, throttle=bits | 1)], {}).throttled is True


def test_nothing_sampled_says_so() -> None:
    found = summarise([], {})
    assert found.clock_hertz is None
    assert found.throttled is None
    assert found.missing["clock_hertz"] == "nothing was sampled"


def test_thread_samples_while_the_block_runs() -> None:
    sensor = ScriptedSensor()
    with Telemetry(sensor, period=0.001) as telemetry:
        assert sensor.seen.wait(timeout=10)
    # One more at the end, so that the shortest block has its closing state.
    assert len(telemetry.samples) == sensor.readings >= 4
    assert telemetry.summary().missing == {"celsius": "not scripted"}
    assert not any(thread.name == "telemetry" for thread in threading.enumerate())


def test_failing_sensor_is_reported() -> None:
    sensor = ScriptedSensor(fail_at=2)
    with pytest.raises(OSError, match="unplugged"), Telemetry(sensor, period=0.001):
        assert sensor.seen.wait(timeout=10)


def test_failing_sensor_does_not_hide_the_error_inside() -> None:
    sensor = ScriptedSensor(fail_at=1)
    telemetry = Telemetry(sensor, period=0.001).__enter__()
    assert sensor.seen.wait(timeout=10)
    telemetry.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert telemetry.samples == []


def test_gpu_sensor() -> None:
    gpu = Gpu(milliwatts=None, events=0x4)
    sensor = GpuSensor(FabricatedNvml(gpu), gpu, now=lambda: 12.0)
    assert sensor.sample() == Sample(
        12.0, clock_hertz=1.5e9, watts=None, celsius=55, throttle=0x4, memory_bytes=1 << 30
    )
    assert sensor.joules() == 1000.0
    assert sensor.missing == {
        "watts": "this GPU or its driver does not report it",
        "load": "belongs to the CPU",
        "stolen": "belongs to the CPU",
    }


def test_cpu_sensor_reads_differences(tmp_path: Path) -> None:
    tree = roots(tmp_path)
    sensor = CpuSensor(tree, "no GPU", now=lambda: 3.0)
    # 100 ticks more: 60 of them idle, 10 stolen.
    (tree.proc / "stat").write_text("cpu  130 0 50 860 20 0 10 30 0 0\n")
    found = sensor.sample()
    assert (found.load, found.stolen) == (pytest.approx(0.4), pytest.approx(0.1))
    assert (found.seconds, found.clock_hertz) == (3.0, None)
    assert sensor.sample().load == 0.0
    assert sensor.missing == dict.fromkeys(("clock_hertz", "watts", "celsius", "throttle", "memory_bytes"), "no GPU")
    assert sensor.joules() is None
    (tree.proc / "stat").unlink()
    assert CpuSensor(tree, "no GPU").missing["load"] == "no /proc/stat"
    assert sensor.sample().load is None


def test_package_energy_survives_the_counter_turning_over(tmp_path: Path) -> None:
    tree = roots(
        tmp_path,
        **{
            "sys__class__powercap__intel-rapl:0__energy_uj": "900",
            "sys__class__powercap__intel-rapl:0__max_energy_range_uj": "1000",
            "sys__class__powercap__intel-rapl:0:0__energy_uj": "55",
            "sys__class__powercap__intel-rapl:0:0__max_energy_range_uj": "1000",
        },
    )
    sensor = CpuSensor(tree, "no GPU")
    counter = tree.sys / "class/powercap/intel-rapl:0/energy_uj"
    readings = [sensor.joules()]
    for value in ("100", "50"):
        counter.write_text(value)
        readings.append(sensor.joules())
    assert readings == pytest.approx([900e-6, 1100e-6, 2050e-6])


def test_sensor_for_a_gpu_that_nvml_does_not_show(tmp_path: Path) -> None:
    sensor = sensor_for("cuda:1", roots(tmp_path), FabricatedNvml(Gpu()), {})
    assert isinstance(sensor, CpuSensor)
    assert sensor.missing["clock_hertz"] == "NVML does not show cuda:1"
    assert sensor.sample().load is not None
    assert isinstance(sensor_for("cpu"), CpuSensor)


def test_sensor_for_a_device() -> None:
    nvml = FabricatedNvml(Gpu("GPU-aaaa"), Gpu("GPU-bbbb", celsius=71))
    sensor = sensor_for("cuda:0", None, nvml, {"CUDA_VISIBLE_DEVICES": "1"})
    assert sensor.sample().celsius == 71


class Meter(ScriptedSensor):
    """A counter that follows a clock that the test moves, at 70 W."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    def joules(self) -> float | None:
        return 70 * self.seconds


def test_energy_is_measured_over_a_window_long_enough_for_the_counter() -> None:
    meter = Meter()
    used = measure_energy(meter, lambda: meter.wait(4.0), lambda: meter.seconds)
    assert used is not None
    # A hundred steps of 0.1 s and a little more.
    assert (used.seconds, used.calls, used.joules) == (12.0, 3, pytest.approx(840))


def test_idle_power_is_measured_while_nothing_runs() -> None:
    meter = Meter()
    assert idle_watts(meter, lambda: meter.seconds, meter.wait) == pytest.approx(70)


def test_energy_without_a_counter() -> None:
    assert measure_energy(ScriptedSensor(), lambda: None) is None
    assert idle_watts(ScriptedSensor()) is None
