"""The embedded ADE20K: generated scenes in the official layout; ten of its 150 classes occur."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from harness.progress import track
from harness.registry import GENERATORS
from tasks.data.mini_scenes import DIFFICULTY, GROUNDS, KINDS, Scene, draw_scene
from tasks.data.publish import check_parameters, publish

GENERATOR = 2  # to be raised whenever a byte changes
FOLDER = "ADEChallengeData2016"
JPEG_QUALITY = 92
OTHER = 0
# The challenge's labels of these grounds, and labels that stand for the shapes; the first and the last among them.
LABELS = dict(zip((*GROUNDS, *KINDS), (3, 10, 22, 47, 120, 42, 1, 150, 78, 94), strict=True))
SPLITS = {"training": "train", "validation": "val"}
CLASSES = 150
NAMES_FILE = "objectInfo150.txt"


@GENERATORS.register(FOLDER)
def generate(root: Path, *, train: int = 64, val: int = 24, seed: int = 0, difficulty: float = DIFFICULTY) -> Path:
    """Write the data set below `root`, all of it or nothing, and return its folder; what is there already is kept.

    Args:
        train, val: images of each split.
        difficulty: 0..1, see `draw_scene`.

    Raises:
        SetupError: a parameter that makes no data set.
        DataError: the folder is there and incomplete, or holds something else.
    """
    check_parameters(seed, difficulty, train=train, val=val)
    counts = {"training": train, "validation": val}
    card = {
        "name": "ade20k-mini", "generator": GENERATOR, "seed": seed, "difficulty": float(difficulty), **counts,
        "labels": LABELS,
    }  # fmt: skip
    return publish(root / FOLDER, card, list(_files(counts)), lambda folder: _write(folder, counts, seed, difficulty))


def _names(counts: Mapping[str, int]) -> Iterator[tuple[int, int, str, str]]:
    """Number of the split, number of the image, the split's folder, and the name without ending."""
    for number, (split, count) in enumerate(counts.items()):
        for image in range(1, count + 1):
            yield number, image, split, f"ADE_{SPLITS[split]}_{image:08d}"


def _files(counts: Mapping[str, int]) -> Iterator[str]:
    yield NAMES_FILE
    for _, _, split, name in _names(counts):
        yield f"images/{split}/{name}.jpg"
        yield f"annotations/{split}/{name}.png"


def _write(folder: Path, counts: Mapping[str, int], seed: int, difficulty: float) -> None:
    """Write images and labels to a new folder."""
    for kind in ("images", "annotations"):
        for split in counts:
            (folder / kind / split).mkdir(parents=True)
    names = {label: name for name, label in LABELS.items()}
    lines = [f"{label}\t{names.get(label, 'unused')}\n" for label in range(1, CLASSES + 1)]
    (folder / NAMES_FILE).write_text("Idx\tName\n" + "".join(lines), encoding="utf-8")
    for number, image, split, name in track(list(_names(counts)), "draw scenes"):
        # Other scenes than those of the embedded COCO.
        scene = draw_scene((seed, 2 + number, image), difficulty)
        Image.fromarray(scene.picture).save(folder / "images" / split / f"{name}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(labels_of(scene)).save(folder / "annotations" / split / f"{name}.png")


def labels_of(scene: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the labels (H, W): the ground's, 0 where that is unclear, and those of what stands on it."""
    grounds = np.array([*(LABELS[name] for name in GROUNDS), OTHER])  # -1 is the last
    labels = grounds[scene.ground]
    for thing in scene.things:
        labels[thing.mask] = LABELS[list(KINDS)[thing.kind]]
    return labels.astype(np.uint8)
