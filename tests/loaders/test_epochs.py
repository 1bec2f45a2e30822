"""Order, shards, random windows, and the position of a loader."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize

from loaders.epochs import ATTEMPTS, Batch, Epochs, Loader, evaluation_shape, flips, windows
from loaders.errors import DataError
from loaders.options import LoaderOptions


def batches_of(images: int, epoch: int = 0, **options: object) -> list[list[int]]:
    epochs = Epochs(images, LoaderOptions(**options))
    return [epochs.indices(epoch, number).tolist() for number in range(epochs.batches)]


def test_training_shuffles_the_whole_set_and_drops_the_partial_batch() -> None:
    batches = batches_of(103, batch=10)
    seen = [i for batch in batches for i in batch]
    assert [len(batch) for batch in batches] == [10] * 10
    assert len(set(seen)) == 100
    assert seen != sorted(seen)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert batches_of(50, batch=10) == batches_of(50, batch=10)
    assert batches_of(50, batch=10) != batches_of(50, batch=10, epoch=1)
    assert batches_of(50, batch=10) != batches_of(50, batch=10, seed=1)


def test_order_is_the_documented_generator() -> None:
    expected = np.random.Generator(np.random.Philox(key=[7, 3])).permutation(40)
    order = Epochs(40, LoaderOptions(seed=7)).order(3)
    np.testing.assert_array_equal(order, expected)


def test_draws_are_the_documented_generator_and_can_be_had_in_any_order() -> None:
    epochs = Epochs(100, LoaderOptions(seed=7, batch=4))
    later, earlier = epochs.draws(3, 5), epochs.draws(3, 2)
    expected = np.random.Generator(np.random.Philox(key=[7, 3], counter=[0, 5, 1, 0])).random(later.shape)
    np.testing.assert_array_equal(later, expected)
    np.testing.assert_array_equal(Epochs(100, LoaderOptions(seed=7, batch=4)).draws(3, 2), earlier)


def test_evaluation_keeps_the_order_and_gives_every_image_once() -> None:
    batches = batches_of(23, batch=10, train=False)
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert [i for batch in batches for i in batch] == list(range(23))


@pytest.mark.parametrize("train", [True, False])
def test_shards_do_not_overlap(train: bool) -> None:
    parts = [batches_of(26, batch=2, train=train, shard=shard, shards=3) for shard in range(3)]
    seen = [i for part in parts for batch in part for i in batch]
    assert len(seen) == len(set(seen))
    if train:
        assert len({len(part) for part in parts}) == 1, "every process must make the same number of steps"
    else:
        assert sorted(seen) == list(range(26))


def test_images_left_over_by_shards_change_from_epoch_to_epoch() -> None:
    def missed(epoch: int) -> set[int]:
        parts = [batches_of(26, epoch, batch=2, shard=shard, shards=3) for shard in range(3)]
        return set(range(26)) - {i for part in parts for batch in part for i in batch}

    assert missed(0) != missed(1)


def test_a_set_smaller_than_a_batch_fills_it_by_repeating() -> None:
    (batch,) = batches_of(3, batch=8)
    assert len(batch) == 8
    assert set(batch) == {0, 1, 2}


@pytest.mark.parametrize("images", [26, 31, 48])
def test_shards_together_draw_what_one_process_draws(images: int) -> None:
    whole = Epochs(images, LoaderOptions(batch=6, seed=5))
    parts = [Epochs(images, LoaderOptions(batch=2, seed=5, shard=shard, shards=3)) for shard in range(3)]
    assert {part.batches for part in parts} == {whole.batches}
    for batch in range(whole.batches):
        for shard, part in enumerate(parts):
            np.testing.assert_array_equal(whole.indices(1, batch)[shard::3], part.indices(1, batch))
            np.testing.assert_array_equal(whole.draws(1, batch)[shard::3], part.draws(1, batch))
            np.testing.assert_array_equal(whole.extras(1, batch, 4, 2)[shard::3], part.extras(1, batch, 4, 2))
            np.testing.assert_array_equal(whole.mirrors(1, batch)[shard::3], part.mirrors(1, batch))


def test_streams_of_extra_numbers_are_apart() -> None:
    epochs = Epochs(100, LoaderOptions(batch=10))
    draws = [epochs.draws(0, 0)[:, :4], *(epochs.extras(0, 0, 4, stream) for stream in range(3))]
    assert all(not np.isclose(one, other).any() for i, one in enumerate(draws) for other in draws[:i])
    np.testing.assert_array_equal(epochs.extras(0, 3, 4, 1), epochs.extras(0, 3, 4, 1))


def test_the_last_batch_of_an_evaluation_draws_only_for_its_images() -> None:
    epochs = Epochs(23, LoaderOptions(batch=10, train=False))
    assert [len(epochs.draws(0, batch)) for batch in range(3)] == [10, 10, 3]


@pytest.mark.parametrize("train", [True, False])
def test_too_many_shards_are_refused(train: bool) -> None:
    with pytest.raises(DataError, match="use fewer shards"):
        Epochs(2, LoaderOptions(train=train, shard=2, shards=3))


def test_windows_have_the_distribution_of_torchvision() -> None:
    count, tall, wide = 4000, 300, 400
    torch.manual_seed(0)
    image = torch.empty(3, tall, wide)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], dtype=float
    )
    epochs = Epochs(count, LoaderOptions(batch=count))
    ours = windows(epochs.draws(0, 0), np.full(count, tall), np.full(count, wide)).astype(float)
    # Means and deviations of top, left, height, width agree within four standard errors of the mean.
    allowed = 4 * theirs.std(axis=0) * np.sqrt(2 / count)
    assert (abs(ours.mean(axis=0) - theirs.mean(axis=0)) < allowed).all()
    assert np.allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.08)


@pytest.mark.parametrize(("tall", "wide"), [(1, 1), (20, 1000), (1000, 20), (3, 5), (375, 500)])
def test_windows_lie_inside_the_image(tall: int, wide: int) -> None:
    draws = Epochs(500, LoaderOptions(batch=500)).draws(0, 0)
    top, left, height, width = windows(draws, np.full(500, tall), np.full(500, wide)).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= tall).all()
    assert (left + width <= wide).all()


def test_a_window_that_never_fits_is_centred_as_in_torchvision() -> None:
    draws = np.full((1, 2 * ATTEMPTS + 3), 0.999)  # whole area, widest aspect: fits no square
    ours = windows(draws, np.array([100]), np.array([1000]))[0].tolist()
    assert ours == [0, (1000 - 133) // 2, 100, 133]


def test_half_of_the_images_are_mirrored() -> None:
    assert abs(flips(Epochs(4000, LoaderOptions(batch=4000)).draws(0, 0)).mean() - 0.5) < 0.04


@pytest.mark.parametrize(("tall", "wide"), [(375, 500), (500, 375), (224, 224), (333, 500), (97, 211)])
def test_evaluation_shape_is_that_of_torchvision(tall: int, wide: int) -> None:
    numbered = torch.arange(tall * wide, dtype=torch.float32).view(1, tall, wide)
    resized = Resize(256)(numbered)
    cropped = CenterCrop(224)(resized)
    resized_tall, resized_wide, top, left = evaluation_shape(tall, wide, 224)
    assert resized.shape[1:] == (resized_tall, resized_wide)
    assert torch.equal(cropped, resized[:, top : top + 224, left : left + 224])


@pytest.mark.parametrize(("tall", "wide"), [(32, 32), (48, 64)])
def test_a_margin_of_one_is_the_whole_shorter_side(tall: int, wide: int) -> None:
    resized_tall, resized_wide, top, left = evaluation_shape(tall, wide, 32, 1.0)
    assert min(resized_tall, resized_wide) == 32
    assert (top, left) == ((resized_tall - 32) // 2, round((resized_wide - 32) / 2))


class Counting:
    """An engine whose batches say what was asked of it."""

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        for number in range(first, self.epochs.batches):
            yield torch.tensor([epoch]), torch.tensor([number])

    def close(self) -> None: ...


def counting(images: int = 30) -> Loader:
    return Loader("counting", images, LoaderOptions(batch=10), Counting)


def asked(loader: Loader, most: int = 100) -> list[tuple[int, int]]:
    seen = []
    for epoch, number in loader:
        seen.append((int(epoch), int(number)))
        if len(seen) == most:
            break
    return seen


def test_each_iter_is_the_next_epoch() -> None:
    loader = counting()
    assert len(loader) == 3
    assert loader.images == 30
    assert asked(loader) == [(0, 0), (0, 1), (0, 2)]
    assert loader.state() == {"epoch": 1, "batch": 0}
    assert asked(loader) == [(1, 0), (1, 1), (1, 2)]


def test_an_epoch_left_early_is_over() -> None:
    loader = counting()
    assert asked(loader, 2) == [(0, 0), (0, 1)]
    assert asked(loader, 1) == [(1, 0)]


def test_restore_goes_on_at_the_next_batch() -> None:
    loader = counting()
    asked(loader, 2)
    state = loader.state()
    resumed = counting()
    resumed.restore(state)
    assert resumed.state() == state == {"epoch": 0, "batch": 2}
    assert asked(resumed) == [(0, 2)]
    assert asked(resumed) == [(1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("state", [{"epoch": 0}, {"epoch": 0, "batch": 3}, {"epoch": -1, "batch": 0}])
def test_restore_refuses_a_state_that_does_not_fit(state: dict[str, int]) -> None:
    with pytest.raises(DataError, match="does not fit"):
        counting().restore(state)
