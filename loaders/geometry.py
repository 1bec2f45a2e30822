"""Random geometry: where each pixel of an augmented image comes from, and what is painted over.

Every map is a 3 x 3 matrix [n, 3, 3] that takes (x, y, 1) of the augmented image to its place in the image before, with
x to the right, y downwards and the centre of the first pixel at (0.5, 0.5), as Pillow and DALI count.
"""

import numpy as np
from numpy.typing import NDArray

from loaders.epochs import ATTEMPTS, windows
from loaders.policies import AUTOMATIC, Operation

# Random numbers an image needs for each operation (Epochs.extras).
COLUMNS = {
    **{"rotate": 1, "affine": 5, "perspective": 9, "erasing": 2 * ATTEMPTS + 3, "cutout": 2, "jitter": 4, "blur": 1},
    **dict.fromkeys(AUTOMATIC, 6),
}
MOVED, SCALED = 0.1, 0.1  # by which affine moves and scales at most, as a share
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), (0.3, 3.3)

Floats = NDArray[np.float64]


def angles(draws: Floats, most: float) -> Floats:
    """Degrees in -most..most from uniform numbers in 0..1, counter-clockwise."""
    return np.asarray((2 * draws - 1) * most)


def maps(operation: Operation, draws: Floats, side: int) -> Floats:
    """The matrices of rotate, affine or perspective for square images of `side` pixels, [n, 3, 3].

    Args:
        operation: with its value.
        draws: [n, COLUMNS[operation.name]].
        side: pixels.
    """
    value = operation.value
    if operation.name == "rotate":
        return rotations(angles(draws[:, 0], value), side)
    if operation.name == "affine":
        shears = np.tile(np.eye(2), (len(draws), 1, 1))
        shears[:, 0, 1] = np.tan(np.deg2rad(angles(draws[:, 1], value)))
        linear = _rotations(angles(draws[:, 0], value)) @ shears
        linear *= (1 + SCALED * (2 * draws[:, 2] - 1))[:, None, None]
        # In whole pixels, as in torchvision.
        shifts = np.rint((2 * draws[:, 3:5] - 1) * MOVED * side)
        return _about_centre(np.asarray(np.linalg.inv(linear), np.float64), side, shifts)
    return _perspectives(draws, value, side)


def rotations(degrees: Floats, side: int) -> Floats:
    """Rotations about the centre, counter-clockwise, [n, 3, 3]."""
    return _about_centre(_rotations(degrees), side, np.zeros((len(degrees), 2)))


def _rotations(degrees: Floats) -> Floats:
    """(x, y) to (cos x - sin y, sin x + cos y), [n, 2, 2]."""
    radians = np.deg2rad(degrees)
    cosine, sine = np.cos(radians), np.sin(radians)
    return np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)


def _about_centre(linear: Floats, side: int, shifts: Floats) -> Floats:
    """x -> linear (x - centre - shift) + centre."""
    maps = np.tile(np.eye(3), (len(linear), 1, 1))
    maps[:, :2, :2] = linear
    maps[:, :2, 2] = side / 2 - np.einsum("nij,nj->ni", linear, side / 2 + shifts)
    return maps


def _perspectives(draws: Floats, distortion: float, side: int) -> Floats:
    """Perspective maps for half of the images, the identity for the others, [n, 3, 3]."""
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float64)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float64)
    ends = corners + inwards * draws[:, 1:9].reshape(-1, 4, 2) * (distortion * side / 2)
    ends = np.where(draws[:, :1, None] < 0.5, ends, corners)
    # Each pair of corners gives two equations for the eight unknowns; the ninth is 1.
    x, y = ends[..., 0], ends[..., 1]
    u, v = np.broadcast_to(corners[:, 0], x.shape), np.broadcast_to(corners[:, 1], y.shape)
    one, zero = np.ones_like(x), np.zeros_like(x)
    left = np.concatenate(
        [
            np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1),
            np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1),
        ],
        axis=1,
    )
    solved = np.linalg.solve(left, np.concatenate([u, v], 1)[..., None])[..., 0]
    return np.concatenate([solved, np.ones((len(draws), 1))], 1).reshape(-1, 3, 3)


def rectangles(operation: Operation, draws: Floats, side: int) -> NDArray[np.int64]:
    """What erasing or cutout paints: top, left, height, width in pixels, [n, 4]; a height of 0 paints nothing.

    Args:
        operation: with its value.
        draws: [n, COLUMNS[operation.name]].
        side: pixels.
    """
    value = operation.value
    if operation.name == "erasing":
        sides = np.full(len(draws), side)
        erased = windows(draws, sides, sides, ERASED_AREA, ERASED_ASPECT)
        erased[:, 2:] *= (draws[:, -1:] < value).astype(np.int64)
        return erased
    # The random place is the square's centre, so squares at the edge are cut there (DeVries and Taylor 2017).
    start = np.floor(draws * side) - value // 2
    low, high = np.clip(start, 0, side), np.clip(start + value, 0, side)
    return np.concatenate([low, high - low], 1).astype(np.int64)
