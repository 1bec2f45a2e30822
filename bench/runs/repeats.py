"""A recipe trained several times in one process, with one seed after another: mean and spread.

As in the speed records, nothing is written between the first and the last step, and what happens once (decoding,
compiling, capturing) is outside of the clock.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from bench.errors import UsageError
from bench.machine.alone import measuring
from bench.machine.devices import choose_device
from bench.processes import STOPPING, stop_requests
from bench.runs.request import Request
from bench.runs.sources import Feed
from bench.runs.training import opened, until
from bench.screen import Screen
from models import zoo
from models.training.distributed import World
from results.runs import RunSummary

CLOCK = "clock: from the first look at the training images{decoded} to the last of the test images; {before} before"


@dataclass(frozen=True)
class Repeated:
    """What came of it.

    Attributes:
        runs: the figures of each whole run.
        clock: what their times are for.
        stopped: why there are not as many as were asked for; None if there are.
        interrupted: whether a signal is the reason.
    """

    runs: tuple[RunSummary, ...]
    clock: str
    stopped: str | None
    interrupted: bool


def repeat(request: Request, screen: Screen, times: int) -> Repeated:
    """Train `times` times, with seeds from the recipe's on.

    Raises UsageError, RunError, ModelError, DataError: see the message.
    """
    world = World.from_environ()
    if world.size > 1:
        raise UsageError("--repeat trains in one process; start it without torchrun")
    begin = time.monotonic()
    done: list[RunSummary] = []
    reason = None
    # What it takes is what is asked for.
    alone = measuring(choose_device(request.device), screen.say)
    with alone, opened(request, screen.say, world, None) as run, stop_requests(STOPPING) as asked:
        training, splits, recipe = run.training, run.feed.splits, run.recipe
        stop = until(asked, request.max_minutes or recipe.max_minutes, begin)
        separate = splits.validation is not splits.test
        training.warm_up()
        # One update, which `restart` undoes: the loader and what is not compiled are warm too.
        training.probe(recipe.lr, *next(iter(run.feed.train(recipe.size_at(1) or recipe.size))))
        training.evaluate(run.feed.all_of(splits.test), alone=True)
        for number in range(times):
            seeded = replace(recipe, seed=recipe.seed + number)
            with closing(Feed(seeded, splits, run.feed.options, world)) as feed:
                # Loaders are there before the clock starts, and the images of `resident` on the device.
                feed.train(recipe.size_at(1) or recipe.size)
                feed.validation()
                tests = feed.all_of(splits.test) if separate else None
                torch.manual_seed(seeded.seed)
                model = zoo.build(recipe.model, recipe.classes, **recipe.arguments)
                if training.device.type == "cuda":
                    torch.cuda.synchronize(training.device)
                start = time.perf_counter()
                training.restart(seeded, model, feed)
                reason = training.run(None, stop)
                if reason is not None:
                    break
                last = training.history[-1]
                figures = {"top1": last.val_top1, "top5": last.val_top5}
                if tests is not None:
                    tested = training.evaluate(tests, alone=True)
                    figures = {"top1": tested.top1, "top5": tested.top5}
                seconds = time.perf_counter() - start
            row = run.summary("finished", None, epochs=len(training.history), **figures)
            done.append(replace(row, name=f"seed {seeded.seed}", train_seconds=seconds))
            screen.say(f"{number + 1}/{times}: top-1 {figures['top1']:.2%} in {seconds:.2f} s")
        clock = CLOCK.format(
            decoded=", decoded before," if recipe.loader == "resident" else "",
            before="compiled and warmed up" if training.configuration.compiles else "warmed up",
        )
        return Repeated(tuple(done), clock, reason, reason is not None and reason == asked())


def sentence(runs: Sequence[RunSummary], clock: str) -> str:
    """Mean and spread of the accuracies and times, and what the clock was for, in one line."""
    top1 = [100 * run.top1 for run in runs if run.top1 is not None]
    seconds = [run.train_seconds for run in runs if run.train_seconds is not None]
    words = f"{len(runs)} runs: top-1 {statistics.mean(top1):.2f} %"
    times = f"{statistics.mean(seconds):.2f} s"
    if len(runs) > 1:
        deviation = statistics.stdev(top1)
        words += f" (standard deviation {deviation:.2f}, of the mean {deviation / len(runs) ** 0.5:.2f})"
        times += f" (standard deviation {statistics.stdev(seconds):.2f})"
    return f"{words} in {times}; {clock}"
