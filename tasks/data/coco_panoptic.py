"""COCO's panoptic format: a JSON file of segments, and a folder of PNG files whose colours are the segments' ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from harness.errors import DataError, reason
from harness.record import DataStamp
from tasks.data.coco import Category, Id, Image, known, name_some, once, sort_ids, stamp_file
from tasks.data.json_file import BOM, read_json
from tasks.metrics.panoptic import VOID, Segment, pixel_counts

EXPECTED = "panoptic annotations, each with image_id, file_name and segments_info"


class Info(msgspec.Struct, gc=False):
    """What the JSON file says of a segment."""

    id: int
    category_id: int
    area: float | None = None
    iscrowd: int | bool = 0


class Map(msgspec.Struct, gc=False):
    """One image's segments and the PNG file of their ids."""

    image_id: Id
    file_name: str
    segments_info: list[Info]


class _Truth(msgspec.Struct):
    images: list[Image]
    categories: list[Category]
    annotations: list[Map]


class _Results(msgspec.Struct):
    annotations: list[Map]


@dataclass(frozen=True)
class Panoptic:
    """Annotated segments.

    Args:
        images: those that are annotated, in the order of their ids.
        categories: in the order of their ids.
        maps: by image id as text.
        folder: of the PNG files.
    """

    images: Sequence[Image]
    categories: Sequence[Category]
    maps: Mapping[str, Map]
    folder: Path
    stamp: DataStamp

    def labels(self, things: bool) -> dict[int, int]:
        """Return the label, from 1, of each category id of things, or of stuff."""
        own = [category.id for category in self.categories if bool(category.isthing) == things]
        return {category: label for label, category in enumerate(own, 1)}

    def category_map(self) -> Mapping[str, Any]:
        """Return what records say of the categories, in the order of their ids."""
        return {
            "categories": [c.name for c in self.categories],
            "category_ids": [c.id for c in self.categories],
            "things": [c.id for c in self.categories if c.isthing],
        }


def read_panoptic(path: Path) -> Panoptic:
    """Read a panoptic annotation file; its PNG files lie in the folder of its name.

    Raises:
        DataError: it is something else, or contradicts itself.
    """
    found = read_json(path, _Truth, f"a panoptic annotation file: images, categories, and {EXPECTED}")
    once(path, "image", (str(image.id) for image in found.images))
    once(path, "annotation", (str(one.image_id) for one in found.annotations))
    maps = {str(one.image_id): one for one in found.annotations}
    known(path, "image", maps, {str(image.id) for image in found.images})
    if unsaid := [category.id for category in found.categories if category.isthing is None]:
        raise DataError(
            f"{path.name} does not say of the categories {name_some(unsaid)} whether they are things: expected "
            "isthing, 1 or 0. Add it."
        )
    if flat := [
        one.image_id for one in found.annotations if any(i.area is not None and i.area <= 0 for i in one.segments_info)
    ]:
        raise DataError(
            f"{path.name} has segments of area 0, in the images {name_some(flat)}: expected their pixels. Leave areas "
            "out to have them counted."
        )
    _check_categories(path, found.annotations, found.categories)
    images = [image for image in sort_ids(found.images) if str(image.id) in maps]
    categories = sorted(found.categories, key=lambda category: category.id)
    return Panoptic(images, categories, maps, _folder(path), stamp_file(path, len(images), len(categories)))


def read_panoptic_results(path: Path, truth: Panoptic) -> tuple[Mapping[str, Map], Path]:
    """Read predicted segments for exactly the annotated images, and return them with the folder of their PNG files.

    Raises:
        DataError: images are missing, unknown or repeated.
    """
    found = read_json(path, _Results, f"panoptic results: {EXPECTED}")
    once(path, "image", (str(one.image_id) for one in found.annotations))
    maps = {str(one.image_id): one for one in found.annotations}
    known(path, "image", maps, set(truth.maps))
    if missing := [number for number in truth.maps if number not in maps]:
        raise DataError(
            f"{path.name} lacks {len(missing)} of {len(truth.maps)} images: {name_some(missing)}. Predict all of them."
        )
    _check_categories(path, found.annotations, truth.categories)
    return maps, _folder(path)


def is_panoptic(path: Path) -> bool:
    """Whether a file looks like panoptic segments."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(2**20)
    return head.removeprefix(BOM).lstrip()[:1] == b"{" and b'"segments_info"' in path.read_bytes()


def read_ids(folder: Path, one: Map, image: Image) -> NDArray[np.int64]:
    """Return the map (H, W) of segment ids: red + 256 green + 65536 blue.

    Raises:
        DataError: the file is absent, unreadable, or of another size than its image.
    """
    path = folder / one.file_name
    if not path.is_file():
        raise DataError(f"{str(folder)!r} holds no {one.file_name}, the PNG file of image {one.image_id}. Add it.")
    try:
        with Pictures.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), np.int64)
    except Exception as error:
        raise DataError(f"{path.name} cannot be read as a PNG of segment ids ({reason(error)}). Restore it.") from error
    if pixels.shape[:2] != (image.height, image.width):
        raise DataError(
            f"{path.name} is {pixels.shape[1]} x {pixels.shape[0]} pixels; expected {image.width} x {image.height}, "
            "the image's original size. Resize the ids by nearest neighbour."
        )
    ids: NDArray[np.int64] = pixels @ np.array([1, 256, 65536])
    return ids


def segments(one: Map) -> list[Segment]:
    """Return the segments of an image."""
    return [Segment(info.id, info.category_id, info.area, bool(info.iscrowd)) for info in one.segments_info]


def check_segments(one: Map, ids: NDArray[np.int64]) -> None:
    """Raise DataError where the PNG file and the JSON file do not hold the same segments."""
    listed, drawn = {info.id for info in one.segments_info}, set(pixel_counts(ids)) - {VOID}
    if drawn - listed:
        raise DataError(
            f"{one.file_name} holds the segments {name_some(sorted(drawn - listed))}, which the JSON file does not "
            f"list for image {one.image_id}. List them, or paint them 0."
        )
    if listed - drawn:
        raise DataError(
            f"The JSON file lists the segments {name_some(sorted(listed - drawn))} of image {one.image_id}, which "
            f"{one.file_name} does not hold. Drop them, or paint them."
        )


def _check_categories(path: Path, maps: Sequence[Map], categories: Sequence[Category]) -> None:
    used = (info.category_id for one in maps for info in one.segments_info)
    known(path, "category", used, {str(category.id) for category in categories})
    for one in maps:
        once(path, f"segment of image {one.image_id},", (str(info.id) for info in one.segments_info))


def _folder(path: Path) -> Path:
    """The folder of a JSON file's PNG files: of the same name, or where the file itself lies."""
    own = path.with_suffix("")
    return own if own.is_dir() else path.parent
