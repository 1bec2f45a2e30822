"""`bench completion`: the file is where a shell looks, and it completes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, bench_here

PLACES = {
    "bash": ".local/share/bash-completion/completions/bench",
    "zsh": ".local/share/zsh/site-functions/_bench",
    "fish": ".config/fish/completions/bench.fish",
}


@pytest.mark.parametrize("shell", PLACES)
def test_it_writes_where_the_shell_looks(shell: str, tmp_path: Path) -> None:
    done = bench_here("completion", cwd=tmp_path, HOME=str(tmp_path), SHELL=f"/usr/bin/{shell}", XDG_DATA_HOME="")
    assert done.returncode == 0, done.stderr
    assert "_BENCH_COMPLETE" in (tmp_path / PLACES[shell]).read_text()


def test_another_shell_is_refused(tmp_path: Path) -> None:
    bench_here("completion", cwd=tmp_path, HOME=str(tmp_path), SHELL="/bin/tcsh").refused("tcsh", "bash, zsh, fish")


def test_completing_says_nothing_but_the_words(tmp_path: Path) -> None:
    asked = {"_BENCH_COMPLETE": "bash_complete", "COMP_WORDS": "bench compare --qu", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "bench"],
        cwd=tmp_path,
        env={**os.environ, **asked, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "plain,--quick\n", "")
