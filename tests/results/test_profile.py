"""What a profile says, in words, tables and pictures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated_profile import MEMORY, profile

from results.errors import RecordError
from results.pictures.profile import flame, roofline, tree
from results.pictures.style import save
from results.profile import Break, Operator, Profile, Stalls, facts, memory_text, plain_name, text


def test_the_sentence_says_bound_roof_and_where_the_time_goes() -> None:
    assert profile().sentence() == (
        "training resnet50@fast is memory-bound at 61 % of the roof; 50 % of the time is batch-norm backward; "
        "17 % is Python and dispatch"
    )
    gpu = profile(idle=0.04, workload="training/resnet50@amp-nhwc-eager/b8/s224/c1000/cuda").sentence()
    assert gpu.endswith("the GPU is idle 4 % of the time (device-bound)")
    assert "(host-bound)" in profile(idle=0.4).sentence()


def test_far_below_both_ceilings_neither_is_blamed() -> None:
    assert "runs at 5 % of the roof, far below both ceilings" in profile(roof_fraction=0.05).sentence()


def test_shares_of_the_roof() -> None:
    found = profile()
    batch_norm, convolution = found.operators[:2]
    assert found.fraction(batch_norm) == pytest.approx(0.5)
    assert found.least_seconds(convolution) == (pytest.approx(0.02), "compute")
    assert found.fraction(Operator("x", 1, 0.1)) is None


def test_layers_are_summed_to_a_depth() -> None:
    found = profile().tree(1)
    assert [module.path for module in found] == ["conv1", "layer1", "(optimiser)"]
    assert found[1].kind == "Sequential"
    assert found[1].seconds == pytest.approx(0.06)
    assert found[1].bytes == pytest.approx(0.2e9)
    assert [module.path for module in profile().tree(2)] == ["conv1", "layer1", "layer1.0", "(optimiser)"]


def test_tables_hold_everything_and_the_rest_in_one_row() -> None:
    shown = text(profile(), top=1)
    assert "(2 others)" in shown
    assert "(Python and dispatch)" in shown
    assert "400 operator calls a step" in shown
    assert "a note" in shown
    markdown = text(profile(), "markdown")
    assert "`aten::relu_`" in markdown, "underscores are no emphasis"
    csv = text(profile(), "csv").splitlines()
    assert len(csv) == 1 + 3 + 5
    assert json.loads(text(profile(), "json"))["sentence"] == profile().sentence()


def test_breaks_and_recompilations_are_told() -> None:
    found = profile(graphs=2, recompiles=1, breaks=(Break("a print", "net.py:7"),))
    assert ("torch.compile", "2 graphs, 1 graph break, 1 recompilation") in facts(found)
    assert "net.py:7: a print" in text(found)


@pytest.mark.parametrize(
    ("loader", "step", "joined", "begins"),
    [
        (620.0, 1000.0, 610.0, "loader-bound by 38 %: decode 61 %, resize 30 %, copy 9 %"),
        (1000.0, 310.0, 300.0, "step-bound, the loader is idle 70 %: decode 61 %"),
    ],
)
def test_who_waits_for_whom(loader: float, step: float, joined: float, begins: str) -> None:
    stalls = Stalls("dali", loader, step, joined, (("decode", 0.61), ("resize", 0.30), ("copy", 0.09)))
    assert stalls.sentence().startswith(begins)
    assert 0.9 < stalls.overlap < 1.0
    assert "joined" in text(profile(stalls=stalls))


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    found = profile(stalls=Stalls("dali", 1.0, 2.0, 1.0, (("read", 0.5),)), breaks=(Break("r", "w"),))
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(found.to_json()))
    assert Profile.load(path) == found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"kind": "compare"}, "not a profile"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"operators": [{"nome": "x"}]}, "unknown key 'nome'"),
        ({"operators": [{"name": "x"}]}, "missing"),
    ],
)
def test_another_file_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecordError, match=words):
        Profile.from_json({**profile().to_json(), **change})


def test_names_of_operators_in_words() -> None:
    assert plain_name("aten::native_batch_norm_backward") == "batch-norm backward"
    assert plain_name("aten::some_new_operator") == "some new operator"
    assert plain_name("graph_0_cpp_fused_relu_3") == "the fused kernel graph_0_cpp_fused_relu_3"


def test_pictures_show_all_of_the_time(tmp_path: Path) -> None:
    root = tree(profile())
    assert root.seconds == pytest.approx(0.12)
    assert sum(child.seconds for child in root.children.values()) == pytest.approx(0.12)
    for name, figure in (("flame", flame(profile())), ("roofline", roofline(profile()))):
        assert figure is not None
        assert save(figure, tmp_path / f"{name}.svg").stat().st_size > 5000
    ranged = roofline(profile(ceilings=((1e11, 0.9e10), (0.8e11, 1e10))))
    plain = roofline(profile())
    assert ranged is not None
    assert plain is not None
    assert len(ranged.axes[0].collections) == len(plain.axes[0].collections) + 1
    assert flame(profile(modules=())) is None
    assert roofline(replace(profile(), operators=(Operator("a", 1, 1.0),))) is None


def test_memory_is_said_by_part_with_the_range_of_what_was_read_more_than_once() -> None:
    said = memory_text(MEMORY)
    assert said.startswith("1.00 KiB weights + 1.00 KiB gradients + 1.00 KiB optimiser")
    assert said.endswith("; the process holds 1.00 GiB with its libraries (512 MiB to 2.00 GiB in 3 readings)")
    assert "process" not in memory_text({**MEMORY, "process": None, "processes": []})
    assert memory_text({"missing": "out of sight"}) == "out of sight"
    parts = {**dict.fromkeys(MEMORY, 0), "inputs": 1 << 20, "engine": 99 << 20, "peaks": [100 << 20, 101 << 20]}
    assert memory_text({**parts, "process": None}) == (
        "1.00 MiB input + 99.0 MiB in the engine, weights included, by the resident set "
        "(in all, 100 MiB to 101 MiB in 2 readings)"
    )


def test_a_profile_made_before_memory_was_counted_says_so() -> None:
    before = {name: bytes for name, bytes in MEMORY.items() if name not in ("counted", "peaks", "processes", "engine")}
    assert "a single reading of the process's resident set" in facts(profile(memory=before))[-1][1]
    assert "single reading" not in facts(profile(memory=before, idle=0.1))[-1][1]
    assert "single reading" not in facts(profile())[-1][1]


def test_a_time_is_over_processes_and_shares_of_the_roof_have_the_ceilings_range() -> None:
    made = profile(
        processes=6, confidence=0.96875, roof_interval=(0.55, 0.7), mfu_interval=(0.27, 0.34),
        ceilings=((1e11, 0.9e10), (0.8e11, 1e10)),
    )  # fmt: skip
    told = dict(facts(made))
    assert told["step"].startswith("100 ms [90 ms to 110 ms over 6 processes, 97 % confidence] without the profiler")
    assert told["ceilings"].startswith(
        "100 GFLOP/s (80.0 GFLOP/s to 100 GFLOP/s in 2 readings) in amp and 9.31 GiB/s ("
    )
    assert told["roof"] == "61 % (55 % to 70 %) reached; MFU 30 % (27 % to 34 %)"
    assert "processes" not in dict(facts(profile()))["step"]
