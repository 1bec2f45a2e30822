"""Watches the machine while it is being measured: clock, power, temperature, throttling, memory, load.

    with Telemetry(sensor_for("cuda:0")) as watch:
        ...
    summary = watch.summary()

A thread reads the sensor a few times a second. Whatever a machine has no sensor for is None, and
`sensor.missing` says why. Energy is read from a counter before and after, never integrated from samples of
power.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Protocol

from bench.machine.cpu import Roots, cpu_clock, cpu_times, memory_facts
from bench.machine.gpu import THROTTLING, ask, clock_events, open_nvml, visible_handles

# Reading costs the measured program something: NVML answers in about 0.1 ms, and four readings a second of
# that are well below what a duel can resolve, yet a slice of 0.25 s still gets one.
PERIOD_SECONDS = 0.2

POWER_LIMIT = 0x004


@dataclass(frozen=True)
class Sample:
    """One reading. `seconds` is perf_counter's; the others are None where this machine has no such sensor."""

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
    """What the samples of one measurement amount to.

    Clock is a median because a clock at rest before the work starts must not drag a mean; power is a mean
    because energy adds up; the rest are the worst values seen. `missing` says per field why there is no
    number.
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

    def known(name: str) -> list[float]:
        return [value for sample in samples if (value := getattr(sample, name)) is not None]

    clocks, watts, celsius = known("clock_hertz"), known("watts"), known("celsius")
    throttles = [sample.throttle for sample in samples if sample.throttle is not None]
    memory = [sample.memory_bytes for sample in samples if sample.memory_bytes is not None]
    loads, stolen = known("load"), known("stolen")
    reasons = dict(missing)
    if not samples:
        reasons |= dict.fromkeys(FIELDS, "nothing was sampled")
    return Summary(
        samples=len(samples),
        seconds=samples[-1].seconds - samples[0].seconds if samples else 0.0,
        clock_hertz=median(clocks) if clocks else None,
        clock_lowest_hertz=min(clocks) if clocks else None,
        watts=sum(watts) / len(watts) if watts else None,
        celsius=max(celsius) if celsius else None,
        throttled=any(bits & THROTTLING for bits in throttles) if throttles else None,
        power_limited=any(bits & POWER_LIMIT for bits in throttles) if throttles else None,
        memory_bytes=max(memory) if memory else None,
        load=sum(loads) / len(loads) if loads else None,
        stolen=sum(stolen) / len(stolen) if stolen else None,
        missing=reasons,
    )


FIELDS = ("clock_hertz", "watts", "celsius", "throttle", "memory_bytes", "load", "stolen")


class Sensor(Protocol):
    """Reads one device."""

    @property
    def missing(self) -> Mapping[str, str]:
        """Field -> why there is no number."""

    @property
    def counter_seconds(self) -> float:
        """How stale the energy counter may be: it moves in steps of this many seconds."""

    def sample(self) -> Sample:
        """Read everything once."""

    def joules(self) -> float | None:
        """The energy counter, from an arbitrary zero; None without one."""


def sensor_for(
    device: str, roots: Roots | None = None, nvml: Any = None, environ: Mapping[str, str] | None = None
) -> Sensor:
    """The sensor of "cpu" or "cuda[:N]".

    A CUDA device whose NVML does not answer falls back to the host's sensor, whose `missing` names what is
    lost.
    """
    if device.startswith("cuda"):
        nvml = open_nvml() if nvml is None else nvml
        index = int(device.split(":")[1]) if ":" in device else 0
        environ = os.environ if environ is None else environ
        handles = visible_handles(nvml, environ) if nvml is not None else []
        if index < len(handles):
            return GpuSensor(nvml, handles[index])
        lost = dict.fromkeys(FIELDS[:5], f"NVML does not show {device}")
        return CpuSensor(roots or Roots(), lost)
    return CpuSensor(roots or Roots())


@cache
def _shown(visible: str | None) -> tuple[Any, tuple[Any, ...]]:
    """NVML and its handles in CUDA's order, once a process and value of CUDA_VISIBLE_DEVICES."""
    nvml = open_nvml()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return nvml, tuple(visible_handles(nvml, environ)) if nvml is not None else ()


def gpu_count() -> int:
    """How many GPUs the driver shows to this process; imports no torch and wakes no device."""
    return len(_shown(os.environ.get("CUDA_VISIBLE_DEVICES"))[1])


