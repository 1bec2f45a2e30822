"""The weight average against its recurrence, its swap in place, and going on from stored state."""

import copy

import pytest
import torch
from torch import nn

from models.errors import ModelError
from models.training.averaging import WeightAverage


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype)


def drift(model: nn.Module, seed: int) -> None:
    """Changes every parameter and buffer in place, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor += torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * 0.1
            else:
                tensor += 1


def averages(average: WeightAverage) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in average.state_dict()["averages"].items()}


@pytest.mark.parametrize("every", [1, 3])
def test_follows_the_recurrence(every: int) -> None:
    model = network()
    average = WeightAverage(model, 0.5, every)
    expected = {name: tensor.double() for name, tensor in averages(average).items()}
    updates = 0
    for step in range(12):
        drift(model, step)
        average.update(step)
        if (step + 1) % every:
            continue
        # Early updates keep less.
        keep = min(0.5**every, (1 + updates) / (10 + updates))
        for name, tensor in model.state_dict().items():
            if name in expected:
                expected[name] = keep * expected[name] + (1 - keep) * tensor.double()
        updates += 1
    assert average.state_dict()["updates"] == updates == 12 // every
    for name, tensor in averages(average).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_batch_norm_statistics_are_averaged_and_counts_are_not() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    assert set(averages(average)) == set(model.state_dict()) - {"1.num_batches_tracked"}
    drift(model, 0)
    average.update(0)
    with average.swap():
        assert model[1].num_batches_tracked.item() == 1
        torch.testing.assert_close(model[1].running_mean, averages(average)["1.running_mean"])


def test_swap_keeps_memory_and_gives_back_every_bit() -> None:
    model = network().to(memory_format=torch.channels_last)
    average = WeightAverage(model, 0.9)
    for step in range(3):
        drift(model, step)
        average.update(step)
    own = copy.deepcopy(model.state_dict())
    kept = averages(average)
    places = {name: (tensor.data_ptr(), tensor.stride()) for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 8, 8)
    model.eval()
    raw = model(images)
    with average.swap():
        assert {n: (t.data_ptr(), t.stride()) for n, t in model.state_dict().items()} == places
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
        assert not torch.equal(model(images), raw)
    assert {n: (t.data_ptr(), t.stride()) for n, t in model.state_dict().items()} == places
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in averages(average).items())
    assert torch.equal(model(images), raw)


def test_swap_gives_back_after_an_error() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    drift(model, 0)
    own = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="within"), average.swap():
        raise RuntimeError("within")
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    model = network(torch.bfloat16)
    average = WeightAverage(model, 0.999)
    with torch.no_grad():
        model[0].weight += 2**-7
    before = averages(average)["0.weight"]
    average.update(0)
    after = averages(average)["0.weight"]
    assert after.dtype == torch.float32
    torch.testing.assert_close(after - before, 0.9 * (model[0].weight.float() - before))
    assert not torch.equal(after, after.bfloat16().float())
    own = model[0].weight.clone()
    with average.swap():
        assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(own, model[0].weight)


def test_goes_on_exactly_from_its_state() -> None:
    model = network()
    straight = WeightAverage(model, 0.99, 2)
    for step in range(6):
        drift(model, step)
        straight.update(step)
    stored = copy.deepcopy((model.state_dict(), straight.state_dict()))
    other = network()
    other.load_state_dict(stored[0])
    resumed = WeightAverage(other, 0.99, 2)
    resumed.load_state_dict(stored[1])
    for step in range(6, 12):
        for network_, average in ((model, straight), (other, resumed)):
            drift(network_, step)
            average.update(step)
    assert straight.state_dict()["updates"] == resumed.state_dict()["updates"] == 6
    assert all(torch.equal(tensor, averages(resumed)[name]) for name, tensor in averages(straight).items())


def test_averages_do_not_share_memory_with_the_model() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    before = averages(average)
    drift(model, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in averages(average).items())


def test_what_does_not_fit_is_refused() -> None:
    average = WeightAverage(network(), 0.9)
    with pytest.raises(ModelError, match="stored weight average"):
        average.load_state_dict(WeightAverage(nn.Linear(2, 2), 0.9).state_dict())
