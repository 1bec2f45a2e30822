"""Sensors of a device, sampled while it is measured: clock, power, temperature, load, energy.

    with Telemetry(sensor_for("cuda:0")) as telemetry:
        ...
    summary = telemetry.summary()

A thread reads the sensor a few times a second. What a machine has no sensor for is None, and `sensor.missing` says why.
Energy is the difference of a counter's readings, never an integral of sampled power.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from types import TracebackType
from typing import Any, Protocol

from bench.machine.cpu import Roots, cpu_times
from bench.machine.gpu import POWER_LIMIT, THROTTLING, ask, clock_events, open_nvml, visible_handles

# Reading takes time from the measured program: a few readings a second are little of it, and still one for each slice
# of a comparison.
PERIOD_SECONDS = 0.2

# A counter that moves in steps is wrong by up to one step at either end: a hundred steps keep that below 1 %.
COUNTER_STEPS = 100

GPU_FIELDS = ("clock_hertz", "watts", "celsius", "throttle", "memory_bytes")
HOST_FIELDS = ("load", "stolen")


@dataclass(frozen=True)
class Sample:
    """One reading.

    Attributes:
        seconds: when, by perf_counter.
        clock_hertz, watts, celsius: of the GPU, None where it does not report them.
        throttle: bits of bench.machine.gpu.CLOCK_EVENTS.
        memory_bytes: in use on the GPU.
        load: share of the host's CPU time since the last reading in which a core worked, 0..1.
        stolen: share of it that the hypervisor gave to other guests, 0..1.
    """

    seconds: float
    clock_hertz: float | None = None
    watts: float | None = None
    celsius: float | None = None
    throttle: int | None = None
    memory_bytes: int | None = None
    load: float | None = None
    stolen: float | None = None


@dataclass(frozen=True)
class Summary:
    """The samples of one measurement, reduced to what a record keeps.

    Attributes:
        samples: how many there are.
        seconds: from the first to the last.
        clock_hertz: median, which a clock that idled before the work began cannot drag down.
        clock_lowest_hertz: the lowest.
        watts, load, stolen: means.
        celsius, memory_bytes: the highest.
        throttled, power_limited: whether any sample was.
        missing: field -> why there is no number.
    """

    samples: int
    seconds: float
    clock_hertz: float | None
    clock_lowest_hertz: float | None
    watts: float | None
    celsius: float | None
    throttled: bool | None
    power_limited: bool | None
    memory_bytes: int | None
    load: float | None
    stolen: float | None
    missing: Mapping[str, str] = field(default_factory=dict)


def summarise(samples: list[Sample], missing: Mapping[str, str]) -> Summary:
    """Reduce samples to one Summary; without samples every field is None and says so."""
    known = {
        name: [value for sample in samples if (value := getattr(sample, name)) is not None]
        for name in (*GPU_FIELDS, *HOST_FIELDS)
    }

    def reduced(name: str, reduce: Callable[[list[Any]], Any]) -> Any:
        return reduce(known[name]) if known[name] else None

    return Summary(
        samples=len(samples),
        seconds=samples[-1].seconds - samples[0].seconds if samples else 0.0,
        clock_hertz=reduced("clock_hertz", median),
        clock_lowest_hertz=reduced("clock_hertz", min),
        watts=reduced("watts", fmean),
        celsius=reduced("celsius", max),
        throttled=reduced("throttle", lambda events: any(bits & THROTTLING for bits in events)),
        power_limited=reduced("throttle", lambda events: any(bits & POWER_LIMIT for bits in events)),
        memory_bytes=reduced("memory_bytes", max),
        load=reduced("load", fmean),
        stolen=reduced("stolen", fmean),
        missing=dict(missing) if samples else dict.fromkeys(known, "nothing was sampled"),
    )


class Sensor(Protocol):
    """Reads one device."""

    @property
    def missing(self) -> Mapping[str, str]:
        """Field of a sample -> why it has no number."""

    @property
    def counter_seconds(self) -> float:
        """Seconds between two steps of the energy counter."""

    def sample(self) -> Sample:
        """Read everything once."""

    def joules(self) -> float | None:
        """The energy counter, from an arbitrary zero; None without one."""


def sensor_for(
    device: str, roots: Roots | None = None, nvml: Any = None, environ: Mapping[str, str] | None = None
) -> Sensor:
    """The sensor of "cpu" or "cuda[:N]".

    For a CUDA device that NVML does not show it is the host's, and its `missing` says what is not known.
    """
    if not device.startswith("cuda"):
        return CpuSensor(roots or Roots(), "not read on a CPU")
    nvml = open_nvml() if nvml is None else nvml
    index = int(device.split(":")[1]) if ":" in device else 0
    handles = visible_handles(nvml, os.environ if environ is None else environ) if nvml is not None else []
    if index < len(handles):
        return GpuSensor(nvml, handles[index])
    return CpuSensor(roots or Roots(), f"NVML does not show {device}")


class GpuSensor:
    """One GPU through NVML."""

    # The counter of data-centre GPUs moves about ten times a second.
    counter_seconds = 0.1

    def __init__(self, nvml: Any, handle: Any, now: Callable[[], float] = time.perf_counter) -> None:
        self._nvml, self._handle, self._now = nvml, handle, now
        first = self.sample()
        self.missing = {
            name: "this GPU or its driver does not report it" for name in GPU_FIELDS if getattr(first, name) is None
        } | dict.fromkeys(HOST_FIELDS, "belongs to the CPU")

    def sample(self) -> Sample:
        milliwatts = ask(self._nvml, "nvmlDeviceGetPowerUsage", self._handle)
        megahertz = ask(self._nvml, "nvmlDeviceGetClockInfo", self._handle, 0)
        memory = ask(self._nvml, "nvmlDeviceGetMemoryInfo", self._handle)
        return Sample(
            seconds=self._now(),
            clock_hertz=None if megahertz is None else megahertz * 1e6,
            watts=None if milliwatts is None else milliwatts * 1e-3,
            celsius=ask(self._nvml, "nvmlDeviceGetTemperature", self._handle, 0),
            throttle=clock_events(self._nvml, self._handle),
            memory_bytes=None if memory is None else memory.used,
        )

    def joules(self) -> float | None:
        millijoules = ask(self._nvml, "nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return None if millijoules is None else millijoules * 1e-3


class CpuSensor:
    """The host through /proc and /sys: load, stolen time, energy of the processor packages.

    Args:
        roots: where /proc and /sys are.
        reason: why there are no values of a GPU.
    """

    # The running average power limit (RAPL) counters move about a thousand times a second.
    counter_seconds = 0.001

    def __init__(self, roots: Roots, reason: str, now: Callable[[], float] = time.perf_counter) -> None:
        self._roots, self._now = roots, now
        # intel-rapl:0 is a package; intel-rapl:0:1 is a part of it, which its counter includes.
        zones = (roots.sys / "class/powercap").glob("intel-rapl:[0-9]*")
        self._packages = sorted(zone for zone in zones if zone.name.count(":") == 1)
        # Package -> its last reading, and how often its counter has started again at zero.
        self._last: dict[Path, tuple[int, int]] = {}
        self._times = cpu_times(roots)
        self.missing = dict.fromkeys(GPU_FIELDS, reason)
        if self._times is None:
            self.missing |= dict.fromkeys(HOST_FIELDS, "no /proc/stat")

    def sample(self) -> Sample:
        before, self._times = self._times, cpu_times(self._roots)
        load = stolen = None
        if before is not None and self._times is not None:
            ticks = self._times.total - before.total
            # Two readings within one tick of the kernel's clock say nothing yet.
            load = 1 - (self._times.idle - before.idle) / ticks if ticks else 0.0
            stolen = (self._times.stolen - before.stolen) / ticks if ticks else 0.0
        return Sample(self._now(), load=load, stolen=stolen)

    def joules(self) -> float | None:
        total = 0
        for package in self._packages:
            try:
                now = int((package / "energy_uj").read_text())
                span = int((package / "max_energy_range_uj").read_text())
            except (OSError, ValueError):
                return None
            # The counter is narrow: under load it starts again at zero within minutes.
            last, turns = self._last.get(package, (now, 0))
            turns += now < last
            self._last[package] = (now, turns)
            total += now + turns * span
        return total * 1e-6 if self._packages else None


class Telemetry:
    """Samples a sensor from a thread for as long as the `with` block runs."""

    def __init__(self, sensor: Sensor, period: float = PERIOD_SECONDS) -> None:
        self._sensor, self._period = sensor, period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._failure: Exception | None = None
        self.samples: list[Sample] = []

    def __enter__(self) -> "Telemetry":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is None:
            self.samples.append(self._sensor.sample())
        elif kind is None:
            raise self._failure

    def _run(self) -> None:
        try:
            while True:
                self.samples.append(self._sensor.sample())
                if self._stop.wait(self._period):
                    return
        except Exception as error:
            self._failure = error

    def summary(self) -> Summary:
        """Summary of everything sampled so far."""
        return summarise(self.samples, self._sensor.missing)


@dataclass(frozen=True)
class Energy:
    """What the energy counter counted.

    Attributes:
        joules: used by the whole device, at rest or not.
        seconds: it took.
        calls: of the work that was done meanwhile.
    """

    joules: float
    seconds: float
    calls: int


def measure_energy(
    sensor: Sensor, work: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> Energy | None:
    """Call `work` again and again until the energy counter has moved often enough; None without a readable counter.

    Args:
        clock: seconds; has to wait for the device to finish its work.
    """
    calls, begin, before = 0, clock(), sensor.joules()
    if before is None:
        return None
    while (seconds := clock() - begin) < 1.05 * COUNTER_STEPS * sensor.counter_seconds:
        work()
        calls += 1
    after = sensor.joules()
    return None if after is None else Energy(after - before, seconds, calls)


def idle_watts(
    sensor: Sensor, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
) -> float | None:
    """Mean power at rest; the caller keeps the device idle. None without a readable energy counter."""
    used = measure_energy(sensor, lambda: sleep(10 * sensor.counter_seconds), clock)
    return None if used is None else used.joules / used.seconds
