"""What a finished run leaves: test figures, tables and pictures, and its row in comparisons."""

import json
import resource
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.inspecting.cost import layer_table
from bench.processes import bench_command, bench_environment
from bench.runs.folder import HISTORY, STEPS
from bench.runs.sources import Feed
from bench.runs.training import Run
from bench.screen import Say
from loaders.datasets import Dataset
from models import diagram, summary
from models.evaluate import Evaluation
from models.project import named
from models.training import checkpoint
from results.classification import Classification
from results.errors import RecordError
from results.history import History
from results.pictures.curves import curves
from results.pictures.images import confusion, image_grid, mistake
from results.pictures.style import save
from results.runs import RunSummary
from results.store import write_whole

GRID = 64  # pictures in a grid
FEW = "of five classes or fewer the right one is always among the first five"
TRAIN_SAMPLE = 10_000  # training images that are evaluated without augmentation, for the report
TIMES = tuple(f"inference_{name}_seconds" for name in ("cold", "warm", "warm_low", "warm_high"))


def finish(run: Run, say: Say, pictures: bool = True) -> RunSummary:
    """Test the chosen weights, write every report into the run's folder, and return its summary.

    A run that was stopped is summarised from what it has done; it is not tested, since it may be resumed. One that had
    finished and was to go on keeps its result until another epoch has ended.
    """
    history = History.load(run.folder / HISTORY, run.folder / STEPS)
    if run.stopped is not None and (before := _finished(run.folder, history)):
        say(f"no epoch after the {history.totals.epochs} of before has ended: their result stays")
        return before
    figures = _figures(run, history)
    missing: dict[str, str] = {}
    if run.stopped is not None:
        missing = dict.fromkeys(("top1", "top5"), "the run was stopped before its test")
    else:
        epoch = _choose_weights(run)
        say(f"testing on {len(run.splits.test):,} images")
        evaluation = _test(run, pictures, say)
        figures |= {"top1": evaluation.top1, "top5": evaluation.top5}
        if evaluation.top5 is None:
            missing["top5"] = FEW
        say(_test_line(run, evaluation, epoch))
        if pictures:
            say("timing one image in a fresh process")
            times, reason = _inference_times(run)
            figures |= times
            missing |= dict.fromkeys(() if times else TIMES, f"bench predict failed: {reason}")
    if pictures:
        say("drawing curves, images and network")
        _draw(run, history)
    row = run.summary("finished" if run.stopped is None else "stopped", run.stopped, missing=missing, **figures)
    row.save(run.folder)
    return row


def _finished(folder: Path, history: History) -> RunSummary | None:
    """The summary of a run that had finished after these epochs; None of any other."""
    try:
        before = RunSummary.load(folder)
    except RecordError:
        return None
    return before if before.status == "finished" and before.epochs == history.totals.epochs else None


def _choose_weights(run: Run) -> int:
    """Put the weights that the recipe selects into the network; returns their epoch."""
    training = run.training
    best = run.folder / checkpoint.BEST
    if run.recipe.select == "best" and best.is_file() and training.position.best_epoch != training.position.epoch:
        card, tensors = checkpoint.load_weights(best)
        checkpoint.put(training.raw, tensors, str(best))
        training.average = None
        return card.epoch
    return training.position.epoch


def _test_line(run: Run, evaluation: Evaluation, epoch: int) -> str:
    top5 = "-" if evaluation.top5 is None else f"{100 * evaluation.top5:.2f} %"
    caution = "" if run.splits.independent else "; chosen by looking at these images, so a little too good"
    if run.splits.held_out:
        caution = "; held-out training images, there are no test images"
    if run.splits.trained_on:
        caution = f"; trained on {run.splits.trained_on:,} of these, so too good"
    return (
        f"test on {run.splits.test.title}: top-1 {100 * evaluation.top1:.2f} %, top-5 {top5} "
        f"of {evaluation.images:,} images, weights of epoch {epoch}{caution}"
    )


