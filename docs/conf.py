"""How Sphinx builds these pages: `make docs`. Nothing is fetched from a network."""

import re

from sphinx.application import Sphinx

project = "pixbench"
extensions = ["myst_parser", "sphinx_click"]
html_theme = "furo"
html_title = "pixbench"
html_show_copyright = False
# Options begin with two dashes.
smartquotes = False
exclude_patterns = ["_build"]
# Headings down to the third level can be linked to.
myst_heading_anchors = 3


def link_files(app: Sphinx, name: str, source: list[str]) -> None:
    """Let links to texts outside of this folder be links to files: they are no pages."""
    source[0] = re.sub(r"(\]\(|^\[[^\]]+\]: )(\.\./\S+?\.md)", r"\1path:\2", source[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_files)
