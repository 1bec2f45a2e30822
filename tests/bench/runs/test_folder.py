"""A run's folder belongs to one process: how it gets one, and what a killed one leaves to the next."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from bench.runs.folder import (
    HISTORY,
    LOCK,
    RECIPE,
    RUN,
    DataFolders,
    RunError,
    RunRecord,
    existing_folder,
    new_folder,
    stored_nothing,
)
from models.training import checkpoint
from results.history import Epoch, History

RECORD = RunRecord("bench train", "", DataFolders("/data"), {}, True, "cpu", 1, 1, "naive", {})


def begun(folder: Path) -> Path:
    """A run that was killed before its first checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text('model = "lenet"\n')
    RECORD.save(folder)
    (folder / LOCK).touch()
    return folder


def test_names_that_nobody_chose_are_numbered(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "lenet-1"
    with new_folder(place, True) as a, new_folder(place, True) as b, new_folder(place, True) as c:
        assert [path.name for path in (a, b, c)] == ["lenet-1", "lenet-1-2", "lenet-1-3"]
    with new_folder(place, True) as d:
        assert d.name == "lenet-1-4", "a run that has ended keeps its folder too"


def test_a_chosen_name_has_one_run_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    with new_folder(place) as folder:
        assert folder == place
        for again in (new_folder(place), existing_folder(place)):
            with pytest.raises(RunError, match=f"run {place} is being trained by process {os.getpid()}; "), again:
                pass
    with existing_folder(place), pytest.raises(RunError, match="is being trained"), new_folder(place):
        pass


def test_a_run_that_fails_takes_nothing_of_another_with_it(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), new_folder(tmp_path / "runs" / "a"):
        with new_folder(tmp_path / "runs" / "b"):
            pass
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["b"]
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "others" / "a"):
        raise ZeroDivisionError
    assert not (tmp_path / "others").exists()


def test_what_was_killed_before_it_stored_anything_gives_its_name_back(tmp_path: Path) -> None:
    for name in ("at once", "early"):
        place = tmp_path / name
        place.mkdir()
        (place / LOCK).write_text("1")
        if name == "early":
            begun(place)
            (place / ".history.csv.1.ab.tmp").touch()
        assert stored_nothing(place)
        with new_folder(place) as folder:
            assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(RunError, match="exists; choose another --name"), new_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").touch()
    for numbered in (False, True):
        with pytest.raises(RunError, match="cannot write run folder"), new_folder(tmp_path / "file" / "x", numbered):
            pass


def test_resuming_removes_what_a_kill_left_and_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = begun(tmp_path / "run")
    tensors = {"w": torch.zeros(2)}
    checkpoint.save_run(place, tensors, checkpoint.Card("lenet", ("a", "b"), 32), {})
    before = {path.name for path in place.iterdir()}

    def killed(*unused: object) -> None:
        raise KeyboardInterrupt

    # A kill leaves the temporary file that an exception removes.
    monkeypatch.setattr(checkpoint.os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda *unused, **options: None)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_weights(place / checkpoint.LAST, tensors, checkpoint.Card("lenet", ("a", "b"), 32))
    monkeypatch.undo()
    assert len(set(place.iterdir())) == len(before) + 1
    with existing_folder(place):
        assert {path.name for path in place.iterdir()} == before


def test_without_a_checkpoint_only_the_request_is_kept(tmp_path: Path) -> None:
    place = begun(tmp_path / "run")
    for name in ("history.csv", "steps.csv", "best.safetensors", "state-00000003.pt", "events.out.tfevents.1.1"):
        (place / name).touch()
    with suppress(ZeroDivisionError), existing_folder(place):
        assert {path.name for path in place.iterdir()} == {RUN, RECIPE, LOCK}
        raise ZeroDivisionError
    assert {path.name for path in place.iterdir()} == {RUN, RECIPE, LOCK}


def test_a_run_whose_last_weights_were_taken_away_is_not_emptied(tmp_path: Path) -> None:
    place = begun(tmp_path / "run")
    row = Epoch(1, 0.1, 32, 1.0, 0.4, 1.1, 0.5, 0.9, 64, 1.0, 0.1, 0.7, 0.2, 80.0, 16)
    History([row]).save(place / HISTORY)
    (place / checkpoint.BEST).touch()
    with pytest.raises(RunError, match="exists"), new_folder(place):
        pass
    with existing_folder(place):
        assert (place / checkpoint.BEST).exists()
