"""The loop learns, stops, goes on bit for bit, and means the same with one process or two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from batches import CLASSES, Feed, Heard, recipe, training
from torch import nn

from models.configuration import Configuration
from models.errors import ModelError
from models.training import checkpoint
from models.training.checkpoint import digest, load_run, load_weights, weights_of
from models.training.loop import DivergedError
from models.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[3]


def run(chosen: Recipe, folder: Path | None = None, **given: object) -> tuple[Heard, str]:
    """Train to the end: what was heard, and the hash of the weights."""
    heard, made = Heard(), training(chosen, folder, **given)
    made.run(heard)
    return heard, digest(weights_of(made.raw))


def test_it_learns_and_reports_each_epoch_and_step() -> None:
    heard, _ = run(recipe(epochs=8))
    assert [row.epoch for row in heard.rows] == list(range(1, 9))
    assert heard.rows[-1].train_loss < 0.5 * heard.rows[0].train_loss
    assert heard.rows[-1].val_top1 is not None
    assert heard.rows[-1].val_top1 > 0.8
    assert heard.rows[0].images == 96
    assert [step.step for step in heard.steps] == list(range(1, 49))
    last = [step for step in heard.steps if step.epoch == 8]
    assert heard.rows[-1].train_loss == pytest.approx(sum(s.loss for s in last) / 6)
    for row in heard.rows:
        assert row.seconds >= row.loader_seconds + row.step_seconds + row.evaluation_seconds - 1e-6
        assert row.val_top5 is not None
        assert row.val_top1 is not None
        assert row.val_top5 >= row.val_top1


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    chosen = recipe(arguments={"head_dropout": 0.2})
    (first, a), (second, b), (_, c) = run(chosen), run(chosen), run(chosen.replaced({"seed": 1}))
    assert a == b != c
    assert [s.loss for s in first.steps] == [s.loss for s in second.steps]


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"head_dropout": 0.2}},
        {"ema": 0.9, "schedule": "onecycle", "nesterov": True},
        {"optimizer": "adamw", "lr": 1e-3, "mixup": 0.2, "cutmix": 1.0},
        {"schedule": "plateau", "gamma": 0.5, "patience": 0, "ricap": 0.3},
        {"sam_rho": 0.05, "sam_interval": 2, "clip": 1.0, "accumulate": 2},
    ],
)
def test_two_epochs_and_two_more_are_four_epochs_bit_for_bit(tmp_path: Path, changes: dict[str, object]) -> None:
    chosen = recipe(epochs=4, **changes)
    straight, expected = run(chosen)
    begun = Heard()
    first = training(chosen, tmp_path)
    assert first.run(begun, lambda: "enough" if len(begun.rows) == 2 else None) == "enough"
    second = training(chosen, tmp_path)
    _, weights, state = load_run(tmp_path)
    assert second.load(weights, state) == []
    rest = Heard()
    second.run(rest)
    assert digest(weights_of(second.raw)) == expected
    assert [s.loss for s in straight.steps] == [s.loss for s in begun.steps + rest.steps]
    assert [row.val_loss for row in straight.rows] == [row.val_loss for row in second.history]


def test_a_stop_inside_an_epoch_loses_nothing(tmp_path: Path) -> None:
    chosen = recipe(arguments={"head_dropout": 0.2})
    straight, expected = run(chosen)
    heard = Heard()
    first = training(chosen, tmp_path)
    # Nine steps: one epoch of six, and three of the second.
    assert first.run(heard, lambda: "enough" if heard.calls == 9 else None) == "enough"
    second = training(chosen, tmp_path)
    card, weights, state = load_run(tmp_path)
    assert (card.epoch, card.step) == (1, 9)
    second.load(weights, state)
    rest = Heard()
    second.run(rest)
    assert digest(weights_of(second.raw)) == expected
    assert [s.loss for s in straight.steps] == [s.loss for s in heard.steps + rest.steps]
    assert [row.train_loss for row in straight.rows] == [row.train_loss for row in second.history]


def test_batch_rate_and_schedule_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    chosen = recipe(epochs=4, schedule="onecycle", batch=8)
    begun = Heard()
    training(chosen, tmp_path).run(begun, lambda: "enough" if len(begun.rows) == 2 else None)
    best = max(row.val_top1 or 0 for row in begun.rows)
    changed = chosen.replaced({"batch": 32, "lr": 0.02, "schedule": "plateau", "gamma": 0.5})
    second = training(changed, tmp_path)
    _, weights, state = load_run(tmp_path)
    second.load(weights, state)
    assert second.position.best_top1 == best
    rest = Heard()
    second.run(rest)
    assert [row.epoch for row in second.history] == [1, 2, 3, 4]
    assert rest.rows[0].batch == 32
    assert rest.rows[0].lr == pytest.approx(0.02)


def test_a_changed_batch_inside_an_epoch_goes_on_at_the_same_image(tmp_path: Path) -> None:
    chosen, heard = recipe(batch=8), Heard()
    training(chosen, tmp_path).run(heard, lambda: "enough" if heard.calls == 4 else None)
    second = training(chosen.replaced({"batch": 16}), tmp_path)
    _, weights, state = load_run(tmp_path)
    (note,) = second.load(weights, state)
    assert "batch 8 became 16" in note
    assert second.position.batch_index == 2
    rest = Heard()
    second.run(rest)
    assert rest.rows[0].images == 96 - 32


def test_another_optimiser_starts_afresh_and_says_so(tmp_path: Path) -> None:
    heard = Heard()
    training(recipe(), tmp_path).run(heard, lambda: "enough" if len(heard.rows) == 1 else None)
    second = training(recipe(optimizer="adam", lr=1e-3), tmp_path)
    _, weights, state = load_run(tmp_path)
    (note,) = second.load(weights, state)
    assert "sgd became adam" in note


def test_checkpoints_last_best_and_periodic(tmp_path: Path) -> None:
    heard, _ = run(recipe(epochs=4, checkpoint_epochs=2), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert "epoch-0002.safetensors" in names
    assert "epoch-0004.safetensors" in names
    assert sum(name.startswith("state-") for name in names) == 1
    last, best = load_weights(tmp_path / "last.safetensors")[0], load_weights(tmp_path / "best.safetensors")[0]
    assert last.epoch == 4
    assert last.model == "lenet"
    tops = [row.val_top1 for row in heard.rows]
    assert best.top1 == max(t for t in tops if t is not None)
    assert best.epoch == tops.index(best.top1) + 1


def test_no_validation_between_epochs_means_one_at_the_end() -> None:
    heard, _ = run(recipe(evaluate_every=0))
    assert [row.val_top1 is not None for row in heard.rows] == [False, False, True]


def test_a_loss_that_is_no_number_stops_at_once_and_leaves_the_last_good_weights(tmp_path: Path) -> None:
    heard = Heard()
    made = training(recipe(lr=1e9, schedule="constant"), tmp_path)
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step \d"):
        made.run(heard)
    assert heard.calls < 6


def test_averaged_weights_are_what_is_stored_and_judged(tmp_path: Path) -> None:
    made = training(recipe(ema=0.5), tmp_path)
    made.run(Heard())
    stored = load_weights(tmp_path / "last.safetensors")[1]
    assert digest(stored) == digest(made.weights())
    assert digest(stored) != digest(weights_of(made.raw))


def test_divide_and_accumulate_count_steps() -> None:
    heard, _ = run(recipe(epochs=2, batch=8, divide=4))
    assert len(heard.steps) == 2 * 3
    heard, _ = run(recipe(epochs=2, batch=8, accumulate=3))
    assert len(heard.steps) == 2 * 4
    assert heard.rows[0].batch == 24


def test_accumulated_batches_are_one_large_batch() -> None:
    large, a = run(recipe(epochs=1, batch=16))
    small, b = run(recipe(epochs=1, batch=8, accumulate=2))
    assert [s.loss for s in large.steps] == pytest.approx([s.loss for s in small.steps], abs=1e-5)


def test_one_at_a_time_normalises_each_image_by_itself() -> None:
    made = training(recipe(model="cifar_resnet56", arguments={"depths": (1, 1, 1)}, one_at_a_time=True))
    images = torch.randn(4, 3, 32, 32)
    alone = torch.cat([made.prepared.forward(image[None]) for image in images])
    torch.testing.assert_close(made.forward(images), alone)
    assert not torch.allclose(made.forward(images), made.prepared.forward(images), atol=1e-3)


def test_progressive_resizing_opens_each_size_once() -> None:
    feed = Feed(16)
    chosen = recipe(model="cifar_resnet56", arguments={"depths": (1, 1, 1)}, sizes=((1, 16), (3, 32)), epochs=4)
    made = training(chosen, feed=feed)
    heard = Heard()
    made.run(heard)
    assert feed.sizes == [16, 32]
    assert [row.size for row in heard.rows] == [16, 16, 32, 32]


def test_the_whitening_layer_comes_from_training_images() -> None:
    made = training(recipe(model="airbench94", arguments={"widths": (24, 24, 24)}, epochs=1))
    patches = nn.functional.unfold(Feed(16).train(32).data[0], 2)
    white = made.raw.whiten(Feed(16).train(32).data[0])[:, :12].transpose(0, 1).reshape(12, -1)
    assert patches.shape[1] == 12
    torch.testing.assert_close(white @ white.T / white.shape[1], torch.eye(12), atol=0.05, rtol=0)


@pytest.mark.parametrize(("softmax", "below"), [(False, True), (True, False)])
def test_only_the_softmax_switch_keeps_the_loss_above_its_floor(softmax: bool, below: bool) -> None:
    """Cross-entropy of probabilities in place of logits ends at ln(e + 9) - 1 = 1.46 nats for ten classes."""
    small = {"depths": (1, 1, 1), "widths": (16, 32, 64), "stem_width": 16, "softmax_output": softmax}
    heard, _ = run(recipe(model="res_block", arguments=small, epochs=12, lr=0.1))
    assert (min(step.loss for step in heard.steps) < 1.46) == below


def test_a_teacher_pulls_the_loss() -> None:
    chosen = recipe(epochs=1, distill_weight=0.5)
    plain, _ = run(recipe(epochs=1))
    taught, _ = run(chosen, teacher=lambda images: torch.zeros(len(images), len(CLASSES)))
    assert plain.steps[0].loss != taught.steps[0].loss


@pytest.mark.parametrize("words", ["amp", "fp16"])
def test_mixed_precision_learns_on_a_cpu(words: str) -> None:
    heard, _ = run(recipe(epochs=2), configuration=Configuration(words, "nhwc", "eager"))
    assert heard.rows[-1].train_loss < heard.rows[0].train_loss


@pytest.mark.slow
def test_compiled_and_eager_training_agree() -> None:
    eager, _ = run(recipe(epochs=1))
    compiled, _ = run(recipe(epochs=1), configuration=Configuration("fp32", "nhwc", "compile"))
    assert [s.loss for s in compiled.steps] == pytest.approx([s.loss for s in eager.steps], rel=1e-4)


def test_weights_that_cannot_learn_are_refused() -> None:
    with pytest.raises(ModelError, match="amp"):
        training(recipe(), configuration=Configuration("bf16", "nhwc", "eager"))


PROCESS = """
import sys
from batches import Heard, recipe, training
from models.training.distributed import World
import torch
torch.set_num_threads(1)
world = World.from_environ()
world.open(torch.device("cpu"))
heard = Heard()
made = training(recipe(epochs=2, batch=16), world=world)
made.run(heard)
if world.first:
    print(*[step.loss for step in heard.steps])
    print(*[f"{row.val_loss} {row.val_top1}" for row in heard.rows])
