from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from workloads import workload_of

from bench.inspecting.exact import facts, outputs
from bench.inspecting.sameness import compare_facts, same_output
from bench.timing.workload import Conditions, Workload
from models import lenet

CONDITIONS = Conditions(threads=1)
INFERENCE = workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10)
TRAINING = workload_of("training", "lenet", "amp-nhwc-eager", 2, 32, 10)


def test_facts_of_inference() -> None:
    found = facts(INFERENCE, CONDITIONS)
    assert found["parameters"] == 62_006
    assert found["state_dict"]["fc3.weight" if "fc3.weight" in found["state_dict"] else [*found["state_dict"]][-2]]
    assert len(found["state_dict"]) == 10
    assert sum(n for name, n in found["operators"].items() if name.startswith("convolution")) == 2
    assert "saved_bytes" not in found
    assert "graphs" not in found


def test_facts_of_training_hold_what_backward_keeps() -> None:
    found = facts(TRAINING, CONDITIONS)
    assert found["saved_bytes"] > 2 * 3 * 32 * 32 * 2
    assert sum(n for name, n in found["operators"].items() if name.startswith("convolution_backward")) == 2
    doubled = facts(workload_of("training", "lenet", "amp-nhwc-eager", 4, 32, 10), CONDITIONS)
    # Weights in bf16 are kept too, so less than twice.
    assert found["saved_bytes"] < doubled["saved_bytes"] < 2 * found["saved_bytes"]


def test_facts_do_not_change_from_one_call_to_the_next() -> None:
    assert facts(TRAINING, CONDITIONS) == facts(TRAINING, CONDITIONS)


def test_compiled_code_is_counted() -> None:
    found = facts(workload_of("inference", "lenet", "fp32-nchw-compile", 2, 32, 10), CONDITIONS)
    assert (found["graphs"], found["graph_breaks"], found["recompiles"]) == (1, 0, 0)
    assert found["compiled_kernels"] > 0


def test_generating_counts_what_compiling_counts() -> None:
    workload = workload_of("inference", "lenet", "fp32-nchw-compile", 2, 32, 10)
    found, quick = facts(workload, CONDITIONS), facts(workload, CONDITIONS, quick=True)
    assert [found.pop(name) for name in ("graphs", "recompiles")] == [1, 0]
    assert found == quick


def test_an_unneeded_operator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    base = facts(INFERENCE, CONDITIONS)
    forward = lenet.LeNet.forward
    monkeypatch.setattr(lenet.LeNet, "forward", lambda self, images: forward(self, images.clone()))
    rows = {
        name: (old, new, same, detail)
        for name, old, new, same, detail in compare_facts(base, facts(INFERENCE, CONDITIONS))
    }
    old, new, same, detail = rows["operators"]
    assert (new - old, same) == (1, False)
    assert detail == ("+ clone.default 1",)
    assert rows["parameters"][2]


def test_differences_of_tables_are_told_entry_by_entry() -> None:
    base = {"state_dict": {"a": "float32[2]", "b": "float32[3]"}, "macs": 10, "graphs": 1}
    head = {"state_dict": {"a": "float32[4]", "c": "float32[3]"}, "macs": 10}
    rows = {name: (old, new, same, detail) for name, old, new, same, detail in compare_facts(base, head)}
    assert rows["state_dict"] == (2, 2, False, ("  a float32[2] -> float32[4]", "- b float32[3]", "+ c float32[3]"))
    assert rows["macs"] == (10, 10, True, ())
    assert rows["graphs"] == (1, None, False, ("1 -> none",))


@pytest.mark.parametrize("workload", [INFERENCE, TRAINING], ids=lambda w: w.task)
def test_the_same_code_computes_the_same(workload: Workload, tmp_path: Path) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    outputs(workload, CONDITIONS, "", str(base))
    # Another seed: the weights and images are the base's, whatever the head would draw.
    assert outputs(workload, Conditions(threads=1, seed=7), str(base), str(head)) == {"differs": ""}
    same, old, new, detail = same_output(base, head, workload.task)
    assert same
    assert (old, detail) == (new, ())


@pytest.mark.parametrize("workload", [INFERENCE, TRAINING], ids=lambda w: w.task)
def test_wrong_results_are_found(workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    outputs(workload, CONDITIONS, "", str(base))
    forward = lenet.LeNet.forward
    # Fast but wrong: the last row of pixels is left out.
    monkeypatch.setattr(
        lenet.LeNet,
        "forward",
        lambda self, images: forward(self, torch.cat([images[:, :, :-8], torch.zeros_like(images[:, :, -8:])], 2)),
    )
    outputs(workload, CONDITIONS, str(base), str(head))
    same, _, _, [detail] = same_output(base, head, workload.task)
    assert not same
    assert "from plain fp32" in detail


@pytest.mark.parametrize("change", [{"momentum": 0.0}, {"lr": 0.011}, {"nesterov": True}])
def test_another_update_is_found_though_its_losses_are_the_same(
    change: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    plain = workload_of("training", "lenet", "fp32-nchw-eager", 2, 32, 10)
    outputs(plain, CONDITIONS, "", str(base))
    made = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda weights, **words: made(weights, **{**words, **change}))
    outputs(plain, CONDITIONS, str(base), str(head))
    same, _, _, [detail] = same_output(base, head, "training")
    assert not same
    assert "move the weights elsewhere" in detail or "losses of three updates" in detail


def test_a_base_that_does_not_say_where_its_weights_went_is_compared_by_its_losses(tmp_path: Path) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    outputs(TRAINING, CONDITIONS, "", str(base))
    save_file({name: t for name, t in load_file(base).items() if "moved" not in name}, base)
    outputs(TRAINING, CONDITIONS, str(base), str(head))
    assert same_output(base, head, "training")[0]


def test_coarser_rounding_than_the_base_is_found(tmp_path: Path) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    outputs(INFERENCE, CONDITIONS, "", str(base))
    outputs(workload_of("inference", "lenet", "bf16-nchw-eager", 2, 32, 10), CONDITIONS, str(base), str(head))
    assert not same_output(base, head, "inference")[0]


def test_weights_that_do_not_fit_are_an_answer(tmp_path: Path) -> None:
    base = tmp_path / "base"
    outputs(INFERENCE, CONDITIONS, "", str(base))
    held = load_file(base)
    held.pop("weight." + next(name for name in held if name.startswith("weight.")).removeprefix("weight."))
    save_file(held, base)
    assert "Missing key" in outputs(INFERENCE, CONDITIONS, str(base), str(tmp_path / "head"))["differs"]


def batch(labels: list[int], scale: float = 1.0, layout: tuple[int, ...] = (48, 16, 4, 1)) -> dict[str, torch.Tensor]:
    images = torch.randn(len(labels), 3, 4, 4, generator=torch.Generator().manual_seed(0)) * scale
    return {"result": images, "labels": torch.tensor(labels), "layout": torch.tensor(layout)}


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (batch([1, 2]), None),
        (batch([1, 2], 1.5), "the same images differ by 0.5"),
        (batch([2, 1]), "the order of the images differs"),
        (batch([1, 2], layout=(48, 1, 12, 3)), "layout in memory"),
        (batch([1, 2, 3]), "shapes differ"),
    ],
)
def test_batches(head: dict[str, torch.Tensor], said: str | None, tmp_path: Path) -> None:
    save_file(batch([1, 2]), tmp_path / "base")
    save_file(head, tmp_path / "head")
    same, _, _, detail = same_output(tmp_path / "base", tmp_path / "head", "loading")
    assert same == (said is None)
    assert said is None or said in detail[0]
