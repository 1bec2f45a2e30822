"""Summaries are strict and come back whole; tables rank, mark what is missing, and stand beside published figures."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results import runs
from results.errors import RecordError
from results.runs import Published, RunSummary, compare, list_runs, ranked, size_table, table

PUBLISHED = Published(
    study=4,
    top1=0.8667,
    top1_best=0.8667,
    epochs=200,
    seconds=1906,
    hardware="RTX 3070",
    source="its README",
    defects=("chosen by its test loss",),
)
WHOLE = RunSummary(
    name="res_512_d",
    model="res_512_d",
    data="cifar10",
    recipe="res_512_d",
    evaluated="test",
    status="finished",
    epochs=200,
    top1=0.8571,
    top5=0.993,
    best_top1=0.8612,
    best_epoch=171,
    train_seconds=1900.5,
    seconds_per_epoch=9.5025,
    images_per_second=6300.25,
    inference_cold_seconds=0.19,
    inference_warm_seconds=0.0021,
    params=4961610,
    parameter_tensors=65,
    state_entries=122,
    weight_bytes=19846440,
    checkpoint_bytes=39693000,
    peak_bytes=910000000,
    published=PUBLISHED,
)
STOPPED = replace(
    WHOLE,
    name="og_resnet",
    status="stopped",
    reason="time limit of 5 min reached",
    epochs=31,
    top1=0.9,
    top5=None,
    peak_bytes=None,
    params=62006,
    published=None,
    missing={"top5": "fewer than 5 classes"},
)
FAILED = RunSummary("broken", "lenet", "cifar10", "lenet", "test", "failed", 0, reason="loss is nan at step 12")
ALL = [FAILED, WHOLE, STOPPED]


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if re.match(rf"\W*\d+\W+{start}", line))
    return [cell.strip() for cell in (line.strip("|").split("|") if "|" in line else re.split(r"\s{2,}", line.strip()))]


@pytest.mark.parametrize("run", ALL, ids=lambda run: run.name)
def test_summaries_come_back_whole(tmp_path: Path, run: RunSummary) -> None:
    path = run.save(tmp_path / run.name)
    assert path.name == "summary.json"
    assert RunSummary.load(path) == run
    assert RunSummary.load(tmp_path / run.name) == run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"speed": 1}, "unknown key 'speed'"),
        ({"top_1": 0.5}, "unknown key 'top_1' (did you mean 'top1'"),
        ({"schema": 2}, "schema 2; this version reads 1"),
        ({"name": None}, "name: expected text, found None"),
        ({"params": 1.5}, "params: expected a whole number from 0 up or null, found 1.5"),
        ({"epochs": True}, "epochs: expected a whole number from 0 up, found True"),
        ({"top1": 85.71}, "top1: expected a finite number from 0 to 1, found 85.71"),
        ({"train_seconds": -1}, "train_seconds: expected a finite number from 0 up, found -1"),
        ({"status": "done"}, "status: expected 'finished' or 'stopped' or 'failed', found 'done'"),
        ({"status": "failed"}, "a run with status 'failed' needs a reason"),
        ({"evaluated": "train"}, "evaluated: expected 'val' or 'test' or 'held-out', found 'train'"),
        ({"missing": {"top9": "why"}}, "missing names 'top9'"),
        ({"missing": {"top1": "why"}}, "top1 has a value and a reason why it is missing"),
        ({"missing": ["top1"]}, "missing: expected an object, found ['top1']"),
        ({"published": {"top1": 0.5, "year": 2020}}, "published: unknown key 'year'"),
        ({"published": {"defects": "one"}}, "published.defects: expected a list, found 'one'"),
        ({"published": 3}, "published: expected an object or null, found 3"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(WHOLE.to_json() | change))
    with pytest.raises(RecordError) as caught:
        RunSummary.load(path)
    assert said in str(caught.value)


def test_absent_keys_and_no_object(tmp_path: Path) -> None:
    data = WHOLE.to_json()
    del data["recipe"]
    with pytest.raises(RecordError, match="missing 'recipe'"):
        RunSummary.from_json(data)
    with pytest.raises(RecordError, match=r"is it a run's summary\.json"):
        RunSummary.from_json([])
    with pytest.raises(RecordError, match="cannot read"):
        RunSummary.load(tmp_path / "none.json")


def test_difference_to_the_published_figure() -> None:
    run = replace(WHOLE, published=Published(study="4", top1=0.8667, defects=("a", "b")))
    assert run.difference == pytest.approx(0.0096)
    assert STOPPED.difference is None


def test_published_in_words() -> None:
    text = (
        "published (study 4): 200 epochs in 31 min 46 s on RTX 3070; defect: chosen by its test loss; source its README"
    )
    assert PUBLISHED.text() == text
    assert Published().text() == "published"


def test_ranking() -> None:
    assert [run.name for run in ranked(ALL)] == ["og_resnet", "res_512_d", "broken"]
    assert [run.name for run in ranked(ALL, "params")] == ["og_resnet", "res_512_d", "broken"]
    assert [run.name for run in ranked(ALL, "name")] == ["broken", "og_resnet", "res_512_d"]
    assert [run.name for run in ranked(ALL, "published_top1")] == ["res_512_d", "broken", "og_resnet"]
    slower = replace(WHOLE, name="slower", train_seconds=5000.0)
    assert [run.name for run in ranked([slower, WHOLE], "train_seconds")] == ["res_512_d", "slower"]
    with pytest.raises(RecordError, match=r"cannot sort by 'top_1' \(did you mean 'top1'"):
        ranked(ALL, "top_1")


@pytest.mark.parametrize("sort", runs.SORTS)
def test_every_column_sorts(sort: str) -> None:
    assert sorted(run.name for run in ranked(ALL, sort)) == ["broken", "og_resnet", "res_512_d"]


def test_text_table() -> None:
    text = table(ALL)
    assert cells(text, "og_resnet")[:3] == ["1", "og_resnet", "res_512_d"]
    assert "- (1)" in cells(text, "og_resnet")
    row = cells(text, "res_512_d")
    assert row[:5] == ["2", "res_512_d", "res_512_d", "200", "85.71"]
    assert row[5:10] == ["86.67 (3)", "+0.96", "86.12", "171", "86.67 (3)"]
    notes = text[text.index("Accuracies are on the test set of cifar10.") :]
    assert "fewer than 5 classes" in notes
    assert "defect: chosen by its test loss" in notes
    assert "the run failed: loss is nan at step 12" in notes
    assert "the run stopped: time limit of 5 min reached" in notes
    numbers = re.findall(r"\((\d+)\)", text[: text.index("Accuracies")])
    assert {int(n) for n in numbers} == set(range(1, notes.count("\n(") + 1))
    costs = text[text.index("weights") :]
    assert cells(costs, "res_512_d")[2:4] == ["31.7", "31.8"]


def test_nobody_published_no_column() -> None:
    assert "published" not in table([STOPPED, FAILED])


def test_different_data_is_said() -> None:
    assert "Accuracies on different data are not comparable." in table([WHOLE, replace(WHOLE, data="cifar100")])
    other = replace(WHOLE, name="held_out", evaluated="val")
    text = table([WHOLE, other])
    assert "the best top1 on val and on test are not comparable." in text
    assert "val" in cells(text, "held_out")


def test_published_figures_are_not_those_of_generated_images() -> None:
    made = replace(WHOLE, data="generated cifar10")
    said = "Published figures are of real images, and say nothing of generated cifar10."
    assert "Accuracies are on the test set of generated cifar10." in table([made])
    assert said in table([made])
    assert said in table([made, replace(WHOLE, name="other")], "markdown")
    assert said not in table([WHOLE])
    assert said not in table([replace(made, published=None)])


def test_markdown_is_one_table() -> None:
    text = table(ALL, "markdown")
    header = next(line for line in text.splitlines() if line.startswith("|"))
    for name in ("top1 [%]", "training [min]", "inference cold [ms]", "inference warm [ms]", "parameters [M]"):
        assert f" {name} " in header
    assert "published - ours [points]" in header
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + 3
    assert all(cells(text, "broken"))


def test_csv_and_json_are_raw() -> None:
    rows = list(csv.DictReader(io.StringIO(table(ALL, "csv"))))
    assert [row["name"] for row in rows] == ["og_resnet", "res_512_d", "broken"]
    assert float(rows[1]["train_seconds"]) == 1900.5
    assert float(rows[1]["published_top1"]) == 0.8667
    assert rows[0]["top5"] == ""
    assert "top5: fewer than 5 classes" in rows[0]["missing"]
    assert rows[1]["missing"] == ""
    data = json.loads(table(ALL, "json"))
    assert data[1]["difference"] == 0.8667 - 0.8571
    assert data[1]["weight_bytes"] == 19846440
    assert data[2]["top1"] is None
    with pytest.raises(RecordError, match="unknown format"):
        table(ALL, "xml")


def test_sizes_keep_weights_and_checkpoint_apart() -> None:
    text = size_table(ALL)
    assert cells(text, "og_resnet") == ["1", "og_resnet", "res_512_d", "0.0620", "65", "122", "18.9", "37.9"]
    assert "- (1)" in cells(text, "broken")
    assert "weights only [MiB]" in size_table(ALL, "markdown")
    assert "full checkpoint [MiB]" in size_table(ALL, "markdown")


def test_a_comparison_holds_both_tables_in_every_format() -> None:
    for format in ("text", "markdown"):
        assert compare(ALL, format, "name") == f"{table(ALL, format, 'name')}\n{size_table(ALL, format)}"
    assert compare(ALL, "csv") == table(ALL, "csv")
    assert json.loads(compare(ALL, "json")) == {"runs": json.loads(table(ALL, "json"))}


def test_no_runs() -> None:
    for format in ("text", "markdown", "csv", "json"):
        assert table([], format).strip()
        assert compare([], format).strip()


def test_list_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "none") == ([], [])
    WHOLE.save(tmp_path / "b")
    STOPPED.save(tmp_path / "a")
    (tmp_path / "killed").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "summary.json").write_text('{"schema": 1, "na')
    found, skipped = list_runs(tmp_path)
    assert [run.name for run in found] == ["og_resnet", "res_512_d"]
    assert [s.path.name for s in skipped] == ["killed", "torn"]
    assert "ends in the middle" in skipped[1].reason


def test_a_warm_time_is_shown_with_the_digits_its_interval_supports() -> None:
    old = RunSummary.from_json(WHOLE.to_json())
    assert old.warm_interval is None
    given = {key: x for key, x in WHOLE.to_json().items() if "_low_" not in key and "_high_" not in key}
    assert RunSummary.from_json(given) == old
    run = replace(
        WHOLE, inference_warm_seconds=0.0040683, inference_warm_low_seconds=0.0037, inference_warm_high_seconds=0.0045
    )
    assert run.warm_interval == (0.0037, 0.0045)
    assert RunSummary.from_json(run.to_json()) == run
    assert " 4.1 " in table([run])
    assert "4.07" not in table([run])
    assert json.loads(table([run], "json"))[0]["inference_warm_high_seconds"] == 0.0045


def test_images_and_not_names_of_folders_tell_data_apart() -> None:
    different = "Accuracies on different data are not comparable."
    one, same, other = (
        replace(WHOLE, name=name, data=data, test_fingerprint=digits)
        for name, data, digits in (("one", "pets", "ab"), ("same", "copy", "ab"), ("other", "pets", "cd"))
    )
    assert different not in table([one, same])
    assert different in table([one, other])
    assert different not in table([one, replace(other, test_fingerprint=None)])
    assert different not in table([replace(run, evaluated="held-out") for run in (one, other)])


def test_a_test_on_training_images_is_marked() -> None:
    assert "Trained on test images" not in table([replace(WHOLE, test_images_trained_on=0)])
    for format in ("text", "markdown"):
        assert "Trained on test images, so too good: res_512_d (1,200)." in table(
            [replace(WHOLE, test_images_trained_on=1200), STOPPED], format
        )
    rows = json.loads(table([replace(WHOLE, test_images_trained_on=3), STOPPED], "json"))
    assert {row["name"]: row["test_images_trained_on"] for row in rows} == {"res_512_d": 3, "og_resnet": None}
    assert all("test_images" not in (row["missing"] or "") for row in rows)
