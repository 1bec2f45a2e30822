"""JSON into dataclasses, every value checked against its annotation."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from results.errors import RecordError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class Within:
    """Bounds of a number, both allowed, for use in an `Annotated` type."""

    low: float
    high: float = math.inf


Count = Annotated[int, Within(0)]
Amount = Annotated[float, Within(0)]
Fraction = Annotated[float, Within(0, 1)]


def read(kind: type[T], data: object, where: str, ignore: Collection[str] = ()) -> T:
    """The dataclass `kind` from an object as `json` gives it; fields with a default may be absent.

    Fields may be texts, numbers, booleans, None, dataclasses, `Any`, `Literal`, numbers `Annotated` with `Within`,
    unions of these, and lists, tuples and mappings of them. A list becomes a tuple where the field is one.

    Args:
        where: names the data in errors, for example its file.
        ignore: keys to skip: what follows from other keys, or what only older versions wrote.

    Raises:
        RecordError: unknown or missing keys, a value of another type, NaN or infinity, or what `kind` itself refuses.
            It names the value by its path: "run.json: metrics[0].batch: expected a whole number, found 'many'".
    """
    try:
        return _object(kind, data, "", ignore)
    except RecordError as error:
        raise RecordError(f"{where}: {error}") from error


def check(thing: DataclassInstance) -> None:
    """Check the fields of a dataclass that was built by code as `read` checks what it reads.

    Raises:
        RecordError: a value is of another type, out of its bounds, NaN or infinite.
    """
    for name, hint in _hints(type(thing)).items():
        _value(hint, getattr(thing, name), name)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """ " (did you mean 'batch'?)" for a name close to a known one, else ""."""
    near = get_close_matches(name, known, n=2)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


@lru_cache
def _hints(kind: type[DataclassInstance]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _object(kind: type[T], data: object, path: str, ignore: Collection[str] = ()) -> T:
    if isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise _mismatch(path, kind, data)
    hints = _hints(kind)
    given = {key: value for key, value in data.items() if key not in ignore}
    unknown = [f"{key!r}{did_you_mean(str(key), hints)}" for key in given if key not in hints]
    if unknown:
        raise _error(path, f"unknown key {', '.join(unknown)}; known: {', '.join(hints)}")
    needed = [f.name for f in dataclasses.fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = [repr(name) for name in needed if name not in given]
    if missing:
        raise _error(path, f"missing {', '.join(missing)}")
    values = {name: _value(hints[name], value, f"{path}.{name}".lstrip(".")) for name, value in given.items()}
    try:
        return kind(**values)
    except RecordError as error:
        raise _error(path, str(error)) from error


def _value(hint: Any, data: object, path: str) -> Any:
    """`data` as the annotation `hint` has it."""
    if not _accepts(hint, data):
        raise _mismatch(path, hint, data)
    origin, inside = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast("type[DataclassInstance]", hint), data, path)
    if origin is Annotated:
        bounds, number = inside[1], _value(inside[0], data, path)
        if not bounds.low <= number <= bounds.high:
            raise _mismatch(path, hint, data)
        return number
    if origin in (Union, types.UnionType):
        return _value(next(member for member in inside if _accepts(member, data)), data, path)
    if isinstance(data, Mapping) and origin is not None:
        return {key: _value(inside[1], value, f"{path}[{key!r}]") for key, value in data.items()}
    if isinstance(data, (list, tuple)) and origin is not None:
        of = inside if origin is tuple and inside[-1] is not ... else inside[:1] * len(data)
        if len(of) != len(data):
            raise _mismatch(path, hint, data)
        return origin(_value(each, item, f"{path}[{i}]") for i, (each, item) in enumerate(zip(of, data, strict=True)))
    return data


def _accepts(hint: Any, data: object) -> bool:
    """Whether `data` is of the type that `hint` says, whatever it holds inside."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _accepts(inside[0], data)
    if origin in (Union, types.UnionType):
        return any(_accepts(member, data) for member in inside)
    if origin is Literal:
        return data in inside
    if origin in (list, tuple):
        return isinstance(data, (list, tuple))
    if origin in (dict, Mapping):
        return isinstance(data, Mapping) and all(isinstance(key, str) for key in data)
    if dataclasses.is_dataclass(hint):
        return isinstance(data, (Mapping, typing.cast(type, hint)))
    if hint in (int, float):
        # A whole number is a float too; true and false are no numbers, whatever Python says.
        return not isinstance(data, bool) and isinstance(data, (int, hint)) and _finite(data)
    return isinstance(data, hint)


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _mismatch(path: str, hint: Any, data: object) -> RecordError:
    shown = repr(data)
    return _error(path, f"expected {_words(hint)}, found {shown if len(shown) <= 40 else shown[:37] + '...'}")


def _error(path: str, text: str) -> RecordError:
    return RecordError(f"{path}: {text}" if path else text)


_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", types.NoneType: "null"}


def _words(hint: Any) -> str:
    """What a reader of an error is told to write."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        low, high = inside[1].low, inside[1].high
        return f"{_words(inside[0])} " + (f"from {low} up" if high == math.inf else f"from {low} to {high}")
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in inside if not (member is int and float in inside))
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin is tuple and inside[-1] is not ...:
        return f"a list of {len(inside)}"
    if origin in (list, tuple):
        return "a list"
    return _WORDS.get(hint, "an object")
