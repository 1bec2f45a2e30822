"""What a finished run leaves: test figures, tables and pictures in its folder, and the row it has in comparisons."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.runs.published import published_row
from bench.runs.sources import Feed, Say
from bench.runs.training import Run, choose_weights
from loaders.datasets import Dataset
from loaders.epochs import Loader
from models.evaluate import Evaluation
from models.training import checkpoint
from results.classification import Classification
from results.history import History
from results.pictures.curves import curves
from results.pictures.images import confusion, image_grid, mistake
from results.pictures.style import save
from results.runs import RunSummary
from results.store import write_whole

GRID = 64  # pictures in a grid
FEW = "of five classes or fewer the right one is always among the first five"
TRAIN_SAMPLE = 10_000  # training images that are evaluated without augmentation, for the report


def finish(run: Run, history: History, say: Say, pictures: bool = True) -> RunSummary:
    """Test the chosen weights, write every report into the run's folder, and return its summary.

    A run that was stopped is summed up from what it has done; it is not tested, since it may go on.
    """
    figures, missing = _figures(run, history)
    if run.stopped is None:
        epoch = choose_weights(run)
        say(f"testing on {len(run.splits.test):,} images")
        evaluation = _test(run, pictures, say)
        figures |= {"top1": evaluation.top1, "top5": evaluation.top5}
        if evaluation.top5 is None:
            missing["top5"] = FEW
        top5 = "-" if evaluation.top5 is None else f"{100 * evaluation.top5:.2f} %"
        seen = "" if run.splits.independent else "; chosen by looking at these images, so a little too good"
        if run.splits.held:
            seen = "; held-out training images, there are no test images"
        say(
            f"test on {run.splits.test.name}: top-1 {100 * evaluation.top1:.2f} %, top-5 {top5} "
            f"of {evaluation.images:,} images, weights of epoch {epoch}{seen}"
        )
        if pictures:
            say("timing one image in a fresh process")
            figures |= _inference_times(run, missing)
    else:
        missing |= dict.fromkeys(("top1", "top5"), "the run was stopped before its test")
    if pictures:
        say("drawing curves, images and network")
        _draw(run, history)
    summary = RunSummary(
        name=run.folder.name,
        model=run.recipe.model,
        data=run.training.card.data,
        recipe=run.request.title or "options",
        evaluated=run.splits.evaluated,
        status="finished" if run.stopped is None else "stopped",
        reason=run.stopped,
        published=published_row(run.recipe.published),
        missing={key: why for key, why in missing.items() if figures.get(key) is None},
        **figures,
    )
    summary.save(run.folder)
    return summary


def _figures(run: Run, history: History) -> tuple[dict[str, Any], dict[str, str]]:
    totals, model, folder = history.totals, run.training.raw, run.folder
    state = next(folder.glob("state-*.pt"), None)
    last = folder / checkpoint.LAST
    rates = sorted(row.images_per_second for row in history.epochs)
    figures: dict[str, Any] = {
        "epochs": totals.epochs,
        "train_seconds": run.training.position.seconds,
        "seconds_per_epoch": totals.seconds_per_epoch,
        # The first epoch compiles and fills caches; the median epoch is what a longer run would see.
        "images_per_second": rates[len(rates) // 2] if rates else None,
        "params": sum(p.numel() for p in model.parameters()),
        "parameter_tensors": sum(1 for _ in model.parameters()),
        "state_entries": len(model.state_dict()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "checkpoint_bytes": (last.stat().st_size + state.stat().st_size) if last.exists() and state else None,
        "peak_bytes": _peak_bytes(run),
    }
    best = history.best
    if best is not None:
        figures |= {"best_top1": best.val_top1, "best_epoch": best.epoch}
    return figures, {}


def _peak_bytes(run: Run) -> int:
    """Of the device's memory on a GPU, of the whole process on a CPU."""
    if run.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(run.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _test(run: Run, pictures: bool, say: Say) -> Evaluation:
    training, folder, classes = run.training, run.folder, run.training.card.classes
    evaluation = training.evaluate(run.feed.all_of(run.splits.test), keep=True, alone=True)
    report = classified(evaluation, classes)
    report.save(folder)
    if pictures:
        save(confusion(evaluation.confusion, classes, run.splits.tested), folder / "confusion.png")
        _draw_mistakes(run, evaluation)
    sample = _some(run.splits.train, TRAIN_SAMPLE)
    say(f"testing on {len(sample):,} of the training images, for comparison")
    seen = training.evaluate(run.feed.all_of(sample), alone=True)
    classified(seen, classes).save(folder, "train")
    if pictures:
        title = f"{len(sample):,} training images, not augmented"
        save(confusion(seen.confusion, classes, title), folder / "confusion_train.png")
    return evaluation


def classified(evaluation: Evaluation, classes: tuple[str, ...]) -> Classification:
    """An evaluation as a report."""
    return Classification.from_confusion(
        evaluation.confusion, classes, evaluation.top5, evaluation.loss, evaluation.seconds
    )


def _some(dataset: Dataset, most: int) -> Dataset:
    """At most so many images, evenly spread over the set, which is sorted by class."""
    if len(dataset) <= most:
        return dataset
    chosen = np.unique(np.linspace(0, len(dataset) - 1, most).astype(int)).tolist()
    return dataset.select(chosen, dataset.name)


def pixels_again(images: torch.Tensor, feed: Feed) -> NDArray[np.float32]:
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
    loader = run.feed.all_of(test.select(wrong.tolist()))
    images = torch.cat([batch.float().cpu() for batch, _ in loader])
    titles = [
        mistake(classes[labels[i]], classes[evaluation.predicted[i]], float(evaluation.confidence[i])) for i in wrong
    ]
    figure = image_grid(pixels_again(images, run.feed), titles, title="misclassified, surest first")
    save(figure, run.folder / "misclassified.png")


def _draw(run: Run, history: History) -> None:
    folder, classes = run.folder, run.training.card.classes
    if history.epochs:
        evaluated = {"val": "validation"}.get(run.splits.evaluated, run.splits.evaluated)
        figure = curves(history, f"{run.recipe.model}, run {folder.name}", evaluated)
        for ending in ("png", "svg"):
            save(figure, folder / f"curves.{ending}")
    loader: Loader = run.feed.train(run.recipe.size_at(run.recipe.epochs) or run.recipe.size)
    loader.restore({"epoch": 0, "batch": 0})
    found, labels = [], []
    for images, targets in loader:
        found.append(images.float().cpu())
        labels += [classes[i] for i in targets.tolist()]
        if len(labels) >= GRID:
            break
    figure = image_grid(
        pixels_again(torch.cat(found)[:GRID], run.feed), labels[:GRID], title=f"training images, {run.recipe.augment}"
    )
    save(figure, folder / "samples.png")
    _draw_network(run)


def _draw_network(run: Run) -> None:
    from bench.inspecting.cost import layer_table
    from models import diagram, summary

    recipe = run.recipe
    layers = summary.summarise(recipe.model, recipe.classes, recipe.size, recipe.arguments)
    write_whole(run.folder / "layers.txt", layer_table(recipe.model, layers).encode())
    diagram.write(run.folder / "network.svg", recipe.model, recipe.classes, recipe.size, recipe.arguments)


def _inference_times(run: Run, missing: dict[str, str]) -> dict[str, float]:
    """Cold and warm seconds for one image from the file to its class, in a fresh process."""
    said_as = ("cold_seconds", "warm_seconds", "warm_low_seconds", "warm_high_seconds")
    test = run.splits.test
    with tempfile.TemporaryDirectory() as scratch:
        path = test.files[0] if test.files else ""
        if not path and test.pixels is not None:
            path = str(Path(scratch, "image.png"))
            Image.fromarray(test.pixels[0]).save(path)
        weights = run.folder / checkpoint.LAST
        command = [sys.executable, "-m", "bench", "predict", str(weights), path, "--device", run.device.type]
        try:
            done = subprocess.run(
                [*command, "--format", "json"], capture_output=True, text=True, check=True, timeout=300
            )
            said = json.loads(done.stdout)
            return {f"inference_{key}": said[key] for key in said_as}
        except (subprocess.SubprocessError, ValueError, KeyError) as error:
            missing |= dict.fromkeys((f"inference_{key}" for key in said_as), f"bench predict failed: {error}")
            return {}
