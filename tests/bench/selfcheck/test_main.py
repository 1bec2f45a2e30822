"""The command: help without torch, errors as one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.selfcheck.__main__ import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge", "none.json.gz"], "cannot read none.json.gz"),
        (["live", "--workloads", "nonsense"], "'nonsense' is no workload's id"),
        (["record", "no/such/folder/t.json.gz", "--blocks", "1"], "there is no folder"),
        (["judge"], "Missing argument"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    words = (
        "import sys\nfrom bench.selfcheck.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "judge" in done.stdout
