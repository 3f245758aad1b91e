"""CLEVR-like scenes without end, drawn offline; and a small set of them in CLEVR's layout."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.errors import SetupError
from harness.progress import track
from harness.registry import GENERATORS
from tasks.data.clevr_rays import render, visible
from tasks.data.clevr_scenes import Scene, count_class, distance_class
from tasks.data.clevr_world import COLOURS, Array, World, arrangements, describe, set_stage
from tasks.data.publish import CARD, publish

GENERATOR = 1  # to be raised whenever a pixel or a label changes
FOLDER = "CLEVR_v1.0"
SPLITS = ("train", "val")
SIZE = (120, 160)
FEWEST, MOST = 3, 10
INFO = {"date": "01/01/2026", "version": "1.0", "license": "Apache-2.0, drawn by backbone-bench"}


@dataclass(frozen=True)
class Drawing:
    """A picture with what it shows.

    Args:
        pixels: (H, W, 3).
        scene: every field of an official scene.
    """

    pixels: NDArray[np.uint8]
    scene: dict[str, Any]

    @property
    def count_class(self) -> int:
        """The class of Clevr-Count, 0 to 7."""
        return count_class(self.known)

    @property
    def distance_class(self) -> int:
        """The class of Clevr-Dist, 0 to 5."""
        return distance_class(self.known)

    @property
    def known(self) -> Scene:
        """What the classes are made of."""
        return Scene(self.scene["image_filename"], tuple(each["pixel_coords"][2] for each in self.scene["objects"]))


def imagine(index: int, *, seed: int = 0, split: int = 0, counts: tuple[int, int] = (FEWEST, MOST)) -> World:
    """Return what stands in the scene of an index, each object in sight; arguments as `draw` takes them."""
    rng = np.random.default_rng([seed, split, index, 0])
    stage = set_stage(rng)
    count = int(rng.integers(counts[0], counts[1] + 1))
    worlds = (replace(stage, things=things) for things in arrangements(rng, stage.camera, count))
    return next(world for world in worlds if visible(world))


def draw(
    index: int,
    *,
    seed: int = 0,
    split: int = 0,
    difficulty: float = 0.0,
    size: tuple[int, int] = SIZE,
    counts: tuple[int, int] = (FEWEST, MOST),
) -> Drawing:
    """Draw the scene of an index; there is one for every index, and none depends on another.

    Args:
        split: 0 for train, 1 for val; any other number is a further series.
        difficulty: 0..1; fades objects and shadows until nothing of them is left at 1, strews flat spots of the same
            colours, and adds noise. Neither the scene nor its classes depend on it.
        size: height and width in pixels; the scene does not depend on it.
        counts: fewest and most objects, each number equally often.
    """
    world = imagine(index, seed=seed, split=split, counts=counts)
    looks = np.random.default_rng([seed, split, index, 1])
    picture = _faded(world, _spots(looks, difficulty), difficulty, size)
    picture = picture + (0.004 + 0.08 * difficulty) * looks.standard_normal(picture.shape)
    name = SPLITS[split] if split < len(SPLITS) else f"series{split}"
    pixels: NDArray[np.uint8] = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return Drawing(pixels, describe(world, name, index, *size))


def _faded(world: World, spots: Array, difficulty: float, size: tuple[int, int]) -> Array:
    """Return the picture of a world, mixed with that of its empty stage."""
    if difficulty == 0:
        return render(world, spots, *size)
    empty = render(replace(world, things=()), spots, *size)
    return empty if difficulty == 1 else empty + (1 - difficulty) * (render(world, spots, *size) - empty)


def _spots(rng: np.random.Generator, difficulty: float) -> Array:
    """Return flat spots on the ground (S, 6): position, radius, and one of the objects' colours."""
    number = rng.poisson(8 * difficulty)
    colours = np.array(list(COLOURS.values()))[rng.integers(len(COLOURS), size=number)] / 255
    return np.column_stack([rng.uniform(-3.5, 3.5, (number, 2)), rng.uniform(0.2, 0.7, number), colours])


