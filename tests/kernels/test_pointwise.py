"""The projection kernel and its twin compute what a product in double precision does, over odd shapes and dtypes."""

import pytest
import torch
from interpreted import interpreted

from kernels import catalogue
from kernels.pointwise import DTYPES, blocks, scaled_pointwise
from kernels.runtime import HAS_TRITON

# Batch, input channels, output channels, height, width.
SHAPES = [(1, 1, 1, 1, 1), (2, 33, 5, 3, 7), (3, 16, 17, 5, 9), (1, 70, 130, 4, 4), (0, 4, 4, 2, 2)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def made(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, scale, weight, bias, residual."""
    B, C, N, H, W = shape
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = ((B, C, H, W), (B, C), (N, C, 1, 1), (N,), (B, N, H, W))
    return tuple(torch.randn(size, generator=generator).to(dtype) for size in sizes)


def definition(
    x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    y = torch.einsum("bchw,bc,nc->bnhw", x.double(), scale.double(), weight[:, :, 0, 0].double())
    y = y + bias.double().view(1, -1, 1, 1)
    return y if residual is None else y + residual.double()


def check(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.shape == expected.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    if result.numel():
        tolerance = TOLERANCE[result.dtype]
        torch.testing.assert_close(
            result.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("added", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, ...], added: bool, dtype: torch.dtype) -> None:
    *parts, residual = made(shape, dtype)
    given = (*parts, residual if added else None)
    result = scaled_pointwise(*given, implementation="torch")
    assert result.dtype == dtype
    check(result, definition(*given))


INTERPRETED = """
import json
import torch
from kernels.pointwise import DTYPES, scaled_pointwise

worst = {}
for number, (B, C, N, H, W) in enumerate(json.loads(input())):
    generator = torch.Generator().manual_seed(number)
    sizes = ((B, C, H, W), (B, C), (N, C, 1, 1), (N,), (B, N, H, W))
    parts = [torch.randn(size, generator=generator) for size in sizes]
    for dtype in DTYPES:
        *given, residual = (part.to(dtype) for part in parts)
        # Products are rounded before they are summed, as the twin's are.
        scaled = (given[0] * given[1][:, :, None, None]).double()
        for added in (None, residual):
            exact = torch.einsum("bchw,nc->bnhw", scaled, given[2][:, :, 0, 0].double())
            exact = exact + given[3].double().view(1, -1, 1, 1) + (0 if added is None else added.double())
            out = scaled_pointwise(*given, added, implementation="triton")
            assert out.dtype == dtype and out.shape == exact.shape
            assert out.is_contiguous(memory_format=torch.channels_last)
            if out.numel():
                size = exact.abs().max().item() * torch.finfo(dtype).eps
                worst[str(dtype)] = max(worst.get(str(dtype), 0.0), (out.double() - exact).abs().max().item() / size)
print(json.dumps(worst))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernel_equals_its_twin_under_the_interpreter() -> None:
    worst = interpreted(INTERPRETED, SHAPES)
    assert set(worst) == {"torch.float32", "torch.bfloat16", "torch.float16"}
    # The interpreter rounds products and the result, not always to the nearest.
    assert max(worst["torch.bfloat16"], worst["torch.float16"]) <= 2.01
    assert worst["torch.float32"] <= 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("added", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", [*SHAPES, (4, 240, 40, 28, 28), (2, 1152, 320, 7, 7)], ids=str)
def test_kernel_equals_the_definition_on_the_device(shape: tuple[int, ...], added: bool, dtype: torch.dtype) -> None:
    *parts, residual = made(shape, dtype)
    given = (*parts, residual if added else None)
    on_device = [None if part is None else part.cuda() for part in given]
    check(scaled_pointwise(*on_device, implementation="triton").cpu(), definition(*given))  # type: ignore[arg-type]


def test_few_output_channels_are_one_block() -> None:
    assert blocks(240, 40) == (128, 64, 32)
    assert blocks(8, 16) == (128, 16, 16)
    assert blocks(1152, 320) == (128, 128, 32)


X, SCALE, WEIGHT, BIAS, RESIDUAL = made((2, 33, 5, 3, 7), torch.float32)


@pytest.mark.parametrize("residual", [None, RESIDUAL], ids=["plain", "residual"])
def test_operator_is_well_formed(residual: torch.Tensor | None) -> None:
    torch.library.opcheck(torch.ops.pixbench.scaled_pointwise.default, (X, SCALE, WEIGHT, BIAS, residual, "torch"))


def test_compiled_graph_stays_whole() -> None:
    compiled = torch.compile(
        lambda x: scaled_pointwise(x, SCALE, WEIGHT, BIAS) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(X), scaled_pointwise(X, SCALE, WEIGHT, BIAS) + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0]}, r"\[B, C, H, W\]"),
        ({"x": X.double()}, "float64"),
        ({"scale": SCALE[:1]}, r"scale must be \[2, 33\]"),
        ({"weight": WEIGHT[:, :4]}, r"\[N, 33, 1, 1\]"),
        ({"bias": BIAS[:2]}, r"bias must be \[5\]"),
        ({"residual": X}, r"residual must be \[2, 5, 3, 7\]"),
        ({"bias": BIAS.half()}, "float16 on cpu, torch.float32 on cpu"),
        ({"bias": BIAS.to("meta")}, "float32 on meta"),
        ({"implementation": "cuda"}, "torch, compiled, triton"),
        ({"implementation": "triton"}, "CUDA device|Triton"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    words = {"x": X, "scale": SCALE, "weight": WEIGHT, "bias": BIAS, **arguments}
    with pytest.raises(ValueError, match=message):
        scaled_pointwise(**words)  # type: ignore[arg-type]


def test_example_runs() -> None:
    out = catalogue.example("pointwise", "torch", 2, 16, "float16", "cpu")()
    assert isinstance(out, torch.Tensor)
    assert out.shape == (2, 40, 2, 2)
