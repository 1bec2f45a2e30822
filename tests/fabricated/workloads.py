"""Workloads from texts, as short as tests want them."""

from typing import Any

from bench.timing.workload import Workload, configuration_of


def workload_of(task: str, subject: str, configuration: str, *rest: Any, **options: Any) -> Workload:
    """A workload whose configuration is given as text."""
    return Workload(task, subject, configuration_of(task, configuration), *rest, **options)
