"""Data sets: from a folder in one of the usual layouts to a list of images with labels.

Nothing is decoded here. Listings are sorted, so that the same folder is the same data set everywhere.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.formats import IMAGENET_MEAN, IMAGENET_STD
from loaders.errors import DataError, NoSplitError
from loaders.file_formats import ENDINGS

EXTENSIONS = ENDINGS
SPLITS = ("train", "val", "test")

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
class Unlabelled:
    """Images without labels, to be predicted.

    Attributes:
        name: the file or folder, for messages.
        ids: one for each image, from the pickle; file names for a folder.
        pixels: uint8 [images, 32, 32, 3] for a pickle, None for a folder.
        files: paths for a folder, otherwise empty.
    """

    name: str
    ids: tuple[str, ...]
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    files: tuple[str, ...] = ()

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
            decoded once (loaders.resident.decoded).
    """

    name: str
    root: str
    split: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def need_files(self, engine: str) -> tuple[str, ...]:
        """The files, or a DataError saying that `engine` cannot read a set that comes as arrays."""
        if not self.files:
            raise DataError(
                f"loader {engine} reads image files, but {self.name} has none; use resident, pil or torchvision"
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

    Known layouts: CIFAR-10 and CIFAR-100 python batches; Tiny-ImageNet; ImageNet with a flat val folder and a text of
    true classes beside it; a folder with train and val (or test) folders of class folders, the training part possibly
    spread over train.X1, train.X2, ...; a folder of class folders; a flat folder of images (one class). The last two
    have no splits: each split is the whole set.

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
    for open_layout in (_open_cifar, _open_tiny_imagenet, _open_flat_val, _open_splits):
        dataset = open_layout(root, split)
        if dataset is not None:
            return dataset
    if _class_folders(root):
        return _folder_dataset(root.name, root, "all", [root])
    files = _images_below(str(root))
    if not files:
        raise DataError(f"no images in {root}; expected class folders, train and val folders, or {EXTENSIONS} files")
    return Dataset(root.name, str(root), "all", tuple(files), (0,) * len(files), (root.name,))


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
        if split == "val" or (dataset.files, dataset.labels) != (parts[-1].files, parts[-1].labels):
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
    return _folder_dataset("+".join(path.name for path in paths), paths[0].parent, split, paths)


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


def fingerprint(dataset: Dataset) -> str:
    """16 hexadecimal digits that identify the classes, the labels and the file names below the set's folder.

    The same data has the same fingerprint in any folder; contents of files are not read. For sets that come as arrays
    every pixel of up to 1,000 evenly spread images counts instead of names.
    """
    digest = hashlib.sha256()
    digest.update("\0".join(dataset.classes).encode())
    digest.update(np.asarray(dataset.labels, np.int32).tobytes())
    if dataset.files:
        # Only the last two parts of a path: a split may be in any folder.
        digest.update("\0".join("/".join(path.split(os.sep)[-2:]) for path in dataset.files).encode())
    elif dataset.pixels is not None:
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(1000, len(dataset))).astype(np.int64))
        digest.update(np.ascontiguousarray(dataset.pixels[chosen]).tobytes())
    return digest.hexdigest()[:16]


def open_unlabelled(path: str | Path) -> Unlabelled:
    """Images to be predicted: a pickle of b'data' and b'ids', or a folder of image files.

    b'data' is uint8, [n, 3072] with one colour after the other or [n, 32, 32, 3]; a pickle without b'ids' is numbered
    from 0. Code in the pickle is never run.

    Raises:
        DataError: no such file, a pickle that asks for anything but arrays, or one of another form.
    """
    path = Path(path)
    if path.is_dir():
        files = _images_below(str(path))
        if not files:
            raise DataError(f"no images in {path}; expected {', '.join(EXTENSIONS)} files")
        return Unlabelled(str(path), tuple(os.path.relpath(file, path) for file in files), files=tuple(files))
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


def _class_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _classes_in(folders: Sequence[Path]) -> list[str]:
    return sorted({label for folder in folders for label in _class_folders(folder)})


def _images_below(folder: str) -> list[str]:
    """Paths of the images in `folder` and the folders in it, sorted; hidden files are left out."""
    images: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # The name decides first: on some file systems is_dir() is a call to the server.
            if entry.name.lower().endswith(EXTENSIONS):
                images.append(entry.path)
            elif entry.is_dir():
                folders.append(entry.path)
    for path in folders:
        images.extend(_images_below(path))
    return sorted(images)


