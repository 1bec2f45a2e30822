"""How things are named: NAME, FILE.py:NAME or package.module:NAME, with arguments behind.

Files are named by their path: exported ones by their ending, checkpoints of ours, and folders of runs that hold one.

Imports no torch and nothing of the user's, so that a mistyped name is answered at once.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import ModelError

TIMM = "timm:"
TARGET = ".pixbench"
"""Folder of a repository into which its `setup` installs what has to be built."""
EXPORTED = (".onnx", ".pt2", ".xml")
"""Endings of exported files: of ONNX, torch.export and OpenVINO."""
TRAINED = ".safetensors"
"""Ending of a checkpoint."""
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_KEY = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Name:
    """A name taken apart.

    Attributes:
        base: what stands before the arguments.
        arguments: name -> value.
    """

    base: str
    arguments: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_text(cls, text: str) -> "Name":
        """Read `BASE` or `BASE[key=value,...]`.

        Values are Python's (3, 0.5, 'text', (1, 2), None); true, false and none are understood too, and any other word
        is a text.

        Raises:
            ModelError: it cannot be read.
        """
        base, bracket, inside = text.partition("[")
        if not bracket:
            return cls(text)
        if not base or not inside.endswith("]"):
            raise ModelError(f"{text!r} cannot be read; arguments are written NAME[key=value,key=value]")
        arguments: dict[str, object] = {}
        for part in split(inside[:-1]):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not _KEY.fullmatch(key):
                raise ModelError(f"{part!r} in {text!r} is no argument; arguments are written key=value")
            if key in arguments:
                raise ModelError(f"{text!r} says twice what {key} is")
            arguments[key] = _value(value)
        return cls(base, arguments)

    @property
    def is_code(self) -> bool:
        """Whether it names something in a file or module, rather than in a table of names."""
        return ":" in self.base and not self.base.startswith(TIMM)

    @property
    def is_exported(self) -> bool:
        """Whether it is a file of a network that was exported, which only infers."""
        return not self.is_code and self.base.lower().endswith(EXPORTED)

    @property
    def is_trained(self) -> bool:
        """Whether it is a checkpoint, or a run's folder with one in it."""
        if self.is_code or not self.base:
            return False
        return self.base.endswith(TRAINED) or next(Path(self.base).glob(f"*{TRAINED}"), None) is not None

    @property
    def has_weights(self) -> bool:
        """Whether weights come with it, so that none are drawn or given."""
        return self.is_exported or self.is_trained

    @property
    def place(self) -> str:
        """Of code: the file or module."""
        return self.base.rpartition(":")[0]

    @property
    def attribute(self) -> str:
        """Of code: what it is called there."""
        return self.base.rpartition(":")[2]

    @property
    def is_file(self) -> bool:
        """Of code: whether it is in a file, not in a module that Python finds by itself."""
        return self.place.endswith(".py")

    def check(self, root: Path) -> None:
        """Check what can be seen of code or a file without opening it: how it is written, and that it is there.

        Args:
            root: folder that a file's path begins in.

        Raises:
            ModelError: it is not, or it cannot be a name.
        """
        if self.has_weights:
            if self.arguments:
                raise ModelError(f"{self.base} is a network already, so it takes no arguments in brackets")
            self._find(root, self.base)
            return
        if "@" in self.base:
            raise ModelError(f"{self.base!r} holds an @, which begins a configuration; rename the file or its folder")
        if not _MODULE.fullmatch(self.attribute):
            what = f"{self.attribute!r} is no name" if self.attribute else "no name stands behind the colon"
            raise ModelError(f"{self.base}: {what}; write FILE.py:NAME or package.module:NAME")
        if self.is_file:
            self._find(root, self.place)
        elif not _MODULE.fullmatch(self.place) or (root / self.place).is_file():
            raise ModelError(f"{self.place!r} is neither a file that ends in .py nor a module, such as package.module")

    @staticmethod
    def _find(root: Path, file: str) -> None:
        """Raise ModelError, with others of its ending, where a file is not there."""
        path = root / file
        if not path.exists():
            near = sorted(one.name for one in path.parent.glob(f"*{path.suffix}"))[:6] if path.parent.is_dir() else []
            folder = "this folder" if path.parent == root else str(Path(file).parent)
            raise ModelError(f"{file} does not exist{f'; {folder} has ' * bool(near)}{', '.join(near)}")


def file_name(text: str) -> str:
    """A name as the name of a file: `mynet-build-width-64` for `mynet.py:build[width=64]`."""
    base, at, configuration = text.partition("@")
    text = re.sub(r"\.py:", ":", base) + at + configuration
    return re.sub(r"[^\w.@]+", "-", text).strip("-.") or "network"


def split(text: str) -> list[str]:
    """The parts between commas, but not those inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def _value(text: str) -> object:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
