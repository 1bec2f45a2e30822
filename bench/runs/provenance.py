"""Which images a run is trained, validated and tested on, known by their bytes wherever they lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bench.runs.folder import IMAGES, RunError
from loaders.datasets import Dataset
from loaders.errors import DataError
from loaders.identity import Identity, Ids, from_bytes, identify, to_bytes
from results.store import write_whole


def _none() -> Ids:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, eq=False)
class RunImages:
    """The images of a run, as far as they were looked at; see `loaders.identity`.

    Attributes:
        earlier: ids of further images that the run was trained on before it was resumed with others.
        whole: what it was trained on is known from its beginning; an earlier version did not store that.
    """

    train: Identity
    validation: Identity
    test: Identity
    earlier: Ids = field(default_factory=_none)
    whole: bool = True

    @classmethod
    def of(cls, train: Dataset, validation: Dataset, test: Dataset, every: int | None = None) -> "RunImages":
        """Look at the images of a run; see `loaders.identity.identify` for `every`."""
        trained = identify(train, every)
        validated = identify(validation, trained.every)
        return cls(trained, validated, validated if test is validation else identify(test, trained.every))

    @property
    def trained(self) -> Ids:
        """Ids of all images that the run is known to have been trained on."""
        return np.concatenate([self.train.ids, self.earlier])

    def save(self, folder: Path) -> None:
        """Write them into the run's folder, the whole file or nothing. Raises RecordError."""
        parts: dict[str, Identity | Ids] = {"train": self.train, "validation": self.validation, "earlier": self.earlier}
        if self.test is not self.validation:
            parts["test"] = self.test
        parts["whole"] = np.array([self.whole], np.uint64)
        write_whole(folder / IMAGES, to_bytes(parts))

    @classmethod
    def load(cls, folder: Path) -> "RunImages | None":
        """Those of a run's folder, None where an earlier version made it. Raises DataError: the file is damaged."""
        path = folder / IMAGES
        if not path.is_file():
            return None
        parts = from_bytes(path.read_bytes(), str(path))
        parts.setdefault("test", parts.get("validation", _none()))
        of = [part for name in ("train", "validation", "test") if isinstance(part := parts.get(name), Identity)]
        ids = [part for name in ("earlier", "whole") if isinstance(part := parts.get(name), np.ndarray)]
        if len(of) < 3 or len(ids) < 2 or not len(ids[1]):
            raise DataError(f"{path} is damaged: a part is missing")
        train, validation, test = of
        return cls(train, validation, test, ids[0], bool(ids[1][0]))

    def after(self, before: "RunImages | None", counts: Mapping[str, int], folder: Path, named: bool) -> "RunImages":
        """These images as those that a run is resumed with.

        Args:
            before: of the run so far; None where an earlier version did not store them.
            counts: how many there were of each part, as `run.json` says.
            named: the user named the folder of the images for this resumption, so others are meant.

        Raises RunError: they are others than the run was trained, validated and tested on so far, and not named.
        """
        differences = self.differences(before, counts)
        if differences and not named:
            raise RunError(
                f"run {folder} began with other images than there are now ({'; '.join(differences)}); bring them back, "
                "begin another run with --name, or name their folder to go on with what is there: --data DIR"
            )
        if before is None:
            return replace(self, whole=False)
        gone = before.trained[~np.isin(before.trained, self.train.ids)]
        return replace(self, earlier=np.unique(gone), whole=before.whole)

    def differences(self, before: "RunImages | None", counts: Mapping[str, int]) -> list[str]:
        """How the images differ from those that the run had `before`, in words; see `after`."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if before is None:
            were = {name: counts.get(name, part.images) for name, part in parts.items()}
            changed = {name: part for name, part in parts.items() if part.images != were[name]}
            return [f"{name}: {part.images:,} images in place of {were[name]:,}" for name, part in changed.items()]
        earlier = {"train": before.train, "validation": before.validation, "test": before.test}
        found = []
        for name, now in parts.items():
            text = _difference(earlier[name], now)
            if text and not (name == "test" and self.test is self.validation):
                found.append(f"{name}: {text}")
        return found


def _difference(before: Identity, now: Identity) -> str:
    new, gone = ~now.among(before.ids), ~before.among(now.ids)
    relabelled = ~new & ~np.isin(now.labelled(), before.labelled())
    counts = {"new": now.counted(int(new.sum())) if new.any() else ""}
    counts["gone"] = before.counted(int(gone.sum())) if gone.any() else ""
    counts["in another class"] = now.counted(int(relabelled.sum())) if relabelled.any() else ""
    words = [f"{count} {what}" for what, count in counts.items() if count]
    if not words and before.images != now.images:
        words = [f"{now.images:,} images in place of {before.images:,}"]
    return ", ".join(words)


def trained_on(images: RunImages | None, dataset: Dataset) -> tuple[int | None, str]:
    """How many images of a data set a run was trained on, exactly or about, and that in words for a sentence.

    None where it is not known; "" where there are none.
    """
    if images is None or not len(dataset):
        return None, "unknown whether it was trained on these images: the run's version did not store on which it was"
    these = identify(dataset, images.train.every)
    if these.kind != images.train.kind:
        return None, "unknown whether it was trained on these images: files and arrays cannot be compared"
    if not len(these):
        return None, "unknown whether it was trained on these images: none of those it was compared by is among them"
    found = int(these.among(images.trained).sum())
    count = round(found * len(dataset) / len(these))
    if found == len(these):
        return count, "trained on these images, so too good"
    if found:
        return count, f"trained on {these.counted(found)} of these {len(dataset):,} images, so too good"
    if not images.whole:
        return None, "unknown whether it was trained on these images: an earlier version began the run"
    return 0, ""
