"""The embedded default: a small made-up data set in ImageNet's layout, drawn offline and the same on every machine.

A class is a field over the plane, one of six kinds of strewn shapes or six kinds of texture. The ink lies where the
field is lowest, up to the quantile that gives each picture exactly its drawn share of ink, and the pattern is scaled
until it has its drawn amount of detail, in bits of a JPEG. These two and all else (colours, contrast, pose, size in
pixels, clutter, grain) are drawn from the same distributions for every class, so that only structure tells the class.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.progress import track
from harness.registry import GENERATORS
from tasks.data.publish import check_parameters, publish

GENERATOR = 1  # to be raised whenever a pixel changes
FOLDER = "imagenet"
JPEG_QUALITY = 90
DIFFICULTY = 0.3
SPLITS = ("train", "val")

Array = NDArray[np.float64]
Plane = NDArray[np.complex128]  # (H, W) points in units of the pattern's pitch
Dice = Array  # (16, 16, 4) in 0..1: what a field may draw from, fixed for a picture while its pitch is sought
Field = Callable[[Plane, Dice], Array]


def _wave(distance: Array) -> Array:
    """Return a triangular wave of period 1 between 0 and 1."""
    wave: Array = np.abs(2 * (distance - np.floor(distance)) - 1)
    return wave


def _strewn(gauge: Callable[[Array, Array], Array]) -> Field:
    """Return the field of copies of one shape, each on its own cell of a jittered lattice and turned by up to 1 radian.

    Args:
        gauge: (radius, angle in radians) -> by how much the shape must grow to reach there.
    """

    def field(z: Plane, dice: Dice) -> Array:
        columns, rows = np.floor(z.real), np.floor(z.imag)
        neighbours = np.array([complex(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]).reshape(9, 1, 1)
        cells = columns + 1j * rows + neighbours  # (9, H, W)
        keys = 16 * (cells.imag.astype(int) % 16) + cells.real.astype(int) % 16
        jitter, turn, growth = dice[..., 0] + 1j * dice[..., 1], dice[..., 2], 0.8 + 0.4 * dice[..., 3]
        offsets = z - cells - (0.25 + 0.25j) - 0.5 * jitter.ravel()[keys]
        nearest = np.argmin(offsets.real**2 + offsets.imag**2, axis=0)[None]
        offset, key = (np.take_along_axis(a, nearest, 0)[0] for a in (offsets, keys))
        reach: Array = gauge(np.abs(offset), np.angle(offset) + turn.ravel()[key]) / growth.ravel()[key]
        return reach

    return field


def _star(points: int, notch: float) -> Field:
    """Return strewn stars with tips at radius 1 and notches at radius `notch`; cos(pi / points) gives a polygon."""
    half = np.pi / points
    slope = (1 / notch - np.cos(half)) / np.sin(half)

    def gauge(radius: Array, angle: Array) -> Array:
        folded = np.abs(np.mod(angle, 2 * half) - half)
        reach: Array = radius * (np.cos(folded) + slope * np.sin(folded))
        return reach

    return _strewn(gauge)


def _disc(radius: Array, angle: Array) -> Array:
    return radius


def _ring(radius: Array, angle: Array) -> Array:
    distance: Array = np.abs(radius - 0.34)
    return distance


def _cross(radius: Array, angle: Array) -> Array:
    along, across = np.abs(radius * np.cos(angle)), np.abs(radius * np.sin(angle))
    reach: Array = np.maximum(np.maximum(along, across), 3 * np.minimum(along, across))
    return reach


def _stripes(z: Plane, dice: Dice) -> Array:
    return _wave((z.real + z.imag) / np.sqrt(2))


def _zigzag(z: Plane, dice: Dice) -> Array:
    return _wave(z.real + 0.8 * _wave(0.6 * z.imag))


def _ripples(z: Plane, dice: Dice) -> Array:
    return _wave(np.abs(z))


def _bricks(z: Plane, dice: Dice) -> Array:
    row = np.floor(z.imag)
    to_bed, to_joint = _wave(z.imag + 0.5), 2 * _wave(z.real / 2 + row / 2 + 0.5)
    distance: Array = np.minimum(to_bed, to_joint)
    return distance


def _honeycomb(z: Plane, dice: Dice) -> Array:
    def offset(shift: complex) -> Plane:
        moved = z - shift
        centre: Plane = np.rint(moved.real) + 1j * np.sqrt(3) * np.rint(moved.imag / np.sqrt(3))
        return moved - centre

    even, odd = offset(0), offset((1 + 1j * np.sqrt(3)) / 2)
    nearest = np.where(np.abs(even) < np.abs(odd), even, odd)
    x, y = np.abs(nearest.real), np.abs(nearest.imag)
    to_centre: Array = np.maximum(x, x / 2 + y * np.sqrt(3) / 2)
    return -to_centre


def _marble(z: Plane, dice: Dice) -> Array:
    directions = (0.6 + 0.8 * dice[0, :8, 0]) * np.exp(2j * np.pi * dice[0, :8, 1])
    phases = 2 * np.pi * dice[0, :8, 2]
    total: Array = sum(np.cos(2 * np.pi * (z * k).real + phase) for k, phase in zip(directions, phases, strict=True))
    return total


CLASSES: dict[str, tuple[str, Field]] = {
    "n99000001": ("disc", _strewn(_disc)),
    "n99000002": ("triangle", _star(3, 0.5)),
    "n99000003": ("square", _star(4, np.sqrt(0.5))),
    "n99000004": ("star", _star(5, 0.45)),
    "n99000005": ("ring", _strewn(_ring)),
    "n99000006": ("cross", _strewn(_cross)),
    "n99000007": ("stripes", _stripes),
    "n99000008": ("zigzag", _zigzag),
    "n99000009": ("ripples", _ripples),
    "n99000010": ("bricks", _bricks),
    "n99000011": ("honeycomb", _honeycomb),
    "n99000012": ("marble", _marble),
}


@dataclass(frozen=True)
class Scene:
    """What is drawn alike for every class.

    Args:
        points: (H, W) where each pixel lies on the pattern's plane, in short sides of the picture.
        ink: share of the picture's area that is ink.
        detail: bits per pixel that the ink adds to a JPEG, times the short side; sets how fine the pattern is.
        blur: width of the ink's edges, in pixels.
    """

    points: Plane
    ink: float
    detail: float
    blur: float


def _draw_scene(rng: np.random.Generator, difficulty: float) -> Scene:
    short, aspect = rng.uniform(96, 160), np.exp(rng.uniform(0, np.log(1.6)))
    sides = round(short), round(short * aspect)
    height, width = sides if rng.random() < 0.7 else sides[::-1]
    origin = rng.uniform(0.2, 0.8, 2) * (height, width)
    y, x = np.mgrid[:height, :width] - origin.reshape(2, 1, 1)
    bend = _smooth(rng, height, width, 3) + 1j * _smooth(rng, height, width, 3)
    return Scene(
        points=((x + 1j * y) / min(sides) + 0.12 * difficulty * bend) * np.exp(1j * rng.uniform(-0.2, 0.2)),
        ink=rng.uniform(0.22, 0.34),
        detail=np.exp(rng.uniform(np.log(150), np.log(280))),
        blur=rng.uniform(1, 2),
    )


def _smooth(rng: np.random.Generator, height: int, width: int, cells: int) -> Array:
    """Return smooth noise (H, W) of standard deviation near 1 with `cells` random values along each side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)


