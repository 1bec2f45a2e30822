"""Networks with trained weights: checkpoints of ours, runs, and files of weights of anybody's."""

import difflib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models import zoo
from models.errors import ModelError
from models.names import TRAINED, Name
from models.project import root
from models.training import checkpoint
from models.training.recipe import load as load_recipe

# Under which name the weights lie in files that hold more, and what others put before the names of weights.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Facts:
    """What a checkpoint's network gives and takes: logits, and pixels of its images."""

    classes: int
    size: int


def weights_file(path: Path) -> Path:
    """The path of a weights file; of a run's folder, those that its recipe selects, or the only ones it has."""
    if not path.is_dir():
        return path
    names = [checkpoint.LAST, checkpoint.BEST]
    if (path / "recipe.toml").is_file() and load_recipe(path / "recipe.toml").select == "best":
        names.reverse()
    return next((path / name for name in names if (path / name).is_file()), path / names[0])


def restored(path: Path) -> tuple[checkpoint.Card, nn.Module]:
    """The card of a checkpoint or run, and its network with the weights, on the CPU.

    Raises:
        ModelError: no such file, damaged, or of a network that is not in the zoo.
    """
    path = weights_file(path)
    card, tensors = checkpoint.load_weights(path)
    model = zoo.build(card.model, len(card.classes), **card.arguments)
    checkpoint.put(model, tensors, f"checkpoint {path}")
    return card, model


def known_arguments(base: str) -> dict[str, object]:
    """None: it is a network already."""
    return {}


def load(base: str) -> None:
    """Import what it is built from. Raises ModelError: it is no checkpoint of ours."""
    zoo.prepare_imports(_card(base).model)


def facts(name: Name) -> Facts:
    """Outputs and image size. Raises ModelError: it is no checkpoint of ours."""
    card = _card(name.base)
    return Facts(len(card.classes), card.size)


def build(base: str, classes: int | None, arguments: Mapping[str, object]) -> nn.Module:
    """The network of a checkpoint or run with its weights, or without them on the meta device.

    Raises:
        ModelError: see `restored`; or it has another number of outputs.
    """
    card = _card(base)
    if arguments:
        raise ModelError(f"{base} is a network already, so it takes no arguments")
    if classes not in (None, len(card.classes)):
        raise ModelError(f"{base} was trained on {len(card.classes)} classes and not {classes}: leave out --classes")
    if torch.get_default_device().type == "meta":
        return zoo.build(card.model, len(card.classes), **card.arguments)
    return restored(root() / base)[1]


def _card(base: str) -> checkpoint.Card:
    return checkpoint.read_card(weights_file(root() / base))


@dataclass(frozen=True)
class Weights:
    """Weights read from a file.

    Attributes:
        file: as it was named.
        tensors: by the names of a state dict.
        unwrapped: in words what was taken off to get at them, "" for nothing.
    """

    file: str
    tensors: Mapping[str, Tensor]
    unwrapped: str = ""

    @classmethod
    def read(cls, file: str) -> "Weights":
        """The weights in a .safetensors file, or in a state dict that torch.save wrote.

        Raises:
            ModelError: missing, damaged, or it holds something else.
        """
        path = root() / file
        if not path.is_file():
            raise ModelError(f"--weights {file}: there is no such file")
        found = _safetensors(file, path) if path.suffix == TRAINED else _pickled(file, path)
        taken: list[str] = []
        while not _tensors(found):
            inside = next((key for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
            if inside is None:
                keys = ", ".join(map(str, list(found)[:4])) or "nothing"
                raise ModelError(f"--weights {file} holds no state dict, but {keys}; save model.state_dict()")
            found = found[inside]
            taken.append(f"its entry {inside!r}")
        tensors = _tensors(found)
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
                taken.append(f"names without {prefix!r}")
        return cls(file, tensors, " and ".join(taken))

    def classes(self, name: str) -> int:
        """With how many outputs these weights fit a network: its own number, or what their last layer says."""
        usual = zoo.default_classes(name)
        with torch.device("meta"):
            own = zoo.build(name, usual).state_dict()
        heads = {
            len(self.tensors[key])
            for key, tensor in own.items()
            if key in self.tensors
            and tensor.dim()
            and len(tensor) == usual
            and self.tensors[key].shape[1:] == tensor.shape[1:]
        }
        return heads.pop() if len(heads) == 1 else usual

    def put(self, model: nn.Module, name: str) -> None:
        """Give them to a network.

        Raises:
            ModelError: they do not fit it, in names or shapes; the first differences are named.
        """
        own = model.state_dict()
        # Counters of batches decide nothing in inference, and older files do not have them.
        given = {key: t for key, t in own.items() if key.endswith("num_batches_tracked")} | dict(self.tensors)
        missing, extra = [key for key in own if key not in given], [key for key in given if key not in own]
        what = f"--weights {self.file} does not fit {name}"
        if missing or extra:
            said = []
            if missing:
                near = difflib.get_close_matches(missing[0], extra, n=2)
                said.append(f"it lacks {checkpoint.few(missing)}" + (f" (near: {', '.join(near)})" if near else ""))
            if extra:
                said.append(f"it has {checkpoint.few(extra)}{' instead' * bool(missing)}")
            raise ModelError(f"{what}: {' and '.join(said)}")
        for key, tensor in own.items():
            if tensor.shape != given[key].shape:
                raise ModelError(f"{what}: {key} is {list(given[key].shape)} there and {list(tensor.shape)} here")
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(given[key])


def _tensors(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; none where something is no state dict."""
    tensors = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    others = [value for value in found.values() if isinstance(value, Mapping)]
    return {} if others else tensors


def _safetensors(file: str, path: Path) -> Mapping[Any, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"--weights {file} cannot be read ({error}); it is damaged or no safetensors file") from error


def _pickled(file: str, path: Path) -> Mapping[Any, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and checkpoint.is_pickle(path):
            raise ModelError(
                f"--weights {file} holds more than tensors, so it was not opened, because that could run code that it "
                "carries; save model.state_dict() alone"
            ) from error
        raise ModelError(f"--weights {file} cannot be read: it is damaged, or torch.save did not write it") from error
    if not isinstance(found, Mapping):
        raise ModelError(f"--weights {file} holds a {type(found).__name__} and no state dict; save model.state_dict()")
    return found
