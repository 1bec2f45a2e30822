"""Every image counts once, whatever the batch; the figures are sklearn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch import Tensor
from torch.nn import functional

from models.evaluate import averaged, evaluate, mirrored, translated

CPU = torch.device("cpu")


def data(count: int = 50, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(count, classes, generator=generator)
    return logits[:, :, None, None].expand(-1, -1, 2, 2).clone(), torch.randint(
        0, classes, (count,), generator=generator
    )


def parts(images: Tensor, labels: Tensor, batch: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(batch), labels.split(batch), strict=True))


@pytest.mark.parametrize("batch", [50, 16, 7])
def test_figures_are_those_of_other_libraries(batch: int) -> None:
    images, labels = data()
    seen: list[int] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x[:, :, 0, 0]

    result = evaluate(forward, parts(images, labels, batch), 7, CPU, batch, keep=True)
    logits = images[:, :, 0, 0]
    assert set(seen) == {batch}
    assert result.images == 50
    assert result.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert result.top1 == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    expected = top_k_accuracy_score(labels, logits, k=5, labels=range(7))
    assert result.top5 == pytest.approx(expected)
    np.testing.assert_array_equal(result.confusion, confusion_matrix(labels, logits.argmax(1), labels=range(7)))
    np.testing.assert_array_equal(result.predicted, logits.argmax(1).numpy())
    np.testing.assert_allclose(result.confidence, logits.softmax(1).amax(1).numpy(), rtol=1e-6)


def test_padding_that_gives_no_number_is_not_counted() -> None:
    images, labels = data(5)

    def forward(x: Tensor) -> Tensor:
        logits = x[:, :, 0, 0].clone()
        logits[5:] = float("nan")
        return logits

    result = evaluate(forward, parts(images, labels, 5), 7, CPU, 8)
    assert result.images == 5
    assert np.isfinite(result.loss)


def test_channels_last_survives_the_padding() -> None:
    images, labels = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last), torch.zeros(5, dtype=torch.int64)
    formats: list[bool] = []

    def forward(x: Tensor) -> Tensor:
        formats.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.mean((2, 3))

    evaluate(forward, [(images, labels)], 3, CPU, 8)
    assert formats == [True]


def test_fewer_classes_than_five() -> None:
    images, labels = data(20, 3)
    assert evaluate(lambda x: x[:, :, 0, 0], parts(images, labels, 4), 3, CPU, 4).top5 is None


def test_a_mirrored_forward_does_not_care_about_mirroring() -> None:
    weight = torch.randn(10, 3 * 4 * 4)
    forward = mirrored(lambda x: x.flatten(1) @ weight.T)
    images = torch.randn(6, 3, 4, 4)
    torch.testing.assert_close(forward(images), forward(images.flip(-1)))


def test_images_it_is_not_sure_of_are_moved_too() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 3 * 6 * 6)
    images = torch.randn(5, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    sizes: list[int] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        assert x.is_contiguous(memory_format=torch.channels_last)
        # The first two images are far from every doubt.
        return x.flatten(1) @ weight.T * 0.01 + 50 * (x[:, 0, 0, :1] == x[:, 0, 0, -1:]) * torch.tensor([1.0, 0, 0])

    images[:2, 0, 0] = 1.0
    plain, moved = mirrored(forward)(images), translated(forward)(images)
    assert torch.equal(moved[:2], plain[:2])
    assert not torch.equal(moved[2:], plain[2:])
    # Compiled for one number of images, it is asked for no other.
    assert set(sizes) == {5}
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1), "reflect")
    views = [framed[..., :6, :6], framed[..., 2:, 2:]]
    either = [mirrored(lambda x: x.flatten(1) @ weight.T * 0.01)(view) for view in views]
    torch.testing.assert_close(moved[2:], (plain / 2 + (either[0] + either[1]) / 4)[2:])


def test_what_an_image_gives_depends_on_no_other() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 3 * 6 * 6) * 0.05
    forward = averaged(lambda x: x.flatten(1) @ weight.T, "translate")
    images = torch.randn(7, 3, 6, 6)
    alone = torch.cat([forward(image[None]) for image in images])
    torch.testing.assert_close(forward(images), alone)
