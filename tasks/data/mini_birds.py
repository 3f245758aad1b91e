"""A small made-up fine-grained set in the layout of CUB-200-2011, drawn offline, the same everywhere.

Ten kinds of one bird: each has two of five field marks (cap, eye stripe, breast band, wing bars, tail tip). Plumage,
pose, size, background and twigs are drawn from the same distributions for every kind, so that only the marks tell it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from harness.progress import track
from harness.registry import GENERATORS
from tasks.data.publish import check_parameters, publish

GENERATOR = 1  # to be raised whenever a pixel changes
FOLDER = "CUB_200_2011"
JPEG_QUALITY = 90
DIFFICULTY = 0.1
FINER = 3  # times the picture's size, to draw smooth edges

Array = NDArray[np.float64]
Colour = tuple[int, int, int]

MARKS: dict[str, Array] = {
    "Capped": np.array([0.85, 0.1, 0.1]),
    "Masked": np.array([0.05, 0.05, 0.05]),
    "Banded": np.array([0.95, 0.85, 0.1]),
    "Barred": np.array([0.97, 0.97, 0.97]),
    "Tipped": np.array([0.1, 0.25, 0.9]),
}
KINDS = tuple(itertools.combinations(MARKS, 2))
CLASSES = tuple(f"{number:03d}.{'_'.join(kind)}_Finch" for number, kind in enumerate(KINDS, start=1))


@dataclass(frozen=True)
class Pose:
    """Where a bird is: from points of its own (x along the body to the head, y up) to pixels.

    Args:
        centre: in pixels.
        along: the unit of x, in pixels, as a complex number.
        mirrored: whether it looks the other way.
    """

    centre: complex
    along: complex
    mirrored: bool

    def __call__(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        """Return pixels of points."""
        placed = [self.centre + self.along * complex(-x if self.mirrored else x, -y) for x, y in points]
        return [(point.real, point.imag) for point in placed]

    def ellipse(self, x: float, y: float, a: float, b: float, turn: float = 0.0) -> list[tuple[float, float]]:
        """Return the outline of an ellipse with half axes a and b, turned by so many radians."""
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        outline = (a * np.cos(angles) + 1j * b * np.sin(angles)) * np.exp(1j * turn) + complex(x, y)
        return self(*((point.real, point.imag) for point in outline))


@dataclass(frozen=True)
class Picture:
    """Pixels (H, W, 3), and the bird's box: left, top, width, height."""

    pixels: NDArray[np.uint8]
    box: tuple[float, float, float, float]


def draw(label: int, split: int, index: int, *, seed: int = 0, difficulty: float = DIFFICULTY) -> Picture:
    """Draw one bird.

    Args:
        label: position in `CLASSES`.
        split: 0 for train, 1 for test.
        difficulty: 0..1, how far the marks fade into the plumage, and how much plumage and background vary; at 1
            nothing tells the kinds apart.
    """
    rng = np.random.default_rng([seed, label, split, index])
    width, height = int(rng.integers(120, 161)), int(rng.integers(110, 141))
    variety = 0.1 + 0.9 * difficulty
    canvas = _background(rng, width, height, variety)
    brush = ImageDraw.Draw(canvas)
    pose = Pose(
        centre=FINER * complex(width * rng.uniform(0.46, 0.54), height * rng.uniform(0.45, 0.6)),
        along=FINER * min(width, height) * rng.uniform(0.2, 0.28) * np.exp(1j * rng.uniform(-0.25, 0.25)),
        mirrored=bool(rng.random() < 0.5),
    )
    plumage = 0.5 + variety * (rng.uniform(-0.15, 0.15) + rng.uniform(-0.1, 0.1, 3))
    _draw_twig(brush, rng, pose)
    _draw_bird(brush, pose, plumage, set(KINDS[label]), 1 - difficulty)
    small = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float64)
    pixels = np.clip(small + rng.normal(0, 5, small.shape), 0, 255).round().astype(np.uint8)
    return Picture(pixels, _box(pose, width, height))


def _background(rng: np.random.Generator, width: int, height: int, variety: float) -> Image.Image:
    """Return a blurred green, the more mixed the more variety (0..1) there is."""
    coarse = np.array([0.52, 0.6, 0.5]) + variety * (rng.uniform(-0.15, 0.15, 3) + rng.normal(0, 0.1, (4, 5, 3)))
    return Image.fromarray(_to_bytes(coarse)).resize((FINER * width, FINER * height), Image.Resampling.BICUBIC)


def _to_bytes(colours: Array) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = (255 * np.clip(colours, 0, 1)).round().astype(np.uint8)
    return levels


def _ink(colours: Array) -> Colour:
    red, green, blue = _to_bytes(colours).tolist()
    return red, green, blue


def _draw_twig(brush: ImageDraw.ImageDraw, rng: np.random.Generator, pose: Pose) -> None:
    """Lay the twig that the bird sits on, and a leaf or two."""
    tilt = rng.uniform(-0.2, 0.2)
    brush.line(
        pose((-3, -0.85 - 3 * tilt), (3, -0.85 + 3 * tilt)), fill=(84, 60, 40), width=int(abs(pose.along) * 0.12)
    )
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(-1.8, 1.8), rng.uniform(-1.4, -0.9)
        leaf = _ink(np.array([0.25, 0.45, 0.2]) + rng.uniform(-0.1, 0.1, 3))
        brush.polygon(pose.ellipse(x, y, 0.3, 0.12, rng.uniform(0, np.pi)), fill=leaf)


