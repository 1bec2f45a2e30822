"""Muon for the filters of convolutions: updates of about the same size in all directions.

The momentum of a layer's filters, as a matrix [filters, inputs * height * width], is replaced by the orthogonal matrix
nearest to it: directions that only a few images ask for count as much as those that all of them share. After Jordan
2024, "Muon: an optimizer for hidden layers in neural networks", and the CIFAR-10 speed records, which need 200 updates
with it.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

STEPS = 3  # of the iteration; the records take three, language models five
# Of x -> a x + b x^3 + c x^5: the steepest at zero that stays bounded, so that small singular values rise fast.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix of each, by Newton-Schulz iteration: singular values come to lie near 1.

    With three steps those from about a tenth of the largest on lie between 0.5 and 1.3; smaller ones rise 3.4 times a
    step. A matrix of zeros stays one.

    Args:
        matrices: [B, rows, columns].
    """
    a, b, c = COEFFICIENTS
    # The products are as large as the smaller side.
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # By the Frobenius norm, which no singular value exceeds; the iteration diverges above 1.
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.SGD):
    """SGD, and in groups with `orthogonal` the update is the orthogonalised momentum of weights of constant norm.

    These weights are brought to a norm of sqrt(filters), 1 a filter, before each update. Their scale must not matter
    to the network, as where normalisation follows, and they do not decay. torch.optim.Muon takes matrices alone, one
    after the other; here filters of one shape are orthogonalised together, whatever layer they are of, in bfloat16 on
    a GPU, where a launch costs more than what it computes.

    Args:
        groups: parameter groups; those with `orthogonal` hold tensors of at least three dimensions.
        lr, momentum, fused: as of torch.optim.SGD, for all groups; the momentum is Nesterov's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, fused: bool = False) -> None:
        self._momentum = momentum
        # SGD itself adds no momentum to what has it already.
        held = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        super().__init__(
            [{"orthogonal": False, **group, **(held if group.get("orthogonal") else {})} for group in groups],
            lr=lr,
            momentum=momentum,
            nesterov=True,
            fused=fused or None,
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; `closure` as of torch.optim.SGD."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                self._orthogonalize([parameter for parameter in group["params"] if parameter.grad is not None])
        super().step()
        return loss

    def _orthogonalize(self, filters: list[Tensor]) -> None:
        """Replace the gradients by what the weights shall move along, and bring the weights to their norm."""
        if not filters:
            return
        for parameter in filters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in filters]
        gradients = [parameter.grad for parameter in filters if parameter.grad is not None]
        torch._foreach_mul_(buffers, self._momentum)
        torch._foreach_add_(buffers, gradients)
        directions = torch._foreach_add(gradients, buffers, alpha=self._momentum)
        shapes: dict[torch.Size, list[int]] = {}
        for number, parameter in enumerate(filters):
            shapes.setdefault(parameter.shape, []).append(number)
        for numbers in shapes.values():
            matrices = torch.stack([_as_matrix(directions[number]) for number in numbers])
            turned = orthogonalized(matrices.bfloat16() if matrices.is_cuda else matrices.float())
            for number, matrix in zip(numbers, turned, strict=True):
                gradients[number].copy_(_as_filters(matrix, directions[number]))
        wanted = [math.sqrt(len(parameter)) for parameter in filters]
        factors = torch._foreach_reciprocal(torch._foreach_norm(filters))
        torch._foreach_mul_(factors, wanted)
        torch._foreach_mul_(filters, factors)


def _as_matrix(filters: Tensor) -> Tensor:
    """[filters, values of one], in the order in which memory holds them: that changes nothing but their order."""
    return (filters.permute(0, 2, 3, 1) if _channels_last(filters) else filters).flatten(1)


def _as_filters(matrix: Tensor, like: Tensor) -> Tensor:
    """What `_as_matrix` makes of filters like these, back in their shape."""
    if _channels_last(like):
        _, channels, height, width = like.shape
        return matrix.view(-1, height, width, channels).permute(0, 3, 1, 2)
    return matrix.view_as(like)


def _channels_last(filters: Tensor) -> bool:
    return filters.ndim == 4 and filters.is_contiguous(memory_format=torch.channels_last)
