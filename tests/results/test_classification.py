"""Figures against scikit-learn's, and files that come back as they were."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from results.classification import Classification, checked, confusion_csv, confusion_text, most_confused, read_confusion
from results.errors import RecordError
from results.tables import to_json

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def with_trace(right: int, each: int = 1000) -> list[list[int]]:
    """A 10 x 10 matrix of `each` images a class with `right` on the diagonal, errors spread unevenly."""
    rng = np.random.default_rng(right)
    hits = np.full(10, right // 10)
    hits[: right % 10] += 1
    hits += np.array([150, -150, 80, -80, 60, -60, 40, -40, 20, -20])
    rows = []
    for i in range(10):
        row = rng.multinomial(each - hits[i], [0 if j == i else 1 / 9 for j in range(10)])
        row[i] = hits[i]
        rows.append(row.tolist())
    return rows


@pytest.mark.parametrize(("right", "text"), [(6481, "64.81 %"), (8206, "82.06 %")])
def test_accuracy_is_the_share_on_the_diagonal(right: int, text: str, tmp_path: Path) -> None:
    report = Classification.from_confusion(with_trace(right), CIFAR)
    assert report.top1 == right / 10000
    assert f"top1 {text} ({right} of 10000)" in report.text()
    assert f"accuracy: {right} of 10000 = {text}" in confusion_text(report.confusion, CIFAR)
    report.save(tmp_path)
    matrix, names = read_confusion(tmp_path / "confusion.csv")
    assert Classification.from_confusion(matrix, names) == report


def test_equal_to_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 9, 4000)
    predicted = np.where(rng.random(4000) < 0.6, true, rng.integers(0, 8, 4000))
    # Class 8 is never predicted, class 9 never there.
    predicted[predicted == 8] = 0
    matrix = metrics.confusion_matrix(true, predicted, labels=range(10))
    theirs = metrics.classification_report(
        true, predicted, labels=range(10), target_names=CIFAR, output_dict=True, zero_division=0
    )
    report = Classification.from_confusion(matrix, CIFAR)
    for score in (*report.classes, report.macro, report.weighted):
        expected = theirs[score.name]
        found = (score.precision, score.recall, score.f1, score.support)
        assert found == pytest.approx([expected[k] for k in ("precision", "recall", "f1-score", "support")], abs=1e-6)
    assert report.top1 == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-12)
    assert report.undefined == (
        "precision of ship is not defined and stands as 0: it was never predicted.",
        "precision of truck is not defined and stands as 0: it was never predicted.",
        "recall of truck is not defined and stands as 0: it was never among the images.",
    )
    assert "never among the images" in report.text()


def test_report_reads_like_the_usual_one() -> None:
    report = Classification.from_confusion([[8, 2], [1, 9]], ["cat", "dog"], top5=1.0, loss=0.51234, seconds=2.0)
    lines = report.text().splitlines()
    assert lines[0].split() == ["precision", "recall", "f1-score", "support"]
    assert lines[2].split() == ["cat", "0.8889", "0.8000", "0.8421", "10"]
    assert lines[5].split() == ["accuracy", "0.8500", "20"]
    assert [line.split()[:2] for line in lines[6:8]] == [["macro", "avg"], ["weighted", "avg"]]
    assert len({len(line) for line in lines[:8] if line}) == 1
    assert lines[9] == "top1 85.00 % (17 of 20), top5 100.00 %, loss 0.5123, 2.00 s (10 images/s)"


def test_evaluation_json_has_the_promised_keys(tmp_path: Path) -> None:
    data = Classification.from_confusion([[8, 2], [1, 9]], ["cat", "dog"], 1.0).to_json()
    assert list(data) == ["top1", "top5", "images", "classes", "confusion"]
    assert data["top1"] == 0.85
    assert data["images"] == 20
    assert data["confusion"] == [[8, 2], [1, 9]]
    assert list(data["classes"][0]) == ["name", "precision", "recall", "f1", "support"]
    assert json.loads(to_json(data)) == data
    more = Classification.from_confusion([[8, 2], [1, 9]], ["cat", "dog"], loss=math.nan, seconds=1.5).to_json()
    assert more["top5"] is None
    assert "loss" not in more
    assert more["seconds"] == 1.5
    Classification.from_confusion([[8, 2], [1, 9]], ["cat", "dog"], 1.0).save(tmp_path, "train")
    names = ["confusion_train.csv", "confusion_train.txt", "evaluation_train.json", "report_train.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "evaluation_train.json").read_text()) == data


def test_csv_with_awkward_names(tmp_path: Path) -> None:
    names = ("great white, shark", 'a "b"', "c")
    matrix = np.arange(9).reshape(3, 3)
    path = tmp_path / "confusion.csv"
    path.write_text(confusion_csv(matrix, names))
    assert path.read_text().startswith('true/predicted,"great white, shark"')
    found, read = read_confusion(path)
    np.testing.assert_array_equal(found, matrix)
    assert read == names


def test_csv_without_row_names(tmp_path: Path) -> None:
    path = tmp_path / "confusion.csv"
    path.write_text("cat,dog\n5,1\n2,9\n")
    found, names = read_confusion(path)
    assert found.tolist() == [[5, 1], [2, 9]]
    assert names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no matrix below the header"),
        ("x,cat,dog\ncat,5,1\nbird,2,9\n", "line 3: row of 'bird' where the header's order has 'dog'"),
        ("x,cat,dog\ncat,5,1\ndog,2\n", "line 3: 2 cells where the header has 3"),
        ("x,cat,dog\ncat,5,1\ndog,2,0.5\n", "line 3: invalid literal"),
        ("x,cat,dog\ncat,5,1\ndog,2,-1\n", "whole numbers from 0 up"),
        ("cat,dog,bird,frog\n1,2,3,4\n1,2,3,4\n", "confusion.csv: "),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "confusion.csv"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        read_confusion(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("matrix", [[[1, 2]], [1, 2], [[0.5, 1], [1, 1]], [[1, 2], [3]], [["a", "b"], ["c", "d"]], []])
def test_not_a_confusion_matrix(matrix: Any) -> None:
    with pytest.raises(RecordError, match="confusion matrix"):
        checked(matrix, ["cat", "dog"])


def test_figures_that_cannot_be() -> None:
    with pytest.raises(RecordError, match="3 class names for a confusion matrix of 2"):
        checked([[1, 0], [0, 1]], ["a", "b", "c"])
    with pytest.raises(RecordError, match="counts no image"):
        Classification.from_confusion([[0, 0], [0, 0]], ["a", "b"])
    with pytest.raises(RecordError, match="top5 is 0.2"):
        Classification.from_confusion([[1, 0], [0, 1]], ["a", "b"], top5=0.2)


def test_most_confused() -> None:
    matrix = [[5, 3, 0], [7, 2, 1], [0, 3, 9]]
    pairs = most_confused(matrix, ["a", "b", "c"])
    assert [(p.true, p.predicted, p.images) for p in pairs] == [
        ("b", "a", 7),
        ("a", "b", 3),
        ("c", "b", 3),
        ("b", "c", 1),
    ]
    assert pairs[0].share == 0.7
    assert most_confused([[3, 0], [0, 3]], ["a", "b"]) == []


def test_text_is_aligned() -> None:
    lines = confusion_text(with_trace(6481), CIFAR).splitlines()
    assert len({len(line) for line in lines[2:13]}) == 1
    assert lines[2].split() == [str(i) for i in range(10)]
    assert lines[4].split()[:2] == ["1", "automobile"]
    assert "most confused:" in lines
