"""Tasks have one name each in all commands, and the shorter words of earlier versions still stand for them."""

from pathlib import Path

import click
import pytest
from command_line import bench_here

from bench.commands.options import Task
from bench.comparing.operands import Operand
from bench.comparing.plan import chosen_tasks
from bench.errors import UsageError
from bench.timing.tasks import MODEL_TASKS, PROFILED_TASKS, SYNONYMS, TASKS, TUNED_TASKS, named
from models.configuration import Choice

MODEL = [Operand("lenet", "lenet", Choice("fast"))]
EARLIER = {"infer", "train", "endtoend"}


def test_every_list_is_of_the_one_vocabulary() -> None:
    assert {*MODEL_TASKS, *TUNED_TASKS, *PROFILED_TASKS, *SYNONYMS.values()} <= set(TASKS)
    assert set(SYNONYMS) >= EARLIER
    assert not set(SYNONYMS) & set(TASKS)


@pytest.mark.parametrize(("word", "task"), [*SYNONYMS.items(), *((task, task) for task in MODEL_TASKS)])
def test_a_word_means_the_same_in_every_command(word: str, task: str) -> None:
    assert chosen_tasks(word, MODEL, "cpu") == task
    if task in TUNED_TASKS:
        assert named(word, TUNED_TASKS) == [task]
    if task in PROFILED_TASKS:
        assert Task(PROFILED_TASKS).convert(word, None, None) == task


def test_a_task_named_twice_is_one() -> None:
    assert named("train,infer, training", MODEL_TASKS) == ["training", "inference"]
    assert chosen_tasks("train,infer,training", MODEL, "cpu") == "inference,training"


def test_no_such_task() -> None:
    with pytest.raises(UsageError, match=f"--tasks has no 'fly'; there are {', '.join(TUNED_TASKS)}"):
        named("infer,fly", TUNED_TASKS)
    with pytest.raises(click.BadParameter, match="'training', 'inference', 'latency', 'end_to_end'"):
        Task(PROFILED_TASKS).convert("fly", None, None)


@pytest.mark.parametrize("command", ["compare", "tune", "profile"])
def test_help_shows_the_names_and_no_synonym(command: str, tmp_path: Path) -> None:
    words = bench_here(command, "--help", cwd=tmp_path).stdout.replace("|", " ").replace(",", " ").split()
    assert {"inference", "training", "latency"} <= {word.strip("[];.()") for word in words}
    assert not EARLIER & {word.strip("[];.()") for word in words}
