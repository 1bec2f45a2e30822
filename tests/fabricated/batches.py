"""Learnable images without files: what the training loop reads in its tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import zoo
from models.configuration import Configuration
from models.training.checkpoint import Card
from models.training.distributed import World
from models.training.loop import EpochRow, StepRow, Training
from models.training.recipe import Recipe

CLASSES = tuple(f"class{i}" for i in range(10))
COUNT = 96


def pictures(count: int = COUNT, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images whose class is the place of a bright square, [count, 3, size, size], and labels [count]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator) * 0.3
    labels = torch.arange(count) % len(CLASSES)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 3, 3 * label : 3 * label + 3, 4:12] += 3
    return images, labels


class Batches:
    """The Batches protocol over tensors; each epoch in an order of its own, as the loaders do it."""

    def __init__(self, batch: int, train: bool = True, world: World | None = None, count: int = COUNT, size: int = 32):
        self.data = pictures(count, size, seed=0 if train else 1)
        self.world = world or World()
        self.batch, self.shuffled = batch // self.world.size, train
        self.images = count // self.world.size
        self.place = {"epoch": 0, "batch": 0}
        self.opened: list[int] = []

    def __len__(self) -> int:
        return self.images // self.batch if self.shuffled else -(-self.images // self.batch)

    def state(self) -> dict[str, int]:
        return dict(self.place)

    def restore(self, state: dict[str, int]) -> None:
        self.place = dict(state)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.data
        epoch = self.place["epoch"]
        order = torch.arange(len(labels))
        if self.shuffled:
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        order = order[self.world.rank :: self.world.size]
        for number in range(self.place["batch"], len(self)):
            chosen = order[number * self.batch : (number + 1) * self.batch]
            yield images[chosen], labels[chosen]
        self.place = {"epoch": epoch + 1, "batch": 0}


class Feed:
    """The Sources protocol."""

    def __init__(self, batch: int, world: World | None = None, validation: bool = True, count: int = COUNT) -> None:
        self.batch, self.world, self.count = batch, world, count
        self.sizes: list[int] = []
        self._validation = Batches(batch, False, world, count) if validation else None

    def train(self, size: int) -> Batches:
        self.sizes.append(size)
        return Batches(self.batch, True, self.world, self.count, size)

    def validation(self) -> Batches | None:
        return self._validation


class Heard:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[EpochRow] = []
        self.steps: list[StepRow] = []
        self.best: list[bool] = []
        self.calls = 0

    def step(self, done: int, steps: int) -> None:
        self.calls += 1

    def trained(self, row: EpochRow, steps: list[StepRow]) -> None:
        self.steps += steps

    def epoch(self, row: EpochRow, best: bool) -> None:
        self.rows.append(row)
        self.best.append(best)


def recipe(**changes: Any) -> Recipe:
    """LeNet for three epochs of six steps."""
    keys = {"model": "lenet", "size": 32, "classes": 10, "epochs": 3, "batch": 16, "lr": 0.05, "weight_decay": 0.0}
    return Recipe(**{**keys, **changes})


def training(chosen: Recipe, folder: Path | None = None, world: World | None = None, **given: Any) -> Training:
    """A Training as bench sets it up, in plain fp32."""
    torch.manual_seed(chosen.seed)
    model = zoo.build(chosen.model, 10, **chosen.arguments)
    card = Card(chosen.model, CLASSES, 32, chosen.arguments)
    feed = given.pop("feed", None) or Feed(chosen.batch, world)
    configuration = given.pop("configuration", Configuration())
    device = torch.device("cpu")
    return Training(chosen, model, card, configuration, device, world or World(), feed, folder, **given)
