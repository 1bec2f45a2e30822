"""The picture of a history."""

import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from results.changes import Trend
from results.pictures.style import svg
from results.pictures.trend import figure
from results.series import Point


def trend(times: list[float], reference: float | None = None, machines: str = "a") -> Trend:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    points = [
        Point(
            created=(start + timedelta(days=i)).isoformat(),
            commit=None,
            dirty=False,
            seconds=time,
            low=None if i == 0 else time * 0.99,
            high=None if i == 0 else time * 1.01,
            images=8,
            reference_seconds=reference,
            machine=machines[i % len(machines)],
            path=Path("x"),
            operand="head",
            metric="training_throughput",
            reference="matmul" if reference else None,
        )
        for i, time in enumerate(times)
    ]
    return Trend.of("training/a$b_{c}@d/b8/s32/c10/cpu", points)


STEP = [0.02 + 1e-5 * (i % 7) for i in range(20)] + [0.022 + 1e-5 * (i % 5) for i in range(20)]


def test_svg_is_whole_and_always_the_same() -> None:
    text = svg(figure(trend(STEP)))
    assert ET.fromstring(text).tag.endswith("svg")
    assert text == svg(figure(trend(STEP)))


def test_what_is_drawn() -> None:
    axes = figure(trend(STEP)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["A +9.9 %"]
    assert axes.get_ylabel() == "time of a step [ms]"
    assert figure(trend(STEP, 0.01)).axes[0].get_ylabel() == "steps of the reference"


@pytest.mark.parametrize("times", [[0.02], [0.02, 0.03], [0.02] * 30, [0.02] * 30 + [5.0]])
def test_few_equal_and_wild_points(times: list[float]) -> None:
    for machines in ("a", "ab"):
        assert "<svg" in svg(figure(trend(times, machines=machines)))
