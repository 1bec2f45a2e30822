"""What a command shows on stderr while it works: lines that stay, and one that moves on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from results.record import Metric

Say = Callable[[str], None]
"""Takes one message for the user: `Screen.say` or `Screen.progress`, in tests often a list's `append`."""

REDRAW_SECONDS = 0.1
"""Least time between two drawings of counted progress: a terminal may take longer to draw than a step to run."""


class MetricLog(Protocol):
    """What stores metrics as they are measured."""

    def add(self, metric: Metric) -> None: ...


class Screen:
    """Progress and messages of one command. Without a terminal, or with TERM=dumb, only the lines that stay.

    Args:
        silent: show nothing, as all but the first of several training processes do.

    Attributes:
        moving: whether there is a line that moves.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self.moving = not silent and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._begin = time.monotonic()
        self._shown: set[str] = set()
        self._live: Live | None = None
        # What the table that moves holds, by metric and batch: first estimates, and what is measured in their place.
        self._estimates: dict[tuple[str, int | None], Metric] = {}
        self._metrics: dict[tuple[str, int | None], Metric] = {}
        self._below = ""
        self._counting = ""
        self._first, self._since, self._drawn = 0, 0.0, 0.0

    def progress(self, text: str) -> None:
        """Put `text` on the moving line, after the seconds since the command began."""
        self._below = f"[{time.monotonic() - self._begin:4.0f} s] {text}"
        if self._live is not None:
            self._draw()
        elif self.moving:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            sys.stderr.write("\r\x1b[K" + self._below[:width])
            sys.stderr.flush()

    def steps(self, what: str, done: int, total: int, tenths: bool = False) -> None:
        """Show how many steps of `what` are done and about how long the rest takes; call it after every step.

        Args:
            tenths: without a terminal, a line that stays after every tenth of the steps.
        """
        now = time.monotonic()
        if what != self._counting:
            self._counting, self._first, self._since, self._drawn = what, done, now, 0.0
        if self.moving and now - self._drawn < REDRAW_SECONDS:
            return
        if not self.moving and not (tenths and done < total and 10 * done // total > 10 * (done - 1) // total):
            return
        self._drawn = now
        text = f"{what}: step {done} of {total}"
        if done > self._first:
            from results.tables import duration

            text += f", about {duration((now - self._since) / (done - self._first) * (total - done))} left"
        if self.moving:
            self.progress(text)
        else:
            self.say(text)

    def clear(self) -> None:
        """Empty the moving line, and end the table above it."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self.moving:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
            return
        self.clear()
        if not self.silent:
            click.echo(text, err=True)

    def estimate(self, metric: Metric) -> None:
        """Show a first estimate in the table, until the metric is measured."""
        self._estimates[metric.name, metric.batch] = metric
        self._draw()

    def _draw(self) -> None:
        """Draw the table that moves, with the line below it.

        Only when something is known, never by a clock of its own: that would take time from what is measured.
        """
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self.clear()
            console = Console(stderr=True)
            # It gives way to what the command prints in the end.
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        below = Text(self._below, style="dim", no_wrap=True, overflow="ellipsis")
        self._live.update(Group(self._table(), below), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table

        from results.comparison import in_tables, live_cells
        from results.curves import point_of

        metrics = list(self._metrics.values())
        metrics += [metric for key, metric in self._estimates.items() if key not in self._metrics]
        metrics = [metric for metric in metrics if in_tables(metric)]
        table = Table(box=None, pad_edge=False, header_style="bold")
        if not metrics:
            return table
        operands = list(metrics[0].values)
        headers = ["metric", "unit", *operands, *([f"{operands[1]} / {operands[0]}"] if len(operands) == 2 else [])]
        first = [(metric.name, metric.batch) not in self._metrics for metric in metrics]
        rows = [live_cells(metric, operands, early) for metric, early in zip(metrics, first, strict=True)]
        styles = ["dim" if early else "" for early in first]
        if point_of(operands[0]):
            # A row a value, as in the table at the end.
            headers, *rows = (list(cells) for cells in zip(headers, *rows, strict=True))
            styles = [""] * len(rows)
        for header in headers:
            table.add_column(header, overflow="fold", justify="left" if header in ("metric", "unit") else "right")
        for row, style in zip(rows, styles, strict=True):
            table.add_row(*row, style=style or None)
        if any(key not in self._metrics for key in self._estimates):
            table.caption = "~ first estimate, of a few steps and before anything is compiled"
            table.caption_justify = "left"
        return table

    def row(self, log: MetricLog) -> Callable[[Metric], None]:
        """A function that adds a metric to the log and shows it: in a table that moves, or as a line when its name
        comes for the first time."""
        from results.comparison import in_tables, metric_line

        def emit(metric: Metric) -> None:
            log.add(metric)
            if self.moving:
                self._metrics[metric.name, metric.batch] = metric
                self._draw()
            elif metric.name not in self._shown and in_tables(metric):
                self._shown.add(metric.name)
                self.say(metric_line(metric))

        return emit
