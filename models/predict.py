"""A trained network loaded from its checkpoint, and its predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models import zoo
from models.configuration import Configuration
from models.evaluate import Forward, mirrored
from models.prepare import Prepared, prepare
from models.trained import restored
from models.training import checkpoint
from models.training.checkpoint import Card


@dataclass(frozen=True)
class Classifier:
    """A network in evaluation mode.

    Attributes:
        card: class names, image size, normalisation and so on.
        prepared: the network as prepared for its configuration.
        forward: images [N, 3, size, size], normalised -> logits [N, classes].
    """

    card: Card
    prepared: Prepared
    forward: Forward

    @classmethod
    def from_checkpoint(cls, path: Path, configuration: Configuration, device: torch.device) -> "Classifier":
        """The network of a checkpoint, with its weights.

        Args:
            path: a weights file, or a run's folder; see models.trained.weights_file.
            configuration: of inference; a training configuration without freezing works as well.

        Raises:
            ModelError: no such file, damaged, or of a network that is not in the zoo.
        """
        card, model = restored(path)
        prepared = prepare(model, configuration, device, False, (1, 3, card.size, card.size))
        return cls(card, prepared, prepared.forward if card.tta == "none" else mirrored(prepared.forward))

    @classmethod
    def from_pretrained(cls, name: str, configuration: Configuration, device: torch.device) -> "Classifier":
        """A network of torchvision with its first published ImageNet weights, downloaded if necessary.

        Raises:
            ModelError: there are none, or they cannot be downloaded.
        """
        from models.torchvision import pretrained

        tensors, classes = pretrained(name)
        model = zoo.build(name, len(classes))
        checkpoint.put(model, dict(tensors), f"torchvision's weights for {name}")
        size = zoo.default_size(name)
        card = Card(model=name, classes=classes, size=size, data="imagenet")
        prepared = prepare(model, configuration, device, False, (1, 3, size, size))
        return cls(card, prepared, prepared.forward)

    def top(self, images: Tensor, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most likely classes of each image with their probabilities, the most likely first."""
        with torch.no_grad():
            probabilities = self.forward(images).float().softmax(1)
        best = probabilities.topk(min(k, len(self.card.classes)), dim=1)
        return [
            [(self.card.classes[i], p) for i, p in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def same_classes(card: Card, classes: Sequence[str]) -> str | None:
    """Why a checkpoint cannot be used with data of these classes; None if it can."""
    if tuple(classes) == card.classes:
        return None
    if len(classes) != len(card.classes):
        return f"the checkpoint has {len(card.classes)} classes, the data has {len(classes)}"
    if set(classes) == set(card.classes):
        return "the data has the same classes in another order"
    unknown = sorted(set(classes) - set(card.classes))
    return f"the data has classes that the checkpoint lacks: {', '.join(unknown[:3])}"
