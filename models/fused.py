"""Convolutions with the addition and ReLU after them as one kernel of cuDNN's: the lever `fused`.

Written out, the addition and ReLU after a convolution read and write the whole tensor once more. inductor joins them to
each other, but not to the convolution, which stays cuDNN's.
"""

import operator
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn import functional

from models.dry_run import without_weights
from models.errors import ModelError

CALLS = ("call_function", "call_method")
LARGEST = 3
"""Side of the filters that are taken: the stem of 7 x 7 is slower this way (pytorch issue 68506)."""


def written_out(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """ReLU of a convolution, its bias and `added`, which has the result's shape, as separate operators."""
    result = functional.conv2d(images, weight, bias, list(stride), list(padding), list(dilation))
    return torch.relu(result if added is None else result + added)


def by_cudnn(
    images: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None, *sides: Sequence[int]
) -> Tensor:
    """The same as one kernel of cuDNN's, which makes the result in the memory order of images and weight."""
    stride, padding, dilation = sides
    if added is None:
        return torch.cudnn_convolution_relu(images, weight, bias, stride, padding, dilation, 1)
    return torch.cudnn_convolution_add_relu(images, weight, added, 1.0, bias, stride, padding, dilation, 1)


def _chosen(images: Tensor, *rest: Any) -> Tensor:
    return (by_cudnn if images.is_cuda else written_out)(images, *rest)


# An operator, which a compiler keeps as it is.
convolution_relu = torch.library.custom_op(
    "pixbench::convolution_relu",
    _chosen,
    mutates_args=(),
    schema=torch.library.infer_schema(written_out, mutates_args=()),
)
convolution_relu.register_fake(written_out)


class ConvolutionReLU(nn.Module):
    """[B, C, H, W] and optionally a tensor of the result's shape -> ReLU of their convolution and sum.

    Args:
        layer: `suits`. Its weights are taken, not copied.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.given = layer.stride, layer.padding, layer.dilation

    def forward(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        # Under autocast the weights are fp32 and the pixels are not; autocast does not know the operator.
        kind = images.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        other = None if added is None else added.to(kind)
        result: Tensor = convolution_relu(images, self.weight.to(kind), bias, other, *self.given)
        return result


def suits(module: object) -> bool:
    """Whether a module is a convolution that `ConvolutionReLU` computes."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and max(module.kernel_size) <= LARGEST
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def fuse_convolutions(network: GraphModule, example: Sequence[int]) -> nn.Module:
    """Replace convolutions whose result only ReLU, or an addition and then ReLU, reads.

    Args:
        network: traced, batch norm folded.
        example: the shape [N, 3, H, W] it will be called with; says which additions are of tensors of one shape.

    Raises:
        ModelError: there is nothing to replace, or it does not run without its weights' values.
    """
    modules = dict(network.named_modules())
    shapes = _shapes(network, example)
    count = 0
    for node in list(network.graph.nodes):
        if not _is_relu(node, modules):
            continue
        found = _before(node.args[0], modules, shapes)
        if found is None:
            continue
        convolution, added = found
        target = f"{convolution.target}_relu"
        while target in modules:
            target += "_"
        modules[target] = ConvolutionReLU(modules[str(convolution.target)])
        network.add_submodule(target, modules[target])
        # Where it was, and no later than it must be: what it reads may be changed in place after that.
        with network.graph.inserting_before(convolution if added is None else node.args[0]):
            given = (convolution.args[0], *([] if added is None else [added]))
            fused = network.graph.call_module(target, given)
        node.replace_all_uses_with(fused)
        shapes[fused.name] = shapes[node.name]
        for read in (node, *([] if added is None else [node.args[0]]), convolution):
            network.graph.erase_node(read)
        count += 1
    if not count:
        raise ModelError(
            "the lever fused finds no convolution of up to 3 x 3 followed by ReLU in this network; leave it out"
        )
    network.delete_all_unused_submodules()
    network.recompile()
    return network


def _before(node: Any, modules: dict[str, nn.Module], shapes: dict[str, torch.Size]) -> tuple[Any, Any] | None:
    """The convolution of which a node is the result, and what is added to it; None if it is another."""
    if _is_convolution(node, modules):
        return node, None
    if not _is_addition(node, shapes):
        return None
    one, other = node.args
    # What is added to in place may be read elsewhere, and is not what a convolution has just made.
    in_place = node.target in (operator.iadd, "add_")
    for convolution, added in ((one, other), *([] if in_place else [(other, one)])):
        # It moves to where the addition is, before which nobody may change what it reads.
        if _is_convolution(convolution, modules):
            between = takewhile(lambda one: one is not node, _after(convolution))
            changed = any(one in convolution.args[0].users and _changes(one, modules) for one in between)
            return None if changed else (convolution, added)
    return None


def _after(node: Any) -> Iterator[Any]:
    """The nodes that run after one."""
    while (node := node.next).op != "root":
        yield node


def _changes(node: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes what it reads in place."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    return name.endswith("_") or bool(node.kwargs.get("inplace")) or name in ("iadd", "isub", "imul", "itruediv")


def _shapes(network: GraphModule, example: Sequence[int]) -> dict[str, torch.Size]:
    """The shapes of the graph's tensors by their nodes' names."""
    traced = without_weights(network)
    assert isinstance(traced, GraphModule)
    try:
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.empty(tuple(example), device="meta"))
    except Exception as error:
        raise ModelError(f"the lever fused cannot follow the shapes in this network: {error}") from error
    known = ((node.name, node.meta.get("tensor_meta")) for node in traced.graph.nodes)
    return {name: one.shape for name, one in known if isinstance(one, TensorMetadata)}


def _is_relu(node: Any, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return node.op in CALLS and node.target in (torch.relu, functional.relu, "relu", "relu_") and len(node.args) > 0


def _is_addition(node: Any, shapes: dict[str, torch.Size]) -> bool:
    """Of two tensors of one shape, without a factor, which one node reads."""
    return (
        node.op in CALLS
        and node.target in (operator.add, operator.iadd, torch.add, "add", "add_")
        and len(node.args) == 2
        and not node.kwargs
        and len(node.users) == 1
        and all(isinstance(one, Node) and one.name in shapes for one in node.args)
        and shapes[node.args[0].name] == shapes[node.args[1].name]
    )


def _is_convolution(node: Any, modules: dict[str, nn.Module]) -> bool:
    """One that `suits`, and whose result one node reads."""
    return node.op == "call_module" and suits(modules[str(node.target)]) and len(node.users) == 1
