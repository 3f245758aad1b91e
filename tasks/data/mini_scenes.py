"""Generated scenes for dense tasks: shapes of six kinds on two of four grounds, known to the pixel.

Shapes do not cover each other. A kind has its own outline and, at difficulty 0, its own colour; the higher the
difficulty, the more the colours of kinds and grounds overlap, so that outlines count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.metrics.overlap import draw_mask, mask_codes

DIFFICULTY = 0.6
NONE = -1

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def _around(count: int, radii: tuple[float, ...]) -> Array:
    """Points (count, 2) around the origin, their radii in turns."""
    angle = 2 * np.pi * np.arange(count) / count
    radius = np.resize(radii, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _cross() -> Array:
    arm = np.array([(1, 0.3), (0.3, 0.3), (0.3, 1)])
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([arm @ np.linalg.matrix_power(turn, quarter) for quarter in range(4)])


# Outlines within the unit circle, and colours.
KINDS: dict[str, tuple[Array, tuple[float, float, float]]] = {
    "disc": (_around(28, (1.0,)), (0.85, 0.2, 0.2)),
    "square": (_around(4, (1.0,)), (0.95, 0.75, 0.1)),
    "triangle": (_around(3, (1.0,)), (0.55, 0.2, 0.7)),
    "star": (_around(10, (1.0, 0.45)), (0.95, 0.5, 0.75)),
    "cross": (_cross(), (0.15, 0.15, 0.2)),
    "bar": (np.array([(1, 0.25), (-1, 0.25), (-1, -0.25), (1, -0.25)]), (0.92, 0.92, 0.92)),
}
GROUNDS = {
    "sky": (0.55, 0.75, 0.95),
    "grass": (0.3, 0.6, 0.25),
    "water": (0.15, 0.4, 0.6),
    "sand": (0.8, 0.7, 0.5),
}


@dataclass(frozen=True)
class Thing:
    """A shape, or a crowd of small ones of one kind.

    Args:
        polygon: (N, 2) x and y of the outline in pixels; None for a crowd.
        mask: (H, W).
    """

    kind: int
    polygon: Array | None
    mask: Flags


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3), the ground of each pixel (H, W), -1 where that is unclear, and what stands on it."""

    picture: NDArray[np.uint8]
    ground: NDArray[np.int64]
    things: tuple[Thing, ...]


def draw_scene(seed: tuple[int, ...], difficulty: float = DIFFICULTY) -> Scene:
    """Draw a scene, the same for the same seed.

    Args:
        difficulty: 0..1, how far colours stray from those of their kind, how small shapes get, clutter and grain.
    """
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(112, 193, 2))
    ground = _draw_grounds(rng, height, width)
    tones = np.array(list(GROUNDS.values())) + rng.normal(0, 0.02 + 0.1 * difficulty, (len(GROUNDS), 3))
    free = np.ones((height, width), bool)
    things = _draw_crowd(rng, free) if rng.random() < 0.25 else []
    for _ in range(int(rng.integers(1, 6))):
        things += _draw_thing(rng, free, rng.uniform(0.28 - 0.16 * difficulty, 0.34) * min(height, width) / 2)
    picture = tones[ground]
    for thing in things:
        _, colour = list(KINDS.values())[thing.kind]
        picture[thing.mask] = colour + rng.normal(0, 0.02 + 0.2 * difficulty, 3)
    for _ in range(rng.poisson(6 * difficulty)):
        for spot in _draw_thing(rng, free, rng.uniform(3, 6)):
            picture[spot.mask], ground[spot.mask] = rng.uniform(0, 1, 3), NONE
    picture += rng.normal(0, 0.01 + 0.06 * difficulty, picture.shape)
    return Scene(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8), ground, tuple(things))


def polygon_mask(polygon: Array, height: int, width: int) -> Flags:
    """Return the pixels (H, W) of a polygon, as pycocotools draws it."""
    codes = mask_codes()
    return draw_mask(codes.merge(codes.frPyObjects([polygon.ravel().tolist()], height, width)))


def _draw_grounds(rng: np.random.Generator, height: int, width: int) -> NDArray[np.int64]:
    """Two grounds, one above the other, with a wavy line between them."""
    above, below = rng.permutation(len(GROUNDS))[:2]
    x = np.arange(width)
    level = height * (rng.uniform(0.3, 0.7) + 0.06 * np.sin(x / rng.uniform(8, 25) + rng.uniform(0, 6)))
    grounds: NDArray[np.int64] = np.where(np.arange(height)[:, None] < level, above, below)
    return grounds


def _draw_thing(rng: np.random.Generator, free: Flags, size: float) -> list[Thing]:
    """A shape of some radius in pixels where there is room for it, taken from `free`; none where there is no room."""
    kind = int(rng.integers(len(KINDS)))
    for _ in range(8):
        thing = _place(rng, kind, size, free.shape)
        if thing is not None and free[thing.mask].all():
            free &= ~thing.mask
            return [thing]
    return []


def _draw_crowd(rng: np.random.Generator, free: Flags) -> list[Thing]:
    """A crowd of small shapes of one kind in a part of the picture."""
    kind, height, width = int(rng.integers(len(KINDS))), *free.shape
    left, top = rng.uniform(0, width / 2), rng.uniform(0, height / 2)
    mask = np.zeros_like(free)
    for row in range(3):
        for column in range(4):
            outline = 5 * list(KINDS.values())[kind][0] + (left + 6 + 13 * column, top + 6 + 13 * row)
            mask |= polygon_mask(outline, height, width)
    free &= ~mask
    return [Thing(kind, None, mask)]


def _place(rng: np.random.Generator, kind: int, size: float, shape: tuple[int, ...]) -> Thing | None:
    """A shape anywhere in the picture, turned at random; None where less than a few pixels are left of it."""
    height, width = shape
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    outline = size * list(KINDS.values())[kind][0] @ turn + rng.uniform((0, 0), (width, height))
    polygon = np.round(np.clip(outline, 0, (width, height)), 2)
    mask = polygon_mask(polygon, height, width)
    return Thing(kind, polygon, mask) if mask.sum() >= 12 else None
