"""The texts for readers, and the commands in their fenced blocks."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[str]:
    """Every `bench` command in the fenced blocks of a text, without what the shell takes."""
    for language, block in BLOCK.findall(text):
        if language not in ("", "bash", "sh"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            bare = re.sub(r"\s#\s.*", "", line).strip()
            for part in re.split(r"\s*(?:&&|\|\||;)\s*", bare):
                found = re.search(r"(?:^|-m )(bench [^|<>]*)", part)
                if found and "$" not in part:
                    yield found[1].strip()
