"""A recipe trained several times in one process, with one seed after another: mean and spread.

As in the speed records, nothing is written between the first and the last step, and what happens once (decoding,
compiling, capturing) is outside of the clock.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch

from bench.errors import UsageError
from bench.processes import STOPPING, stop_requests
from bench.runs.request import Request
from bench.runs.sources import Feed
from bench.runs.training import opened, until
from bench.screen import Screen
from models import zoo
from models.training.distributed import World
from results.runs import RunSummary

CLOCK = (
    "clock: from the first look at the training images, decoded on the device before, to the last of the test images; "
    "compiled and warmed up before"
)


def repeat(request: Request, screen: Screen, times: int) -> tuple[list[RunSummary], bool]:
    """Train `times` times, with seeds from the recipe's on; returns the runs' figures, and whether a signal ended them.

    Raises UsageError, RunError, ModelError, DataError: see the message.
    """
    world = World.from_environ()
    if world.size > 1:
        raise UsageError("--repeat trains in one process; start it without torchrun")
    begin = time.monotonic()
    done: list[RunSummary] = []
    with opened(request, screen.say, world, None) as run, stop_requests(STOPPING) as asked:
        training, splits, recipe = run.training, run.feed.splits, run.recipe
        stop = until(asked, request.max_minutes or recipe.max_minutes, begin)
        training.warm_up()
        training.evaluate(run.feed.all_of(splits.test), alone=True)
        for number in range(times):
            seeded = replace(recipe, seed=recipe.seed + number)
            with closing(Feed(seeded, splits, run.feed.options, world)) as feed:
                torch.manual_seed(seeded.seed)
                model = zoo.build(recipe.model, recipe.classes, **recipe.arguments)
                if training.device.type == "cuda":
                    torch.cuda.synchronize(training.device)
                start = time.perf_counter()
                training.restart(seeded, model, feed)
                if training.run(None, stop) is not None:
                    break
                last = training.history[-1]
                figures = {"top1": last.val_top1, "top5": last.val_top5}
                if splits.validation is not splits.test:
                    tested = training.evaluate(feed.all_of(splits.test), alone=True)
                    figures = {"top1": tested.top1, "top5": tested.top5}
                seconds = time.perf_counter() - start
            row = run.summary("finished", None, epochs=len(training.history), **figures)
            done.append(replace(row, name=f"seed {seeded.seed}", train_seconds=seconds))
            screen.say(f"{number + 1}/{times}: top-1 {figures['top1']:.2%} in {seconds:.2f} s")
        return done, asked() is not None


def sentence(runs: Sequence[RunSummary]) -> str:
    """Mean and spread of the accuracies and times, and what the clock was for, in one line."""
    top1 = [100 * run.top1 for run in runs if run.top1 is not None]
    seconds = [run.train_seconds for run in runs if run.train_seconds is not None]
    words = f"{len(runs)} runs: top-1 {statistics.mean(top1):.2f} %"
    times = f"{statistics.mean(seconds):.2f} s"
    if len(runs) > 1:
        deviation = statistics.stdev(top1)
        words += f" (standard deviation {deviation:.2f}, of the mean {deviation / len(runs) ** 0.5:.2f})"
        times += f" (standard deviation {statistics.stdev(seconds):.2f})"
    return f"{words} in {times}; {CLOCK}"
