"""The one exception models raises for input the user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class ModelError(ValueError):
    """A model, an argument of one, or a configuration that does not exist or cannot work."""


def unknown(kind: str, name: object, known: Iterable[str], listing: str = "") -> ModelError:
    """The error for a `name` that is not among `known`: near names, then all of them if a line holds them.

    `listing` says where to find them all if a line does not.
    """
    names = sorted(known)
    near = get_close_matches(str(name).lower(), names, n=4)
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if len(names) <= 30:
        hints.append(f"known: {', '.join(names) or 'none'}")
    elif listing:
        hints.append(listing)
    return ModelError(f"unknown {kind} {name!r}; {' '.join(hints)}")
