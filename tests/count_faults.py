"""How many cases of what can go wrong were tried, and held: `python tests/count_faults.py FILE`.

It runs the tests of faults in the file system, of what a machine may lack, and of damaged files, and writes a table.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from results.tables import render  # noqa: E402

TESTS = ("tests/bench/test_faults.py", "tests/bench/machine/test_surroundings.py", "tests/fuzz")


class Ends:
    """A plugin of pytest: how often the cases of each test ended in which way."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a case once: by its call, or by what kept it from being called."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.nodeid.rpartition("::")[2].partition("[")[0]][report.outcome] += 1

    def table(self) -> str:
        """In Markdown."""
        rows = [
            [name.removeprefix("test_").replace("_", " "), ends["passed"], ends["failed"], ends["skipped"]]
            for name, ends in self.counts.items()
        ]
        return "## Faults\n\n" + render(("case", "held", "failed", "not tried"), rows, "markdown")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/count_faults.py FILE")
    counted = Ends()
    ended = pytest.main([*(str(ROOT / test) for test in TESTS), "-q", "--benchmark-disable"], plugins=[counted])
    Path(sys.argv[1]).write_text(counted.table(), encoding="utf-8")
    sys.exit(ended)
