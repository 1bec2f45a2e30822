"""Data sets: from a folder in one of the usual layouts to a list of images with labels.

Nothing is decoded here. Listings are sorted, so that the same folder is the same data set everywhere.
"""

import io
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.formats import IMAGENET_MEAN, IMAGENET_STD
from loaders.errors import DataError, NoSplitError
from loaders.file_formats import ENDINGS
from loaders.packed_images import PackedImages, describe, is_packed

EXTENSIONS = ENDINGS
SPLITS = ("train", "val", "test")
GENERATED = ".generated"  # a file in the folder of a generated set: what it is called must not make it a real one

# A split's folder names, best first. ImageNet copies come as train/, or as train.X1, train.X2, ... to be merged.
_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation", "test"), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Known:
    """Published figures of a data set.

    Attributes:
        classes: number of classes.
        images: training and validation (or test) images.
        size: pixels at which networks usually see it.
        mean, std: of the training images, red, green, blue, in units of 0..1.
    """

    classes: int
    images: tuple[int, int]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# imagenet100 is the version with 1,300 training and 50 validation images a class; it has no statistics of its own.
KNOWN: dict[str, Known] = {
    "cifar10": Known(10, (50_000, 10_000), 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Known(100, (50_000, 10_000), 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tinyimagenet": Known(200, (100_000, 10_000), 64, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "imagenet100": Known(100, (130_000, 5_000), 224, IMAGENET_MEAN, IMAGENET_STD),
    "imagenet": Known(1000, (1_281_167, 50_000), 224, IMAGENET_MEAN, IMAGENET_STD),
}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Files below a data set's folder that are no part of it, all for one reason.

    Attributes:
        reason: such as "ending .gif", "hidden", "link that leads nowhere".
        files: how many, a folder that cannot be opened or is listed already counting as one.
        examples: paths of up to three.
    """

    reason: str
    files: int
    examples: tuple[str, ...]


def describe_left_out(left_out: Sequence[LeftOut]) -> str:
    """What was passed over, the most frequent reasons first: "ending .gif: 10; hidden: 1"."""
    counts = [f"{each.reason}: {each.files}" for each in left_out[:5]]
    rest = sum(each.files for each in left_out[5:])
    return "; ".join([*counts, *([f"other reasons: {rest}"] if rest else [])])


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Images without labels, to be predicted.

    Attributes:
        name: the file or folder, for messages.
        ids: one for each image, from the pickle; file names for a folder.
        pixels: uint8 [images, 32, 32, 3] for a pickle, None for a folder.
        files: paths for a folder, otherwise empty.
        left_out: what lies below a folder and was passed over.
    """

    name: str
    ids: tuple[str, ...]
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    files: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images with labels, not yet decoded.

    Attributes:
        name: layout and split, for messages.
        root: folder it was read from.
        split: train, val, test, or all where the folder has no splits.
        files: path of every image, sorted by class and name; empty when `pixels` holds the images.
        labels: index into `classes` of every image.
        classes: class names, sorted unless the data set brings an order of its own.
        pixels: decoded images, uint8 [images, height, width, 3], for sets that come as arrays (CIFAR batches) or were
            decoded once (loaders.resident.decoded); for packed sets what reads them from a file, each in its own size.
        left_out: what lies below the folder and is no part of the set.
        generated: it was made by `bench data make`.
    """

    name: str
    root: str
    split: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    pixels: NDArray[np.uint8] | PackedImages | None = field(default=None, compare=False, repr=False)
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False, repr=False)
    generated: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def title(self) -> str:
        """The name as results show it. Ids of workloads hold the name itself, which stays as it is."""
        return f"generated {self.name}" if self.generated else self.name

    @property
    def whole_title(self) -> str:
        """The title without the split."""
        return self.title.partition("/")[0]

    def marked(self, *folders: Path) -> "Dataset":
        """The data set, known as generated if one of the folders that it was opened by says so."""
        places = (Path(self.root), *folders)
        return replace(self, generated=any((folder / GENERATED).is_file() for folder in places))

    def need_files(self, engine: str) -> tuple[str, ...]:
        """The files, or a DataError saying that `engine` cannot read a set that comes as arrays."""
        if not self.files:
            raise DataError(
                f"loader {engine} reads image files, but {self.name} has none; use packed, resident, pil or torchvision"
            )
        return self.files

    def select(self, indices: Sequence[int], name: str | None = None) -> "Dataset":
        """The images at `indices`, with the same classes."""
        return replace(
            self,
            name=name or self.name,
            files=tuple(self.files[i] for i in indices) if self.files else (),
            labels=tuple(self.labels[i] for i in indices),
            pixels=None if self.pixels is None else self.pixels[np.asarray(indices, dtype=np.int64)],
        )


def placeholder(images: int, classes: int) -> Dataset:
    """A data set that exists only as a count, for the synthetic engine."""
    labels = tuple(i % classes for i in range(images))
    return Dataset("synthetic", "", "all", (), labels, tuple(str(i) for i in range(classes)))


def open_dataset(path: str | Path, split: str = "train") -> Dataset:
    """Recognise the layout of `path` and list one split of it.

    Known layouts: what `bench data pack` wrote; CIFAR-10 and CIFAR-100 python batches; Tiny-ImageNet; ImageNet with
    a flat val folder and a text of true classes beside it; a folder with train and val (or test) folders of class
    folders, the training part possibly spread over train.X1, train.X2, ...; a folder of class folders; a flat
    folder of images (one class). The last two have no splits: each split is the whole set. What the folders hold
    decides, not files that came with an archive: once the images are sorted into class folders, a text of their
    classes or the batches beside them play no part. Each file is listed once, whatever links lead to it, and what
    is passed over is counted in `left_out`.

    Raises:
        NoSplitError: the folder has other splits, but not this one.
        DataError: no such folder, nothing readable, an empty class, or training and validation classes that differ.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    root = Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data folder {root} {what}; name a folder of images, or make one with: bench data make {root}")
    for open_layout in (_open_packed, _open_cifar, _open_annotated, _open_splits):
        dataset = open_layout(root, split)
        if dataset is not None:
            return dataset.marked(root)
    listing = _Listing()
    if any(_filled(label)(root) for label in _class_folders(root)):
        return _folder_dataset(_name_of(root), root, "all", [root]).marked()
    files = listing.images([root])
    left_out = listing.left_out()
    if not files:
        only = f" ({describe_left_out(left_out)} left out)" if left_out else ""
        raise DataError(
            f"no images in {root}{only}; expected class folders, train and val folders, "
            f"or files that end in {', '.join(EXTENSIONS)}"
        )
    name = _name_of(root)
    return Dataset(name, str(root), "all", tuple(files), (0,) * len(files), (name,), left_out=left_out).marked()


def _open_packed(root: Path, split: str) -> Dataset | None:
    """A packed data set, or one part of it, with the images of `split`."""
    folders = [root] if is_packed(root) else [folder for name in SPLITS if is_packed(folder := root / name)]
    if not folders:
        return None
    there: list[str] = []
    for folder in folders:
        description = describe(folder)
        if split in description.splits or "all" in description.splits:
            images = PackedImages(str(folder))
            named = "all" if "all" in description.splits else split
            own = named == description.splits[0]
            name = description.name if own else f"{description.name.rpartition('/')[0]}/{split}"
            labels = tuple(images.labels().tolist())
            return Dataset(name, str(folder), named, (), labels, description.classes, images)
        there += description.splits
    raise NoSplitError(f"{root} is packed without a split {split}: it has {', '.join(there)}")


def open_splits(path: str | Path) -> list[Dataset]:
    """Every split of a folder, training first; one data set with split "all" where it has none.

    Raises:
        DataError: as `open_dataset`, or a split has other classes than the training images.
    """
    parts = [open_dataset(path, "train")]
    for split in SPLITS[1:]:
        if parts[0].split == "all":
            break
        try:
            dataset = open_dataset(path, split)
        except NoSplitError:
            continue
        # A folder named test serves as val where there is no other: one split, not two.
        mine, last = ((part.root, part.files, part.labels) for part in (dataset, parts[-1]))
        if split == "val" or mine != last:
            check_same_classes(parts[0], dataset)
            parts.append(dataset)
    return parts


def merge_folders(folders: Sequence[str | Path], split: str = "train") -> Dataset:
    """One data set from several folders of class folders, such as ImageNet-100's train.X1 .. train.X4.

    A class may be in one folder or spread over several. Classes are sorted by name over all folders.

    Raises:
        DataError: a folder is missing or holds no class folders.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise DataError("no data folders were given")
    for path in paths:
        if not path.is_dir():
            raise DataError(f"data folder {path} does not exist")
    dataset = _folder_dataset("+".join(map(_name_of, paths)), paths[0].parent, split, paths)
    return dataset.marked(*paths, *(path.parent for path in paths))


def open_parts(train: Sequence[str], val: Sequence[str] = ()) -> list[Dataset]:
    """Training images, and validation images if named, each merged from folders.

    Raises:
        DataError: as `merge_folders`, or the two have different classes.
    """
    parts = [merge_folders(train, "train")]
    if val:
        parts.append(merge_folders(val, "val"))
        check_same_classes(*parts)
    return parts


def holdout(dataset: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Set a part of the training images aside: (the rest, the part held out), without an image in both.

    Every class gives the same share; what rounding leaves over comes from the classes with the largest remainders, and
    no class gives its last image. The same arguments give the same parts, and both keep the order of the data set.

    Args:
        dataset: the images to divide.
        share: of the images, in 0..1; above 1 it counts images.
        seed: of the choice.

    Raises:
        DataError: nothing would be held out, or nothing would be left.
    """
    labels = np.asarray(dataset.labels)
    wanted = int(share) if share > 1 else round(share * len(dataset))
    if not 0 < wanted < len(dataset):
        raise DataError(f"holding out {share:g} of {len(dataset)} images of {dataset.name} leaves one part empty")
    counts = np.bincount(labels, minlength=len(dataset.classes))
    exact = counts * (wanted / len(dataset))
    quota = np.floor(exact).astype(np.int64)
    for label in np.argsort(quota - exact, kind="stable")[: wanted - int(quota.sum())]:
        quota[label] += 1
    quota = np.minimum(quota, np.maximum(counts - 1, 0))
    if not quota.any():
        raise DataError(f"{dataset.name} has one image a class, so none can be held out")
    generator = np.random.Generator(np.random.Philox(key=[seed, 0x686F6C64]))
    held = np.zeros(len(dataset), np.bool_)
    for label, count in enumerate(quota):
        held[generator.permutation(np.flatnonzero(labels == label))[:count]] = True
    return (
        replace(dataset.select(np.flatnonzero(~held).tolist()), name=f"{dataset.name}-rest", split="train"),
        replace(dataset.select(np.flatnonzero(held).tolist()), name=f"{dataset.name}-held", split="val"),
    )


def open_unlabelled(path: str | Path) -> Unlabelled:
    """Images to be predicted: a pickle of b'data' and b'ids', or a folder of image files.

    b'data' is uint8, [n, 3072] with one colour after the other or [n, 32, 32, 3]; a pickle without b'ids' is numbered
    from 0. Code in the pickle is never run.

    Raises:
        DataError: no such file, a pickle that asks for anything but arrays, or one of another form.
    """
    path = Path(path)
    if path.is_dir():
        listing = _Listing()
        files = listing.images([path])
        if not files:
            raise DataError(f"no images in {path}; expected {', '.join(EXTENSIONS)} files")
        names = tuple(os.path.relpath(file, path) for file in files)
        return Unlabelled(str(path), names, files=tuple(files), left_out=listing.left_out())
    if not path.is_file():
        raise DataError(f"{path} does not exist; name a pickle with data and ids, or a folder of images")
    content = read_batch(path)
    if "data" not in content:
        raise DataError(f"{path} lacks data; it has: {', '.join(sorted(content)) or 'nothing'}")
    pixels = pixels_of(content["data"], path)
    ids = content.get("ids", range(len(pixels)))
    try:
        names = tuple(map(_text, ids))
    except (TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: ids cannot be read: {error}") from None
    if len(names) != len(pixels):
        raise DataError(f"{path} has {len(pixels)} images but {len(names)} ids")
    return Unlabelled(str(path), names, pixels)


def check_same_classes(train: Dataset, val: Dataset) -> None:
    """Raise DataError unless both have the same classes in the same order."""
    if train.classes == val.classes:
        return
    only_train = sorted(set(train.classes) - set(val.classes))
    only_val = sorted(set(val.classes) - set(train.classes))
    raise DataError(
        f"classes of {train.name} ({len(train.classes)}) and {val.name} ({len(val.classes)}) differ: "
        f"only in the first: {_few(only_train)}; only in the second: {_few(only_val)}"
    )


def _few(names: Sequence[str], most: int = 3) -> str:
    if not names:
        return "none"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _name_of(folder: Path) -> str:
    """The name of a folder, also of one that is called `.` or `..`."""
    return printable(os.path.basename(os.path.abspath(folder)))


def printable(name: str) -> str:
    r"""A file's or folder's name as text that can be written: bytes of it that are not UTF-8 as \udcXX.

    Class names get it once, here, since tables, checkpoints and pictures hold them; a path stays as the system has it.
    """
    return name.encode("utf-8", "backslashreplace").decode()


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name. Raises DataError: it cannot be opened."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot open folder {folder}: {error.strerror or error}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself


def _class_folders(folder: Path) -> list[str]:
    return [entry.name for entry in _scan(folder) if not entry.name.startswith(".") and _is_folder(entry)]


def _classes_in(folders: Sequence[Path]) -> list[str]:
    return sorted({label for folder in folders for label in _class_folders(folder)})


class _Listing:
    """Finds the images of one data set, each file once, and counts what is passed over.

    Args:
        used: paths that are neither images nor passed over.
    """

    def __init__(self, used: Collection[str] = ()) -> None:
        self._used = used
        self._passed: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def pass_over(self, path: str, reason: str) -> None:
        """Count a file or folder that is not listed, other than our own mark."""
        if os.path.basename(path) == GENERATED:
            return
        self._counts[reason] += 1
        if self._counts[reason] <= 3:
            self._passed.setdefault(reason, []).append(path)

    def left_out(self) -> tuple[LeftOut, ...]:
        """What was passed over, the most frequent reason first."""
        counts = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return tuple(LeftOut(reason, files, tuple(self._passed[reason])) for reason, files in counts)

    def images(self, folders: Sequence[str | Path]) -> list[str]:
        """Paths of the images in `folders` and the folders in them, those of each sorted."""
        entered: set[tuple[int, int]] = set()
        links: set[str] = set()
        found: list[str] = []
        for folder in folders:
            found += sorted(self._below(str(folder), entered, links))
        return self._without_copies(found, links) if links else found

    def any_below(self, folder: str | Path) -> bool:
        """Whether there is an image in a folder or the folders in it."""
        return any(True for _ in self._below(str(folder), set(), set()))

    def beside(self, folder: str | Path, where: str) -> None:
        """Count the files that lie in a folder whose folders are listed; `where` is the reason for images."""
        for entry in _scan(folder):
            if entry.name.startswith("."):
                self.pass_over(entry.path, "hidden")
            elif not _is_folder(entry):
                self.pass_over(entry.path, where if entry.name.lower().endswith(EXTENSIONS) else _why_not(entry))

    def _below(self, top: str, entered: set[tuple[int, int]], links: set[str]) -> Iterator[str]:
        # A link upwards would bring the images of the other classes.
        entered |= {
            inode for parent in Path(os.path.realpath(top)).parents if (inode := _inode(str(parent))) is not None
        }
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                state = os.stat(folder)
                entries = _scan(folder)
            except (OSError, DataError):
                self.pass_over(folder, "folder that cannot be opened")
                continue
            # A link may lead to a folder that was entered already, or to one that holds the link itself.
            if (state.st_dev, state.st_ino) in entered:
                self.pass_over(folder, "folder that is listed already")
                continue
            entered.add((state.st_dev, state.st_ino))
            for entry in entries:
                if entry.name.startswith("."):
                    self.pass_over(entry.path, "hidden")
                # Without following links the type comes with the name; otherwise it may be a call to a server.
                elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file(follow_symlinks=False):
                    yield entry.path
                elif entry.name.lower().endswith(EXTENSIONS) and entry.is_symlink() and _is_no_other(entry.path):
                    links.add(entry.path)
                    yield entry.path
                elif _is_folder(entry):
                    waiting.append(entry.path)
                elif entry.path not in self._used:
                    self.pass_over(entry.path, _why_not(entry))

    def _without_copies(self, paths: Sequence[str], links: set[str]) -> list[str]:
        """The paths without links to files that are among them; a link that leads nowhere stays, to be reported."""
        files = {path: _inode(path) for path in paths}
        seen = {files[path] for path in paths if path not in links}
        kept = []
        for path in paths:
            if path in links and files[path] is not None:
                if files[path] in seen:
                    self.pass_over(path, "link to an image that is listed already")
                    continue
                seen.add(files[path])
            kept.append(path)
        return kept


def _is_no_other(link: str) -> bool:
    """Whether a link leads to a file, or nowhere: whoever opened a pipe would wait for good."""
    return os.path.isfile(link) or not os.path.exists(link)


def _inode(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _why_not(entry: os.DirEntry[str]) -> str:
    """Why something that is neither an image by its name nor a folder is not listed."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "link that leads nowhere"
    if not entry.is_file():
        return "neither file nor folder"
    ending = os.path.splitext(entry.name)[1].lower()
    return f"ending {ending}" if re.fullmatch(r"\.\w{1,5}", ending) else "another ending or none"


def _folder_dataset(
    name: str,
    root: Path,
    split: str,
    folders: Sequence[Path],
    classes: Sequence[str] | None = None,
    listing: _Listing | None = None,
) -> Dataset:
    """Class folders in `folders`: those named in `classes`, or all."""
    classes = classes or _classes_in(folders)
    listing = listing or _Listing()
    where = ", ".join(map(str, folders))
    if not classes:
        raise DataError(f"no class folders in {where}; expected <class>/<image>")
    files: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for folder in folders:
        listing.beside(folder, "image beside the class folders")
    for index, label in enumerate(classes):
        members = listing.images([folder / label for folder in folders if (folder / label).is_dir()])
        if not members:
            empty.append(label)
        files += members
        labels += [index] * len(members)
    left_out = listing.left_out()
    if empty:
        only = f" ({describe_left_out(left_out)} left out)" if left_out else ""
        if len(empty) == 1:
            raise DataError(f"class folder {empty[0]} in {where} holds no images{only}; fill or remove it")
        raise DataError(
            f"{len(empty)} of {len(classes)} class folders in {where} hold no images: {_few(empty)}{only}; "
            "unpack the archive again, or remove them"
        )
    names = tuple(map(printable, classes))
    return Dataset(name, str(root), split, tuple(files), tuple(labels), names, left_out=left_out)


def _candidates(root: Path, split: str) -> list[list[Path]]:
    """Folders that may be a split: `train` itself, or `train.X1`, `train.X2`, ...; the best name first."""
    there = _class_folders(root)
    found: list[list[Path]] = []
    for name in _FOLDERS[split]:
        found += [[root / name]] if name in there else []
        parts = [root / part for part in there if part.startswith(f"{name}.")]
        found += [parts] if parts else []
    return found


def _split_folders(root: Path, split: str) -> list[Path]:
    """The folders of one split, empty when there is none: the first that hold folders, whatever they are called."""
    found = _candidates(root, split)
    return next((folders for folders in found if _classes_in(folders)), found[0] if found else [])


def _unused(root: Path, listing: _Listing, used: Collection[str]) -> None:
    """Count what lies beside the folders of the splits, those named in `used`, and might be a part of the data set."""
    for entry in _scan(root):
        if entry.name.startswith(".") or entry.name in used:
            continue
        if _is_folder(entry):
            listing.pass_over(entry.path, "folder beside those of the splits")
        elif entry.name in _CIFAR or entry.name in SPLITS:
            listing.pass_over(entry.path, "file named like a split or a batch")
        elif entry.name.lower().endswith(EXTENSIONS):
            listing.pass_over(entry.path, "image beside the folders of the splits")


def _title(root: Path) -> str:
    """The name of a data set: its folder's, other than for Tiny-ImageNet, which this one file tells apart."""
    return "tiny-imagenet" if (root / "val" / "val_annotations.txt").is_file() else _name_of(root)


def _open_splits(root: Path, split: str) -> Dataset | None:
    train, val = _split_folders(root, "train"), _split_folders(root, "val")
    if not train or _is_class(root, train):
        return None
    if not val and split != "train":
        raise NoSplitError(f"{root} has {train[0].name} but no folder for split {split}: {', '.join(_FOLDERS[split])}")
    wanted = _split_folders(root, split)
    # ImageNet's test images come without classes, beside a val folder that has them.
    if not wanted or (split == "test" and val != wanted and not _classes_in(wanted)):
        raise NoSplitError(f"{root} has no folder for split {split}: expected {', '.join(_FOLDERS[split])}")
    listing = _Listing()
    classes = _classes_in(train)
    if val:
        # A script that sorts images into class folders may leave the folder behind that they came from.
        source = "images" if _title(root) == "tiny-imagenet" else None
        strange = [label for label in _classes_in(val) if label not in classes]
        rest = [label for label in strange if label == source or not any(map(_filled(label), val))]
        # Names only: a wrong split is refused before a million files are listed.
        check_same_classes(
            *(
                Dataset(f"{_title(root)}/{parts[0].name}", str(root), split, (), (), tuple(names))
                for parts, names in ((train, classes), (val, [name for name in _classes_in(val) if name not in rest]))
            )
        )
        if wanted == val:
            for label in rest:
                listing.pass_over(str(val[0] / label), "folder beside the class folders")
    if split == "train":
        test = _split_folders(root, "test")
        _unused(root, listing, {path.name for path in (*train, *val, *(test if _classes_in(test) else ()))})
    # Only a test folder of its own has not been compared above.
    return _folder_dataset(
        f"{_title(root)}/{split}", root, split, wanted, classes if wanted in (train, val) else None, listing
    )


# What the folders of splits are called, and what is beside them in archives: train, train.X1, test1, validation_set.
_SPLIT_NAME = re.compile(rf"({'|'.join(sorted(sum(_FOLDERS.values(), ())))})(?![a-z]).*", re.IGNORECASE)


def _is_class(root: Path, train: Sequence[Path]) -> bool:
    """Whether what is called train is a class among others: it holds images itself, and so does one of another name."""
    if _classes_in(train):
        return False
    others = [label for label in _class_folders(root) if not _SPLIT_NAME.fullmatch(label)]
    return any(_filled(label)(root) for label in others) and any(_Listing().any_below(folder) for folder in train)


def _filled(label: str) -> Callable[[Path], bool]:
    return lambda folder: (folder / label).is_dir() and _Listing().any_below(folder / label)


# The texts that come with images of val that are not sorted into class folders, best first.
_ANNOTATIONS = (
    "val_annotations.txt",
    "val.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
)


def _open_annotated(root: Path, split: str) -> Dataset | None:
    """Tiny-ImageNet, and ImageNet as some copies have it: classes of the images in val come from a text.

    Once a script has sorted these images into class folders, the folders count and not the text.
    """
    train, val = root / "train", root / "val"
    if not train.is_dir() or not val.is_dir():
        return None
    classes = _class_folders(train)
    shared = sorted(set(classes) & set(_class_folders(val)))
    if not classes or any(_filled(label)(val) for label in shared):
        return None
    places = [path for name in _ANNOTATIONS for folder in (val, root) if (path := folder / name).is_file()]
    if not places:
        return None
    if split == "train":
        listing = _Listing()
        _unused(root, listing, ("train", "val", *(("test",) if _sorted_test(root) else ())))
        return _folder_dataset(f"{_title(root)}/train", root, split, [train], listing=listing)
    if split == "test":
        if _sorted_test(root):
            return _folder_dataset(f"{_title(root)}/test", root, split, [root / "test"])
        raise NoSplitError(f"the test images in {root} have no labels; use split val")
    refused: DataError | None = None
    for annotations in places:
        try:
            return _annotated(f"{_title(root)}/val", root, classes, annotations)
        except DataError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _sorted_test(root: Path) -> bool:
    return (root / "test").is_dir() and bool(_class_folders(root / "test"))


def _annotated(name: str, root: Path, classes: Sequence[str], annotations: Path) -> Dataset:
    """The images in val, whose classes are listed in a text.

    A line of the text is an image and its class (a folder of train, or its number in sorted order), separated by blanks
    or a comma; or only the folder, in the order of the sorted images. The numbers in ImageNet's own development kit are
    in another order, so a number without an image is refused.
    """
    folders = {label: i for i, label in enumerate(classes)}
    index = {str(i): i for i in range(len(classes))} | folders
    listing = _Listing(used=(str(annotations),))
    listed = listing.images([root / "val"])
    images = {os.path.splitext(os.path.basename(path))[0]: path for path in listed}
    in_order = iter(images)
    chosen: dict[str, int] = {}
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {annotations}: {error}") from None
    ordered = False
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words or words[0] == "ImageId":
            continue
        ordered = len(words) == 1
        image = next(in_order, "") if ordered else os.path.splitext(os.path.basename(words[0]))[0]
        label = words[0] if ordered else words[1]
        if image not in images or label not in (folders if ordered else index):
            raise DataError(
                f"{annotations} line {number}: expected an image of val and one of {len(classes)} classes of train"
            )
        if images[image] in chosen:
            raise DataError(f"{annotations} line {number}: {image} has a class already; each image may have one line")
        chosen[images[image]] = index[label]
    if not chosen:
        raise DataError(f"{annotations} names no images")
    if ordered and len(chosen) < len(listed):
        raise DataError(f"{annotations} has {len(chosen)} classes for the {len(listed)} images of val")
    for path in listed:
        if path not in chosen:
            listing.pass_over(path, f"image without a class in {annotations.name}")
    files, labels = tuple(chosen), tuple(chosen.values())
    names = tuple(map(printable, classes))
    return Dataset(name, str(root), "val", files, labels, names, left_out=listing.left_out())


# What a CIFAR batch is pickled from besides plain containers. Nothing here can run a command.
_HARMLESS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays and plain containers; refuses every other name before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise DataError(f"it asks for {module}.{name}, which no image batch needs, and was not run")
        return super().find_class(module, name)


def read_batch(path: str | Path) -> dict[str, Any]:
    """Read a CIFAR-style pickle without running any code in it.

    Returns:
        The pickled dictionary, keys as text.

    Raises:
        DataError: not a pickle of a dictionary, or one that asks for anything but arrays.
    """
    try:
        # The batches were written by Python 2, whose strings are bytes.
        content = _ArrayUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"refused to read {path}: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        raise DataError(f"{path} is not a readable pickle of image arrays: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a dictionary with b'data'")
    return {_text(key): value for key, value in content.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def pixels_of(data: Any, path: str | Path) -> NDArray[np.uint8]:
    """Images [n, 32, 32, 3] from rows of 3072 planar values or from [n, 32, 32, 3]."""
    if isinstance(data, np.ndarray) and data.dtype == np.uint8:
        if data.ndim == 2 and data.shape[1] == 3072:
            return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        if data.ndim == 4 and data.shape[1:] == (32, 32, 3):
            return np.ascontiguousarray(data)
    raise DataError(f"{path}: expected uint8 data of shape [n, 3072] or [n, 32, 32, 3]")


_BATCHES = ("cifar-10-batches-py", "cifar-100-python")
_CIFAR = (*_BATCHES, *(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def _open_cifar(root: Path, split: str) -> Dataset | None:
    """The Python batches of CIFAR-10 or CIFAR-100, unless their images, or others, lie in class folders beside them."""
    for folder in (root, root / _BATCHES[0]):
        if (folder / "data_batch_1").is_file():
            if _in_class_folders(root, folder / "data_batch_1"):
                return None
            parts = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
            dataset = _cifar(folder, split, parts, "labels", "batches.meta", "label_names", "cifar10")
            return _beside_batches(dataset, root, folder)
    for folder in (root, root / _BATCHES[1]):
        if (folder / "train").is_file() and (folder / "meta").is_file():
            if _in_class_folders(root, folder / "train"):
                return None
            part = ["train" if split == "train" else "test"]
            dataset = _cifar(folder, split, part, "fine_labels", "meta", "fine_label_names", "cifar100")
            return _beside_batches(dataset, root, folder)
    return None


def _in_class_folders(root: Path, batch: Path) -> bool:
    """Whether the images are in class folders, whatever a file is called that could be a batch."""
    train = [(label, folder) for folder in _split_folders(root, "train") for label in _class_folders(folder)]
    if any(_filled(label)(folder) for label, folder in train):
        return True
    try:
        with batch.open("rb") as file:
            pickled = file.read(1) in (b"\x80", b"(", b"}")
    except OSError:
        return False  # whoever reads it says why it cannot
    return not pickled and sum(_filled(label)(root) for label in _class_folders(root)) > 1


def _beside_batches(dataset: Dataset, root: Path, folder: Path) -> Dataset:
    """The data set, with the folders that lie beside its batches counted."""
    listing = _Listing()
    for entry in _scan(root):
        if _is_folder(entry) and not entry.name.startswith(".") and Path(entry.path) != folder:
            listing.pass_over(entry.path, "folder beside the batches")
    return replace(dataset, left_out=listing.left_out())


def _cifar(folder: Path, split: str, parts: list[str], key: str, meta: str, names: str, name: str) -> Dataset:
    arrays, labels = [], []
    for part in parts:
        if not (folder / part).is_file():
            raise DataError(f"{folder} lacks {part}; unpack the {name} archive again")
        batch = read_batch(folder / part)
        if "data" not in batch or key not in batch:
            raise DataError(f"{folder / part} lacks data or {key}; unpack the {name} archive again")
        arrays.append(pixels_of(batch["data"], folder / part))
        if len(arrays[-1]) != len(batch[key]):
            raise DataError(
                f"{folder / part} holds {len(arrays[-1])} images but {len(batch[key])} labels; "
                f"unpack the {name} archive again"
            )
        labels += [int(label) for label in batch[key]]
    described = read_batch(folder / meta) if (folder / meta).is_file() else {}
    if names not in described:
        raise DataError(f"{folder / meta} lacks {names}; unpack the {name} archive again")
    classes = tuple(map(_text, described[names]))
    pixels = np.concatenate(arrays)
    if len(pixels) != len(labels) or (labels and not 0 <= min(labels) <= max(labels) < len(classes)):
        raise DataError(f"{folder}: {len(pixels)} images, {len(labels)} labels and {len(classes)} classes do not fit")
    return Dataset(f"{name}/{split}", str(folder), split, (), tuple(labels), classes, pixels)
