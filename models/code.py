"""Networks and other things in the user's own code, imported as a script of theirs would do it.

A file's folder, or that of the package it belongs to, is where its imports look first. Where modules there are called
like some that this process has already (`models`, or the same file in another folder), they are imported under a name
of their own, so that neither is taken for the other; see models.imports.
"""

import contextlib
import copy
import functools
import importlib
import importlib.util
import inspect
import io
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType, ModuleType

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from models.dry_run import answer, sizes_taken, without_weights
from models.errors import ModelError, unknown, where
from models.imports import OURS, beside, importing
from models.names import TARGET, Name
from models.objects import label_of
from models.project import elsewhere, find, root

IMPORT_SECONDS = 60
"""How long importing a file may take, in the main thread."""
CLASSES = ("classes", "num_classes")
"""What networks call the number of their outputs; they are given it by the first of these names that they know."""
SIZES = ("image_size", "img_size", "input_size", "in_size", "size")
"""What networks call the height and width of their images."""

# Folder -> the name before its modules, "" where they have their own.
_aliases: dict[Path, str] = {}
_loaded: dict[tuple[Path, str], object] = {}
_failed: dict[tuple[Path, str], str] = {}


def load(base: str) -> object:
    """What FILE.py:NAME or package.module:NAME stands for; the file is imported once.

    Raises:
        ModelError: no such file, module or name (near ones are listed), or its import failed; with file and line.
    """
    key = (root(), base)
    if key in _failed:
        raise ModelError(_failed[key])
    if key not in _loaded:
        try:
            _loaded[key] = _attribute(Name(base))
        except ModelError as error:
            _failed[key] = str(error)
            raise
    return _loaded[key]


@contextlib.contextmanager
def naming(thing: object) -> Iterator[str]:
    """A name for a class, a function or a network that this process has; within the block it stands for that.

    `functools.partial` of one is named with its arguments; a text stays as it is.

    Raises:
        ModelError: arguments that cannot be written in a name.
    """
    if isinstance(thing, str):
        yield thing
        return
    name = label_of(thing)
    key = (root(), Name.from_text(name).base)
    _forget(key)
    _loaded[key] = thing.func if isinstance(thing, functools.partial) else thing
    try:
        yield name
    finally:
        # Another object may be called the same next time: a notebook's cell is run again.
        _forget(key)


def _forget(key: tuple[Path, str]) -> None:
    _loaded.pop(key, None)
    _failed.pop(key, None)
    for known in [known for known in _facts if known[:2] == key]:
        del _facts[known]


def _attribute(name: Name) -> object:
    name.check(root())
    found: object = module(name)
    for part in name.attribute.split("."):
        if not hasattr(found, part):
            known = [word for word, one in vars(found).items() if word[0] != "_" and not isinstance(one, ModuleType)]
            raise unknown(f"name in {name.place}:", part, known, "see the names that it defines")
        found = getattr(found, part)
    return found


def module(name: Name) -> ModuleType:
    """The module or file that holds what a name of code stands for. Raises ModelError, see `load`."""
    if name.is_file:
        path = (root() / name.place).resolve()
        folder, parts = path.parent, [path.stem]
        while (folder / "__init__.py").is_file():
            parts.insert(0, folder.name)
            folder = folder.parent
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
    else:
        parts = name.place.split(".")
        folders = [folder / part for folder in _homes() for part in (TARGET, ".", "src")]
        places = [place for place in folders if parts[0] in _names_in(place)]
        if not places:
            if importlib.util.find_spec(parts[0]) is None:
                raise ModelError(
                    f"no module is called {parts[0]}: it is neither in {root()} nor installed; a file's is FILE.py:NAME"
                )
            with _reported(name.place, None):
                return importlib.import_module(name.place)
        folder = places[0].resolve()
    alias = _claim(folder, [place for place in _homes() if place != folder and folder.is_relative_to(place)])
    with _reported(name.place, folder):
        return importlib.import_module(".".join([*filter(None, [alias]), *parts]))


def _names_in(folder: Path) -> set[str]:
    """What can be imported by name from a folder."""
    if not folder.is_dir():
        return set()
    found = set()
    for place in folder.iterdir():
        if place.suffix in (".py", ".so"):
            found.add(place.name.partition(".")[0])
        elif place.is_dir() and place.name.isidentifier():
            # A folder of modules without __init__.py is a package too, if nothing else is called so.
            whole = (place / "__init__.py").is_file()
            bare = not whole and any(place.glob("*.py")) and (place.name in OURS or not _installed(place.name))
            if whole or bare:
                found.add(place.name)
    return found


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return name in sys.modules


