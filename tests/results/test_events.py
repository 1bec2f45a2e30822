"""TensorBoard's own reader finds what was written, after a kill and after going on."""

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from results.errors import RecordError
from results.events import EventWriter
from results.history import Epoch, Step


def epoch(n: int, top1: float | None = 0.5) -> Epoch:
    return Epoch(n, 0.1, 32, 2.5 / n, 0.25, None, top1, None, 100, 4.0, 1.0, 2.0, 1.0, 25.0, 10)


def step(n: int) -> Step:
    return Step(n, 1, 0.1, 2.0 / n, 0.5)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_read_back(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        for n in range(1, 4):
            writer.step(step(n))
        writer.epoch(epoch(1))
        writer.epoch(epoch(2, None))
    assert writer.path.name.startswith("events.out.tfevents.")
    found = scalars(tmp_path)
    assert found["step/loss"] == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    assert found["epoch/train_loss"] == [(1, 2.5), (2, 1.25)]
    assert found["epoch/val_top1"] == [(1, 0.5)]
    assert "epoch/val_loss" not in found
    assert set(found) >= {"step/lr", "step/top1", "epoch/lr", "epoch/images_per_second", "epoch/seconds"}


def test_what_is_flushed_is_there_while_training_goes_on(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.step(step(1))
    writer.flush()
    assert scalars(tmp_path)["step/loss"] == [(1, 2.0)]
    writer.close()
    writer.close()


def test_going_on_after_a_kill(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as first:
        for n in range(1, 8):
            first.step(step(n))
        for n in range(1, 4):
            first.epoch(epoch(n))
    times = [e.wall_time for e in EventAccumulator(str(tmp_path)).Reload().Scalars("step/loss")]
    first.path.write_bytes(first.path.read_bytes()[:-5])
    with pytest.raises(RecordError, match="already holds the events of a run"):
        EventWriter(tmp_path)
    with EventWriter(tmp_path, after_epoch=2, after_step=5) as second:
        second.step(Step(6, 3, 0.1, 9.0, 0.5))
    assert second.path != first.path
    assert [path.name for path in tmp_path.iterdir()] == [second.path.name]
    found = scalars(tmp_path)
    assert [s for s, _ in found["step/loss"]] == [1, 2, 3, 4, 5, 6]
    assert found["step/loss"][-1] == (6, 9.0)
    assert [s for s, _ in found["epoch/train_loss"]] == [1, 2]
    again = [e.wall_time for e in EventAccumulator(str(tmp_path)).Reload().Scalars("step/loss")]
    assert again[:5] == times[:5]


def test_a_kill_between_the_new_file_and_the_old_one_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventWriter(tmp_path) as writer:
        for n in (1, 2):
            writer.step(step(n))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *unused, **options: None)
        EventWriter(tmp_path, after_epoch=0, after_step=2).close()
    assert len(list(tmp_path.iterdir())) == 2
    EventWriter(tmp_path, after_epoch=0, after_step=2).close()
    assert len(list(tmp_path.iterdir())) == 1
    assert [s for s, _ in scalars(tmp_path)["step/loss"]] == [1, 2]


def test_starting_again_from_nothing(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.step(step(1))
    with EventWriter(tmp_path, after_epoch=0, after_step=0) as writer:
        writer.step(step(1))
    assert scalars(tmp_path) == {"step/lr": [(1, pytest.approx(0.1))], "step/loss": [(1, 2.0)], "step/top1": [(1, 0.5)]}


def test_numbers_beyond_the_format(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.step(Step(1, 1, 0.1, 1e39, 0.5))
        writer.step(Step(2, 1, 0.1, float("inf"), 0.5))
    assert scalars(tmp_path)["step/loss"] == [(1, float("inf")), (2, float("inf"))]


def test_without_torch_or_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from results.events import EventWriter; from results.history import Step;"
        f"w = EventWriter({str(tmp_path)!r}); w.step(Step(1, 1, 0.1, 2.0, 0.5)); w.close();"
        "print([m for m in ('torch', 'tensorflow', 'matplotlib', 'grpc') if m in sys.modules])"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
