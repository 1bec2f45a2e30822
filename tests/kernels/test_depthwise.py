"""The depthwise kernel and its twin compute what a convolution in double precision does, over odd shapes and dtypes."""

import pytest
import torch
from interpreted import interpreted
from torch.nn import functional

from kernels import catalogue
from kernels.depthwise import ACTIVATIONS, DTYPES, blocks, depthwise
from kernels.runtime import HAS_TRITON

# Batch, channels, height, width, side of the kernel, stride.
SHAPES = [
    (1, 1, 1, 1, 3, 1),
    (2, 3, 5, 9, 3, 2),
    (1, 20, 5, 7, 5, 1),
    (2, 17, 7, 10, 5, 2),
    (1, 33, 2, 2, 7, 1),
    (0, 8, 4, 4, 3, 1),
]
# Of the result relative to its largest number: half a unit in the last place, and for the twin also of what is in
# between, since PyTorch rounds before it activates.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def made(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, C, H, W, side, _ = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    return numbers(B, C, H, W), numbers(C, 1, side, side) / side, numbers(C)


def definition(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    y = functional.conv2d(x.double(), weight.double(), bias.double(), stride, weight.shape[2] // 2, groups=x.shape[1])
    y = {"silu": functional.silu, "relu": functional.relu, "none": lambda value: value}[activation](y)
    return y, y.sum((2, 3))


def check(result: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    out, sums = result
    tolerance = TOLERANCE[out.dtype]
    assert sums.dtype == torch.float32
    assert out.shape == expected[0].shape
    assert out.is_contiguous(memory_format=torch.channels_last)
    if out.numel():
        least = tolerance * float(expected[0].abs().max())
        torch.testing.assert_close(out.double(), expected[0], rtol=tolerance, atol=least)
        pixels = out.shape[2] * out.shape[3]
        torch.testing.assert_close(sums.double(), expected[1], rtol=0, atol=least * pixels)
    else:
        assert not sums.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, ...], activation: str, dtype: torch.dtype) -> None:
    x, weight, bias = made(shape, dtype)
    for view in (x, x.contiguous(memory_format=torch.channels_last)):
        check(
            depthwise(view, weight, bias, shape[5], activation, "torch"),
            definition(x, weight, bias, shape[5], activation),
        )


INTERPRETED = """
import json
import torch
from kernels import depthwise as module
from kernels.depthwise import ACTIVATIONS, DTYPES, depthwise, depthwise_torch

worst, shapes = {}, json.loads(input())
for number, (B, C, H, W, side, stride) in enumerate(shapes):
    generator = torch.Generator().manual_seed(number)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((B, C, H, W), (C, 1, side, side), (C,)))
    # Every number of rows on every shape, not only the one that would be chosen.
    for rows in (1, 2, 4):
        module.blocks = lambda channels, tall, wide: (rows, 8, 16)
        activation = ACTIVATIONS[(number + rows) % 3]
        for dtype in (DTYPES[(number + rows // 2) % 3],):
            args = [part.to(dtype) for part in (x, weight / side, bias)]
            exact, sums = depthwise_torch(*(part.double() for part in args), stride, activation)
            out, totals = depthwise(*args, stride, activation, "triton")
            assert out.dtype == dtype and out.shape == exact.shape and totals.dtype == torch.float32
            assert out.is_contiguous(memory_format=torch.channels_last)
            if not out.numel():
                continue
            # In units in the last place of the largest number; sums are made before anything is rounded.
            largest = max(exact.abs().max().item(), 1e-3)
            size = largest * torch.finfo(dtype).eps
            error = (out.double() - exact).abs().max().item() / size
            single = largest * torch.finfo(torch.float32).eps * max(1, exact[0, 0].numel())
            summed = (totals.double() - sums).abs().max().item() / single
            worst[str(dtype)] = max(worst.get(str(dtype), 0.0), error)
            worst["sums"] = max(worst.get("sums", 0.0), summed)
print(json.dumps(worst))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernel_equals_its_twin_under_the_interpreter() -> None:
    worst = interpreted(INTERPRETED, SHAPES)
    assert set(worst) == {"torch.float32", "torch.bfloat16", "torch.float16", "sums"}
    # Rounded once, by the interpreter not always to the nearest; in float32 a few units for the order of the sum.
    assert max(worst["torch.bfloat16"], worst["torch.float16"]) <= 1.01
    assert max(worst["torch.float32"], worst["sums"]) <= 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 240, 28, 28, 5, 1), (3, 96, 112, 112, 3, 2)], ids=str)
def test_kernel_equals_the_definition_on_the_device(
    shape: tuple[int, ...], activation: str, dtype: torch.dtype
) -> None:
    x, weight, bias = made(shape, dtype)
    out, sums = depthwise(x.cuda(), weight.cuda(), bias.cuda(), shape[5], activation, "triton")
    check((out.cpu(), sums.cpu()), definition(x, weight, bias, shape[5], activation))


@pytest.mark.parametrize(
    ("channels", "tall", "expected"),
    [(32, 112, (4, 8, 32)), (96, 56, (4, 8, 32)), (1152, 7, (2, 8, 128)), (672, 14, (2, 8, 64)), (3, 1, (1, 8, 16))],
)
def test_blocks_leave_little_idle(channels: int, tall: int, expected: tuple[int, int, int]) -> None:
    assert blocks(channels, tall, tall) == expected


X, WEIGHT, BIAS = made((2, 3, 5, 9, 3, 2), torch.float32)


def test_operator_is_well_formed() -> None:
    torch.library.opcheck(torch.ops.pixbench.depthwise.default, (X, WEIGHT, BIAS, 2, "silu", "torch"))


def test_compiled_graph_stays_whole() -> None:
    compiled = torch.compile(lambda x: depthwise(x, WEIGHT, BIAS)[0] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(X), depthwise(X, WEIGHT, BIAS)[0] + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"\[B, C, H, W\]"),
        ({"x": X.double()}, "float64"),
        ({"weight": WEIGHT[:2]}, r"\[3, 1, k, k\]"),
        ({"weight": WEIGHT[..., :2]}, r"\[3, 1, k, k\]"),
        ({"weight": WEIGHT[..., :2, :2]}, "odd side, not 2"),
        ({"bias": BIAS[:2]}, r"bias must be \[3\]"),
        ({"bias": BIAS.to("meta")}, "cpu, cpu and meta"),
        ({"stride": 3}, "1 or 2"),
        ({"activation": "gelu"}, "none, relu, silu"),
        ({"implementation": "cuda"}, "torch, compiled, triton"),
        ({"implementation": "triton"}, "CUDA device|Triton"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depthwise(**{"x": X, "weight": WEIGHT, "bias": BIAS, **arguments})  # type: ignore[arg-type]


def test_example_runs() -> None:
    out, sums = catalogue.example("depthwise", "torch", 2, 16, "bfloat16", "cpu")()  # type: ignore[misc]
    assert (out.shape, sums.shape) == ((2, 240, 2, 2), (2, 240))