def _draw_bird(brush: ImageDraw.ImageDraw, pose: Pose, plumage: Array, marks: set[str], signal: float) -> None:
    """Paint the bird part by part; a mark that it lacks, or that has no signal, has the colour of the part."""

    def paint(mark: str, under: Array) -> Colour:
        return _ink(under + signal * (MARKS[mark] - under) if mark in marks else under)

    tail, wing = 0.8 * plumage, 0.65 * plumage
    brush.polygon(pose((-0.7, 0.15), (-1.75, 0.2), (-1.75, -0.2), (-0.7, -0.2)), fill=_ink(tail))
    brush.polygon(pose((-1.2, 0.19), (-1.75, 0.2), (-1.75, -0.2), (-1.2, -0.2)), fill=paint("Tipped", tail))
    brush.line(pose((0.1, -0.4), (0.1, -0.9)), fill=(60, 50, 40), width=int(abs(pose.along) * 0.06))
    brush.polygon(pose.ellipse(0, 0, 0.9, 0.55, 0.15), fill=_ink(plumage))
    brush.polygon(pose((0.15, -0.53), (0.6, -0.38), (0.9, 0.1), (0.5, 0.3)), fill=paint("Banded", plumage))
    brush.polygon(pose.ellipse(-0.25, 0.08, 0.6, 0.3, 0.1), fill=_ink(wing))
    for x in (-0.5, -0.25, 0.0):
        brush.line(pose((x, -0.15), (x + 0.1, 0.3)), fill=paint("Barred", wing), width=int(abs(pose.along) * 0.14))
    brush.polygon(pose((1.15, 0.62), (1.55, 0.5), (1.15, 0.42)), fill=(225, 165, 60))
    brush.polygon(pose.ellipse(0.85, 0.52, 0.38, 0.36), fill=_ink(plumage))
    brush.polygon(
        pose((0.5, 0.64), (0.58, 0.82), (0.85, 0.94), (1.12, 0.82), (1.2, 0.64)), fill=paint("Capped", plumage)
    )
    brush.polygon(pose((0.48, 0.64), (1.22, 0.64), (1.2, 0.38), (0.5, 0.38)), fill=paint("Masked", plumage))
    brush.polygon(pose.ellipse(0.98, 0.55, 0.06, 0.06), fill=(235, 235, 225))
    brush.polygon(pose.ellipse(0.98, 0.55, 0.035, 0.035), fill=(10, 10, 10))


def _box(pose: Pose, width: int, height: int) -> tuple[float, float, float, float]:
    """The box around the bird within the picture, in its pixels."""
    outline = pose((-1.75, 0.2), (-1.75, -0.2), (1.55, 0.5), (0.85, 0.9), (0.1, -0.9), (0, 0.56), (0, -0.56))
    x, y = np.array(outline).T / FINER
    left, right = np.clip([x.min(), x.max()], 0, width).round(1)
    top, bottom = np.clip([y.min(), y.max()], 0, height).round(1)
    return float(left), float(top), round(float(right - left), 1), round(float(bottom - top), 1)


@GENERATORS.register("cub")
def generate(
    root: Path,
    *,
    train_per_class: int = 20,
    test_per_class: int = 10,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
) -> Path:
    """Write the data set below `root`, all of it or nothing, and return its folder; what is there already is kept.

    Args:
        difficulty: as `draw` takes it.

    Raises:
        SetupError: a parameter that makes no data set.
        DataError: the folder is there and incomplete, or holds something else.
    """
    check_parameters(seed, difficulty, train_per_class=train_per_class, test_per_class=test_per_class)
    counts = (train_per_class, test_per_class)
    card = {"name": "cub-mini", "generator": GENERATOR, "seed": seed, "difficulty": float(difficulty),
            "train_per_class": counts[0], "test_per_class": counts[1], "classes": list(CLASSES)}  # fmt: skip
    names = [*LISTS, *(f"images/{name}" for *_, name in _images(counts))]
    return publish(root / FOLDER, card, names, lambda folder: _write(folder, counts, seed, difficulty))


LISTS = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt", "bounding_boxes.txt")


def _images(counts: tuple[int, int]) -> Iterator[tuple[int, int, int, str]]:
    """Yield label, split, index and file name of each picture, class by class as the official lists do."""
    for label, name in enumerate(CLASSES):
        for split, count in enumerate(counts):
            for index in range(count):
                yield label, split, index, f"{name}/{name[4:]}_{split}{index:03d}.jpg"


def _write(folder: Path, counts: tuple[int, int], seed: int, difficulty: float) -> None:
    """Write the pictures and the official lists to a new folder."""
    lists: dict[str, list[str]] = {name: [] for name in LISTS}
    lists["classes.txt"] = [f"{number} {name}" for number, name in enumerate(CLASSES, start=1)]
    for number, (label, split, index, name) in enumerate(track(list(_images(counts)), "draw birds"), start=1):
        picture = draw(label, split, index, seed=seed, difficulty=difficulty)
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(picture.pixels))
        lists["images.txt"].append(f"{number} {name}")
        lists["image_class_labels.txt"].append(f"{number} {label + 1}")
        lists["train_test_split.txt"].append(f"{number} {1 - split}")
        lists["bounding_boxes.txt"].append(f"{number} {' '.join(map(str, picture.box))}")
    for file, lines in lists.items():
        (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