def _figures(run: Run, history: History) -> dict[str, Any]:
    """Fields of the summary that need no test."""
    model, folder, best = run.training.raw, run.folder, history.best
    state, last = next(folder.glob("state-*.pt"), None), folder / checkpoint.LAST
    rates = sorted(row.images_per_second for row in history.epochs)
    # Of the device's memory on a GPU, of the whole process on a CPU.
    if run.training.device.type == "cuda":
        peak = int(torch.cuda.max_memory_allocated(run.training.device))
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "epochs": history.totals.epochs,
        "seconds_per_epoch": history.totals.seconds_per_epoch,
        # The first epoch compiles and fills caches; the median epoch is what a longer run would see.
        "images_per_second": rates[len(rates) // 2] if rates else None,
        "params": sum(p.numel() for p in model.parameters()),
        "parameter_tensors": sum(1 for _ in model.parameters()),
        "state_entries": len(model.state_dict()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "checkpoint_bytes": (last.stat().st_size + state.stat().st_size) if last.exists() and state else None,
        "peak_bytes": peak,
        "best_top1": best.val_top1 if best else None,
        "best_epoch": best.epoch if best else None,
    }


def _test(run: Run, pictures: bool, say: Say) -> Evaluation:
    training, folder, classes = run.training, run.folder, run.training.card.classes
    evaluation = training.evaluate(run.feed.all_of(run.splits.test), keep=True, alone=True)
    classified(evaluation, classes).save(folder)
    if pictures:
        title = "held-out training images" if run.splits.held_out else "test images"
        save(confusion(evaluation.confusion, classes, title), folder / "confusion.png")
        _draw_mistakes(run, evaluation)
    sample = _spread_sample(run.splits.train, TRAIN_SAMPLE)
    say(f"testing on {len(sample):,} of the training images, for comparison")
    trained_on = training.evaluate(run.feed.all_of(sample), alone=True)
    classified(trained_on, classes).save(folder, "train")
    if pictures:
        title = f"{len(sample):,} training images, not augmented"
        save(confusion(trained_on.confusion, classes, title), folder / "confusion_train.png")
    return evaluation


def classified(evaluation: Evaluation, classes: tuple[str, ...]) -> Classification:
    """An evaluation as a report."""
    return Classification.from_confusion(
        evaluation.confusion, classes, evaluation.top5, evaluation.loss, evaluation.seconds
    )


def _spread_sample(dataset: Dataset, most: int) -> Dataset:
    """At most `most` images, evenly spread over the set, which is sorted by class."""
    if len(dataset) <= most:
        return dataset
    return dataset.select(np.unique(np.linspace(0, len(dataset) - 1, most).astype(int)).tolist())


def _colours(images: torch.Tensor, feed: Feed) -> NDArray[np.float32]:
    """Normalised [n, 3, h, w] back to colours [n, h, w, 3] in 0..1; per-image ones are stretched to that range."""
    values = images.float().cpu().permute(0, 2, 3, 1)
    if feed.options.normalization == "per_image":
        low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        values = (values - low) / (high - low).clamp_min(1e-6)
    else:
        values = values * torch.tensor(feed.options.std) + torch.tensor(feed.options.mean)
    result: NDArray[np.float32] = values.clamp(0, 1).numpy()
    return result


def _draw_mistakes(run: Run, evaluation: Evaluation) -> None:
    classes, test = run.training.card.classes, run.splits.test
    labels = np.asarray(test.labels)
    wrong = np.flatnonzero(evaluation.predicted != labels)
    # The surest mistakes teach most: odd labels, odd pictures, odd classes.
    wrong = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:GRID]
    if not len(wrong):
        return
    images = torch.cat([batch.float().cpu() for batch, _ in run.feed.all_of(test.select(wrong.tolist()))])
    titles = [
        mistake(classes[labels[i]], classes[evaluation.predicted[i]], float(evaluation.confidence[i])) for i in wrong
    ]
    figure = image_grid(_colours(images, run.feed), titles, title="misclassified, surest first")
    save(figure, run.folder / "misclassified.png")


def _draw(run: Run, history: History) -> None:
    recipe, folder, classes = run.recipe, run.folder, run.training.card.classes
    if history.epochs:
        evaluated = {"val": "validation"}.get(run.splits.evaluated, run.splits.evaluated)
        figure = curves(history, f"{recipe.model}, run {folder.name}", evaluated)
        for ending in ("png", "svg"):
            save(figure, folder / f"curves.{ending}")
    loader = run.feed.train(recipe.size_at(recipe.epochs) or recipe.size)
    loader.restore({"epoch": 0, "batch": 0})
    images: list[torch.Tensor] = []
    labels: list[str] = []
    for batch, targets in loader:
        images.append(batch.float().cpu())
        labels += [classes[i] for i in targets.tolist()]
        if len(labels) >= GRID:
            break
    made = f"of {recipe.loader}" if named(recipe.loader).is_code else recipe.augment
    colours = _colours(torch.cat(images)[:GRID], run.feed)
    figure = image_grid(colours, labels[:GRID], title=f"training images, {made}")
    save(figure, folder / "samples.png")
    layers = summary.summarise(recipe.model, recipe.classes, recipe.size, recipe.arguments)
    write_whole(folder / "layers.txt", layer_table(recipe.model, layers).encode())
    diagram.write(folder / "network.svg", recipe.model, recipe.classes, recipe.size, recipe.arguments)


def _inference_times(run: Run) -> tuple[dict[str, float], str]:
    """Cold and warm seconds for one image from the file to its class in a fresh process; none, and the reason."""
    test = run.splits.test
    with tempfile.TemporaryDirectory() as scratch:
        path = test.files[0] if test.files else str(Path(scratch, "image.png"))
        if not test.files and test.pixels is not None:
            Image.fromarray(test.pixels[0]).save(path)
        weights, device = str(run.folder / checkpoint.LAST), run.training.device.type
        command = bench_command(["predict", weights, path, "--device", device, "--format", "json"])
        try:
            done = subprocess.run(command, env=bench_environment(), capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired as error:
            return {}, str(error)
    if done.returncode:
        return {}, next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
    times = json.loads(done.stdout)
    return {name: times[name.removeprefix("inference_")] for name in TIMES}, ""
