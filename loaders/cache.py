"""The cache folder, for what can be made again: compiled code, tuned settings, generated images."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/pixbench, ~/.cache/pixbench where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixbench"