def _folder_dataset(name: str, root: Path, split: str, folders: list[Path]) -> Dataset:
    classes = _classes_in(folders)
    if not classes:
        raise DataError(f"no class folders in {', '.join(map(str, folders))}; expected <class>/<image>")
    files: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for index, label in enumerate(classes):
        members = [
            path for folder in folders if (folder / label).is_dir() for path in _images_below(str(folder / label))
        ]
        if not members:
            empty.append(label)
        files += members
        labels += [index] * len(members)
    if empty:
        where = ", ".join(map(str, folders))
        if len(empty) == 1:
            raise DataError(f"class folder {empty[0]} in {where} holds no images; fill or remove it")
        raise DataError(
            f"{len(empty)} of {len(classes)} class folders in {where} hold no images: {_few(empty)}; "
            "unpack the archive again, or remove them"
        )
    return Dataset(name, str(root), split, tuple(files), tuple(labels), tuple(classes))


def _split_folders(root: Path, split: str) -> list[Path]:
    """Folders of one split: `train` itself, or `train.X1`, `train.X2`, ...; empty when there is none."""
    for name in _FOLDERS[split]:
        if (root / name).is_dir():
            return [root / name]
        parts = [root / part for part in _class_folders(root) if part.startswith(f"{name}.")]
        if parts:
            return parts
    return []


def _open_splits(root: Path, split: str) -> Dataset | None:
    train, val = _split_folders(root, "train"), _split_folders(root, "val")
    if not train:
        return None
    if not val and split != "train":
        raise NoSplitError(f"{root} has {train[0].name} but no folder for split {split}: {', '.join(_FOLDERS[split])}")
    wanted = _split_folders(root, split)
    # ImageNet's test images come without classes, beside a val folder that has them.
    if not wanted or (split == "test" and val != wanted and not any(map(_class_folders, wanted))):
        raise NoSplitError(f"{root} has no folder for split {split}: expected {', '.join(_FOLDERS[split])}")
    if val:
        # Names only: a wrong split is refused before a million files are listed.
        check_same_classes(
            *(
                Dataset(f"{root.name}/{parts[0].name}", str(root), split, (), (), tuple(_classes_in(parts)))
                for parts in (train, val)
            )
        )
    return _folder_dataset(f"{root.name}/{split}", root, split, wanted)


def _open_tiny_imagenet(root: Path, split: str) -> Dataset | None:
    """Tiny-ImageNet: train/<class>/images/*, val/images/* listed in val/val_annotations.txt."""
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return None
    if split == "test":
        raise NoSplitError(f"the test images of Tiny-ImageNet in {root} have no labels; use split val")
    return _annotated("tiny-imagenet", root, split, annotations)


# The texts that come with copies of ImageNet whose val folder is flat, best first.
_ANNOTATIONS = (
    "val_annotations.txt",
    "val.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
)


def _open_flat_val(root: Path, split: str) -> Dataset | None:
    """ImageNet as some copies have it: class folders in train, a flat val folder and its classes in a text."""
    if split == "test" or not (root / "train").is_dir() or not (root / "val").is_dir() or _class_folders(root / "val"):
        return None
    places = (folder / name for name in _ANNOTATIONS for folder in (root / "val", root))
    annotations = next((path for path in places if path.is_file()), None)
    return None if annotations is None else _annotated(root.name, root, split, annotations)


def _annotated(name: str, root: Path, split: str, annotations: Path) -> Dataset:
    """Class folders in train, and images in val whose classes are listed in a text.

    A line of the text is an image and its class (a folder of train, or its number in sorted order), separated by blanks
    or a comma; or only the folder, in the order of the sorted images. The numbers in ImageNet's own development kit are
    in another order, so a number without an image is refused.
    """
    if split == "train":
        return _folder_dataset(f"{name}/train", root, split, [root / "train"])
    classes = tuple(_class_folders(root / "train"))
    folders = {label: i for i, label in enumerate(classes)}
    index = {str(i): i for i in range(len(classes))} | folders
    images = {os.path.splitext(os.path.basename(path))[0]: path for path in _images_below(str(root / "val"))}
    in_order = iter(images)
    files, labels = [], []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0] == "ImageId":
            continue
        image = os.path.splitext(words[0])[0] if len(words) > 1 else next(in_order, "")
        label = words[1] if len(words) > 1 else words[0]
        if image not in images or label not in (index if len(words) > 1 else folders):
            raise DataError(
                f"{annotations} line {number}: expected an image of val and one of {len(classes)} classes of train"
            )
        files.append(images[image])
        labels.append(index[label])
    if not files:
        raise DataError(f"{annotations} names no images")
    return Dataset(f"{name}/val", str(root), split, tuple(files), tuple(labels), classes)


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
        raise DataError(f"cannot read {path}: {error.strerror}") from error
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


def _open_cifar(root: Path, split: str) -> Dataset | None:
    for folder in (root, root / "cifar-10-batches-py"):
        if (folder / "data_batch_1").is_file():
            parts = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
            return _cifar(folder, split, parts, "labels", "batches.meta", "label_names", "cifar10")
    for folder in (root, root / "cifar-100-python"):
        if (folder / "train").is_file() and (folder / "meta").is_file():
            part = ["train" if split == "train" else "test"]
            return _cifar(folder, split, part, "fine_labels", "meta", "fine_label_names", "cifar100")
    return None


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