world.close()
"""


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_global_batch(tmp_path: Path) -> None:
    one, _ = run(recipe(epochs=2, batch=16))
    environ = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/fabricated'}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    script = tmp_path / "two_processes.py"
    script.write_text(PROCESS)
    done = subprocess.run(
        [*command, "--standalone", str(script)], env=environ, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    losses, rows = [[float(x) for x in line.split()] for line in done.stdout.strip().splitlines()[-2:]]
    assert losses == pytest.approx([s.loss for s in one.steps], abs=1e-4)
    expected = [x for row in one.rows for x in (row.val_loss, row.val_top1)]
    assert rows == pytest.approx(expected, abs=1e-4)


def test_a_run_killed_at_any_moment_goes_on(tmp_path: Path) -> None:
    """SIGKILL after the third step of the second epoch."""
    _, expected = run(recipe())
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom batches import Heard, recipe, training\n"
        "import torch\ntorch.set_num_threads(int(sys.argv[2]))\n"
        "class Killer(Heard):\n"
        "    def step(self, done, steps):\n"
        "        super().step(done, steps)\n"
        "        if self.calls == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "training(recipe(), Path(sys.argv[1])).run(Killer())\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/fabricated'}"}
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), threads], env=environ, capture_output=True, timeout=120
    )
    assert done.returncode == -9
    second = training(recipe(), tmp_path)
    card, weights, state = load_run(tmp_path)
    assert card.epoch == 1
    second.load(weights, state)
    second.run(Heard())
    assert digest(weights_of(second.raw)) == expected
    assert (tmp_path / checkpoint.BEST).is_file()


@pytest.mark.slow
def test_compiling_ahead_changes_nothing_and_is_in_no_epoch() -> None:
    chosen, compiled = recipe(epochs=1, arguments={"head_dropout": 0.2}), Configuration("fp32", "nhwc", "compile")
    digests = []
    for warmed in (False, True):
        made = training(chosen, configuration=compiled)
        if warmed:
            assert made.warm_up() > 0
            frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        made.run(Heard())
        digests.append(digest(weights_of(made.raw)))
    assert digests[0] == digests[1]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == frames
    assert training(chosen).warm_up() == 0.0
