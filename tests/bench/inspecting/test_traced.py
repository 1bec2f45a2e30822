"""Whose time an event is: fabricated events with known times, and real steps with known work."""

import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from workloads import workload_of

from bench.inspecting import traced
from bench.inspecting.cost import count
from bench.inspecting.counted import LOSS, OPTIMISER, UNKNOWN, Tallies, count_work, ranges
from bench.inspecting.inductor import Kernel, common_layer, graphs_so_far, layer_of, own_name, profiled_name
from bench.inspecting.traced import add_kernels, add_layer_times, add_operator_times, busy_seconds, host_operators
from bench.timing.step import build
from bench.timing.workload import Conditions

CONDITIONS = Conditions(threads=1)


def event(name: str, start: float, end: float, parent: Any = None, number: int = -1, host: bool = True) -> Any:
    """As torch.profiler gives it, in microseconds."""
    made = SimpleNamespace(
        name=name, cpu_parent=parent, sequence_nr=number, is_async=False, kernels=[], children=[],
        device_type="DeviceType.CPU" if host else "DeviceType.CUDA",
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
    )  # fmt: skip
    if parent is not None:
        parent.children.append(made)
    return made


def timed(events: list[Any]) -> list[Any]:
    for each in events:
        each.cpu_time_total = each.time_range.elapsed_us()
        each.self_cpu_time_total = each.cpu_time_total - sum(c.time_range.elapsed_us() for c in each.children)
        each.self_device_time_total = 0.0
    return events


