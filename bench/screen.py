"""What a long command shows on stderr while it works."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click

Say = Callable[[str], None]


class Screen:
    """What is shown on stderr while a run goes on: rows as they are measured, and one line that moves on a terminal."""

    def __init__(self) -> None:
        self.moving = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.begin = time.monotonic()
        self.shown: set[str] = set()

    def progress(self, text: str) -> None:
        if self.moving:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            sys.stderr.write("\r\x1b[K" + f"[{time.monotonic() - self.begin:4.0f} s] {text}"[:width])
            sys.stderr.flush()

    def clear(self) -> None:
        if self.moving:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def say(self, text: str) -> None:
        self.clear()
        click.echo(text, err=True)

    def row(self, log: Any) -> Any:
        """Show a metric when it is first measured, and hand it to the log."""
        from results.comparison import metric_line

        def emit(metric: Any) -> None:
            log.add(metric)
            if metric.name not in self.shown:
                self.shown.add(metric.name)
                self.say(metric_line(metric))

        return emit
