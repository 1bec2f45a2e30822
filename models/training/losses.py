"""Cross-entropy of plain and mixed labels with label smoothing, and distillation, in float32."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from models.errors import ModelError
from models.training.mixing import Mixed

if TYPE_CHECKING:
    from models.training.recipe import Recipe


def loss(logits: Tensor, targets: Tensor | Mixed, recipe: "Recipe", teacher_logits: Tensor | None = None) -> Tensor:
    """(1 - w) CE(labels) + w KD(teacher), w = distill_weight (Hinton, Vinyals and Dean 2015, section 2).

    Args:
        logits: [B, classes], any float dtype.
        targets: labels int64 [B], or what `mixing.mix` returned.
        teacher_logits: [B, classes] of the same (mixed) images; without them the loss is that of the labels alone.

    Returns:
        The mean over the batch, a float32 scalar.

    Raises:
        ModelError: there is a teacher and distill_weight is 0.
    """
    cross = cross_entropy(logits, targets, recipe.label_smoothing)
    if teacher_logits is None:
        return cross
    weight = recipe.distill_weight
    if weight == 0:
        raise ModelError("distill_weight is 0 and there is a teacher; distillation needs both")
    return (1 - weight) * cross + weight * distillation(logits, teacher_logits, recipe.temperature)


def cross_entropy(logits: Tensor, targets: Tensor | Mixed, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the batch in nats; of mixed labels the weighted sum over their parts.

    Args:
        logits: [B, classes].
        targets: labels int64 [B], or Mixed with labels [K, B] and weights [K].
    """
    logits = logits.float()
    if not isinstance(targets, Mixed):
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    # One log-softmax serves all K parts; K calls of cross_entropy would compute it K times.
    logs = functional.log_softmax(logits, dim=1)
    mixed = -(logs.gather(1, targets.labels.t()) * targets.weights).sum(1)
    if label_smoothing:
        # The weights sum to 1, so the even share is the same however many labels an image has.
        mixed = (1 - label_smoothing) * mixed - label_smoothing * logs.mean(1)
    return mixed.mean()


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher at T || student at T), mean over the batch in nats (Hinton, Vinyals and Dean 2015).

    T^2 keeps the size of the gradient when T changes. No gradient flows to the teacher.
    """
    student = functional.log_softmax(logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