def step_of_one_layer() -> list[Any]:
    """A forward pass of `conv` with a cast in it, its backward pass, and the optimiser."""
    root = event("module: ", 0, 100)
    layer = event("module: conv", 10, 90, root)
    composite = event("aten::conv2d", 20, 80, layer, number=7)
    cast = event("aten::_to_copy", 21, 30, composite, number=7)
    copied = event("aten::copy_", 22, 29, cast, number=7)
    product = event("aten::convolution", 31, 79, composite, number=7)
    inner = event("aten::mkldnn_convolution", 35, 75, product, number=8)
    node = event("autograd::engine::evaluate_function: ConvolutionBackward0", 200, 300, number=7)
    wrapper = event("ConvolutionBackward0", 201, 299, node)
    gradient = event("aten::convolution_backward", 202, 298, wrapper)
    lonely = event("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 301, 303)
    update = event("Optimizer.step#SGD.step", 310, 330)
    fused = event("aten::_fused_sgd_", 311, 329, update)
    return timed([root, layer, composite, cast, copied, product, inner, node, wrapper, gradient, lonely, update, fused])


def tallied(events: list[Any], known: set[str], steps: int = 1) -> Tallies:
    tallies = Tallies()
    operators = host_operators(events, known)
    add_operator_times(operators, tallies, steps, cuda=False, count_calls=False)
    add_layer_times(operators, tallies, steps, cuda=False)
    return tallies


def microseconds(seconds: float) -> float:
    return round(1e6 * seconds, 3)


def test_time_belongs_to_the_outermost_counted_operator_and_to_its_layer() -> None:
    known = {"aten::_to_copy", "aten::convolution", "aten::convolution_backward", "aten::_fused_sgd_"}
    tallies = tallied(step_of_one_layer(), known)
    assert {name: microseconds(tally.seconds) for name, tally in tallies.operators.items()} == {
        "aten::_to_copy": 9, "aten::convolution": 48, "aten::convolution_backward": 96, "aten::_fused_sgd_": 18,
    }  # fmt: skip
    layer = tallies.layers["conv"]
    assert microseconds(layer.forward_seconds) == 57, "cast and product, not Python's part"
    assert microseconds(layer.backward_seconds) == 96, "attributed by the sequence number"
    assert microseconds(tallies.layers[OPTIMISER].forward_seconds) == 18


def test_times_are_of_one_step() -> None:
    tallies = tallied(step_of_one_layer(), {"aten::convolution"}, steps=4)
    assert microseconds(tallies.operators["aten::convolution"].seconds) == 12


def test_kernels_called_as_often_as_planned_are_attributed_to_their_layers_in_order() -> None:
    region = event("## Call CompiledFxGraph abc ##", 0, 100)
    first = event("mkldnn::_convolution_pointwise", 1, 11, region)
    second = event("mkldnn::_convolution_pointwise", 20, 50, region)
    other = event("graph_0_cpp_fused_relu_0", 60, 65, region)
    kernels = [
        Kernel("mkldnn::_convolution_pointwise", "a", False, 10.0, 4.0),
        Kernel("mkldnn::_convolution_pointwise", "b", False, 20.0, 8.0),
    ]
    tallies = Tallies()
    operators = host_operators(timed([region, first, second, other]), {kernels[0].name}, outermost=True)
    add_operator_times(operators, tallies, 1, cuda=False, count_calls=True)
    add_kernels(kernels, operators, tallies, 1, cuda=False)
    assert [microseconds(tallies.layers[path].forward_seconds) for path in ("a", "b")] == [10, 30]
    assert tallies.operators["mkldnn::_convolution_pointwise"].flops == 30.0
    assert tallies.operators["graph_0_cpp_fused_relu_0"].calls == 1
    assert microseconds(tallies.layers[LOSS].forward_seconds) == 5, "in no graph's plan"


def test_calls_that_do_not_fit_the_plan_belong_to_no_layer() -> None:
    operators = host_operators(timed([event("k", 0, 10), event("k", 10, 20), event("k", 20, 30)]), {"k"})
    tallies = Tallies()
    kernels = [Kernel("k", "a", False, 1.0, 1.0), Kernel("k", "b", False, 1.0, 1.0)]
    add_kernels(kernels, operators, tallies, 1, cuda=False)
    assert set(tallies.layers) == {LOSS}
    assert tallies.operators["k"].flops is None


def test_kernels_of_a_replayed_graph_are_counted_beside_the_copies_into_it() -> None:
    copy = event("aten::copy_", 0, 5)
    copy.kernels = [SimpleNamespace(name="copy_kernel", duration=20)]
    replay = [event(name, 10 * n, 10 * n + 8, host=False) for n, name in enumerate(("gemm", "gemm", "relu"))]
    others = [event("copy_kernel", 0, 20, host=False), event("Memcpy HtoD", 0, 9, host=False)]
    tallies = Tallies()
    traced.add_replayed_kernels([copy, *others, *replay], tallies, steps=2)
    found = {name: (tally.calls, tally.seconds) for name, tally in tallies.operators.items() if tally.calls}
    assert found == {"gemm": (1.0, pytest.approx(8e-6)), "relu": (0.5, pytest.approx(4e-6))}


def test_a_gpu_is_busy_while_any_kernel_runs() -> None:
    kernels = [event("k", 0, 10, host=False), event("k", 5, 20, host=False), event("k", 30, 40, host=False)]
    assert busy_seconds([*kernels, event("aten::mm", 0, 1000)], steps=1) == pytest.approx(30e-6)


def test_launches_are_those_of_the_driver() -> None:
    events = [event(n, 0, 1) for n in ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaMemcpyAsync")]
    assert traced.launches(events, Tallies(), 1, cuda=True) == 3


def test_the_innermost_layer_that_holds_all() -> None:
    assert common_layer(["layer1.0.conv1", "layer1.0.bn1"]) == "layer1.0"
    assert common_layer(["layer1", "layer10"]) == common_layer(["", "a"]) == "(network)"
    assert common_layer(["fc"]) == "fc"
    assert common_layer([]) == UNKNOWN


@pytest.mark.parametrize(
    ("stack", "path"),
    [
        ({"a": ("L['self'].layer1.0.relu", nn.ReLU)}, "layer1.0.relu"),
        ({"a": ("L['self'].layer1[0].conv1", nn.Conv2d)}, "layer1.0.conv1"),
        ({"a": ("L['self']._modules['features']._modules['0']", nn.Conv2d)}, "features.0"),
        ({"a": ("getattr(getattr(L['model'].features, '0').conv, '1')", nn.Conv2d)}, "features.0.conv.1"),
        ({}, None),
    ],
)
def test_the_layer_of_a_node(stack: Any, path: str | None) -> None:
    assert layer_of(SimpleNamespace(meta={"nn_module_stack": stack})) == path


def test_names_as_the_profiler_writes_them() -> None:
    assert profiled_name("torch.ops.mkldnn._convolution_pointwise_.binary", 0) == "mkldnn::_convolution_pointwise_"
    assert profiled_name("extern_kernels.addmm", 0) == "aten::addmm"
    in_cpp = {
        "mkldnn__convolution_pointwise_binary_": "mkldnn::_convolution_pointwise_",
        "mkldnn__convolution_pointwise": "mkldnn::_convolution_pointwise",
        "_linear_pointwise": "mkldnn::_linear_pointwise",
        "_mkl_linear": "mkl::_mkl_linear",
        "addmm_out": "aten::addmm_out",
    }
    assert [profiled_name(f"aoti_torch_cpu_{name}", 0) for name in in_cpp] == list(in_cpp.values())
    assert profiled_name("cpp_fused_relu_1", 3) == "graph_3_cpp_fused_relu_1"
    assert own_name("graph_3_gemm_m49n96k64_cpp_fused_relu_1") == "graph_3_cpp_fused_relu_1"


def test_counted_work_of_a_training_step_is_what_cost_counts() -> None:
    workload = workload_of("training", "lenet", "fp32-nhwc-eager", 4, 32, 10)
    [step] = build([workload], CONDITIONS)
    step.call()
    profile = traced.trace(step, 2, "")
    flops = sum(each["flops"] or 0 for each in profile["operators"])
    assert flops == 4 * count("lenet", 10, 32).training_flops
    layers = {each["path"]: each for each in profile["modules"]}
    assert sum(each["flops"] or 0 for each in profile["modules"]) == flops, "all work belongs somewhere"
    assert layers["conv1"]["kind"].endswith("Conv2d")
    assert layers["conv1"]["backward_seconds"] > 0
    assert layers["conv1"]["flops"] > 0
    assert OPTIMISER in layers
    assert sum(each["seconds"] for each in profile["operators"]) <= profile["seconds"] * 1.05
    assert profile["busy"] is None
    assert profile["graphs"] is None
    calls = {each["name"]: each["calls"] for each in profile["operators"]}
    assert calls["aten::convolution"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "configuration", "size"),
    [
        ("lenet", "fp32-nhwc-compile-freeze", 32),
        pytest.param("squeezenet1_1", "bf16-nhwc-compile-freeze-mm", 64, marks=pytest.mark.night),
    ],
)
def test_compiled_code_is_attributed_to_its_layers(name: str, configuration: str, size: int, tmp_path: Any) -> None:
    workload = workload_of("inference", name, configuration, 4, size, 10)
    [step] = build([workload], CONDITIONS)
    step.call()
    file = tmp_path / "trace.json.gz"
    profile = traced.trace(step, 2, str(file))
    assert file.stat().st_size > 1000
    assert sum(each["flops"] or 0 for each in profile["operators"]) == pytest.approx(4 * count(name, 10, size).flops)
    named = sum(each["forward_seconds"] for each in profile["modules"] if not each["path"].startswith("("))
    assert named > 0.5 * sum(each["forward_seconds"] for each in profile["modules"])
    assert (profile["graphs"], profile["recompiles"], profile["breaks"]) == (1, 0, [])
    torch.compiler.reset()


def test_work_of_the_backward_pass_belongs_to_its_layer() -> None:
    workload = workload_of("training", "cifar_resnet18", "amp-nhwc-eager", 2, 8, 10)
    [step] = build([workload], CONDITIONS)
    step.call()
    tallies = Tallies()
    count_work(step, tallies)
    assert not [path for path, tally in tallies.layers.items() if "bn" in path and tally.flops], "convolutions alone"
    stem = tallies.layers["conv1"].flops
    assert stem == 2 * 2 * 64 * 27 * 64 * 2, "forward, and the weight's gradient: the image needs none"


class Breaking(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        doubled = images * 2
        torch._dynamo.graph_break()
        return doubled + 1


def test_a_graph_break_is_named_with_its_line() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    torch.compile(Breaking(), backend="eager")(torch.ones(2))
    graphs, breaks = graphs_so_far()
    assert graphs == 2
    assert len(breaks) == 1
    assert "test_traced.py:" in breaks[0]["where"]
    torch.compiler.reset()


NEW_PAGES = """
import resource
import torch
from bench.inspecting import traced
from bench.machine.allocator import choose_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = torch.ones(2**27, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, block

choose_memory(True)
traced.SPARE = 2**28
cold, one = faults()
print(traced.make_spare_memory())
warm, other = faults()
print(cold, warm)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is kept with glibc only")
def test_spare_memory_needs_no_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", NEW_PAGES], capture_output=True, text=True, check=True)
    notes, counts = done.stdout.splitlines()
    cold, warm = map(int, counts.split())
    assert notes == "[]"
    # 64 huge pages of 2 MiB at least.
    assert cold >= 60
    assert warm <= cold / 10


@pytest.mark.parametrize(
    ("available", "limit", "fails", "made"),
    [
        (8 * traced.SPARE, None, False, True),
        (None, 8 * traced.SPARE, False, True),
        (8 * traced.SPARE - 1, None, False, False),
        (8 * traced.SPARE, 8 * traced.SPARE - 1, False, False),
        (None, None, False, False),
        (8 * traced.SPARE, None, True, False),
    ],
)
def test_where_memory_is_short_none_is_made_ready_and_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch, available: int | None, limit: int | None, fails: bool, made: bool
) -> None:
    asked = []

    def ones(size: int, dtype: torch.dtype) -> None:
        asked.append(size)
        if fails:
            raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(traced.torch, "ones", ones)
    monkeypatch.setattr(traced, "memory_facts", lambda roots: {"available_bytes": available, "limit_bytes": limit})
    assert (traced.make_spare_memory() == []) is made
    assert asked == [traced.SPARE] * (made or fails)


def test_ranges_end_with_their_context() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    calls: list[str] = []
    with ranges(network, calls.append, lambda: calls.append("-")):
        network(torch.ones(1, 2))
    network(torch.ones(1, 2))
    assert calls == ["", "0", "-", "-"]