def _ink(scene: Scene, field: Field, dice: Dice) -> Array:
    """Return the share (H, W) of each pixel that is ink."""
    pitch = 0.2
    for _ in range(3):
        pitch *= _detail(_cover(scene, field(scene.points / pitch, dice))) / scene.detail
    return _cover(scene, field(scene.points / pitch, dice))


def _cover(scene: Scene, values: Array) -> Array:
    """Return the ink (H, W) on the lowest values."""
    down, right = np.gradient(values)
    edge = scene.blur * np.hypot(down, right) + 1e-6
    ink: Array = np.clip(0.5 + (np.quantile(values, scene.ink) - values) / edge, 0, 1)
    return ink


def _detail(ink: Array) -> float:
    """Return the bits per pixel that the ink (H, W) adds to the JPEG of a grainy picture, times the short side."""
    grain = 6 * np.random.default_rng(0).standard_normal(ink.shape)
    with_ink, without = (encode(np.rint(shade + grain).astype(np.uint8)) for shade in (64 + 128 * ink, 128))
    return 8 * (len(with_ink) - len(without)) / ink.size * float(min(ink.shape))


def encode(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture (H, W, 3) or (H, W) as the content of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _shade(ink: Array, share: float, rng: np.random.Generator, difficulty: float) -> Array:
    """Return ink (H, W) under uneven light and grain, its histogram set to one that depends on the share of ink alone.

    Edges, thin lines and corners leave different amounts of half-inked pixels, which would tell the class by colour.
    """
    height, width = ink.shape
    coarse, fine = (_smooth(rng, height, width, cells) for cells in (3, 24))
    grain = rng.uniform(0, 0.25) * rng.standard_normal(ink.shape)
    lit = ink + 0.1 * coarse + difficulty * (0.1 * fine + grain)
    shades = (np.arange(ink.size) > (1 - share) * ink.size) + 0.12 * rng.standard_normal(ink.size)
    shade = np.empty(ink.size)
    shade[np.argsort(lit, axis=None, kind="stable")] = np.sort(shades)
    return shade.reshape(ink.shape)


def _draw_colours(rng: np.random.Generator, ink: float) -> Array:
    """Return the colours (2, 3) in 0..1 of ground and ink, which over a whole picture mix to a medium grey."""
    tint = 0.1 * rng.standard_normal(3)
    difference = rng.choice([-1, 1]) * rng.uniform(0.4, 0.6) + tint - tint.mean()
    colours: Array = rng.uniform(0.48, 0.52) + difference * np.array([[-ink], [1 - ink]])
    return colours


def _strew_spots(picture: Array, rng: np.random.Generator, difficulty: float) -> None:
    """Lay translucent discs of any colour over a picture (H, W, 3), in place."""
    height, width, _ = picture.shape
    y, x = np.mgrid[:height, :width]
    for _ in range(rng.poisson(4 * difficulty)):
        radius = min(height, width) * rng.uniform(0.03, 0.12)
        distance = np.hypot(y - rng.uniform(0, height), x - rng.uniform(0, width))
        cover = rng.uniform(0.3, 0.7) * np.clip((radius - distance) / rng.uniform(1, 4) + 0.5, 0, 1)
        picture += cover[..., None] * (rng.uniform(0.1, 0.9, 3) - picture)


def draw(label: int, split: int, index: int, *, seed: int = 0, difficulty: float = DIFFICULTY) -> NDArray[np.uint8]:
    """Draw one picture (H, W, 3).

    Args:
        label: position in `CLASSES`.
        split: 0 for train, 1 for val.
        difficulty: 0..1, scales bends, clutter and grain.
    """
    rng = np.random.default_rng([seed, label, split, index])
    scene = _draw_scene(rng, difficulty)
    _, field = list(CLASSES.values())[label]
    ink = _ink(scene, field, rng.random((16, 16, 4)))
    ground, colour = _draw_colours(rng, scene.ink)
    shade = _shade(ink, scene.ink, rng, difficulty)
    picture = ground + shade[..., None] * (colour - ground)
    _strew_spots(picture, rng, difficulty)
    pixels: NDArray[np.uint8] = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return pixels


@GENERATORS.register(FOLDER)
def generate(
    root: Path,
    *,
    train_per_class: int = 24,
    val_per_class: int = 12,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
) -> Path:
    """Write the data set below `root`, all of it or nothing, and return its folder; what is there already is kept.

    Args:
        difficulty: 0..1, scales bends, clutter and grain.

    Raises:
        SetupError: a parameter that makes no data set.
        DataError: the folder is there and incomplete, or holds something else.
    """
    check_parameters(seed, difficulty, train_per_class=train_per_class, val_per_class=val_per_class)
    counts = (train_per_class, val_per_class)
    names = ["synsets.txt", *(name for *_, name in _names(counts))]

    def write(folder: Path) -> None:
        _write(folder, seed, difficulty, counts)

    return publish(root / FOLDER, _card(counts, seed, difficulty), names, write)


def _card(counts: tuple[int, int], seed: int, difficulty: float) -> dict[str, Any]:
    """Return what `dataset.json` says: all that the pictures depend on."""
    return {
        "name": "imagenet-mini",
        "generator": GENERATOR,
        "seed": seed,
        "difficulty": float(difficulty),
        "train_per_class": counts[0],
        "val_per_class": counts[1],
        "classes": {wnid: name for wnid, (name, _) in CLASSES.items()},
    }


def _names(counts: tuple[int, int]) -> Iterator[tuple[int, int, int, str]]:
    """Yield label, split, index and file name of each picture; the names do not depend on the counts."""
    for split, count in enumerate(counts):
        for label, wnid in enumerate(CLASSES):
            for index in range(count):
                number = index * len(CLASSES) + label + 1
                stem = f"ILSVRC2012_val_{number:08d}" if SPLITS[split] == "val" else f"{wnid}_{index}"
                yield label, split, index, f"{SPLITS[split]}/{wnid}/{stem}.JPEG"


def _write(folder: Path, seed: int, difficulty: float, counts: tuple[int, int]) -> None:
    """Write the pictures and the class list to a new folder."""
    for label, split, index, name in track(list(_names(counts)), "draw pictures"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw(label, split, index, seed=seed, difficulty=difficulty)))
    (folder / "synsets.txt").write_text("".join(f"{wnid}\n" for wnid in CLASSES), encoding="utf-8")
