"""The copied accuracies are torchvision's own."""

import torchvision

from models.published import TOP1
from models.zoo import names


def test_every_network_of_torchvision_has_what_it_publishes() -> None:
    for name in names():
        try:
            weights = next(w for w in torchvision.models.get_model_weights(name) if "IMAGENET1K_V1" in w.name)
        except (ValueError, StopIteration):
            assert name not in TOP1
        else:
            assert TOP1[name] == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
