"""Stored data becomes dataclasses or a message that names the wrong value; whatever is stored today is read."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from results.errors import RecordError
from results.gate import CheckReport
from results.profile import Profile
from results.reading import Amount, Count, Fraction, check, did_you_mean, read
from results.record import SHARED_KEYS, Record
from results.runs import RunSummary

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


@dataclass(frozen=True)
class Part:
    name: str
    share: Fraction = 0.0
    bounds: tuple[float, float | None] = (0.0, None)

    def __post_init__(self) -> None:
        if self.name == "refused":
            raise RecordError("a part may not be called so")


@dataclass(frozen=True)
class Whole:
    batch: Count
    kind: Literal["a", "b"]
    parts: tuple[Part, ...]
    first: Part | None = None
    seconds: Amount | None = None
    flag: bool = False
    figure: int | float | str | None = None
    times: Mapping[str, list[float]] = field(default_factory=dict)
    anything: Any = None


GOOD = {"batch": 2, "kind": "a", "parts": [{"name": "x", "share": 1}]}


def test_what_is_read_has_the_declared_types() -> None:
    data = GOOD | {
        "first": {"name": "y", "bounds": [1, None]},
        "figure": "text",
        "times": {"a": [1, 2.5]},
        "anything": [{"free": None}],
    }
    assert read(Whole, data, "f") == Whole(
        2,
        "a",
        (Part("x", 1),),
        first=Part("y", bounds=(1, None)),
        figure="text",
        times={"a": [1, 2.5]},
        anything=[{"free": None}],
    )
    assert read(Whole, GOOD | {"dropped": 1}, "f", ignore=("dropped",)) == read(Whole, GOOD, "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -1}, "f: batch: expected a whole number from 0 up, found -1"),
        ({"batch": 1.5}, "f: batch: expected a whole number from 0 up, found 1.5"),
        ({"batch": True}, "f: batch: expected a whole number from 0 up, found True"),
        ({"kind": "c"}, "f: kind: expected 'a' or 'b', found 'c'"),
        ({"parts": {}}, "f: parts: expected a list, found {}"),
        ({"parts": [3]}, "f: parts[0]: expected an object, found 3"),
        ({"parts": [{"name": None}]}, "f: parts[0].name: expected text, found None"),
        ({"parts": [{"name": "x", "shore": 1}]}, "f: parts[0]: unknown key 'shore' (did you mean 'share'?); known: "),
        ({"parts": [{"share": 1}]}, "f: parts[0]: missing 'name'"),
        ({"parts": [{"name": "refused"}]}, "f: parts[0]: a part may not be called so"),
        ({"first": []}, "f: first: expected an object or null, found []"),
        ({"first": {"name": "x", "share": 1.1}}, "f: first.share: expected a finite number from 0 to 1, found 1.1"),
        ({"first": {"name": "x", "bounds": [1]}}, "f: first.bounds: expected a list of 2, found [1]"),
        ({"seconds": math.nan}, "f: seconds: expected a finite number from 0 up or null, found nan"),
        ({"seconds": 10**400}, "f: seconds: expected a finite number from 0 up or null, found 1000000"),
        ({"figure": math.inf}, "f: figure: expected a finite number or text or null, found inf"),
        ({"figure": [1]}, "f: figure: expected"),
        ({"flag": 1}, "f: flag: expected true or false, found 1"),
        ({"times": {"a": ["1"]}}, "f: times['a'][0]: expected a finite number, found '1'"),
        ({"times": {"a": "12"}}, "f: times['a']: expected a list, found '12'"),
        ({"one": 1, "two": 2}, "f: unknown key 'one', 'two'; known: batch, kind"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError) as caught:
        read(Whole, GOOD | change, "f")
    assert str(caught.value).startswith(message)


def test_what_is_no_object_and_what_is_missing() -> None:
    with pytest.raises(RecordError, match="^f: expected an object, found None$"):
        read(Whole, None, "f")
    with pytest.raises(RecordError, match="^f: missing 'batch', 'kind', 'parts'$"):
        read(Whole, {}, "f")


def test_dataclasses_built_by_code_are_checked_alike() -> None:
    check(Whole(1, "a", (Part("x"),)))
    with pytest.raises(RecordError, match=r"^parts\[0\]: expected an object, found 'x'$"):
        check(Whole(1, "a", ("x",)))  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="^seconds: expected a finite number from 0 up or null, found nan$"):
        check(Whole(1, "a", (), seconds=math.nan))


def test_near_names_are_proposed() -> None:
    assert did_you_mean("barch", ["batch", "size"]) == " (did you mean 'batch'?)"
    assert did_you_mean("zzz", ["batch", "size"]) == ""


def stored() -> list[Path]:
    """Records, profiles and summaries: not evaluations, runs' own files and a loader's statistics."""
    others = re.compile(r"evaluation\.json|run(-\w+)?\.json|sample-against-imagenet\.json")
    return [path for path in PUBLISHED.rglob("*.json") if not others.fullmatch(path.name)]


def holds(written: Any, data: Any) -> bool:
    """Whether all of `data` is in `written`, which may have keys that are newer, and lacks what is derived."""
    if isinstance(data, dict):
        derived = {*SHARED_KEYS, "schema", "kind", "sentence"}
        return all(holds(written[key], value) for key, value in data.items() if key not in derived)
    if isinstance(data, list):
        return len(written) == len(data) and all(map(holds, written, data))
    return bool(written == data)


@pytest.mark.parametrize("path", stored(), ids=lambda path: str(path.relative_to(PUBLISHED)))
def test_every_published_result_is_read_and_written_alike(path: Path) -> None:
    data = json.loads(path.read_text())
    again: Any
    if path.name == "summary.json":
        again = RunSummary.from_json(data)
    elif path.name == "profile.json":
        again = Profile.from_json(data)
    else:
        again = Record.from_json(data)
        if again.kind == "check":
            assert CheckReport.from_json(again.settings["check"])
    assert holds(again.to_json(), data)
