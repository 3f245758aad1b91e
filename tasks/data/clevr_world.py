"""Made-up scenes by CLEVR's rules: what stands where, and the camera and the lamps, before anything is drawn.

Camera, lamps, sizes, colours and rules of placement are those of the official generator, so that depths, and with them
the classes of distance, are distributed as in CLEVR.

Source: facebookresearch/clevr-dataset-gen (`render_images.py`, `properties.json`, `base_scene.blend`), read as facts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHAPES = ("cube", "sphere", "cylinder")
MATERIALS = ("rubber", "metal")
SIZES = {"large": 0.7, "small": 0.35}
COLOURS = {
    "gray": (87, 87, 87), "red": (173, 35, 35), "blue": (42, 75, 215), "green": (29, 105, 20),
    "brown": (129, 74, 25), "purple": (129, 38, 192), "cyan": (41, 208, 208), "yellow": (255, 238, 51),
}  # fmt: skip
UP = np.array([0.0, 0.0, 1.0])
CAMERA = np.array([7.48113, -6.50764, 5.34367])  # looks at the origin
CAMERA_JITTER = 0.5
FOCAL = 35 / 32  # focal length over the sensor's longer side
# Key, fill and back lamp.
LAMPS = np.array([[6.45, -2.91, 4.26], [-4.67, -4.01, 3.01], [-1.17, 2.65, 5.82]])
LAMP_JITTER = 1.0
EXTENT = 3.0
LEAST_GAP = 0.25
MARGIN = 0.4  # along the camera's four directions on the ground
TRIES = 50
LEAST_DISTANCE_OF_RELATION = 0.2
LEAST_PIXELS = 200 / (320 * 240)  # of the picture's area that each object shows


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        position: (3,).
        axes: (3, 3), unit vectors to the right, up, and forward, as rows.
    """

    position: Array
    axes: Array

    def directions(self) -> dict[str, list[float]]:
        """Return the six directions that scenes name, in the world."""
        forward = self.axes[2] * (1, 1, 0)
        behind, left = forward / np.linalg.norm(forward), -self.axes[0]
        named = {"behind": behind, "front": -behind, "left": left, "right": -left, "above": UP, "below": -UP}
        return {name: [float(value) for value in direction] for name, direction in named.items()}

    def project(self, point: Array, height: int, width: int) -> tuple[int, int, float]:
        """Return column and row in pixels, and depth along the axis."""
        right, up, depth = (float(value) for value in self.axes @ (point - self.position))
        scale = FOCAL * max(height, width) / depth
        return round(width / 2 + scale * right), round(height / 2 - scale * up), depth


@dataclass(frozen=True)
class Thing:
    """One object, standing on the ground.

    Args:
        centre: (3,).
        radius: half the height; of a cube also half the side, of the others the radius.
        turn: about the vertical, in radians.
    """

    shape: str
    size: str
    colour: str
    material: str
    centre: Array
    radius: float
    turn: float

    @property
    def reach(self) -> float:
        """The radius of a sphere around it."""
        return self.radius * {"sphere": 1.0, "cylinder": math.sqrt(2), "cube": math.sqrt(3)}[self.shape]


@dataclass(frozen=True)
class World:
    """Everything that a picture is drawn from.

    Args:
        lamps: (3, 3), positions of the key, the fill and the back lamp.
    """

    camera: Camera
    lamps: Array
    things: tuple[Thing, ...]


def aim(position: Array) -> Camera:
    """Return a camera at a position that looks at the origin."""
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, UP)
    right = right / np.linalg.norm(right)
    return Camera(position, np.stack([right, np.cross(right, forward), forward]))


def set_stage(rng: np.random.Generator) -> World:
    """Return a world without objects."""
    camera = aim(CAMERA + rng.uniform(-CAMERA_JITTER, CAMERA_JITTER, 3))
    return World(camera, LAMPS + rng.uniform(-LAMP_JITTER, LAMP_JITTER, (3, 3)), ())


def arrangements(rng: np.random.Generator, camera: Camera, count: int) -> Iterator[tuple[Thing, ...]]:
    """Yield arrangements of so many objects that keep their distances, without end."""
    named = camera.directions()
    axes = np.array([named["left"][:2], named["behind"][:2]])
    while True:
        things: list[Thing] = []
        while len(things) < count and (placed := _place(rng, axes, things)):
            things.append(placed)
        if len(things) == count:
            yield tuple(things)


def _place(rng: np.random.Generator, axes: Array, things: Sequence[Thing]) -> Thing | None:
    """Return one more object that keeps its distance from the others, also along both axes; None without a place."""
    size = _one_of(rng, SIZES)
    radius = SIZES[size]
    places = rng.uniform(-EXTENT, EXTENT, (TRIES, 2))
    if things:
        offsets = places[:, None] - np.array([thing.centre[:2] for thing in things])  # (tries, things, 2)
        radii = np.array([thing.radius for thing in things])
        far = np.hypot(offsets[..., 0], offsets[..., 1]) - radii - radius >= LEAST_GAP
        along = np.abs(offsets @ axes.T)
        places = places[(far & (along >= MARGIN).all(axis=2)).all(axis=1)]
    if not len(places):
        return None
    shape, colour, material = (_one_of(rng, names) for names in (SHAPES, COLOURS, MATERIALS))
    radius /= math.sqrt(2) if shape == "cube" else 1
    # The official generator draws 0 to 360 and then uses the number as radians.
    turn = float(rng.uniform(0, 360))
    return Thing(shape, size, colour, material, np.array([*places[0], radius]), radius, turn)


def _one_of(rng: np.random.Generator, names: Iterable[str]) -> str:
    choices = list(names)
    return choices[rng.integers(len(choices))]


def describe(world: World, split: str, index: int, height: int, width: int) -> dict[str, Any]:
    """Return the scene with every field of the official files, and in their order."""
    directions = world.camera.directions()
    objects = [
        {
            "shape": thing.shape, "size": thing.size, "material": thing.material,
            "3d_coords": [float(value) for value in thing.centre], "rotation": thing.turn,
            "pixel_coords": list(world.camera.project(thing.centre, height, width)), "color": thing.colour,
        }
        for thing in world.things
    ]  # fmt: skip
    return {
        "split": split, "image_index": index, "image_filename": f"CLEVR_{split}_{index:06d}.png", "objects": objects,
        "directions": directions, "relationships": relationships(world.things, directions),
    }  # fmt: skip


def relationships(things: Sequence[Thing], directions: dict[str, list[float]]) -> dict[str, list[list[int]]]:
    """Return for each direction along the ground and each object which others lie that way of it."""
    centres = np.array([thing.centre for thing in things]).reshape(-1, 3)
    offsets = centres[None] - centres[:, None]
    return {
        name: [
            np.flatnonzero(row > LEAST_DISTANCE_OF_RELATION).tolist() for row in offsets @ np.array(directions[name])
        ]
        for name in ("behind", "front", "left", "right")
    }