@dataclass(frozen=True)
class EndlessScenes:
    """Scenes drawn as those of a generated folder were, from a position to PNG content, class and name.

    Args:
        label: the class of a scene.
        number: of the sequence; no two share a scene, and none has one of the splits.
        seed, difficulty, counts, size: as `draw` takes them.
    """

    label: Callable[[Scene], int]
    number: int
    seed: int = 0
    difficulty: float = 0.0
    counts: tuple[int, int] = (FEWEST, MOST)
    size: tuple[int, int] = SIZE

    @classmethod
    def of(cls, folder: Path, label: Callable[[Scene], int], number: int) -> EndlessScenes:
        """Return a sequence with the parameters of a generated folder.

        Raises:
            SetupError: the folder was made by something else.
        """
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            fewest, most = card["counts"]
            known = card["generator"] == GENERATOR
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise SetupError(f"{folder} was not made by this generator: leave out fresh=true.")
        return cls(label, number, card["seed"], card["difficulty"], (fewest, most))

    def __call__(self, position: int) -> tuple[bytes, int, str]:
        """Draw the scene at a position."""
        split = len(SPLITS) + self.number
        drawing = draw(position, seed=self.seed, split=split, difficulty=self.difficulty, size=self.size,
                       counts=self.counts)  # fmt: skip
        return to_png(drawing.pixels), self.label(drawing.known), drawing.scene["image_filename"]


@GENERATORS.register("clevr")
def generate(
    root: Path,
    *,
    train: int = 240,
    val: int = 96,
    seed: int = 0,
    difficulty: float = 0.0,
    counts: tuple[int, int] = (FEWEST, MOST),
) -> Path:
    """Write the data set below `root`, all of it or nothing, and return its folder; what is there already is kept.

    Args:
        train, val: how many scenes.
        difficulty, counts: as `draw` takes them.

    Raises:
        SetupError: a parameter that makes no data set.
        DataError: the folder is there and incomplete, or holds something else.
    """
    fewest, most = counts
    if min(train, val) < 1 or seed < 0 or not 0 <= difficulty <= 1 or not FEWEST <= fewest <= most <= MOST:
        raise SetupError(
            f"No data set has train={train}, val={val}, seed={seed}, difficulty={difficulty}, counts={counts}: use 1 "
            f"scene or more, a seed from 0, a difficulty in 0..1, and counts from {FEWEST} to {MOST}."
        )
    numbers = (train, val)
    card = {"name": "clevr-mini", "generator": GENERATOR, "seed": seed, "difficulty": float(difficulty),
            "train": train, "val": val, "counts": list(counts)}  # fmt: skip
    names = [f"images/{split}/CLEVR_{split}_{index:06d}.png"
             for split, number in zip(SPLITS, numbers, strict=True) for index in range(number)]  # fmt: skip
    names += [f"scenes/CLEVR_{split}_scenes.json" for split in SPLITS]
    return publish(root / FOLDER, card, names, _writer(numbers, seed, difficulty, counts))


def _writer(numbers: tuple[int, int], seed: int, difficulty: float, counts: tuple[int, int]) -> Callable[[Path], None]:
    """Return the function that writes pictures and scenes into a new folder."""

    def write(folder: Path) -> None:
        for split, number in enumerate(numbers):
            images, scenes = folder / "images" / SPLITS[split], folder / "scenes"
            images.mkdir(parents=True)
            scenes.mkdir(exist_ok=True)
            found = []
            for index in track(range(number), f"draw {SPLITS[split]} scenes"):
                drawing = draw(index, seed=seed, split=split, difficulty=difficulty, counts=counts)
                (images / drawing.scene["image_filename"]).write_bytes(to_png(drawing.pixels))
                found.append(drawing.scene)
            content = {"info": {**INFO, "split": SPLITS[split]}, "scenes": found}
            (scenes / f"CLEVR_{SPLITS[split]}_scenes.json").write_text(json.dumps(content), encoding="utf-8")

    return write


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
