"""Rows come back bit for bit, sums are sums, and a cut-off file of steps is still read."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from results import history
from results.errors import RecordError
from results.history import Epoch, History, Step, StepLog, load_steps

ROOT = Path(__file__).parents[2]


def epoch(n: int, top1: float | None = 0.5, **changes: object) -> Epoch:
    row = Epoch(
        epoch=n,
        lr=0.1 / 3,
        size=32,
        train_loss=1 / 7,
        train_top1=2 / 3,
        val_loss=None if top1 is None else 0.1 + 0.2,
        val_top1=top1,
        val_top5=None if top1 is None else 0.99,
        images=50000,
        seconds=10.1,
        loader_seconds=0.7,
        step_seconds=8.3,
        evaluation_seconds=1.1,
        images_per_second=50000 / 9,
        batch=128,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def step(n: int, epoch: int = 1) -> Step:
    return Step(n, epoch, 0.1 / n, 2.3 / n, 1 / (n + 1))


def test_csv_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rows = [epoch(1), epoch(2, None), epoch(3, 0.1 + 0.7, lr=5e-324, train_loss=math.inf)]
    kept = History(rows, [step(1), step(2), step(9, 3)])
    kept.save(tmp_path / "history.csv")
    with StepLog(tmp_path / "steps.csv") as log:
        for row in kept.steps:
            log.append(row)
    assert History.load(tmp_path / "history.csv", tmp_path / "steps.csv") == kept
    assert (tmp_path / "history.csv").read_text().splitlines()[0].startswith("epoch,lr,size,train_loss,train_top1,")


def test_array_scalars_are_stored_whole(tmp_path: Path) -> None:
    row = epoch(1, train_loss=np.float32(0.1), images=np.int64(7))
    assert type(row.train_loss) is float
    assert type(row.images) is int
    History([row]).save(tmp_path / "history.csv")
    assert History.load(tmp_path / "history.csv").epochs == [row]


def test_not_a_number_is_kept_and_never_best(tmp_path: Path) -> None:
    run = History([epoch(1, math.nan, train_loss=math.nan), epoch(2, 0.3), epoch(3, 0.3)])
    run.save(tmp_path / "history.csv")
    again = History.load(tmp_path / "history.csv")
    assert math.isnan(again.epochs[0].train_loss)
    assert again.best == epoch(2, 0.3)
    assert History([epoch(1, None)]).best is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "columns missing"),
        ("epoch,speed\n1,2\n", "unknown column 'speed'; known: step, epoch"),
        ("step,epoch,lr,loss\n", "columns missing or repeated (top1)"),
        ("step,epoch,lr,loss,top1\n1,1,0.1,fast,0.5\n", "line 2: loss is 'fast', which is no number"),
        ("step,epoch,lr,loss,top1\n1,1,0.1,1.5,50.0\n", "line 2: top1 is 50.0; accuracies are fractions"),
        ("step,epoch,lr,loss,top1\n1,1,0.1\n", "line 2: 3 cells where the header has 5"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        load_steps(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    run = History([epoch(1), epoch(2)], [step(1), step(2)])
    for row in (epoch(2), epoch(4), step(2)):
        with pytest.raises(RecordError, match="cannot follow"):
            run.append(row)
    with pytest.raises(RecordError, match="fractions"):
        epoch(1, 64.81)
    with pytest.raises(RecordError, match="count from 1"):
        epoch(0)
    run.save(tmp_path / "history.csv")
    lines = (tmp_path / "history.csv").read_text().splitlines()
    (tmp_path / "history.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(RecordError, match=r"history\.csv: epoch 1 cannot follow epoch 2"):
        History.load(tmp_path / "history.csv")


def test_texts_are_one_number_a_line(tmp_path: Path) -> None:
    run = History([epoch(1, 0.25), epoch(2, None), epoch(3, 0.75)])
    run.save_texts(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{a}_{b}_history.txt" for a in ("test", "train") for b in ("acc", "loss")]
    accuracy = np.loadtxt(tmp_path / "test_acc_history.txt")
    np.testing.assert_array_equal(accuracy, [0.25, np.nan, 0.75])
    assert (tmp_path / "train_acc_history.txt").read_text().splitlines()[0] == f"{2 / 3:.18e}"
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "train_loss_history.txt"), [1 / 7] * 3)


def test_totals_are_the_sums_of_the_epochs() -> None:
    run = History([epoch(n, seconds=10.0 + n) for n in range(1, 5)])
    totals = run.totals
    assert totals.seconds == pytest.approx(sum(e.seconds for e in run.epochs))
    assert totals.images == 200000
    assert totals.seconds_per_epoch == pytest.approx(12.5)
    assert totals.images_per_second == pytest.approx(200000 / (50.0 - 4.4))
    said = history.totals_line(totals)
    assert said.startswith("4 epochs in 50.0 s, 12.5 s an epoch (step 66 %, loader 5.6 %, evaluation 8.8 %)")
    empty = History().totals
    assert empty.seconds_per_epoch is None
    assert empty.images_per_second is None
    assert history.totals_line(empty) == "No epoch was finished."


def test_log_has_a_row_an_epoch_and_marks_the_best(tmp_path: Path) -> None:
    run = History([epoch(1, 0.5), epoch(2, 0.7123), epoch(3, None)])
    run.save_log(tmp_path / "log.md")
    lines = (tmp_path / "log.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0][0] == "epoch"
    assert [row[0] for row in rows[2:]] == ["1", "2", "3"]
    assert rows[3][5] == "71.23"
    assert [row[-1] for row in rows[2:]] == ["", "best", ""]
    assert rows[4][4:7] == ["-", "-", "-"]
    assert lines[-1] == history.totals_line(run.totals)


def test_line() -> None:
    run = History([epoch(1, 0.5), epoch(2, 0.7123), epoch(3, 0.6)])
    text = history.line(run.epochs[1], 200, run.best)
    assert text.startswith("epoch   2/200  lr 0.03333  train loss 0.1429 top1 66.67 %  val loss 0.3000 top1 71.23 %")
    assert text.endswith("(step 82 %, loader 6.9 %, evaluation 11 %)  best")
    assert history.line(run.epochs[2], 200, run.best).endswith("best 71.23 % at 2")
    assert "val loss" not in history.line(epoch(1, None, evaluation_seconds=0.0), 9)


def test_step_log_survives_a_kill_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    log = StepLog(path)
    for n in range(1, 6):
        log.append(step(n))
    log.flush()
    log.append(step(6))
    assert [s.step for s in load_steps(path)] == [1, 2, 3, 4, 5]
    log.close()
    log.close()
    path.write_bytes(path.read_bytes()[:-7])
    assert [s.step for s in load_steps(path)] == [1, 2, 3, 4, 5]
    with StepLog(path, after=3) as log:
        with pytest.raises(RecordError, match="step 3 cannot follow step 3"):
            log.append(step(3))
        log.append(step(4, 2))
    assert load_steps(path) == [step(1), step(2), step(3), step(4, 2)]
    with StepLog(path):
        assert load_steps(path) == []


def test_light_to_import() -> None:
    code = (
        "import sys, results.history, results.submissions, results.runs, results.events;"
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'tensorboard', 'google') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