def _homes() -> list[Path]:
    """Folders that a script of the user's would be started in."""
    return list(dict.fromkeys([root().resolve(), find().folder.resolve()]))


def _claim(folder: Path, around: Sequence[Path] = ()) -> str:
    """What stands before the names of a folder's modules in this process: "" unless they are called like others.

    Args:
        around: folders whose modules those of this one may import as well.
    """
    outer = {place: _claim(place) for place in around}
    if folder not in _aliases:
        names = _names_in(folder)
        taken = {*sys.stdlib_module_names, *OURS, *(name for name in sys.modules if "." not in name)}
        if elsewhere() or names & taken or any(outer.values()):
            alias = next(f"pixbench_code{n or ''}" for n in count() if f"pixbench_code{n or ''}" not in sys.modules)
            beside(
                alias, folder, names, {name: one for place, one in outer.items() if one for name in _names_in(place)}
            )
            _aliases[folder] = alias
        else:
            sys.path.insert(0, str(folder))
            _aliases[folder] = ""
    return _aliases[folder]


@contextlib.contextmanager
def _reported(what: str, folder: Path | None) -> Iterator[None]:
    """What the user's code raises or prints inside becomes one ModelError, with the last line of it that was run."""
    printed = io.StringIO()
    try:
        with importing(what), contextlib.redirect_stdout(printed), _unchanged(), _limited(what):
            yield
    except (Exception, SystemExit) as error:
        said = next((f"; it printed: {line.strip()}" for line in reversed(printed.getvalue().splitlines()) if line), "")
        raise ModelError(f"{what} cannot be imported: {_words(error)}{where(error, folder)}{said}") from error
    finally:
        # stdout is for data.
        sys.stderr.write(printed.getvalue())


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Put back what the user's code sets for its whole process, where others are measured too, and others' names."""
    threads, dtype, gradients = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with contextlib.chdir("."):
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


def _words(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg}"
    if isinstance(error, SystemExit):
        return f"it called exit({'' if error.code is None else error.code!r})"
    if isinstance(error, TimeoutError) and error.args and error.args[0] is _limited:
        return f"it took more than {IMPORT_SECONDS} s"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextlib.contextmanager
def _limited(what: str) -> Iterator[None]:
    """Raise TimeoutError inside after IMPORT_SECONDS; only a main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(_limited)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def parameters(base: str) -> Mapping[str, inspect.Parameter]:
    """What a class or function takes, by name; nothing for an object, or where Python cannot tell."""
    found = load(base)
    if isinstance(found, nn.Module) or not callable(found):
        return {}
    try:
        return inspect.signature(found).parameters
    except (TypeError, ValueError):
        return {}


def known_arguments(base: str) -> dict[str, object]:
    """Keyword arguments of a class or function, with their defaults (None where there is none)."""
    return {
        name: None if one.default is one.empty else one.default
        for name, one in parameters(base).items()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY)
    }


def call(base: str, offered: Mapping[str, object], arguments: Mapping[str, object]) -> object:
    """What a class or function returns, given what it knows of `offered`, and all `arguments`.

    Raises:
        ModelError: it is no class or function, does not know an argument, lacks one, or failed; with file and line.
    """
    found = load(base)
    if not callable(found):
        raise ModelError(f"{base} is of type {type(found).__name__}, not a class or a function")
    taken = parameters(base)
    known = known_arguments(base)
    open_ended = any(one.kind is one.VAR_KEYWORD for one in taken.values())
    for key in arguments:
        if key not in known and not open_ended:
            raise unknown(f"argument of {base}", key, known)
    given = {**{key: value for key, value in offered.items() if key in known}, **arguments}
    lacking = [name for name, one in taken.items() if name in known and one.default is one.empty and name not in given]
    if "self" in lacking:
        raise ModelError(f"{base} is a method; name its class, or a function")
    if lacking:
        example = ",".join(f"{name}=..." for name in lacking)
        raise ModelError(
            f"{base} needs {' and '.join(lacking)}: write '{base}[{example}]'; it takes {', '.join(known)}"
        )
    path = None
    with contextlib.suppress(TypeError):
        # What is built into Python has no file.
        path = inspect.getsourcefile(found)
    try:
        with contextlib.redirect_stdout(sys.stderr), _unchanged():
            return found(**given)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        place = where(error, Path(path).parent if path else None)
        words = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ModelError(f"{base}({words}) failed: {_words(error)}{place}") from error


