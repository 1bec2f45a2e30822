"""Weights and training state on disk, written so that a kill at any moment leaves a complete pair.

Weights are safetensors files whose header says what network they belong to (`Card`). What only a resumed run needs
(optimiser, averages, random numbers, position in the data) is a second file, read with `weights_only`. A new state
file is written first, under a name of its own; the weights file, which names its state, replaces the old one in a
single rename; only then is the old state removed. At every moment the weights on the disk name a state on the disk.
"""

import contextlib
import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from kernels.formats import IMAGENET_MEAN, IMAGENET_STD
from models.errors import ModelError, reason
from models.training.recipe import as_tuples

SCHEMA = 1
HEADER = "pixbench"
LAST, BEST = "last.safetensors", "best.safetensors"
# What a kill may leave of a file that was being written ends like this, as results.store has it.
TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class Card:
    """What a weights file says about itself.

    Attributes:
        model, arguments: how the zoo builds the network.
        classes: class names, in the order of the logits.
        size: pixels of the images it was evaluated on.
        mean, std: of the normalisation, for pixels of 0..1; unused if `normalization` is "per_image".
        evaluation: how images are brought to that size ("center", "whole", "random").
        exif: whether the orientation that files store was ignored or applied ("ignore", "apply").
        tta: how logits are averaged over images made of each (see the recipe's key).
        data: name of the data set.
        epoch, step: finished when the weights were stored.
        top1: on the validation images, None if they were not evaluated.
        state: name of the file with the run's state; empty for weights alone.
        digest: SHA-256 of the tensors, because the format itself detects no flipped bit.
    """

    model: str
    classes: tuple[str, ...]
    size: int
    arguments: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    normalization: str = "fixed"
    evaluation: str = "center"
    tta: str = "none"
    exif: str = "ignore"
    data: str = ""
    epoch: int = 0
    step: int = 0
    top1: float | None = None
    state: str = ""
    digest: str = ""
    schema: int = SCHEMA


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name in the same folder, flush to the disk, rename."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner can read; checkpoints are shared like any other file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"cannot write {path}: {reason(error, path.parent)}; free some space") from error
    finally:
        temporary.unlink(missing_ok=True)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of CPU tensors: equal if and only if every bit is equal."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers on the CPU, in plain memory order."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}


def save_weights(path: Path, tensors: Mapping[str, Tensor], card: Card) -> None:
    """Store CPU tensors with their card, completely or not at all.

    Raises:
        ModelError: the file cannot be written.
    """
    header = json.dumps({**asdict(card), "digest": digest(tensors)})
    data = to_bytes(dict(tensors), {HEADER: header})
    _replace(path, lambda temporary: temporary.write_bytes(data))


def read_card(path: Path) -> Card:
    """The card of a weights file, without reading its tensors.

    Raises:
        ModelError: missing, not a safetensors file, or not written by this project.
    """
    return _read(path, tensors=False)[0]


def load_weights(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """Card and tensors, on the CPU.

    Raises:
        ModelError: missing, damaged, or not written by this project.
    """
    card, tensors = _read(path, tensors=True)
    if digest(tensors) != card.digest:
        raise ModelError(f"checkpoint {path} is corrupted: its weights are not those that were stored; use another")
    return card, tensors


def _read(path: Path, tensors: bool) -> tuple[Card, dict[str, Tensor]]:
    if path.is_dir():
        raise ModelError(f"checkpoint {path} is a folder; name a .safetensors file in it")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            weights = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f"checkpoint {path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        if is_pickle(path):
            raise ModelError(
                f"checkpoint {path} is a pickle file (as torch.save writes); it is not opened, because that could run "
                "code it carries; name a .safetensors file of bench train"
            ) from None
        raise ModelError(
            f"checkpoint {path} cannot be read ({error}); it is damaged or not a safetensors file"
        ) from None
    if header is None:
        raise ModelError(f"checkpoint {path} does not say what network it belongs to: not written by bench train")
    try:
        values = {key: as_tuples(value) for key, value in json.loads(header).items()}
        values["arguments"] = {key: as_tuples(value) for key, value in values.get("arguments", {}).items()}
        card = Card(**values) if values.keys() <= {f.name for f in fields(Card)} else None
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"checkpoint {path} has a damaged header: {error}") from None
    if card is None or card.schema != SCHEMA:
        raise ModelError(f"checkpoint {path} has schema {values.get('schema')}; this version reads {SCHEMA}")
    return card, weights


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle or torch.save's archive around one, judged by its first bytes alone."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(4)
        return start[:2] in {b"\x80%c" % version for version in range(2, 6)} or start == b"PK\x03\x04"
    return False


def put(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a network in place: its parameters stay the same tensors, as compiled programs need.

    `where` names the source of the weights in errors.

    Raises:
        ModelError: names or shapes differ; the first differences are listed.
    """
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or extra:
        raise ModelError(f"{where} belongs to another network: it lacks {few(missing)} and has {few(extra)} instead")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise ModelError(
                f"{where} belongs to another network: {name} is {list(tensors[name].shape)} there "
                f"and {list(tensor.shape)} here"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def few(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def save_run(folder: Path, tensors: Mapping[str, Tensor], card: Card, state: Mapping[str, Any]) -> None:
    """Replace the last weights of a run and their state.

    Raises:
        ModelError: the folder cannot be written.
    """
    name = f"state-{card.step:08d}.pt"
    if (folder / name).exists() and (folder / LAST).exists() and read_card(folder / LAST).state == name:
        # Stored twice at one step, as at the end of an epoch just after a timed checkpoint: never write over the state
        # that the present weights name.
        name = f"state-{card.step:08d}b.pt"
    _replace(folder / name, lambda temporary: torch.save(dict(state), temporary))
    save_weights(folder / LAST, tensors, replace(card, state=name))
    for old in folder.glob("state-*.pt"):
        if old.name != name:
            old.unlink(missing_ok=True)


def load_run(folder: Path) -> tuple[Card, dict[str, Tensor], dict[str, Any]]:
    """Card, weights and state of a run that can be resumed.

    Raises:
        ModelError: nothing stored yet, or damaged.
    """
    card, tensors = load_weights(folder / LAST)
    path = folder / card.state
    if not card.state or not path.is_file():
        raise ModelError(f"run {folder} cannot be resumed: the state that {folder / LAST} names is missing")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own message advises to load the file without this guard, or quotes its archive library.
        foreign = isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path)
        reason = "holds more than tensors, so it is not a run's state" if foreign else "is damaged or not a run's state"
        raise _unusable(folder, path, reason) from None
    if not isinstance(state, dict):
        raise _unusable(folder, path, "is not a run's state")
    return card, tensors, state


def _unusable(folder: Path, path: Path, reason: str) -> ModelError:
    return ModelError(
        f"run {folder} cannot be resumed: {path.name} {reason}; it was not executed; restore a copy of it, or begin a "
        f"new run with another --name ({folder / LAST} is intact: bench evaluate and bench predict can use it)"
    )
