"""Cross-entropy of plain and mixed labels with label smoothing, and distillation; float32 within any autocast.

Imports no torch until a loss is computed, so that a mistyped option is answered at once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from models.errors import ModelError
from models.training.mixing import Mixed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LossOptions:
    """What is minimised.

    Attributes:
        label_smoothing: share of each label spread evenly over all classes (Szegedy et al. 2016, Rethinking the
            Inception Architecture). At s = 0.1 and 10 classes the least loss is 0.500 nats, not 0.
        distill_weight: share of the distillation term; the labels' term gets the rest. 0 = no teacher.
        temperature: softens both sides of the distillation term.
    """

    label_smoothing: float = 0.0
    distill_weight: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ModelError(f"label_smoothing is {self.label_smoothing!r}; give 0 up to, but not including, 1")
        if not 0 <= self.distill_weight <= 1:
            raise ModelError(f"distill_weight is {self.distill_weight!r}; give a share from 0 to 1")
        if not self.temperature > 0:
            raise ModelError(f"temperature is {self.temperature!r}; give a positive number")


class Loss(NamedTuple):
    """Means over the batch, scalars in float32 on the device.

    Attributes:
        total: what backward is called on.
        labels: the cross-entropy part of it, before its share is taken.
        distillation: the teacher's part before its share is taken, None without a teacher.
    """

    total: "Tensor"
    labels: "Tensor"
    distillation: "Tensor | None"


def loss(
    logits: "Tensor", targets: "Tensor | Mixed", options: LossOptions, teacher_logits: "Tensor | None" = None
) -> Loss:
    """(1 - w) CE(labels) + w KD(teacher), w = distill_weight (Hinton, Vinyals and Dean 2015, section 2).

    Args:
        logits: [B, classes], any float dtype.
        targets: labels int64 [B], or what `mixing.mix` returned.
        teacher_logits: [B, classes], of the same (mixed) images; needed if and only if distill_weight is not 0.

    Raises:
        ModelError: a teacher without a weight or a weight without a teacher.
    """
    cross = cross_entropy(logits, targets, options.label_smoothing)
    if (teacher_logits is None) != (options.distill_weight == 0):
        raise ModelError(
            f"distill_weight is {options.distill_weight!r} and there is {'no' if teacher_logits is None else 'a'} "
            "teacher; distillation needs both"
        )
    if teacher_logits is None:
        return Loss(cross, cross, None)
    distilled = distillation(logits, teacher_logits, options.temperature)
    return Loss((1 - options.distill_weight) * cross + options.distill_weight * distilled, cross, distilled)


def cross_entropy(logits: "Tensor", targets: "Tensor | Mixed", label_smoothing: float = 0.0) -> "Tensor":
    """Mean cross-entropy over the batch in nats; of mixed labels the weighted sum over their parts.

    Args:
        logits: [B, classes].
        targets: labels int64 [B], or Mixed with labels [K, B] and weights [K] or [K, B].
    """
    from torch.nn import functional

    logits = logits.float()
    if not isinstance(targets, Mixed):
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    # One log-softmax serves all K parts; K calls of cross_entropy would compute it K times.
    logs = functional.log_softmax(logits, dim=1)
    picked = logs.gather(1, targets.labels.t())
    weights = targets.weights if targets.weights.ndim == 2 else targets.weights[:, None]
    mixed = -(picked * weights.t()).sum(1)
    if label_smoothing:
        # The weights sum to 1, so the even share is the same however many labels an image has.
        mixed = (1 - label_smoothing) * mixed - label_smoothing * logs.mean(1)
    return mixed.mean()


def distillation(logits: "Tensor", teacher_logits: "Tensor", temperature: float) -> "Tensor":
    """T^2 KL(teacher at T || student at T), mean over the batch in nats (Hinton, Vinyals and Dean 2015).

    T^2 keeps the gradient's size when T changes. No gradient goes to the teacher.
    """
    from torch.nn import functional

    student = functional.log_softmax(logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
