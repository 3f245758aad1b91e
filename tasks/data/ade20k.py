"""ADE20K's 150 classes in the layout of the scene parsing challenge.

`<root>/ADEChallengeData2016/images/validation/*.jpg` and `annotations/validation/*.png`; in the annotations 0 is
`other`, which does not count, and 1 to 150 are the classes.

Source: Zhou et al. 2017 (arXiv:1608.05442); sceneparsing.csail.mit.edu.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.errors import DataError, reason
from harness.record import DataStamp
from tasks.data.coco import name_some
from tasks.data.labelled import images_in
from tasks.data.roots import data_name, find

FOLDERS = ("ADEChallengeData2016", "ade20k/ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k", "ADE20K", "ade")
MARKS = ("annotations/validation", "annotations/training")
SPLITS = {"val": "validation", "train": "training"}
CLASSES = 150


@dataclass(frozen=True)
class LabelMaps:
    """The annotations of one split.

    Args:
        names: of the images, without ending, sorted.
        folder: of the PNG files.
        classes: names of the classes 1 to 150, empty where the data set does not come with them.
    """

    names: Sequence[str]
    folder: Path
    classes: Sequence[str]
    stamp: DataStamp

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the annotation (H, W) of an image.

        Raises:
            DataError: it cannot be read.
        """
        return read_labels(self.folder / f"{name}.png")


def home(root: Path | None) -> Path:
    """Return the folder of the data set below a data root.

    Raises:
        DataError: it is not there.
    """
    return find(FOLDERS, root, "images/validation/*.jpg and annotations/validation/*.png", MARKS)


def read_split(root: Path | None, split: str, annotations: Path | None = None) -> LabelMaps:
    """Return the annotations of `val` or `train`.

    Args:
        annotations: a folder of label PNG files in place of the data root's.

    Raises:
        DataError: they are not there.
    """
    folder = annotations or home(root) / "annotations" / SPLITS[split]
    if not folder.is_dir():
        raise DataError(f"ade20k has no annotations in {str(folder)!r}: expected a folder of label PNG files.")
    files = [name for name in images_in(folder) if name.lower().endswith(".png")]
    if not files:
        raise DataError(f"{str(folder)!r} holds no label PNG files: expected ADE_val_00000001.png and so on.")
    total = hashlib.sha256()
    for name in files:
        total.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    stamp = DataStamp(
        name=data_name(folder.parent.parent, "ade20k"),
        split=SPLITS[split],
        size=len(files),
        classes=CLASSES,
        fingerprint=total.hexdigest()[:16],
    )
    return LabelMaps([Path(name).stem for name in files], folder, _class_names(folder, root, annotations), stamp)


def image_file(root: Path | None, split: str, name: str) -> Path:
    """Return the file of an image.

    Raises:
        DataError: it is not there.
    """
    path = home(root) / "images" / SPLITS[split] / f"{name}.jpg"
    if not path.is_file():
        raise DataError(f"ade20k has no image {str(path)!r} for its annotation. Restore it.")
    return path


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Return the labels (H, W) of a PNG file: the numbers in it, never the colours of its palette.

    Raises:
        DataError: it holds something else.
    """
    try:
        with Image.open(path) as picture:
            labels = np.asarray(picture)
    except Exception as error:
        raise DataError(f"{path.name} cannot be read as a label PNG ({reason(error)}). Restore it.") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path.name} holds {labels.dtype} pixels of shape {labels.shape}; expected one label a pixel, (H, W) of "
            "whole numbers. Save the labels, not a picture of them."
        )
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise DataError(f"{path.name} holds labels up to {labels.max()}; expected 0 to {CLASSES}.")
    return labels.astype(np.uint8)


def match_predictions(folder: Path, truth: LabelMaps) -> dict[str, Path]:
    """Return the label PNG file of every annotated image in a folder of predictions.

    Raises:
        DataError: images are missing, unknown or repeated; they are named.
    """
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is no folder: expected one label PNG file an image, named as the image.")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() == ".png"]
    if not pictures:
        others = f" but {name_some(path.name for path in files)}" if files else ""
        raise DataError(
            f"{str(folder)!r} holds no PNG files{others}: expected one label PNG file an image, such as "
            f"{truth.names[0]}.png. Save labels as PNG; JPEG changes them."
        )
    found: dict[str, Path] = {}
    for path in pictures:
        if path.stem in found:
            raise DataError(f"{str(folder)!r} holds {path.name} twice, in two folders: expected one file an image.")
        found[path.stem] = path
    known = set(truth.names)
    if unknown := [name for name in found if name not in known]:
        raise DataError(
            f"{str(folder)!r} holds {len(unknown)} files that are no annotated image: {name_some(unknown)}. "
            f"Expected names such as {truth.names[0]}.png. Rename them, or move them away."
        )
    if missing := [name for name in truth.names if name not in found]:
        raise DataError(
            f"{str(folder)!r} lacks {len(missing)} of {len(truth.names)} images: {name_some(missing)}. Add them."
        )
    return found


def _class_names(folder: Path, root: Path | None, annotations: Path | None) -> list[str]:
    """The names in `objectInfo150.txt`, where it lies with the data."""
    places = [folder.parent.parent, folder.parent, *([] if annotations else [home(root)])]
    path = next((place / "objectInfo150.txt" for place in places if (place / "objectInfo150.txt").is_file()), None)
    if path is None:
        return []
    rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    names = [row[-1].strip() for row in rows[1:] if row]
    if len(names) != CLASSES:
        raise DataError(f"{path.name} names {len(names)} classes; expected {CLASSES}. Restore it, or remove it.")
    return names
