"""Whole-batch operations against the same done one image at a time, by Pillow and torchvision."""

import functools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as one
from torchvision.transforms.v2 import functional as transform

from loaders import augment, engines, geometry, policies
from loaders.datasets import Dataset
from loaders.epochs import Epochs, flips, windows
from loaders.errors import DataError
from loaders.options import LoaderOptions
from loaders.policies import Operation

SIDE = 32


@pytest.fixture(scope="module")
def pixels(arrays: Dataset) -> np.ndarray:
    assert arrays.pixels is not None
    return arrays.pixels


def options(policy: str, **values: object) -> LoaderOptions:
    plain = {"batch": 8, "size": SIDE, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "augment": policy}
    return LoaderOptions(**(plain | values))


def augmented(arrays: Dataset, policy: str, **values: object) -> tuple[list[torch.Tensor], Epochs]:
    """The first epoch in grey levels, [batch, h, w, 3]."""
    chosen = options(policy, **values)
    loader = engines.build("resident", arrays, chosen)
    return [(images * 255).round().permute(0, 2, 3, 1) for images, _ in loader], Epochs(len(arrays), chosen)


def planes(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("angle", [-170.0, -90.0, -33.0, -7.5, 0.0, 20.0, 45.0, 90.0, 180.0])
def test_rotation_is_that_of_pillow(pixels: np.ndarray, angle: float) -> None:
    matrices = torch.from_numpy(geometry.rotations(np.full(24, angle), SIDE)).float()
    ours = augment.warp(torch.from_numpy(pixels), matrices).numpy()
    theirs = np.stack([np.asarray(Image.fromarray(image).rotate(angle)) for image in pixels])
    different = (ours != theirs).any(-1).mean()
    assert different < 0.01, "only pixels that lie exactly between two may differ"
    tensor = transform.rotate(planes(pixels), angle).permute(0, 2, 3, 1).numpy()
    assert (ours != tensor).any(-1).mean() < 0.01


def test_crop_flip_and_rotation_in_one_table_equal_one_after_the_other(arrays: Dataset) -> None:
    assert arrays.pixels is not None
    batches, epochs = augmented(arrays, "crop:3+flip+rotate:20")
    for number, images in enumerate(batches):
        draws = epochs.draws(0, number)
        angles = geometry.angles(epochs.extras(0, number, 1, 2)[:, 0], 20)
        rows = zip(images, epochs.indices(0, number), draws, flips(draws), angles, strict=True)
        for image, index, row, mirror, angle in rows:
            framed = transform.pad(torch.from_numpy(arrays.pixels[index]).permute(2, 0, 1), [3] * 4)
            top, left = (int(place * 7) for place in row[-3:-1])
            expected = framed[:, top : top + SIDE, left : left + SIDE]
            expected = transform.rotate(expected.flip(-1) if mirror else expected, float(angle))
            assert (image.permute(2, 0, 1) != expected).any(0).float().mean() < 0.01


def test_order_of_the_words_is_the_order_of_the_operations(arrays: Dataset) -> None:
    first, _ = augmented(arrays, "rotate:40+flip")
    second, _ = augmented(arrays, "flip+rotate:40")
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("policy", ["crop_reflect+flip", "crop+flip", "rotate:20", "crop+alternating_flip+cutout:9"])
def test_resident_equals_torchvision(arrays: Dataset, policy: str) -> None:
    ours, _ = augmented(arrays, policy)
    theirs = engines.build("torchvision", arrays, options(policy, threads=0, eval_margin=1.0))
    for images, (expected, _) in zip(ours, theirs, strict=True):
        different = (images != (expected * 255).round().permute(0, 2, 3, 1)).any(-1)
        assert different.float().mean() < 0.01


def test_alternating_flip_shows_every_image_both_ways(arrays: Dataset) -> None:
    epochs = Epochs(24, options("alternating_flip", batch=24))
    seen = []
    for epoch in range(3):
        order = np.argsort(epochs.indices(epoch, 0))
        seen.append(epochs.mirrors(epoch, 0)[order])
    assert (seen[0] != seen[1]).all()
    assert (seen[0] == seen[2]).all()
    many = Epochs(4000, LoaderOptions(batch=4000)).mirrors(0, 0)
    assert abs(many.mean() - 0.5) < 0.04
    other = Epochs(4000, LoaderOptions(batch=4000, seed=2**40)).mirrors(0, 0)
    assert 0.4 < (many == other).mean() < 0.6


def test_resized_windows_are_those_of_torchvision(pixels: np.ndarray) -> None:
    draws = Epochs(24, LoaderOptions(batch=24)).draws(0, 0)
    places = windows(draws, np.full(24, SIDE), np.full(24, SIDE))
    for size in (20, 32, 48):
        ours = augment.resized_windows(torch.from_numpy(pixels), torch.from_numpy(places).float(), size)
        theirs = torch.stack(
            [
                transform.resized_crop(image, *place, [size, size], antialias=True)
                for image, place in zip(planes(pixels), places.tolist(), strict=True)
            ]
        )
        difference = (planes(ours).int() - theirs.int()).abs()
        # Both round after each direction, but not in the same order.
        assert difference.max() <= 2
        assert (difference > 1).float().mean() < 0.001


CHANGES: list[tuple[str, Callable[..., torch.Tensor], Callable[..., Image.Image], float]] = [
    ("brightness", augment.brightness, one.adjust_brightness, 0.4),
    ("contrast", augment.contrast, one.adjust_contrast, -0.6),
    ("colour", augment.colour, one.adjust_saturation, 0.8),
    ("sharpness", augment.sharpness, one.adjust_sharpness, 0.9),
    ("hue", augment.hue, one.adjust_hue, 0.15),
    ("posterize", augment.posterize, one.posterize, 3),
    ("solarize", augment.solarize, one.solarize, 120),
]


@pytest.mark.parametrize(("name", "ours", "theirs", "value"), CHANGES, ids=[row[0] for row in CHANGES])
def test_changes_of_value_are_those_of_pillow(
    pixels: np.ndarray, name: str, ours: Callable[..., torch.Tensor], theirs: Callable[..., Image.Image], value: float
) -> None:
    given = value if name in ("hue", "posterize", "solarize") else 1 + value
    changed = ours(torch.from_numpy(pixels), torch.full((24, 1, 1, 1), float(value)))
    expected = np.stack([np.asarray(theirs(Image.fromarray(image), given)) for image in pixels])
    # Pillow turns hue in 256 steps and rounds saturation to a byte.
    assert np.abs(changed.numpy().astype(int) - expected).mean() < (3 if name == "hue" else 1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(augment.autocontrast, one.autocontrast), (augment.equalize, one.equalize), (augment.invert, one.invert)],
    ids=["autocontrast", "equalize", "invert"],
)
def test_changes_without_a_value_are_those_of_pillow(
    pixels: np.ndarray, ours: Callable[..., torch.Tensor], theirs: Callable[..., Image.Image]
) -> None:
    flat = np.full((1, SIDE, SIDE, 3), 77, np.uint8)
    several = np.concatenate([pixels, flat])
    changed = ours(torch.from_numpy(several), torch.zeros(25, 1, 1, 1))
    expected = np.stack([np.asarray(theirs(Image.fromarray(image))) for image in several])
    assert np.abs(changed.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kernel", [3, 7])
def test_blur_is_that_of_torchvision(pixels: np.ndarray, kernel: int) -> None:
    deviation = torch.linspace(0.1, 2, 24)
    ours = planes(augment.blur(torch.from_numpy(pixels), deviation, kernel))
    for image, expected, sigma in zip(ours, planes(pixels), deviation.tolist(), strict=True):
        theirs = transform.gaussian_blur(expected, [kernel, kernel], [sigma, sigma])
        assert (image.int() - theirs.int()).abs().max() <= 1


def test_cutout_paints_the_mean_colour_over_a_square(arrays: Dataset) -> None:
    batches, _ = augmented(arrays, "cutout:10", mean=(0.2, 0.4, 0.6))
    plain, _ = augmented(arrays, "none", mean=(0.2, 0.4, 0.6))
    for images, before in zip(batches, plain, strict=True):
        painted = (images != before).any(-1)
        assert painted.sum((1, 2)).min() >= 25
        assert painted.sum((1, 2)).max() <= 100
        # The mean is 0 after normalisation, up to the rounding to bytes.
        assert images[painted].abs().max() <= 1


def test_erasing_has_its_probability_and_its_area() -> None:
    operation = Operation("erasing", 0.3)
    draws = np.random.default_rng(0).random((4000, geometry.COLUMNS["erasing"]))
    area = geometry.rectangles(operation, draws, 64)[:, 2:].prod(1) / 64**2
    assert abs((area > 0).mean() - 0.3) < 0.03
    assert area[area > 0].min() > 0.018
    assert area.max() < 0.34


def test_perspective_takes_the_corners_where_they_should_be() -> None:
    draws = np.random.default_rng(0).random((50, geometry.COLUMNS["perspective"]))
    maps = geometry.maps(Operation("perspective", 0.5), draws, SIDE)
    same = np.isclose(maps, np.eye(3)).all((1, 2))
    assert (same == (draws[:, 0] >= 0.5)).all()
    corner = SIDE * draws[:, 1:3] * 0.25
    mapped = np.einsum("nij,nj->ni", maps, np.concatenate([corner, np.ones((50, 1))], 1))
    assert np.allclose(mapped[~same, :2], 0, atol=1e-8), "the moved upper left corner shows the old one"


def test_affine_turns_about_the_centre() -> None:
    draws = np.full((1, 5), 0.5)
    assert np.allclose(geometry.maps(Operation("affine", 10), draws, SIDE), np.eye(3))
    draws[0, 3] = 1.0
    moved = geometry.maps(Operation("affine", 10), draws, SIDE)[0] @ [16 + 3, 16, 1]
    assert np.allclose(moved, [16, 16, 1]), "a tenth of 32 pixels to the right"


@pytest.mark.parametrize("name", ["autoaugment", "randaugment", "trivialaugment"])
@pytest.mark.parametrize("side", [32, 96])
def test_automatic_policies_choose_known_operations(name: str, side: int) -> None:
    draws = np.random.default_rng(0).random((500, 6))
    steps = augment.automatic(policies.parse(name)[0], draws, side)
    assert len(steps) == (1 if name == "trivialaugment" else 2)
    known = {*augment._CHANGES, *augment._WARPS, "Identity"}
    for chosen, magnitudes in steps:
        assert set(chosen.tolist()) <= known
        assert len(set(chosen.tolist())) > 5
        assert np.isfinite(magnitudes).all()
        assert (magnitudes[chosen == "Posterize"] >= 2).all()
        assert (np.abs(magnitudes[chosen == "Rotate"]) <= 135).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
def test_automatic_warps_are_those_of_torchvision(pixels: np.ndarray, name: str, sign: int) -> None:
    value = sign * {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 6.0, "TranslateY": 6.0, "Rotate": 25.0}[name]
    ours = augment.warp(
        torch.from_numpy(pixels),
        torch.from_numpy(augment._matrices(np.array([name] * 24), np.full(24, value), SIDE)).float(),
    )
    angle = float(np.rad2deg(np.arctan(value))) if name.startswith("Shear") else 0.0
    call = {
        "ShearX": {"shear": [angle, 0.0], "center": [0, 0]},
        "ShearY": {"shear": [0.0, angle], "center": [0, 0]},
        "TranslateX": {"translate": [int(value), 0]},
        "TranslateY": {"translate": [0, int(value)]},
        "Rotate": {},
    }[name]
    if name == "Rotate":
        theirs = transform.rotate(planes(pixels), value)
    else:
        fixed = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        theirs = transform.affine(planes(pixels), **(fixed | call))
    assert (planes(ours) != theirs).any(1).float().mean() < 0.02


def able(policy: str) -> list[str]:
    """The engines that have all operations of a policy."""
    used = {operation.name for operation in policies.parse(policy)}
    lacking = {name: used & set(words) for name, words in engines.LACKING.items()}
    return [name for name in engines.names() if name not in ("spdl", "synthetic") and not lacking[name]]


# Each operation alone, and several together in each place that they can have.
POLICIES = (*policies.OPERATIONS, "none", "cifar_alternating+cutout", "cifar_heavy", "imagenet_trivial")


@pytest.mark.parametrize(("policy", "engine"), [(policy, engine) for policy in POLICIES for engine in able(policy)])
def test_every_operation_on_every_engine_stays_in_range(pictures: Dataset, policy: str, engine: str) -> None:
    reason = engines.missing(engine)
    if reason is not None:
        pytest.skip(reason)
    threads = 0 if engine in ("pil", "torchvision") else 1
    loader = engines.build(engine, pictures, options(policy, batch=12, threads=threads))
    try:
        batches = [images for images, _ in loader]
    finally:
        loader.close()
    assert [images.shape for images in batches] == [(12, 3, SIDE, SIDE)] * 2
    together = torch.cat(batches)
    assert together.min() >= 0
    assert together.max() <= 1.00001
    # An image of nothing but the filling would mean that the geometry had lost it.
    assert (together.flatten(1).std(1) > 0.01).float().mean() > 0.9


def test_what_an_engine_lacks_is_refused_with_those_that_have_it(pictures: Dataset) -> None:
    if engines.missing("dali") is None:
        with pytest.raises(DataError, match="dali has no augmentation perspective; these have: nvjpeg, packed, pil"):
            engines.build("dali", pictures, options("perspective"))
    with pytest.raises(DataError, match="loader spdl has no augmentation rotate"):
        engines.operations("spdl", "rotate:20", 224)


@pytest.mark.parametrize("policy", ["cifar_heavy", "imagenet_autoaugment", "cifar_alternating", "imagenet_randaugment"])
@pytest.mark.parametrize("engine", ["resident", "torchvision"])
def test_two_shards_see_what_one_process_sees(arrays: Dataset, policy: str, engine: str) -> None:
    """Images and augmentations of a step do not depend on the number of processes."""
    make = functools.partial(engines.build, engine, arrays)
    whole = make(options(policy, batch=8, threads=0))
    parts = [make(options(policy, batch=4, threads=0, shard=shard, shards=2)) for shard in (0, 1)]
    for _ in range(2):
        for (images, labels), *halves in zip(whole, *parts, strict=True):
            for shard, (ours, known) in enumerate(halves):
                assert torch.equal(labels[shard::2], known)
                assert torch.equal(images[shard::2], ours)


@pytest.mark.parametrize("engine", ["resident", "torchvision", "dali"])
def test_random_evaluation_is_seeded_keeps_the_order_and_gives_every_image_once(pictures: Dataset, engine: str) -> None:
    if engines.missing(engine) is not None:
        pytest.skip("missing")
    made = []
    for seed in (0, 0, 1):
        chosen = options("crop+flip+rotate:20", batch=10, threads=0, seed=seed, train=False, random_eval=True)
        loader = engines.build(engine, pictures, chosen)
        batches = list(loader)
        assert [len(images) for images, _ in batches] == [10, 10, 4]
        assert torch.cat([labels for _, labels in batches]).tolist() == list(pictures.labels)
        made.append(torch.cat([images for images, _ in batches]))
        loader.close()
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("engine", ["resident", "torchvision", "pil", "dali"])
@pytest.mark.parametrize("train", [True, False])
def test_per_image_standardisation(pictures: Dataset, engine: str, train: bool) -> None:
    if engines.missing(engine) is not None:
        pytest.skip("missing")
    for policy in ("standard", "crop_reflect+flip"):
        loader = engines.build(engine, pictures, options(policy, normalization="per_image", threads=0, train=train))
        for images, _ in loader:
            flat = images.flatten(2)
            assert flat.mean(2).abs().max() < 1e-4
            assert (flat.std(2, correction=0) - 1).abs().max() < 1e-3
        loader.close()


@pytest.mark.parametrize("engine", ["torchvision", "pil", "dali"])
@pytest.mark.parametrize("resize", ["torch", "dali"])
def test_a_margin_of_one_shows_the_whole_image(pictures: Dataset, engine: str, resize: str) -> None:
    if engines.missing(engine) is not None:
        pytest.skip("missing")
    chosen = options("standard", train=False, eval_margin=1.0, batch=24, threads=0, resize=resize)
    loader = engines.build(engine, pictures, chosen)
    ((images, _),) = loader
    loader.close()
    decoded = np.stack([np.asarray(Image.open(path)) for path in pictures.files])
    assert (images * 255 - planes(decoded)).abs().mean() < 0.5


def test_images_kept_larger_are_resized_after_the_augmentation(arrays: Dataset) -> None:
    small, _ = augmented(arrays, "crop+flip", stored_size=32, size=16)
    large, _ = augmented(arrays, "crop+flip")
    for ours, whole in zip(small, large, strict=True):
        expected = transform.resize(planes(whole).to(torch.uint8), [16, 16], antialias=True)
        assert torch.equal(planes(ours).to(torch.uint8), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", policies.names())
def test_the_host_never_waits_for_the_device(arrays: Dataset, policy: str) -> None:
    loader = engines.build("resident", arrays, options(policy, device="cuda"))
    on_cpu = engines.build("resident", arrays, options(policy))
    next(iter(loader))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        batches = [images for images, _ in loader]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    next(iter(on_cpu))
    for ours, (theirs, _) in zip(batches, on_cpu, strict=True):
        assert (ours.cpu() - theirs).abs().gt(0.02).float().mean() < 0.02