def build(base: str, classes: int | None, arguments: Mapping[str, object]) -> nn.Module:
    """A network of the user's: a class or function is called with `classes` as far as it takes it, an object is copied.

    On the meta device it is built with its weights, and then copied without: not every network can be built there.

    Raises:
        ModelError: see `load` and `call`; or it is no network.
    """
    meta = torch.get_default_device().type == "meta"
    with torch.device("cpu") if meta else contextlib.nullcontext():
        found = load(base)
        if isinstance(found, nn.Module):
            if arguments:
                raise ModelError(f"{base} is a network already, so it takes no arguments; name its class or a function")
            built: object = found
        else:
            built = call(base, {}, {**_told(base, classes, arguments), **arguments})
    if not isinstance(built, nn.Module):
        raise ModelError(f"{base} gives something of type {type(built).__name__}, not a network (torch.nn.Module)")
    inner = getattr(built, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        raise ModelError(
            f"{base} is compiled already; give the network itself: torch.compile is part of a configuration (fast)"
        )
    if isinstance(built, torch.jit.ScriptModule):
        raise ModelError(f"{base} is a TorchScript module; give the network that it was made from")
    if any(
        isinstance(one, UninitializedParameter | UninitializedBuffer) for one in (*built.parameters(), *built.buffers())
    ):
        raise ModelError(f"{base} has lazy layers, whose sizes the first image decides; give it one where it is built")
    if meta:
        return without_weights(built)
    # An object is one network, and several are built from it.
    return (copy.deepcopy(built) if built is found else built).cpu()


def _told(base: str, classes: int | None, arguments: Mapping[str, object]) -> dict[str, object]:
    """The number of classes under the name that a class or function knows it by."""
    if classes is None or any(word in arguments for word in CLASSES):
        return {}
    known = known_arguments(base)
    word = next((word for word in CLASSES if word in known), None)
    if word is None and any(one.kind is one.VAR_KEYWORD for one in parameters(base).values()):
        # It hands on what it does not know itself, under the usual name; told only where its own number will not do.
        return {CLASSES[1]: classes} if facts(Name(base, arguments)).classes != classes else {}
    return {word: classes} if word is not None else {}


@dataclass(frozen=True)
class Facts:
    """What a network of the user's is made for: its outputs, and height and width of its images in pixels."""

    classes: int
    size: int


_facts: dict[tuple[Path, str, str], Facts] = {}


def facts(name: Name) -> Facts:
    """Outputs and image size of a network, from its arguments or their defaults, its attributes, or an answer of it.

    Where nothing says a size it is 224. Where nothing says how many outputs there are, an image is given to it.

    Raises:
        ModelError: it cannot be built.
    """
    key = (root(), name.base, repr(dict(name.arguments)))
    if key not in _facts:
        _facts[key] = _found_out(name)
    return _facts[key]


def _found_out(name: Name) -> Facts:
    said = {**known_arguments(name.base), **name.arguments}
    size = next((number for word in SIZES if (number := _pixels(said.get(word)))), 0)
    classes = next((value for word in CLASSES if type(value := said.get(word)) is int and value > 0), 0)
    takes_classes = any(word in said for word in CLASSES)
    if not classes and takes_classes and not any(word in name.arguments for word in CLASSES):
        classes = 1000
    if size and classes:
        return Facts(classes, size)
    with torch.device("meta"):
        network = build(name.base, classes or None, name.arguments).eval()
    size = size or _size_of(network)
    return Facts(classes or _outputs(network, name, size), size)


def _size_of(network: nn.Module) -> int:
    """What a network's attributes say of the size of its images; 224 where they say nothing."""
    for holder in (network, getattr(network, "_global_params", None)):
        said = getattr(holder, "default_cfg", None) or getattr(holder, "pretrained_cfg", None)
        if isinstance(said, Mapping) and (found := _pixels(said.get("input_size"))):
            return found
        for word in SIZES:
            if found := _pixels(getattr(holder, word, None)):
                return found
    return 224


def _pixels(value: object) -> int:
    """A height in pixels out of 224, (224, 224) or (3, 224, 224); 0 for anything else."""
    if isinstance(value, list | tuple) and value:
        value = value[-1]
    return value if type(value) is int and value > 3 else 0


def _outputs(network: nn.Module, name: Name, size: int) -> int:
    """How many logits a network gives for an image; 1000 where it takes none of any size, which is said elsewhere."""
    for real in (False, True):
        with contextlib.suppress(ModelError), torch.no_grad():
            found = build(name.base, None, name.arguments).eval() if real else network
            for pixels in (size, *sizes_taken(found, name.base)[:1]):
                with contextlib.suppress(ModelError):
                    return int(answer(found, name.base, pixels).shape[1])
    return 1000
