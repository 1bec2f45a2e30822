"""What the words of a command line name: things to measure, stored results, runs or labels."""

import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from bench.errors import UsageError
from models import zoo
from models.names import TRAINED
from models.project import named

SUMMARY = "summary.json"  # results.runs.FILE, which is not imported for a word that is a model's name


# What a word on the command line may be, as an error calls it.
MEASURED, STORED, RUN, LABELS = "something to measure", "a stored result", "a training run", "a file of labels"


def kind(word: str) -> str:
    """Which of the four kinds a word is: by its ending, and for folders and .json files by what is in them.

    A model's name means the model even if a folder has the same name: write ./NAME for the folder. A run with a
    configuration behind it is measured like its network.
    """
    name, at, _ = word.partition("[")[0].partition("@")
    if named(name).is_code or name.endswith(TRAINED) or zoo.is_exported(name) or (at and zoo.has_weights(name)):
        return MEASURED
    path = Path(word)
    if path.suffix.lower() in (".csv", ".txt"):
        return LABELS
    if path.name == SUMMARY:
        return RUN
    if word.endswith(".json"):
        return RUN if _is_summary(path) else STORED
    if "/" in word:
        return RUN if path.is_dir() else STORED
    holds = path.is_dir() and ((path / SUMMARY).is_file() or next(path.glob(f"*/{SUMMARY}"), None) is not None)
    return RUN if holds and word not in zoo.names() else MEASURED


def _is_summary(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # A record of measurements has operands, a run's summary what became of the run.
    return isinstance(found, dict) and "operands" not in found and {"model", "recipe", "status"} <= set(found)


def only_kind(words: Sequence[str]) -> str:
    """The one kind that all words are: a run beside something that is measured is measured too.

    Raises:
        UsageError: kinds were mixed, or a path is not there.
    """
    kinds = {word: kind(word) for word in words}
    if MEASURED in kinds.values():
        kinds |= {word: MEASURED for word, found in kinds.items() if found == RUN and zoo.has_weights(word)}
    for word, found in kinds.items():
        if found != MEASURED and not Path(word).exists():
            raise UsageError(f"{word} does not exist; name a run's folder, a stored result or a file of labels")
    # The file first, then what it was mixed with: that is how the mistake is usually made.
    files = [word for word, found in kinds.items() if found != MEASURED]
    first = files[0] if files else words[0]
    for word, found in kinds.items():
        if found != kinds[first]:
            raise UsageError(f"{first} is {kinds[first]} and {word} is {found}; compare one kind at a time")
    return kinds[first]


def with_tags(words: Sequence[str], folder: Path | None = None) -> tuple[str, ...]:
    """The words, with the file in the place of each one that `--tag` gave to a stored result.

    What has the name of something else means that: a network, a loader, a path.

    Args:
        folder: of stored results; None is the usual one.

    Raises:
        UsageError: beside such a word, one that is almost another.
    """
    from results.store import FOLDER, tag_of

    place, found, others = folder or FOLDER, [], []
    for word in words:
        file = place / f"{word}.json"
        tag = "/" not in word and tag_of(file) == word and file.is_file() and not Path(word).exists()
        if not tag or word in _known():
            others.append(word)
        found.append(str(file) if tag and word not in _known() else word)
    if others and len(others) < len(words):
        tags = [name for path in place.glob("*.json") if (name := tag_of(path))]
        for word in others:
            near = get_close_matches(word, tags, n=1)
            if near and word not in _known() and not Path(word).exists():
                raise UsageError(f"no result is named {word}; did you mean {near[0]}?")
    return tuple(found)


def _known() -> set[str]:
    from kernels import catalogue
    from loaders import engines

    return {*zoo.names(), *engines.names(), *catalogue.names()}


def files(words: Sequence[str]) -> list[Path]:
    """The stored results among the operands: all of them or none.

    Raises:
        UsageError: kinds were mixed.
    """
    return [Path(word) for word in words] if only_kind(words) == STORED else []


def refuse_same(words: Sequence[str]) -> None:
    """Raise UsageError if two files are one, by whatever name, or have the same content."""
    seen: dict[bytes, str] = {}
    for word in words:
        try:
            content = Path(word).read_bytes()
        except OSError:
            continue  # whoever reads it says why it cannot
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            what = "the same file" if Path(word).samefile(seen[digest]) else "copies of the same file"
            raise UsageError(f"{seen[digest]} and {word} are {what}, so agreeing means nothing; name each file once")
        seen[digest] = word


def run_folders(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The runs that folders and summary files name, and what was skipped and why.

    A folder of runs stands for all of them.

    Raises:
        UsageError: a folder holds no run, or one is named twice.
        RecordError: a folder cannot be read.
    """
    from results.runs import list_runs

    found: list[Path] = []
    passed: list[str] = []
    for word in words:
        path = Path(word)
        if path.is_dir() and not (path / SUMMARY).is_file():
            runs, skipped = list_runs(path)
            if not runs and (path / "run.json").is_file():
                raise UsageError(f"run {word} has not ended: bench train --resume {word} goes on with it")
            if not runs:
                raise UsageError(f"{word} holds no run: there is no {SUMMARY} in it or in a folder of it")
            places = [place for place in sorted(path.iterdir()) if (place / SUMMARY).is_file()]
            bad = {item.path for item in skipped}
            found += [place for place in places if place not in bad]
            passed += [f"{item.path}: {item.reason}" for item in skipped]
        else:
            found.append(path.parent if path.name == SUMMARY else path)
    twice = [str(path) for i, path in enumerate(found) if path.resolve() in {p.resolve() for p in found[:i]}]
    if twice:
        raise UsageError(f"{twice[0]} is named twice; name each run once")
    return found, passed
