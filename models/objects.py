"""Names of what a program has at hand: a class or a function, as a command line would name it.

A fresh process imports by such a name; it cannot be given the object itself. Imports no torch.
"""

import ast
import functools
import inspect
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from models.errors import ModelError
from models.imports import OURS
from models.names import Name

# What every process finds by itself: Python's own modules, installed packages, and the packages that this one is of.
STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
INSTALLED = {"site-packages", "dist-packages"}
SOURCE = Path(__file__).resolve().parents[1]
ADVICE = "give its class, or a function in a file or module that builds it"


def name_of(thing: object) -> str:
    """What a fresh process can import `thing` by: package.module:NAME or FILE.py:NAME.

    A text is a name already. `functools.partial` of a class or function has its arguments behind the name. What the
    fresh process gets is what the file says now.

    Raises:
        ModelError: no name leads to it from a fresh process; says why, and what to give instead.
    """
    if isinstance(thing, str):
        return thing
    if isinstance(thing, functools.partial):
        return name_of(thing.func) + arguments_text(thing)
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        kind = type(thing).__qualname__
        if is_network(thing):
            raise ModelError(
                f"a network that was built already (here a {kind}) cannot be taken into the fresh processes that "
                f"measure; {ADVICE}"
            )
        raise ModelError(f"{kind} is nothing to measure; give a name, a class or a function")
    name = str(thing.__qualname__)
    module = sys.modules.get(str(thing.__module__))
    place = _place(module, name) if module is not None else None
    if module is None or place is None:
        raise ModelError(
            f"{name} was defined in an interactive session or a notebook, which the fresh processes that measure "
            f"cannot import; write it into a file (in a notebook: %%writefile nets.py) and name it nets.py:{name}"
        )
    found: object = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found != thing:
        raise ModelError(
            f"{name} of {place} cannot be imported by this name in the fresh processes that measure: it was made "
            f"inside a function or replaced since; {ADVICE}"
        )
    return f"{place}:{name}"


def label_of(thing: object) -> str:
    """What `thing` is called where its name need not lead to it; a text and a partial as in `name_of`."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, functools.partial):
        return label_of(thing.func) + arguments_text(thing)
    known = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    return f"{known.__module__}:{known.__qualname__}"


def arguments_text(built: "functools.partial[object]") -> str:
    """The arguments of a partial as a name has them: `[width=64,depths=(2, 2)]`, "" without any.

    Raises:
        ModelError: they are given by position, or their values cannot be written.
    """
    if built.args:
        raise ModelError(f"{label_of(built.func)} is given {built.args!r} by position; give arguments by name")
    given: Mapping[str, object] = built.keywords
    text = f"[{','.join(f'{key}={value!r}' for key, value in given.items())}]" if given else ""
    try:
        same = Name.from_text(f"a:b{text}").arguments == given
    except ModelError:
        same = False
    if not same:
        raise ModelError(
            f"the arguments {dict(given)!r} of {label_of(built.func)} cannot be written in a name: it takes numbers, "
            "texts, lists, tuples, true, false and none"
        )
    return text


def is_network(thing: object) -> bool:
    """Whether it is an object of torch.nn.Module. Where torch is not imported, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.nn.Module)


def _place(module: ModuleType, name: str) -> str | None:
    """The file or module that a fresh process finds `name` in; None where it was typed into a session."""
    known = module.__name__
    if known == "__main__":
        top = name.partition(".")[0]
        # What has no name of its own, such as a lambda, is refused later.
        if not getattr(module, "__file__", None) or (top.isidentifier() and not _defines(module, top)):
            return None
        # python -m package.module
        known = module.__spec__.name if module.__spec__ is not None else ""
    path = Path(str(getattr(module, "__file__", None) or "")).resolve()
    ours = known.partition(".")[0] in OURS and path.is_relative_to(SOURCE)
    if known and (path.suffix != ".py" or ours or path.is_relative_to(STANDARD) or INSTALLED & {*path.parts}):
        return known
    below = Path(*known.split("."))
    for root in (Path.cwd(), Path.cwd() / "src"):
        if known and path in (root / below.with_suffix(".py"), root / below / "__init__.py"):
            return known
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _defines(module: ModuleType, name: str) -> bool:
    """Whether a script's own file defines a class or function: it may also have been typed in after the script ran."""
    try:
        tree = ast.parse(Path(str(module.__file__)).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    kinds = (ast.ClassDef, ast.FunctionDef)
    return any(isinstance(node, kinds) and node.name == name for node in ast.walk(tree))
