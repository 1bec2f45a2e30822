"""Predictions as files, and the comparison of two."""

from pathlib import Path

import pytest

from results.errors import RecordError
from results.submissions import compare, compare_files, read, submission_csv, write_predictions


def test_the_usual_form_of_the_comparison(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    labels = [i % 10 for i in range(10000)]
    other = [(x + 1) % 10 if i >= 8908 else x for i, x in enumerate(labels)]
    first.write_text(submission_csv(range(10000), labels))
    # The order of rows does not matter.
    second.write_text(submission_csv(reversed(range(10000)), reversed(other)))
    assert first.read_text().startswith("ID,Labels\n0,0\n1,1\n")
    found = compare_files(first, second)
    assert (found.rows, found.matches, found.share) == (10000, 8908, 0.8908)
    assert found.text().startswith(
        "images / labelled alike / share: 10000 / 8908 / 89.08%\n\nfirst 10 of 1092 differences:\n"
    )
    assert len(found.differences) == 10
    assert found.differences[0] == ("8908", "8", "9")
    assert found.text().splitlines()[-1].split() == ["8917", "7", "8"]


def test_all_the_same_and_few_differences() -> None:
    assert compare({"a": "1"}, {"a": "1"}).text() == "images / labelled alike / share: 1 / 1 / 100.00%\n"
    assert "all differences:" in compare({"a": "1", "b": "2"}, {"a": "1", "b": "3"}).text()


def test_predictions_without_ids(tmp_path: Path) -> None:
    path = tmp_path / "PredOut.txt"
    write_predictions(path, ["cat", "great white, shark", 3])
    assert path.read_text() == "cat\ngreat white, shark\n3\n"
    assert read(path) == {"1": "cat", "2": "great white, shark", "3": "3"}
    assert compare_files(path, path).matches == 3


def test_ids_that_differ_are_named() -> None:
    first = {str(i): "0" for i in range(20)}
    with pytest.raises(RecordError) as caught:
        compare(first, {"0": "0", "x": "1"}, ("a.csv", "b.csv"))
    assert "only in a.csv: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 9 more (19); only in b.csv: x (1)" in str(caught.value)
    with pytest.raises(RecordError, match="nothing to compare"):
        compare({}, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty; expected the header ID,Labels"),
        ("ID,Labels\n1,2\n1,3\n", "line 3: id 1 a second time"),
        ("ID,Labels\n1,2,3\n", "line 2: 3 cells"),
        ("ID,Labels\n1,\n", "line 2: an empty Labels"),
        ("id,label\n1,2\n", "no submission: it begins with 'id,label'; expected ID,Labels"),
        ("word\n", "no submission: it begins with 'word'; expected ID,Labels"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        read(path)
    assert said in str(caught.value)


def test_bare_labels_with_a_gap(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n\n2\n")
    with pytest.raises(RecordError, match="line 2: empty; expected one label a line"):
        read(tmp_path / "a.txt")


def test_nothing_wrong_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="2 ids for 1 labels"):
        submission_csv([1, 2], [1])
    with pytest.raises(RecordError, match=r"ids given twice: 1 \(1\)"):
        submission_csv([1, 1], [1, 2])
    with pytest.raises(RecordError, match="label 2"):
        write_predictions(tmp_path / "p.txt", ["a", "b\nc"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RecordError, match="cannot read"):
        read(tmp_path / "none.csv")