def device_state(index: int = 0) -> dict[str, Any]:
    """{"clock_mhz", "throttled"} of one GPU now, as bench.timing.clock.Slice keeps them."""
    nvml, handles = _shown(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if index >= len(handles):
        return {"clock_mhz": None, "throttled": False}
    megahertz = ask(nvml, "nvmlDeviceGetClockInfo", handles[index], 0)
    events = clock_events(nvml, handles[index]) or 0
    return {
        "clock_mhz": None if megahertz is None else float(megahertz),
        "throttled": bool(events & THROTTLING),
    }


class GpuSensor:
    """One GPU through NVML."""

    # The counter of data-centre GPUs moves about ten times a second.
    counter_seconds = 0.1

    def __init__(self, nvml: Any, handle: Any, now: Callable[[], float] = time.perf_counter) -> None:
        self._nvml, self._handle, self._now = nvml, handle, now
        first = self.sample()
        self.missing = {
            name: "this GPU or its driver does not report it" for name in FIELDS if getattr(first, name) is None
        } | dict.fromkeys(("load", "stolen"), "belongs to the CPU")

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
    """The processor through /proc and /sys: clock, memory in use, load, stolen time, package energy."""

    # The running average power limit counters move about a thousand times a second.
    counter_seconds = 0.001

    def __init__(
        self,
        roots: Roots,
        lost: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._roots, self._now = roots, now
        self._packages = sorted((roots.sys / "class/powercap").glob("intel-rapl:[0-9]*"))
        # intel-rapl:0 is a package, intel-rapl:0:1 a part of it that is counted in it already.
        self._packages = [package for package in self._packages if package.name.count(":") == 1]
        self._wrapped: dict[Path, tuple[int, int]] = {}
        self._times = cpu_times(roots)
        self._lost = dict(lost or {})
        first = self.sample()
        reasons = {
            "clock_hertz": "the kernel does not report a clock",
            "celsius": "not read on a CPU",
            "throttle": "not read on a CPU",
            "memory_bytes": "no /proc/meminfo",
            "load": "no /proc/stat",
            "stolen": "no /proc/stat",
        }
        self.missing = {name: why for name, why in reasons.items() if getattr(first, name) is None} | self._lost
        if self.joules() is None:
            self.missing["watts"] = "no readable energy counter (/sys/class/powercap; root only on most systems)"
        else:
            self.missing["watts"] = "a CPU has an energy counter, not a power sensor"

    def sample(self) -> Sample:
        before, self._times = self._times, cpu_times(self._roots)
        load = stolen = None
        if before is not None and self._times is not None:
            ticks = self._times.total - before.total
            # Two readings within one tick of the kernel's clock say nothing yet.
            load = 1 - (self._times.idle - before.idle) / ticks if ticks else 0.0
            stolen = (self._times.stolen - before.stolen) / ticks if ticks else 0.0
        return Sample(
            seconds=self._now(),
            clock_hertz=None if "clock_hertz" in self._lost else cpu_clock(self._roots),
            memory_bytes=None if "memory_bytes" in self._lost else self._memory(),
            load=load,
            stolen=stolen,
        )

    def _memory(self) -> int | None:
        facts = memory_facts(self._roots)
        total, available = facts["total_bytes"], facts["available_bytes"]
        return None if total is None or available is None else total - available

    def joules(self) -> float | None:
        total = 0
        for package in self._packages:
            try:
                now = int((package / "energy_uj").read_text())
                span = int((package / "max_energy_range_uj").read_text())
            except (OSError, ValueError):
                return None
            # The counter is narrow and starts again at zero within minutes under load.
            last, turns = self._wrapped.get(package, (now, 0))
            turns += now < last
            self._wrapped[package] = (now, turns)
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

    def between(self, start: float, end: float) -> Summary:
        """Summary of the samples taken from `start` to `end`, perf_counter's seconds."""
        return summarise([sample for sample in self.samples if start <= sample.seconds <= end], self._sensor.missing)

    def summary(self) -> Summary:
        """Summary of everything sampled so far."""
        return summarise(self.samples, self._sensor.missing)


# --- energy ---------------------------------------------------------------------------------------------

# A counter that moves in steps is wrong by up to one step at either end: a hundred steps keep that below 1 %.
COUNTER_STEPS = 100


@dataclass(frozen=True)
class EnergyReading:
    """An energy counter and the moment it was read."""

    seconds: float
    joules: float | None
    counter_seconds: float


@dataclass(frozen=True)
class Energy:
    """Energy used over a window.

    `joules` is the counter's difference; `net_joules` leaves out what the device draws at rest
    (`idle_watts`), which is stated beside it. With `missing` set both are None.
    """

    seconds: float
    joules: float | None
    idle_watts: float | None
    net_joules: float | None
    missing: str | None = None


def read_energy(sensor: Sensor, now: Callable[[], float] = time.perf_counter) -> EnergyReading:
    """Read the counter; the device must be synchronised by the caller first."""
    return EnergyReading(now(), sensor.joules(), sensor.counter_seconds)


def energy_between(before: EnergyReading, after: EnergyReading, idle_watts: float | None = None) -> Energy:
    """The energy from `before` to `after`, with idle power subtracted when it is known.

    A window shorter than a hundred steps of the counter gives no number but the reason.
    """
    seconds = after.seconds - before.seconds
    if before.joules is None or after.joules is None:
        return Energy(seconds, None, idle_watts, None, "no readable energy counter on this machine")
    needed = COUNTER_STEPS * after.counter_seconds
    if seconds < needed:
        return Energy(seconds, None, idle_watts, None, f"needs a window of {needed:g} s, had {seconds:.2g} s")
    joules = after.joules - before.joules
    net = None if idle_watts is None else joules - idle_watts * seconds
    return Energy(seconds, joules, idle_watts, net)


def idle_watts(
    sensor: Sensor,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Mean power over the shortest window the counter allows; the caller keeps the device idle."""
    before = read_energy(sensor, now)
    if before.joules is None:
        return None
    sleep(COUNTER_STEPS * sensor.counter_seconds * 1.05)
    used = energy_between(before, read_energy(sensor, now))
    return None if used.joules is None else used.joules / used.seconds
