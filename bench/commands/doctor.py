"""`bench doctor`: this machine, what would spoil a measurement on it, and what to do about it."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from bench.output import output_option, write

if TYPE_CHECKING:
    from bench.machine.diagnosis import Facts, Finding


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document: machine and findings.")
@output_option
def command(as_json: bool, output: str) -> int:
    """Describe this machine, what would spoil a measurement on it, and what to do about it.

    Measures for about ten seconds how much times of the same code differ here. Findings are advice: the exit code is 0
    whatever they are.
    """
    from bench.machine.diagnosis import examine, gather

    facts = with_noise(gather())
    findings = examine(facts)
    if as_json:
        machine = {**facts.machine, "noise": facts.noise.to_json()} if facts.noise else facts.machine
        write(json.dumps(document(machine, findings), indent=2, allow_nan=False), output)
    else:
        write(report(facts.machine, findings), output)
    return 0


def with_noise(facts: "Facts") -> "Facts":
    """The same with the noise of the device that torch would use, or why it was not measured."""
    if facts.torch_error is not None:
        return replace(facts, noise_missing="torch cannot be imported")
    from bench.errors import BenchError, explained
    from bench.screen import Screen
    from bench.sides import noise

    screen = Screen()
    try:
        device = "cuda" if facts.cuda else "cpu"
        return replace(facts, noise=noise.measure(device, facts.machine["cpu"]["usable"], screen.progress))
    except (BenchError, OSError) as error:
        return replace(facts, noise_missing=error.summary if isinstance(error, BenchError) else explained(error))
    finally:
        screen.clear()


def document(machine: Mapping[str, Any], findings: "Sequence[Finding]") -> dict[str, Any]:
    """{"schema", "machine", "findings": [{"level", "subject", "finding", "remedy"}]}."""
    return {"schema": 1, "machine": machine, "findings": [asdict(finding) for finding in findings]}


MARKS = {"problem": "!", "advice": "-", "note": " "}
HEADINGS = {
    "problem": "Spoils measurements",
    "advice": "Would improve measurements",
    "note": "Good to know",
}


def report(machine: Mapping[str, Any], findings: "Sequence[Finding]") -> str:
    """The same as text: the machine, then the findings, worst first, each with its remedy below it."""
    lines = ["This machine"]
    lines += [f"  {name:<10}{text}" for name, text in machine_rows(machine)]
    for level, heading in HEADINGS.items():
        chosen = [finding for finding in findings if finding.level == level]
        if chosen:
            lines += ["", heading]
        for finding in chosen:
            text, mark = f"{finding.subject}: {finding.finding}", f"  {MARKS[level]} "
            lines += textwrap.wrap(text, 100, initial_indent=mark, subsequent_indent="    ", break_long_words=False)
            lines += [f"      {line}" for line in finding.remedy.splitlines()]
    fine = [finding.subject for finding in findings if finding.level == "fine"]
    if fine:
        lines += ["", "Fine", *textwrap.wrap(", ".join(fine), 98, initial_indent="  ", subsequent_indent="  ")]
    return "\n".join(lines)


def machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The most important facts, as (name, text)."""
    from results.tables import quantity

    cpu, memory, versions, host = (machine[key] for key in ("cpu", "memory", "versions", "host"))
    rows = []
    for gpu in machine["gpus"]:
        facts = [gpu["name"], quantity(gpu["memory_bytes"], "bytes"), f"driver {gpu['driver']}"]
        if gpu["power_limit_watts"] is not None:
            facts.append(f"limit {gpu['power_limit_watts']:.0f} W")
        if gpu["clock_hertz"] is not None and gpu["clock_maximum_hertz"] is not None:
            clocks = (gpu["clock_hertz"], gpu["clock_maximum_hertz"])
            facts.append("{:.0f} of {:.0f} MHz".format(*(clock / 1e6 for clock in clocks)))
        if gpu["celsius"] is not None:
            facts.append(f"{gpu['celsius']} °C")
        rows.append(("gpu", ", ".join(facts)))
    kind = "virtual" if cpu["virtual"] else None
    cores = f"{cpu['usable']} of {cpu['logical']} cores"
    rows.append(("cpu", ", ".join(filter(None, [cpu["model"], cores, " ".join(cpu["features"]), kind]))))
    swap = f"swap {quantity(memory['swap_bytes'], 'bytes')}" if memory["swap_bytes"] else "no swap"
    free = f"{quantity(memory['available_bytes'], 'bytes')} free"
    rows.append(("memory", f"{quantity(memory['total_bytes'], 'bytes')}, {free}, {swap}"))
    rows.append(("system", f"{host['system']} {host['release']} {host['machine']}"))
    shown = {"python": "Python", "torch": "torch", "torchvision": "torchvision", "cuda": "CUDA"}
    shown |= {"cudnn": "cuDNN", "dali": "DALI", "triton": "Triton"}
    named = [f"{label} {versions[key]}" for key, label in shown.items() if versions[key]]
    half = (len(named) + 1) // 2
    rows += [("software", ", ".join(named[:half])), ("", ", ".join(named[half:]))]
    rows.append(("compiler", machine["compiler"] or "none"))
    if machine["commit"]:
        rows.append(("commit", machine["commit"]["sha"][:12] + (" + changes" * machine["commit"]["dirty"])))
    return rows
