"""Checkpoints are whole or absent, say what they are, and run nothing."""

import io
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import zoo
from models.errors import ModelError
from models.training import checkpoint
from models.training.checkpoint import Card, digest, load_run, load_weights, put, save_run, save_weights, weights_of

CARD = Card("lenet", ("cat", "dog"), 32, {"widths": (6, 16)}, top1=0.5, data="pets")


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return weights_of(zoo.build("lenet", 2))


def test_what_is_stored_is_read_back(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_weights(tmp_path / "a.safetensors", weights, CARD)
    card, found = load_weights(tmp_path / "a.safetensors")
    assert replace(card, digest="") == CARD
    assert digest(found) == digest(weights) == card.digest
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]


def test_channels_last_weights_are_stored_in_plain_order(tmp_path: Path) -> None:
    model = zoo.build("cifar_resnet56", 10, depths=(1, 1, 1)).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "a.safetensors", weights_of(model), CARD)
    assert digest(load_weights(tmp_path / "a.safetensors")[1]) == digest(model.state_dict())


def test_one_flipped_bit_is_noticed(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, weights, CARD)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="corrupted"):
        load_weights(path)


@pytest.mark.parametrize("size", [0, 10, 500, 5000])
def test_a_cut_off_file_is_one_clear_error(tmp_path: Path, weights: dict[str, torch.Tensor], size: int) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, weights, CARD)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match="a.safetensors"):
        load_weights(path)


def test_a_missing_file_a_folder_and_a_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="folder"):
        load_weights(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match="does not say what network"):
        load_weights(tmp_path / "foreign.safetensors")


def test_weights_of_another_network_are_refused_with_the_difference(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match=r"fc3\.weight is \[2, 84\] there and \[10, 84\] here"):
        put(zoo.build("lenet", 10), weights, "the checkpoint")
    with pytest.raises(ModelError, match=r"another network: it lacks .* and has conv1.*"):
        put(zoo.build("cifar_resnet18", 2), weights, "the checkpoint")


def test_putting_weights_keeps_the_tensors(weights: dict[str, torch.Tensor]) -> None:
    model = zoo.build("lenet", 2)
    places = [p.data_ptr() for p in model.parameters()]
    put(model, weights, "x")
    assert places == [p.data_ptr() for p in model.parameters()]
    assert digest(weights_of(model)) == digest(weights)


def test_a_kill_between_the_two_files_leaves_a_pair(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, weights, replace(CARD, step=1), {"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    # The new state is on the disk, the weights that would name it are not.
    monkeypatch.setattr(checkpoint, "save_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        save_run(tmp_path, weights, replace(CARD, step=2), {"step": 2})
    card, _, state = load_run(tmp_path)
    assert (card.step, state["step"]) == (1, 1)
    monkeypatch.undo()
    save_run(tmp_path, weights, replace(CARD, step=3), {"step": 3})
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000003.pt"]


def test_storing_twice_at_one_step_never_writes_over_the_named_state(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    for value in (1, 2, 3):
        save_run(tmp_path, weights, replace(CARD, step=7), {"value": value})
        assert load_run(tmp_path)[2]["value"] == value
        assert len(list(tmp_path.glob("state-*"))) == 1


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_state_with_a_payload_is_refused_and_not_run(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path, weights, replace(CARD, step=1), {"step": 1})
    archive = io.BytesIO()
    torch.save({"step": Payload()}, archive)
    listed = io.BytesIO()
    torch.save([1], listed)
    for data, said in (
        (pickle.dumps(Payload()), "damaged or not a run's state"),
        (archive.getvalue(), "holds more than tensors"),
        (archive.getvalue()[:200], "damaged or not a run's state"),
        (b"PK\x03\x04", "damaged or not a run's state"),
        (listed.getvalue(), "is not a run's state"),
    ):
        (tmp_path / "state-00000001.pt").write_bytes(data)
        with pytest.raises(ModelError, match=said) as caught:
            load_run(tmp_path)
        assert "it was not executed; restore a copy of it, or begin a new run" in str(caught.value)
        assert not any(word in str(caught.value) for word in ("weights_only", "torch.load", "miniz", "\n"))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_is_no_checkpoint_and_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Payload()}, tmp_path / "archive.pt")
    (tmp_path / "plain.safetensors").write_bytes(pickle.dumps(Payload()))
    for name in ("archive.pt", "plain.safetensors"):
        with pytest.raises(ModelError, match="is a pickle file .* not opened, because that could run code"):
            load_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_state_that_is_gone_is_one_clear_error(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_run(tmp_path, weights, CARD, {})
    next(tmp_path.glob("state-*")).unlink()
    with pytest.raises(ModelError, match="the state that .* names is missing"):
        load_run(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ModelError, match="cannot write"):
        save_weights(tmp_path / "a.safetensors", weights, CARD)


def test_a_folder_that_is_not_there(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="cannot write"):
        save_weights(tmp_path / "no" / "a.safetensors", weights, CARD)


def test_a_writer_that_only_says_that_it_failed(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's own does on a full disk."""
    save_run(tmp_path, weights, CARD, {"a": 1})

    def fail(state: object, path: Path) -> None:
        path.write_bytes(b"begun")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ModelError, match=r"cannot write .*state-\d+b?\.pt: \[enforce fail .* vs 0; free some space"):
        save_run(tmp_path, weights, CARD, {"a": 2})
    monkeypatch.setattr("models.errors.FULL", 1 << 62)
    with pytest.raises(ModelError, match="No space left on device"):
        save_run(tmp_path, weights, CARD, {"a": 2})
    assert load_run(tmp_path)[2] == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 2
