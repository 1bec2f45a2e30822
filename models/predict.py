"""A trained network loaded from its checkpoint, and its predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models import zoo
from models.configuration import Configuration
from models.errors import ModelError
from models.evaluate import Forward, averaged
from models.prepare import Prepared, prepare
from models.project import named
from models.trained import Weights, restored
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
        return cls(card, prepared, averaged(prepared.forward, card.tta))

    @classmethod
    def from_name(
        cls,
        name: str,
        weights: Weights | None,
        classes: Sequence[str],
        size: int | None,
        configuration: Configuration,
        device: torch.device,
    ) -> "Classifier":
        """A network by its name, for images that are normalised as ImageNet's.

        Args:
            weights: of a file. Without, a network of torchvision has its first published ImageNet weights, which are
                downloaded if necessary, and one of the user's own code is as that builds it.
            size: of the images, in pixels; None for the network's own.
            classes: their names; if there are none, those of ImageNet for 1000 logits, and numbers for others.

        Raises:
            ModelError: there are no weights, they do not fit, or they are for another number of classes.
        """
        from models.torchvision import imagenet_classes, pretrained

        torch.manual_seed(0)
        if weights is not None:
            outputs = weights.classes(name)
            model = zoo.build(name, outputs)
            weights.put(model, name)
        elif named(name).is_code:
            outputs = zoo.default_classes(name)
            model = zoo.build(name)
        else:
            tensors = pretrained(name)
            outputs = len(imagenet_classes())
            model = zoo.build(name, outputs)
            checkpoint.put(model, dict(tensors), f"torchvision's weights for {name}")
        if classes and len(classes) != outputs:
            raise ModelError(f"{name} has {outputs} logits, not one for each of {len(classes)} classes")
        known = classes or (imagenet_classes() if outputs == len(imagenet_classes()) else map(str, range(outputs)))
        size = size or zoo.default_size(name)
        card = Card(model=name, classes=tuple(known), size=size)
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
