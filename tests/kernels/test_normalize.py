"""The Triton kernel, its twin and the definition agree, whatever the shape, the dtype and the strides."""

import pytest
import torch
from interpreted import interpreted

from kernels import catalogue
from kernels.normalize import normalize, normalize_torch
from kernels.runtime import HAS_TRITON, IMAGENET_MEAN, IMAGENET_STD, chosen

# One pixel, a prime width, more than one block of the kernel, an empty batch, one image.
SHAPES = [(1, 1, 1), (2, 5, 7), (3, 41, 37), (0, 8, 8), (1, 224, 224)]
# Half a unit in the last place at the largest value, 2.64, and a little for the float32 arithmetic before it.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7 + 1e-5, torch.float16: 2.0**-10 + 1e-6}


def pixels(shape: tuple[int, int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def definition(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
    return (images.permute(0, 3, 1, 2).double() / 255 - mean) / std


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twin_equals_the_definition(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    images = pixels(shape)
    result = normalize(images, dtype=dtype)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), definition(images), rtol=0, atol=TOLERANCE[dtype])


INTERPRETED = """
import json
import torch
from kernels.normalize import DTYPES, normalize

worst = {}
for shape in json.loads(input()):
    generator = torch.Generator().manual_seed(sum(shape))
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
    for view in (images, images.flip(2), images.expand(2, *images.shape).flatten(0, 1)[::2]):
        for dtype in DTYPES:
            kernel = normalize(view, dtype=dtype, implementation="triton")
            twin = normalize(view, dtype=dtype, implementation="torch")
            assert kernel.dtype == dtype and kernel.shape == twin.shape
            assert kernel.is_contiguous(memory_format=torch.channels_last)
            # In units in the last place of 2.64: the two may round a tie differently, never more.
            error = (kernel.double() - twin.double()).abs().max().item() if kernel.numel() else 0.0
            worst[str(dtype)] = max(worst.get(str(dtype), 0.0), error / (2 * torch.finfo(dtype).eps))
print(json.dumps(worst))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernel_equals_its_twin_under_the_interpreter() -> None:
    shapes = [shape for shape in SHAPES if shape[1] < 100]
    worst = interpreted(INTERPRETED, shapes)
    assert set(worst) == {"torch.float32", "torch.bfloat16", "torch.float16"}
    assert max(worst.values()) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_the_definition_on_the_device(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    images = pixels(shape)
    result = normalize(images.cuda(), dtype=dtype, implementation="triton")
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.cpu().double(), definition(images), rtol=0, atol=TOLERANCE[dtype])


def test_input_is_left_alone() -> None:
    images = pixels((2, 5, 7))
    before = images.clone()
    normalize(images)
    assert torch.equal(images, before)


def test_strided_input_is_read_by_position() -> None:
    planar = pixels((2, 5, 7)).permute(0, 3, 1, 2).contiguous()
    strided = planar.permute(0, 2, 3, 1)
    assert not strided.is_contiguous()
    assert torch.equal(normalize(strided), normalize(strided.contiguous()))


def test_operator_is_well_formed() -> None:
    arguments = (pixels((2, 5, 7)), list(IMAGENET_MEAN), list(IMAGENET_STD), torch.bfloat16, "torch")
    torch.library.opcheck(torch.ops.pixbench.normalize.default, arguments)


def test_compiled_graph_stays_whole() -> None:
    images = pixels((2, 5, 7))
    compiled = torch.compile(lambda x: normalize(x, dtype=torch.float16) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), normalize(images, dtype=torch.float16) + 1)


def test_twin_can_be_traced_into() -> None:
    images = pixels((2, 5, 7))
    compiled = torch.compile(
        lambda x: normalize_torch(x, IMAGENET_MEAN, IMAGENET_STD, torch.float32),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(images), normalize(images))


def test_choice_is_visible() -> None:
    assert chosen("cpu") == "torch"
    assert chosen("cuda") == ("triton" if HAS_TRITON else "torch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, r"\[B, H, W, 3\]"),
        ({"images": torch.zeros(2, 8, 8, 3)}, "uint8"),
        ({"std": (0.2, 0.0, 0.2)}, "above zero"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"dtype": torch.float64}, "float32"),
        ({"implementation": "cuda"}, "torch, compiled, triton"),
    ],
)
def test_wrong_input_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalize(**({"images": pixels((1, 2, 2))} | arguments))


def test_example_is_what_is_timed() -> None:
    call = catalogue.example("normalize", "torch", 2, 8, "bfloat16", "cpu")
    result = call()
    assert isinstance(result, torch.Tensor)
    assert (result.shape, result.dtype) == ((2, 3, 8, 8), torch.bfloat16)
    with pytest.raises(ValueError, match="float32, bfloat16, float16, not int8"):
        catalogue.example("normalize", "torch", 2, 8, "int8", "cpu")
    with pytest.raises(ValueError, match="it has torch, compiled, triton"):
        catalogue.example("normalize", "cuda", 2, 8, "float32", "cpu")


def test_the_compiled_twin_is_the_twin() -> None:
    images = pixels((2, 5, 3))
    torch.testing.assert_close(normalize(images, implementation="compiled"), normalize(images, implementation="torch"))


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernel_on_a_cpu_is_refused_not_replaced() -> None:
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu"):
        normalize(pixels((1, 2, 2)), implementation="triton")


def test_catalogue_names_every_kernel_once() -> None:
    assert catalogue.names() == ("augment", "depthwise", "depthwise_backward", "normalize", "pointwise")
    assert catalogue.implementations("normalize") == ("torch", "compiled", "triton")
    assert "uint8" in catalogue.describe("normalize")
    with pytest.raises(ValueError, match="there is: normalize"):
        catalogue.describe("normalise")
