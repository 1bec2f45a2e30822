"""Whose time an event is: by hand-made events with known times, and on real steps with known work."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from workloads import workload_of

from bench.inspecting import counted, inductor, traced
from bench.inspecting.cost import count
from bench.inspecting.counted import Found
from bench.inspecting.inductor import Kernel, common, layer_of, profiled_name
from bench.inspecting.traced import attribute, busy_seconds, by_kernel
from bench.timing.step import build
from bench.timing.workload import Conditions

CONDITIONS = Conditions(threads=1)


def event(name: str, start: float, end: float, parent: Any = None, number: int = -1, host: bool = True) -> Any:
    """As torch.profiler gives it, in microseconds."""
    one = SimpleNamespace(
        name=name, cpu_parent=parent, sequence_nr=number, is_async=False, kernels=[], children=[],
        device_type="DeviceType.CPU" if host else "DeviceType.CUDA",
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
    )  # fmt: skip
    if parent is not None:
        parent.children.append(one)
    return one


def timed(events: list[Any]) -> list[Any]:
    for one in events:
        one.cpu_time_total = one.time_range.elapsed_us()
        one.self_cpu_time_total = one.cpu_time_total - sum(c.time_range.elapsed_us() for c in one.children)
        one.self_device_time_total = 0.0
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


def test_time_belongs_to_the_outermost_counted_operator_and_to_its_layer() -> None:
    found = Found()
    known = {"aten::_to_copy", "aten::convolution", "aten::convolution_backward", "aten::_fused_sgd_"}
    attribute(step_of_one_layer(), known, found, steps=1, cuda=False)
    seconds = {name: round(1e6 * tally.seconds, 3) for name, tally in found.operators.items() if tally.seconds}
    assert seconds == {
        "aten::_to_copy": 9, "aten::convolution": 48, "aten::convolution_backward": 96, "aten::_fused_sgd_": 18,
    }  # fmt: skip
    layer = found.times["conv"]
    assert round(1e6 * layer.forward, 3) == 57, "cast and product, not Python's part"
    assert round(1e6 * layer.backward, 3) == 96, "led back by the sequence number"
    assert round(1e6 * found.times[traced.OPTIMISER].forward, 3) == 18


def test_times_are_of_one_step() -> None:
    found = Found()
    attribute(step_of_one_layer(), {"aten::convolution"}, found, steps=4, cuda=False)
    assert round(1e6 * found.operators["aten::convolution"].seconds, 3) == 12


def test_a_kernel_that_is_called_as_often_as_planned_is_led_to_its_layers_in_order() -> None:
    region = event("## Call CompiledFxGraph abc ##", 0, 100)
    first = event("mkldnn::_convolution_pointwise", 1, 11, region)
    second = event("mkldnn::_convolution_pointwise", 20, 50, region)
    other = event("graph_0_cpp_fused_relu_0", 60, 65, region)
    events = timed([region, first, second, other])
    found = Found()
    kernels = [
        Kernel("mkldnn::_convolution_pointwise", "a", False, 10.0, 4.0),
        Kernel("mkldnn::_convolution_pointwise", "b", False, 20.0, 8.0),
    ]
    attribute(events, {kernel.name for kernel in kernels}, found, 1, False, outermost=True)
    by_kernel(kernels, events, found, 1, False)
    assert (round(1e6 * found.times["a"].forward), round(1e6 * found.times["b"].forward)) == (10, 30)
    assert found.operators["mkldnn::_convolution_pointwise"].flops == 30.0
    assert found.operators["graph_0_cpp_fused_relu_0"].calls == 1
    assert found.times[traced.LOSS].forward == pytest.approx(5e-6), "no graph knows it"


def test_calls_that_do_not_fit_the_plan_stay_without_a_layer() -> None:
    made = timed([event("k", 0, 10), event("k", 10, 20), event("k", 20, 30)])
    found = Found()
    by_kernel([Kernel("k", "a", False, 1.0, 1.0), Kernel("k", "b", False, 1.0, 1.0)], made, found, 1, False)
    assert "a" not in found.times
    assert found.operators["k"].flops is None


def test_a_gpu_is_busy_while_any_kernel_runs() -> None:
    kernels = [event("k", 0, 10, host=False), event("k", 5, 20, host=False), event("k", 30, 40, host=False)]
    assert busy_seconds([*kernels, event("aten::mm", 0, 1000)], steps=1) == pytest.approx(30e-6)


def test_launches_are_those_of_the_driver() -> None:
    events = [event(n, 0, 1) for n in ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaMemcpyAsync")]
    assert traced.launches(events, Found(), 1, cuda=True) == 3


def test_the_innermost_layer_that_holds_all() -> None:
    assert common(["layer1.0.conv1", "layer1.0.bn1"]) == "layer1.0"
    assert common(["a", "b"]) == "(network)"
    assert common(["fc"]) == "fc"
    assert common([]) == counted.UNKNOWN


@pytest.mark.parametrize(
    ("stack", "path"),
    [
        ({"a": ("L['self'].layer1.0.relu", nn.ReLU)}, "layer1.0.relu"),
        ({"a": ("L['self'].layer1[0].conv1", nn.Conv2d)}, "layer1.0.conv1"),
        ({"a": ("L['self']._modules['features']._modules['0']", nn.Conv2d)}, "features.0"),
        ({}, None),
    ],
)
def test_the_layer_of_a_node(stack: Any, path: str | None) -> None:
    assert layer_of(SimpleNamespace(meta={"nn_module_stack": stack})) == path


def test_names_as_the_profiler_writes_them() -> None:
    assert profiled_name("torch.ops.mkldnn._convolution_pointwise_.binary", 0) == "mkldnn::_convolution_pointwise_"
    assert profiled_name("extern_kernels.addmm", 0) == "aten::addmm"
    assert profiled_name("cpp_fused_relu_1", 3) == "graph_3_cpp_fused_relu_1"


def test_counted_work_of_a_training_step_is_what_cost_counts() -> None:
    workload = workload_of("training", "lenet", "fp32-nhwc-eager", 4, 32, 10)
    [step] = build([workload], CONDITIONS)
    step.call()
    told = traced.trace(step, 2, "")
    flops = sum(one["flops"] or 0 for one in told["operators"])
    assert flops == 4 * count("lenet", 10, 32).training_flops
    layers = {one["path"]: one for one in told["modules"]}
    assert sum(one["flops"] or 0 for one in told["modules"]) == flops, "no work is without a place"
    assert layers["conv1"]["kind"].endswith("Conv2d")
    assert layers["conv1"]["backward_seconds"] > 0
    assert layers["conv1"]["flops"] > 0
    assert traced.OPTIMISER in layers
    assert sum(one["seconds"] for one in told["operators"]) <= told["seconds"] * 1.05
    assert told["busy"] is None
    assert told["graphs"] is None
    calls = {one["name"]: one["calls"] for one in told["operators"]}
    assert calls["aten::convolution"] == 2


def test_compiled_code_is_led_back_to_its_layers(tmp_path: Any) -> None:
    workload = workload_of("inference", "lenet", "fp32-nhwc-compile-freeze", 4, 32, 10)
    [step] = build([workload], CONDITIONS)
    step.call()
    file = tmp_path / "trace.json.gz"
    told = traced.trace(step, 2, str(file))
    assert file.stat().st_size > 1000
    assert sum(one["flops"] or 0 for one in told["operators"]) == pytest.approx(4 * count("lenet", 10, 32).flops)
    named = sum(one["forward_seconds"] for one in told["modules"] if not one["path"].startswith("("))
    assert named > 0.5 * sum(one["forward_seconds"] for one in told["modules"])
    assert (told["graphs"], told["recompiles"], told["breaks"]) == (1, 0, [])
    torch.compiler.reset()


def test_work_of_the_backward_pass_is_at_the_layer_it_is_of() -> None:
    workload = workload_of("training", "cifar_resnet18", "amp-nhwc-eager", 2, 8, 10)
    [step] = build([workload], CONDITIONS)
    step.call()
    found = Found()
    counted.counted(step, found)
    assert not [path for path, tally in found.work.items() if "bn" in path and tally.flops], "convolutions alone"
    stem = found.work["conv1"].flops
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
    graphs, breaks = inductor._graphs()
    assert graphs == 2
    assert len(breaks) == 1
    assert "test_traced.py:" in breaks[0]["where"]
    torch.compiler.reset()


def test_ranges_are_taken_off_again() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    said: list[str] = []
    with counted.ranges(network, said.append, lambda: said.append("-")):
        network(torch.ones(1, 2))
    network(torch.ones(1, 2))
    assert said == ["", "0", "-", "-"]
