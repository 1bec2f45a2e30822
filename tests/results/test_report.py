"""The page of a report: complete by itself, faithful to the records, safe against what stands in them."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated_history import LOADING, TRAINING
from fabricated_history import record as history_record
from fabricated_profile import profile

from results import report, store
from results.classification import confusion_csv
from results.errors import RecordError
from results.history import Epoch, History
from results.profile import Stalls
from results.record import Metric, Ratio, Record, Value
from results.report import Section, open_results, page
from results.runs import Published, RunSummary

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def value(median: float) -> Value:
    return Value(median, 0.95 * median, 1.05 * median, 20, confidence=0.95)


def record(**changes: Any) -> Record:
    speed = {"resnet18": value(100.0), "lenet@fast": value(250.0)}
    ratio = Ratio("lenet@fast", "resnet18", 2.5, 2.4, 2.6, 0.95, 8, 64)
    latency = {"resnet18": value(0.010), "lenet@fast": value(0.004)}
    metrics = (
        Metric.named("params", {"resnet18": Value.counted(11_000_000), "lenet@fast": Value.counted(60_000)}),
        Metric.named("inference_throughput", speed, batch=32, ratio=ratio, verdict="better"),
        replace(
            Metric.named(
                "inference_latency_p50", latency, batch=1, ratio=replace(ratio, estimate=0.4, low=0.3, high=0.5)
            ),
            quantiles={"resnet18": tuple(0.009 + 2e-5 * i for i in range(101)), "lenet@fast": ()},
        ),
        Metric.named("roof_fraction", {"resnet18": value(0.8), "lenet@fast": value(0.1)}),
    )
    given = {
        "kind": "compare", "created": "2026-01-01T00:00:00+00:00", "command": "bench compare resnet18 lenet@fast",
        "commit": None, "machine": {"fingerprint": {"device": "fake", "cores": 2}},
        "operands": ("resnet18", "lenet@fast"), "metrics": metrics,
    }  # fmt: skip
    return Record(**{**given, **changes})


def run(folder: Path, name: str, top1: float, **changes: Any) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    given: dict[str, Any] = {"epochs": 2, "top1": top1, "params": 1000, "train_seconds": 60.0, "weight_bytes": 4000}
    RunSummary(name, "lenet", "cifar10", "r", "test", "finished", **{**given, **changes}).save(place)
    rows = [Epoch(n, 0.1, 32, 2.0 / n, 0.3 * n, 1.5, top1, None, 100, 10.0, 1.0, 8.0, 1.0, 11.0, 10) for n in (1, 2)]
    History(rows).save(place / "history.csv")
    (place / "confusion.csv").write_text(confusion_csv([[8, 2], [1, 9]], ["cat", "dog"]))
    (place / "report.txt").write_text("  precision\n")
    said = {"command": f"bench train {name}", "machine": {"fingerprint": {"device": "fake"}}}
    (place / "run.json").write_text(json.dumps(said))
    return place


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One result of each kind."""
    tmp_path = tmp_path_factory.mktemp("results")
    compared = store.save(record(), tmp_path / "compare.json")
    profiled = tmp_path / "profile" / "profile.json"
    profiled.parent.mkdir()
    stalls = Stalls("dali", 100.0, 200.0, 95.0, (("decode", 0.006), ("resize", 0.004)))
    profiled.write_text(json.dumps(profile(stalls=stalls).to_json()))
    runs = tmp_path / "runs"
    run(runs, "one", 0.8, published=Published(study=1, top1=0.85))
    run(runs, "two", 0.7, params=500, train_seconds=30.0)
    stats = {"median": 0.01, "q1": 0.009, "q3": 0.011, "rounds": 7, "ops": 100.0}
    benchmarks = tmp_path / "pytest.json"
    benchmarks.write_text(
        json.dumps(
            {"benchmarks": [{"name": "b[1]", "stats": stats}], "machine_info": {"cpu": {"brand_raw": "C"}},
             "datetime": "2026-01-01"}
        )
    )  # fmt: skip
    return [compared, profiled.parent, runs, benchmarks]


@pytest.fixture(scope="module")
def sections(results: list[Path]) -> list[Section]:
    found, skipped = open_results(results, {"resnet18": 0.69, "lenet": 0.5})
    assert skipped == []
    return found


@pytest.fixture(scope="module")
def html(sections: list[Section]) -> str:
    return page(sections, "all of it")


def test_every_kind_has_its_section_with_command_and_machine(sections: list[Section]) -> None:
    assert [section.title for section in sections] == [
        "Comparison of resnet18 and lenet@fast",
        "Profile of resnet50@fast, training",
        "2 training runs of runs",
        "Training run one",
        "Training run two",
        "1 benchmark of pytest bench",
    ]
    assert all(section.command for section in sections)
    assert all(section.machine for section in sections if "runs of" not in section.title)
    titles = [chart.title for section in sections for chart in section.charts]
    assert "lenet@fast is both the fastest and the smallest" in titles
    assert "lenet@fast is the fastest, resnet18 is the most accurate" in titles
    assert "lenet@fast is better than resnet18 in 2 of 2 figures" in titles
    assert "lenet@fast answers half of its images within 4.00 ms" in titles
    assert "batch-norm backward takes 50 % of the step" in titles
    assert "loader-bound by 50 %: decode 60 %, resize 40 %" in titles
    assert "one leads with 80.00 %" in titles
    assert "one is the most accurate, two has the fewest parameters" in titles
    assert "cat is most often taken for dog: 2 images" in titles


