"""COCO's annotations: objects with boxes and masks, in the official layout.

`<root>/coco/annotations/instances_val2017.json`, and the images in `<root>/coco/val2017` or `images/val2017`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.errors import DataError
from harness.record import DataStamp
from tasks.data.json_file import read_json
from tasks.data.masks import to_codes
from tasks.data.roots import data_name, find
from tasks.metrics.detection import Objects

FOLDERS = ("coco", "COCO", "coco2017", "coco2014", "mscoco", "MSCOCO2017")
MARKS = ("annotations/instances_*.json", "annotations/panoptic_*.json")
YEARS = ("2017", "2014")
MANY = 5  # ids that a message names

Id = int | str
Box = tuple[float, float, float, float]


class Image(msgspec.Struct, gc=False):
    """An image; sizes in pixels."""

    id: Id
    file_name: str
    height: int
    width: int


class Category(msgspec.Struct, gc=False):
    """A category; `isthing` in panoptic files alone."""

    id: int
    name: str
    isthing: int | bool | None = None


class Annotation(msgspec.Struct, gc=False):
    """One object; the mask stays text until somebody wants it."""

    id: Id
    image_id: Id
    category_id: int
    bbox: Box
    area: float
    iscrowd: int | bool = 0
    segmentation: msgspec.Raw = msgspec.Raw()


class _Content(msgspec.Struct):
    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation]


@dataclass(frozen=True)
class Instances:
    """One annotation file.

    Args:
        images: in the order of their ids; everywhere else images are numbers in this order.
        categories: in the order of their ids; labels are numbers in this order, 0 to 79 for COCO's ids 1 to 90.
        annotations: in the order of the file.
        stamp: its fingerprint is the annotation file's SHA-256, so predictions and models rank together.
    """

    images: Sequence[Image]
    categories: Sequence[Category]
    annotations: Sequence[Annotation]
    stamp: DataStamp

    def number(self) -> dict[str, int]:
        """Return the number of each image by its id as text: results write 42 and "42" for the same image."""
        return {str(image.id): number for number, image in enumerate(self.images)}

    def label(self) -> dict[int, int]:
        """Return the contiguous label of each category id."""
        return {category.id: label for label, category in enumerate(self.categories)}

    def objects(self, masks: bool = False) -> Objects:
        """Return the annotated objects; masks as run-length codes where they are asked for."""
        number, label = self.number(), self.label()
        image = np.array([number[str(a.image_id)] for a in self.annotations], np.int64)
        return Objects(
            image=image,
            category=np.array([label[a.category_id] for a in self.annotations], np.int64),
            boxes=np.array([a.bbox for a in self.annotations], np.float64).reshape(-1, 4),
            area=np.array([a.area for a in self.annotations], np.float64),
            crowd=np.array([a.iscrowd for a in self.annotations], bool),
            masks=to_codes(
                (a.segmentation, self.images[i], f"annotation {a.id}")
                for a, i in zip(self.annotations if masks else (), image, strict=False)
            ),
        )

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask."""
        return any(bytes(a.segmentation) not in (b"", b"[]", b"null") for a in self.annotations)

    def category_map(self) -> Mapping[str, Any]:
        """Return what records say of the labels: names and official ids in the order of the labels."""
        return {"categories": [c.name for c in self.categories], "category_ids": [c.id for c in self.categories]}


def home(root: Path | None) -> Path:
    """Return COCO's folder below a data root.

    Raises:
        DataError: it is not there.
    """
    return find(FOLDERS, root, "annotations/instances_val2017.json and val2017/*.jpg", MARKS)


def annotation_file(root: Path | None, kind: str, split: str) -> Path:
    """Return `annotations/<kind>_<split><year>.json`, of 2017 where there are several.

    Raises:
        DataError: there is none.
    """
    folder = home(root)
    for year in YEARS:
        path = folder / "annotations" / f"{kind}_{split}{year}.json"
        if path.is_file():
            return path
    raise DataError(
        f"coco has no annotations/{kind}_{split}2017.json in {str(folder)!r}. Unpack the official annotations there."
    )


def image_folder(root: Path | None, annotations: Path) -> Path:
    """Return the folder of the images that an annotation file describes.

    Raises:
        DataError: it is not there.
    """
    folder, split = home(root), annotations.stem.partition("_")[2]
    for place in (folder / split, folder / "images" / split):
        if place.is_dir():
            return place
    raise DataError(f"coco has no images in {str(folder / split)!r}: expected {split}/*.jpg. Unpack them there.")


def read_instances(path: Path) -> Instances:
    """Read an annotation file of objects.

    Raises:
        DataError: it is something else, or contradicts itself.
    """
    found = read_json(path, _Content, "a COCO annotation file of objects, with images, categories and annotations")
    images = sort_ids(found.images)
    once(path, "image", (str(image.id) for image in images))
    once(path, "category", (str(category.id) for category in found.categories))
    once(path, "annotation", (str(annotation.id) for annotation in found.annotations))
    known(path, "image", (a.image_id for a in found.annotations), {str(image.id) for image in images})
    known(path, "category", (a.category_id for a in found.annotations), {str(c.id) for c in found.categories})
    categories = sorted(found.categories, key=lambda category: category.id)
    return Instances(images, categories, found.annotations, stamp_file(path, len(images), len(categories)))


def stamp_file(path: Path, images: int, categories: int) -> DataStamp:
    """Return the stamp of an annotation file."""
    return DataStamp(
        name=data_name(path.parent.parent, "coco"),
        split=path.stem.partition("_")[2] or path.stem,
        size=images,
        classes=categories,
        fingerprint=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    )


def sort_ids(images: Sequence[Image]) -> list[Image]:
    """Return images in the order of their ids; numbers before text."""
    return sorted(images, key=lambda image: (isinstance(image.id, str), image.id))


def once(path: Path, kind: str, ids: Any) -> None:
    """Raise DataError where an id occurs twice."""
    counts = Counter(ids).most_common(1)
    if counts and counts[0][1] > 1:
        raise DataError(f"{path.name} has the {kind} id {counts[0][0]!r} {counts[0][1]} times: expected once. Mend it.")


def known(path: Path, kind: str, ids: Any, there: set[str]) -> None:
    """Raise DataError where an id is none of those there."""
    unknown = [found for found in dict.fromkeys(map(str, ids)) if found not in there]
    if unknown:
        raise DataError(
            f"{path.name} has {len(unknown)} {kind} ids that the annotations do not know: {name_some(unknown)}. "
            f"Expected ids such as {name_some(sorted(there))}. Correct them, or give other --annotations."
        )


def name_some(ids: Any) -> str:
    """Return the first few of some ids."""
    ids = [str(found) for found in ids]
    return ", ".join(ids[:MANY]) + (" ..." if len(ids) > MANY else "")
