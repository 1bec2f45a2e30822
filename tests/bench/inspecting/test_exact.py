import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from workloads import workload_of

from bench.inspecting.cost import count
from bench.inspecting.exact import facts, outputs, parity
from bench.inspecting.foreign import UncountedError
from bench.inspecting.sameness import compare_facts, same_output
from bench.sides.session import Session
from bench.timing.step import build, network
from bench.timing.workload import Conditions, Workload
from models import lenet, zoo
from models.export import export
from results.gate import Fact

CONDITIONS = Conditions(threads=1)
INFERENCE = workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10)
TRAINING = workload_of("training", "lenet", "amp-nhwc-eager", 2, 32, 10)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of the network that has the seed 0."""
    path = tmp_path_factory.mktemp("exported") / "a.pt2"
    torch.manual_seed(0)
    export(zoo.build("lenet"), "torch-export", path, 32, 2, False)
    return str(path)


def test_a_file_is_compared_with_the_network_it_was_exported_from(program: str) -> None:
    [step] = build([workload_of("inference", program, "fp32-nchw-eager", 2, 32, 10)], CONDITIONS)
    found = parity(step, CONDITIONS, INFERENCE)
    assert found == {"rms": 0.0, "same_top1": 2, "images": 2, "blind": ""}
    other = parity(step, Conditions(threads=1, seed=1), INFERENCE)
    assert other["rms"] > 0.5
    fewer = parity(step, CONDITIONS, workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 7))
    assert fewer["blind"] == f"{program} gives 10 logits and lenet 7"


def test_a_file_costs_what_its_network_does(program: str) -> None:
    own, file = count("lenet"), count(program)
    assert (file.params, file.macs, file.activations) == (own.params, own.macs, own.activations)
    assert file.training_flops == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("ending", "format"), [(".onnx", "onnx"), (".xml", "openvino")])
def test_files_of_other_engines_cost_the_same(ending: str, format: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    export(zoo.build("lenet"), format, tmp_path / f"a{ending}", 32, 2, False)
    own, file = count("lenet"), count(str(tmp_path / f"a{ending}"))
    counts = [(cost.params, cost.weight_bytes, cost.macs, cost.flops, cost.activations) for cost in (own, file)]
    assert counts[0] == counts[1]


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_counted_is_not_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = str(tmp_path / "a.onnx")
    export(zoo.build("lenet"), "onnx", Path(path), 32, 2, False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    reason = f"{path} is counted by openvino, which is not installed"
    assert Session().cost(path, None, None) == {"classes": 10, "size": 32, "missing": reason}
    with pytest.raises(UncountedError, match="which is not installed"):
        count(path)


def test_given_weights_stay_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(5)
    weights = {name: torch.zeros_like(tensor) for name, tensor in zoo.build("lenet").state_dict().items()}
    torch.save(weights, tmp_path / "w.pth")
    found = network(INFERENCE, Conditions(weights=str(tmp_path / "w.pth")))
    assert not any(parameter.any() for parameter in found.parameters())
    assert all(parameter.any() for parameter in network(INFERENCE, CONDITIONS).parameters())


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


@pytest.mark.slow
def test_generating_counts_what_compiling_counts() -> None:
    workload = workload_of("inference", "lenet", "fp32-nchw-compile", 2, 32, 10)
    found, quick = facts(workload, CONDITIONS), facts(workload, CONDITIONS, quick=True)
    assert [found.pop(name) for name in ("graphs", "recompiles")] == [1, 0]
    assert found == quick
    assert found["graph_breaks"] == 0
    assert found["compiled_kernels"] > 0


def test_an_unneeded_operator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    base = facts(INFERENCE, CONDITIONS)
    forward = lenet.LeNet.forward
    monkeypatch.setattr(lenet.LeNet, "forward", lambda self, images: forward(self, images.clone()))
    compared = {fact.name: fact for fact in compare_facts("w", base, facts(INFERENCE, CONDITIONS))}
    operators = compared["operators"]
    assert (operators.head - operators.base, operators.same) == (1, False)
    assert operators.detail == ("+ clone.default 1",)
    assert compared["parameters"].same


def test_differences_of_tables_are_shown_entry_by_entry() -> None:
    base = {"state_dict": {"a": "float32[2]", "b": "float32[3]"}, "macs": 10, "graphs": 1}
    head = {"state_dict": {"a": "float32[4]", "c": "float32[3]"}, "macs": 10}
    assert list(compare_facts("w", base, head)) == [
        Fact("w", "state_dict", 2, 2, False, ("  a float32[2] -> float32[4]", "- b float32[3]", "+ c float32[3]")),
        Fact("w", "macs", 10, 10, True),
        Fact("w", "graphs", 1, None, False, ("1 -> none",)),
    ]


@pytest.mark.parametrize("workload", [INFERENCE, TRAINING], ids=lambda w: w.task)
def test_the_same_code_computes_the_same(workload: Workload, tmp_path: Path) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    outputs(workload, CONDITIONS, "", str(base))
    # Another seed: the weights and images are the base's, whatever the head would draw.
    assert outputs(workload, Conditions(threads=1, seed=7), str(base), str(head)) == {"differs": ""}
    fact = same_output("w", workload.task, base, head)
    assert fact == Fact("w", "output", fact.base, fact.base, True)


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
    fact = same_output("w", workload.task, base, head)
    assert not fact.same
    assert "differ from those in plain fp32" in fact.detail[0]


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
    fact = same_output("w", "training", base, head)
    assert not fact.same
    assert "move the weights elsewhere" in fact.detail[0] or "losses of three updates" in fact.detail[0]


def test_a_base_that_does_not_say_where_its_weights_went_is_compared_by_its_losses(tmp_path: Path) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    outputs(TRAINING, CONDITIONS, "", str(base))
    save_file({name: t for name, t in load_file(base).items() if "moved" not in name}, base)
    outputs(TRAINING, CONDITIONS, str(base), str(head))
    assert same_output("w", "training", base, head).same


def test_coarser_rounding_than_the_base_is_found(tmp_path: Path) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    outputs(INFERENCE, CONDITIONS, "", str(base))
    outputs(workload_of("inference", "lenet", "bf16-nchw-eager", 2, 32, 10), CONDITIONS, str(base), str(head))
    assert not same_output("w", "inference", base, head).same


def test_weights_that_do_not_fit_are_an_answer(tmp_path: Path) -> None:
    base = tmp_path / "base"
    outputs(INFERENCE, CONDITIONS, "", str(base))
    tensors = load_file(base)
    tensors.pop(next(name for name in tensors if name.startswith("weight.")))
    save_file(tensors, base)
    assert "Missing key" in outputs(INFERENCE, CONDITIONS, str(base), str(tmp_path / "head"))["differs"]


def batch(labels: list[int], scale: float = 1.0, layout: tuple[int, ...] = (48, 16, 4, 1)) -> dict[str, torch.Tensor]:
    images = torch.randn(len(labels), 3, 4, 4, generator=torch.Generator().manual_seed(0)) * scale
    return {"result": images, "labels": torch.tensor(labels), "layout": torch.tensor(layout)}


@pytest.mark.parametrize(
    ("head", "difference"),
    [
        (batch([1, 2]), None),
        (batch([1, 2], 1.5), "the same images differ by 0.5"),
        (batch([2, 1]), "the order of the images differs"),
        (batch([1, 2], layout=(48, 1, 12, 3)), "layout in memory"),
        (batch([1, 2, 3]), "shapes differ"),
    ],
)
def test_batches(head: dict[str, torch.Tensor], difference: str | None, tmp_path: Path) -> None:
    save_file(batch([1, 2]), tmp_path / "base")
    save_file(head, tmp_path / "head")
    fact = same_output("w", "loading", tmp_path / "base", tmp_path / "head")
    assert fact.same == (difference is None)
    assert difference is None or difference in fact.detail[0]
