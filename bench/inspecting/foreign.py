"""What a network in an ONNX or OpenVINO file costs for one image, counted in its graph."""

from collections.abc import Mapping
from math import prod
from typing import Any

from bench.errors import BenchError
from models.exported import Foreign

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
# Types of numbers that shapes and indices have, which are no weights.
INDICES = ("i32", "i64", "u64", "boolean")


class UncountedError(BenchError):
    """What a network costs cannot be counted here, though it can be measured."""


def counted(network: Foreign, size: int) -> Mapping[str, Any]:
    """Fields of bench.inspecting.cost.Cost.

    Parameters are the file's constants of more than one number, into which others may have been folded.

    Raises:
        UncountedError: there is nothing to count with.
    """
    try:
        import openvino
    except ImportError as error:
        raise UncountedError(f"{network.file} is counted by openvino, which is not installed") from error
    model = openvino.Core().read_model(str(network.path))
    images = network.facts.batch or 1
    if model.is_dynamic():
        model.reshape([images, 3, size, size])
    weights = [(prod(node.get_output_shape(0)), node.get_output_element_type(0)) for node in model.get_ops()
               if node.get_type_name() == "Constant"]  # fmt: skip
    weights = [(number, kind) for number, kind in weights if number > 1 and kind.get_type_name() not in INDICES]
    flops = activations = 0
    for node in model.get_ops():
        given = [list(node.input(i).get_shape()) for i in range(node.get_input_size())]
        kind = node.get_type_name()
        if kind == "ScaledDotProductAttention":
            flops += 2 * prod(given[0][:-1]) * given[1][-2] * (given[0][-1] + given[2][-1])
        elif kind in LAYERS:
            elements = prod(node.get_output_shape(0))
            each = given[0][-2 if node.get_attributes()["transpose_a"] else -1] if kind == "MatMul" else 0
            flops += 2 * elements * (each or prod(given[1][2 if kind == "GroupConvolution" else 1 :]))
            # Products of activations are attention's, which count as if it were fused.
            activations += elements if kind != "MatMul" or _is_constant(node.input_value(1)) else 0
    return {
        "params": sum(number for number, _ in weights),
        "parameter_tensors": len(weights),
        "weight_bytes": sum(number * kind.bitwidth for number, kind in weights) // 8,
        "flops": flops // images,
        "activations": activations // images,
    }


def _is_constant(output: Any) -> bool:
    """Whether a value is a constant, or computed from constants alone, as weights that were compressed are."""
    node = output.get_node()
    if node.get_type_name() in ("Constant", "Parameter"):
        return bool(node.get_type_name() == "Constant")
    return all(_is_constant(node.input_value(i)) for i in range(node.get_input_size()))
