"""What is remembered of a model holds for one machine, and stands where the word `tuned` stands."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.machine import tuned
from bench.machine.tuned import Winner
from models.configuration import Choice, Device, Peer

MACHINE = {"fingerprint": {"device": "cpu A", "cores": 2, "torch": "2.15", "threads": 2}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pixbench" / "tuned.json"


def winner(task: str = "inference", configuration: str = "bf16-nchw-compile-freeze", **changes: Any) -> Winner:
    given = {"batch": 64, "ratio": 1.2, "low": 1.1, "high": 1.3, "error": 0.01, "created": "2026-01-01T00:00:00+00:00"}
    return Winner("resnet18", task, configuration, machine=tuned.fields(MACHINE), **{**given, **changes})


def test_a_winner_is_recalled_on_its_machine_and_no_other() -> None:
    tuned.remember(winner())
    assert tuned.recall(MACHINE, "resnet18", "inference") == winner()
    assert tuned.recall(MACHINE, "resnet18", "training") is None
    assert tuned.recall(MACHINE, "resnet34", "inference") is None
    other = {"fingerprint": {**MACHINE["fingerprint"], "torch": "2.16"}}
    assert tuned.recall(other, "resnet18", "inference") is None
    fewer = {"fingerprint": {**MACHINE["fingerprint"], "threads": 1}}
    assert tuned.recall(fewer, "resnet18", "inference") == winner(), "how many threads torch has now is no machine"


def test_a_later_winner_takes_the_place_of_an_earlier_one_alone() -> None:
    tuned.remember(winner())
    tuned.remember(winner("training", "amp-nhwc-eager"))
    tuned.remember(winner(batch=128))
    found = tuned.recall(MACHINE, "resnet18", "inference")
    assert found is not None
    assert found.batch == 128
    assert tuned.recall(MACHINE, "resnet18", "training") is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_damaged_file_is_no_memory(content: str, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert tuned.recall(MACHINE, "resnet18", "inference") is None


CPU = Device("cpu", bf16=True, compiler=True)


def resolved(text: str) -> dict[str, str]:
    found = tuned.resolve(Choice.from_text(text), CPU, "resnet18", MACHINE)
    return {task: configuration.text for task, configuration in found.configurations.items()}


def test_what_was_found_before_there_was_another_lever_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.remember(winner())
    assert tuned.recall(MACHINE, "resnet18", "inference") is not None
    monkeypatch.setattr(tuned, "levers", lambda: {"fp32": None, "another": None})
    assert tuned.recall(MACHINE, "resnet18", "inference") is None


def test_levers_behind_tuned_change_it() -> None:
    tuned.remember(winner())
    for text, task, expected in (
        ("tuned", "inference", "bf16-nchw-compile-freeze"),
        ("tuned-fp32", "inference", "fp32-nchw-compile-freeze"),
        ("tuned-eager", "inference", "bf16-nchw-eager-freeze"),
    ):
        assert resolved(text)[task] == expected
    choice = Choice.from_text("tuned")
    found = tuned.tuned_configuration(choice, "resnet18", "inference", MACHINE)
    assert found is not None
    assert found.text == "bf16-nchw-compile-freeze"
    assert tuned.tuned_configuration(Choice("fast"), "resnet18", "training", MACHINE) is None
    with pytest.raises(UsageError, match="bench tune resnet18"):
        tuned.tuned_configuration(choice, "resnet18", "training", MACHINE)


def test_each_task_has_its_configuration_and_fast_stands_in_where_none_was_found() -> None:
    assert resolved("naive") == dict.fromkeys(("latency", "inference", "training"), "fp32-nchw-eager")
    with pytest.raises(UsageError, match="has not been tuned"):
        resolved("tuned")
    tuned.remember(winner("latency", "fp32-nhwc-eager"))
    assert resolved("tuned") == {
        "latency": "fp32-nhwc-eager", "inference": "bf16-nhwc-compile-freeze-keep", "training": "amp-nhwc-eager-keep",
    }  # fmt: skip
    said = tuned.doubts(Choice("tuned"), "resnet18", MACHINE, ("latency", "inference", "loading"))
    assert list(said) == ["resnet18 was not tuned for inference on this machine: measured as fast"]
    assert not list(tuned.doubts(Choice("fast"), "resnet18", MACHINE, ("inference",)))


@pytest.mark.parametrize(
    ("text", "installed", "expected"),
    [
        ("tuned", True, "openvino-bf16"),
        ("tuned-fp32", True, "openvino-fp32"),
        ("tuned-onnxruntime", True, "onnxruntime-fp32"),
        ("tuned", False, "amp-nhwc-compile"),
        ("tuned-fp32", False, "fp32-nhwc-compile"),
        ("tuned-eager", True, "amp-nhwc-eager"),
        ("tuned-amp", True, "amp-nhwc-compile"),
    ],
)
def test_another_engine_stands_where_it_can_and_the_best_without_it_elsewhere(
    text: str, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peer, "installed", installed)
    tuned.remember(winner("inference", "openvino-bf16", alone="amp-nhwc-compile"))
    tuned.remember(winner("training", "amp-nhwc-eager"))
    assert resolved(text)["inference"] == expected
    said = list(tuned.doubts(Choice.from_text(text), "resnet18", MACHINE, ("inference", "training")))
    absent = "resnet18 is fastest for inference in openvino, which is not installed any more: measured without it"
    assert said == ([] if installed else [absent])


def test_what_cannot_be_trained_says_why() -> None:
    found = tuned.resolve(Choice.from_text("freeze-eager"), CPU, "resnet18", MACHINE)
    assert found.of("training") is None
    assert found.of("end_to_end") is None
    assert "frozen weights cannot be trained" in found.training_missing


def test_what_is_found_at_the_same_time_is_all_remembered() -> None:
    models = [f"model{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda model: tuned.remember(replace(winner(), model=model)), models))
    assert all(tuned.recall(MACHINE, model, "inference") for model in models)