def test_the_page_needs_nothing_else(html: str) -> None:
    assert "<script" not in html
    outside = [url for url in re.findall(r"https?://[^\s\"'<)]+", html) if "www.w3.org" not in url]
    assert outside == []
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert html.count("<svg") == html.count('role="img"') > 8


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    made = Metric.named("params", {bad: Value.counted(1)}, notes=("<script>alert(2)</script>",))
    path = store.save(record(operands=(bad,), metrics=(made,), command="bench <b>"), tmp_path / "r.json")
    html = page(open_results([path], {})[0], bad)
    assert "<img" not in html
    assert "<script" not in html
    assert "&lt;img src=x" in html


def test_charts_take_the_page_s_colours(sections: list[Section]) -> None:
    for chart in sections[0].charts:
        assert "var(--ink)" in chart.svg
        assert not re.search(r"fill: ?#(?:ffffff|fff)\b", chart.svg), "a white ground would glare at night"
        assert "<text" in chart.svg, "text stays text"


def test_what_cannot_be_read_is_passed_over_in_a_folder_and_refused_by_name(
    tmp_path: Path, results: list[Path]
) -> None:
    (tmp_path / "half.json").write_text("{")
    (tmp_path / "notes.txt").write_text("no result")
    for path in results[1:2]:
        shutil.copytree(path, tmp_path / path.name)
    shutil.copy(results[-1], tmp_path)
    found, skipped = open_results([tmp_path], {})
    assert [section.title for section in found] == [
        "Profile of resnet50@fast, training",
        "1 benchmark of pytest bench",
    ]
    assert [Path(path).name for path, _ in skipped] == ["half.json"]
    assert "half.json" in page(found, "t", skipped)
    with pytest.raises(RecordError, match="ends in the middle"):
        open_results([tmp_path / "half.json"], {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"schema": 99, "kind": "compare"}, "schema is 99, this version reads 1; it comes from a newer version"),
        ({"schema": 9, "kind": "profile"}, "schema is 9"),
        ({"x": 1}, "no key 'schema'"),
        ({"benchmarks": []}, "not pytest-benchmark's JSON"),
    ],
)
def test_another_file_is_refused_in_one_line(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=words) as found:
        open_results([path], {})
    assert "\n" not in str(found.value)


def test_studies_in_a_folder_of_runs_are_shown_too(tmp_path: Path) -> None:
    run(tmp_path, "alone", 0.7)
    for name in ("a", "b"):
        run(tmp_path / "study", name, 0.8)
    (tmp_path / "other/notes").mkdir(parents=True)
    (tmp_path / "study/back").symlink_to(tmp_path)
    found, skipped = open_results([tmp_path], {})
    sources = [str(Path(section.source).relative_to(tmp_path)) for section in found]
    assert sources == ["alone", "study", "study/a", "study/b"]
    assert skipped == []


def test_nothing_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no result"):
        open_results([tmp_path], {})
    with pytest.raises(RecordError, match="does not exist"):
        open_results([tmp_path / "none"], {})
    with pytest.raises(RecordError, match="nothing to report"):
        page([], "t")


@pytest.fixture
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_browser_shows_it_without_errors_and_requests(
    scheme: str, width: int, html: str, browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    assert said == []
    assert asked == [path.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") == width, "the page itself never scrolls sideways"
    sizes = tab.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    assert all(size > 200 for size in sizes)
    ground, ink = tab.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert ground != ink


def test_what_is_never_better_is_told_by_where_it_is_worse(tmp_path: Path) -> None:
    better = record()
    slower = tuple(replace(m, ratio=m.ratio and m.ratio.inverse()) for m in better.metrics)
    slower = tuple(replace(m, ratio=m.ratio and replace(m.ratio, of="lenet@fast", to="resnet18")) for m in slower)
    path = store.save(replace(better, metrics=slower), tmp_path / "slower.json")
    [section], _ = open_results([path])
    assert section.charts[0].title == "lenet@fast is worse than resnet18 in 2 of 2 figures"


def test_of_many_results_the_newest_are_shown_and_how_each_workload_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(40):
        one = history_record(day, {TRAINING: 0.02 if day < 20 else 0.022, LOADING: 0.03})
        store.save(replace(one, kind="compare"), tmp_path / f"{day:02d}.json")
    monkeypatch.setattr(report, "FULL_UP_TO", 40)
    every, _ = open_results([tmp_path])
    assert len(every) == 40
    newest = store.save(record(created="2027-01-01T00:00:00+00:00"), tmp_path / "a.json")
    (tmp_path / "half.json").write_text("{")
    (tmp_path / "newer.json").write_text('{"schema": 99, "kind": "check", "created": "2028-01-01T00:00:00+00:00"}')
    found, skipped = open_results([tmp_path])
    assert [section.title for section in found][-2:] == [TRAINING, LOADING]
    assert found[0].verdicts[0].startswith("41 results: the newest 10 are shown without charts; of all of them")
    assert "A  2026-01-21" in found[-2].body
    assert "+10.0 %" in found[0].body
    assert found[0].title == f"All results of {tmp_path.name}"
    assert [section.source for section in found if section.source.endswith(".json")] == [
        str(newest), *(str(tmp_path / f"{day}.json") for day in range(39, 30, -1)),
    ]  # fmt: skip
    assert not any(section.charts for section in found)
    assert [(Path(path).name, reason.partition(";")[0]) for path, reason in skipped] == [
        ("half.json", "ends in the middle of its JSON"),
        ("newer.json", "schema is 99, this version reads 1"),
    ]
    assert "the newest 10 are shown without charts" in page(found, "t", skipped)
