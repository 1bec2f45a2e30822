"""Weights from files, and networks of checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import zoo
from models.errors import ModelError
from models.trained import Weights
from models.training import checkpoint


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def state(classes: int = 10) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(zoo.build("lenet", classes).state_dict())


@pytest.mark.parametrize(
    ("wrap", "unwrapped"),
    [
        (lambda tensors: tensors, ""),
        (lambda tensors: {"state_dict": tensors, "epoch": 3}, "its entry 'state_dict'"),
        (
            lambda tensors: {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
            "its entry 'model' and names without 'module.'",
        ),
    ],
)
def test_weights_are_found_in_what_others_write(wrap: Any, unwrapped: str) -> None:
    torch.save(wrap(state(7)), "w.pth")
    found = Weights.read("w.pth")
    assert found.unwrapped == unwrapped
    assert found.classes("lenet") == 7
    network = zoo.build("lenet", 7)
    found.put(network, "lenet")
    assert all(tensor.equal(state(7)[name]) for name, tensor in network.state_dict().items())


def test_safetensors_of_anybody_are_weights_too() -> None:
    save_file(state(), "w.safetensors")
    assert Weights.read("w.safetensors").classes("lenet") == 10


class Norm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(3))


def test_counters_of_batches_may_be_missing() -> None:
    tensors = {"0.weight": torch.full((3,), 2.0), **{f"0.{name}": torch.ones(3) for name in ("bias", "running_mean")}}
    torch.save({**tensors, "0.running_var": torch.ones(3)}, "w.pth")
    network = Norm()
    Weights.read("w.pth").put(network, "norm")
    assert network[0].weight.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tensors: {name.replace("fc3", "head"): tensor for name, tensor in tensors.items()},
            r"it lacks fc3.weight, fc3.bias \(near: .+\) and it has head.weight, head.bias instead",
        ),
        (lambda tensors: {**tensors, "extra": torch.ones(1)}, "it has extra$"),
        (lambda tensors: {**tensors, "conv1.bias": torch.ones(4)}, r"conv1.bias is \[4\] there and \[6\] here"),
    ],
)
def test_what_does_not_fit_says_where(change: Any, words: str) -> None:
    torch.save(change(state()), "w.pth")
    with pytest.raises(ModelError, match=f"^--weights w.pth does not fit lenet: {words}"):
        Weights.read("w.pth").put(zoo.build("lenet"), "lenet")


class Opened:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.mkdir, (Path("opened"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        (b"nothing of that kind", "it is damaged, or torch.save did not write it"),
        (Opened(), "holds more than tensors, so it was not opened"),
        ({"epoch": 3}, "holds no state dict, but epoch; save model.state_dict()"),
        (torch.ones(3), "holds a Tensor and no state dict"),
    ],
)
def test_files_that_are_no_weights_are_refused_and_not_run(content: Any, words: str) -> None:
    if isinstance(content, bytes):
        Path("w.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, "w.pth")
    with pytest.raises(ModelError, match=words):
        Weights.read("w.pth")
    assert not Path("opened").exists()


def test_a_run_and_its_checkpoint_are_networks_with_their_weights() -> None:
    folder = Path("runs/a")
    folder.mkdir(parents=True)
    card = checkpoint.Card("lenet", ("a", "b", "c"), 32)
    checkpoint.save_weights(folder / checkpoint.BEST, state(3), card)
    for name in ("runs/a", "runs/a/best.safetensors"):
        zoo.check(name)
        assert zoo.has_weights(name)
        assert (zoo.default_classes(name), zoo.default_size(name)) == (3, 32)
        network = zoo.build(name)
        assert all(tensor.equal(state(3)[key]) for key, tensor in network.state_dict().items())
        with pytest.raises(ModelError, match="was trained on 3 classes and not 10"):
            zoo.build(name, 10)
    with pytest.raises(ModelError, match="gone.safetensors does not exist"):
        zoo.check("gone.safetensors")
