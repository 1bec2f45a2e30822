"""What holds for every kernel: names, implementations, element types, operators and examples."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import augment as augment_module
from kernels import catalogue, formats
from kernels import depthwise as depthwise_module
from kernels import depthwise_backward as backward_module
from kernels import normalize as normalize_module
from kernels import pointwise as pointwise_module
from kernels import resized_crop as resized_crop_module
from kernels.augment import augment
from kernels.depthwise import depthwise
from kernels.depthwise_backward import depthwise_convolution
from kernels.normalize import normalize, normalize_torch
from kernels.pointwise import scaled_pointwise
from kernels.resized_crop import resized_crop
from kernels.runtime import HAS_TRITON, IMPLEMENTATIONS, INTERPRETED, choose_implementation

IMAGES = torch.randint(0, 256, (2, 5, 5, 3), dtype=torch.uint8)
TABLE = torch.tensor([[1, 2, -1, 4, 0, 1, 2, 2]], dtype=torch.int32)
PLACES = torch.tensor([[9, 15, 3, 4, 6, 6, 0, 1, 1]])
X, WEIGHT, BIAS = torch.randn(2, 3, 5, 9), torch.randn(3, 1, 3, 3), torch.randn(3)
SCALE, PROJECTION, RESIDUAL = torch.randn(2, 3), torch.randn(4, 3, 1, 1), torch.randn(2, 4, 5, 9)
GRAD = torch.randn(2, 3, 3, 5)
MEAN, STD = list(formats.IMAGENET_MEAN), list(formats.IMAGENET_STD)

OPERATORS: list[tuple[str, tuple[Any, ...]]] = [
    ("normalize", (IMAGES, MEAN, STD, torch.bfloat16)),
    ("augment", (IMAGES, TABLE, MEAN, STD, torch.bfloat16, "reflect")),
    ("depthwise", (X, WEIGHT, BIAS, 2, "silu")),
    ("scaled_pointwise", (X, SCALE, PROJECTION, BIAS.new_ones(4), None)),
    ("scaled_pointwise", (X, SCALE, PROJECTION, BIAS.new_ones(4), RESIDUAL)),
    ("depthwise_convolution", (X.clone().requires_grad_(), WEIGHT.clone().requires_grad_(), 2)),
    ("depthwise_grad_input", (GRAD, WEIGHT, 2, 5, 9)),
    ("depthwise_grad_weight", (GRAD, X, 2, 3)),
    ("resized_crop", (IMAGES.flatten(), PLACES, 5, 3, MEAN, STD, torch.bfloat16)),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of opcheck's own
@pytest.mark.parametrize(("name", "arguments"), OPERATORS, ids=[name for name, _ in OPERATORS])
def test_operators_are_well_formed(name: str, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.pixbench, name).default, (*arguments, "torch"))


class Launches:
    """In place of a kernel: keeps the options of its launches."""

    def __init__(self) -> None:
        self.options: list[dict[str, object]] = []

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: self.options.append(options)


LAUNCHES = {
    "_normalize_kernel": (normalize_module.NORMALIZE, OPERATORS[0]),
    "_augment_kernel": (augment_module.AUGMENT, OPERATORS[1]),
    "_depthwise_kernel": (depthwise_module.DEPTHWISE, OPERATORS[2]),
    "_pointwise_kernel": (pointwise_module.SCALED_POINTWISE, OPERATORS[4]),
    "_grad_input_kernel": (backward_module.GRAD_INPUT, OPERATORS[6]),
    "_grad_weight_kernel": (backward_module.GRAD_WEIGHT, OPERATORS[7]),
    "_resized_crop_kernel": (resized_crop_module.RESIZED_CROP, OPERATORS[8]),
}


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("kernel", LAUNCHES)
def test_no_launch_leaves_the_rounding_of_sums_to_triton(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option Triton 3.9 warns, which is an error here, and 3.10 rounds otherwise."""
    operation, (_, arguments) = LAUNCHES[kernel]
    run = operation.implementations["triton"]
    launches = Launches()
    monkeypatch.setitem(run.__globals__, kernel, launches)
    run(*arguments)
    assert [options["enable_fp_fusion"] for options in launches.options] == [True]


CALLS: dict[str, Callable[[], torch.Tensor]] = {
    "normalize": lambda: normalize(IMAGES, dtype=torch.float16) + 1,
    "normalize_torch": lambda: normalize_torch(IMAGES, MEAN, STD, torch.float32) + 1,
    "augment": lambda: augment(IMAGES, TABLE) + 1,
    "resized_crop": lambda: resized_crop(IMAGES.flatten(), PLACES, 5, 3) + 1,
    "depthwise": lambda: depthwise(X, WEIGHT, BIAS)[0] + 1,
    "scaled_pointwise": lambda: scaled_pointwise(X, SCALE, PROJECTION, BIAS.new_ones(4)) + 1,
    "depthwise_convolution": lambda: depthwise_convolution(X, WEIGHT, 2) + 1,
}


@pytest.mark.parametrize("name", CALLS)
def test_compiled_graphs_stay_whole(name: str) -> None:
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), CALLS[name]())


def test_the_compiled_twin_is_the_twin() -> None:
    torch.testing.assert_close(normalize(IMAGES, implementation="compiled"), normalize(IMAGES, implementation="torch"))


def test_the_default_implementation_depends_on_the_device() -> None:
    assert choose_implementation(None, torch.device("cpu")) == "torch"
    assert choose_implementation(None, torch.device("cuda")) == ("triton" if HAS_TRITON else "torch")
    with pytest.raises(ValueError, match="one of torch, compiled, triton, not 'cuda'"):
        choose_implementation("cuda", torch.device("cpu"))


SHAPES = {
    "augment": (2, 3, 16, 16),
    "depthwise": (2, 240, 2, 2),
    "depthwise_backward": (240, 1, 5, 5),
    "normalize": (2, 3, 16, 16),
    "pointwise": (2, 40, 2, 2),
    "resized_crop": (2, 3, 16, 16),
}


@pytest.mark.parametrize("dtype", formats.DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_examples_run(name: str, dtype: str) -> None:
    result = catalogue.example(name, "torch", 2, 16, dtype, "cpu")()
    first = result[0] if isinstance(result, tuple) else result
    assert isinstance(first, torch.Tensor)
    assert (first.shape, first.dtype) == (SHAPES[name], formats.dtype_of(dtype))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run anywhere")
def test_a_kernel_on_a_cpu_is_refused_not_replaced(name: str) -> None:
    with pytest.raises(ValueError, match="'triton' needs a CUDA device, not cpu|Triton, which is not installed"):
        catalogue.example(name, "triton", 2, 16, "float32", "cpu")


def test_the_catalogue_names_every_kernel_once() -> None:
    assert catalogue.names() == tuple(SHAPES)
    assert catalogue.implementations("normalize") == IMPLEMENTATIONS
    assert "uint8" in catalogue.describe("normalize")
    with pytest.raises(ValueError, match="there is: normalize"):
        catalogue.describe("normalise")
    with pytest.raises(ValueError, match="it has torch, compiled, triton"):
        catalogue.example("normalize", "cuda", 2, 8, "float32", "cpu")


def test_an_unknown_dtype_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown dtype 'int8'; known: float32, bfloat16, float16"):
        formats.dtype_of("int8")
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        catalogue.example("normalize", "torch", 2, 8, "int8", "cpu")
