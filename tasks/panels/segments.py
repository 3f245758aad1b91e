"""Panels of panoptic segmentation: image, annotated segments, predicted ones, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.album import Album
from tasks.data.coco import Category, Image
from tasks.data.coco_panoptic import Panoptic, read_ids, segments
from tasks.data.loader import spread
from tasks.metrics.panoptic import VOID, Counts, Segment
from tasks.panels.canvas import (
    INK,
    NOTHING,
    Colour,
    Flags,
    Pixels,
    blank,
    colour_of,
    from_labels,
    resized,
    side_by_side,
)
from tasks.panels.detections import picture_of
from tasks.panels.labels import differing
from tasks.panels.segmentation import GONE

Ids = NDArray[np.int64]
Segmented = tuple[Ids, Sequence[Segment]]  # the map (H, W) of ids, and the segments that have these
SHADES = (1.0, 0.7, 1.25, 0.55)  # of several things of one category
EDGE = (255, 255, 255)
MOST_CATEGORIES = 24  # in a legend


class SegmentPanels:
    """Draws those of the annotated images that an album takes; none without an album.

    Args:
        path: of the annotation file.
        images: those that are evaluated, in their order.
    """

    def __init__(
        self, album: Album | None, truth: Panoptic, root: Path | None, path: Path, images: Sequence[Image]
    ) -> None:
        self._album = album
        self._truth = truth
        self._root = root
        self._path = path
        self._label = {category.id: label for label, category in enumerate(truth.categories)}
        if album:
            album.choose([str(images[place].id) for place in spread(len(images), album.count)])

    def wants(self, image: Image) -> bool:
        """Whether an image is to be drawn."""
        return self._album is not None and self._album.wants(str(image.id))

    def draw(
        self,
        image: Image,
        truth: Segmented,
        found: Segmented | None,
        counts: Mapping[int, Counts] | None = None,
        note: str = "",
    ) -> None:
        """Draw an image, if the album wants it.

        Args:
            counts: what came of the comparison.
            note: why there is no prediction.
        """
        if not self._album or not self.wants(image):
            return
        picture = picture_of(self._root, self._path, image.file_name)
        size = image.width, image.height
        if picture and picture.size != size:
            picture = picture.resize(size)
        shown = resized(picture, smooth=True) if picture else blank(size, "the image is not here")
        ignored = np.isin(truth[0], [VOID, *(segment.id for segment in truth[1] if segment.crowd)])
        parts = [("image", shown), ("truth", self._painted(truth, ignored))]
        lines = [(note, INK)] if note else []
        if found:
            wrong = (categories(*truth) != categories(*found)) & ~ignored
            parts.append(("prediction", self._painted(found, np.zeros_like(ignored))))
            parts.append(("pixels of the wrong category", from_labels(differing(picture, wrong), ignored)))
            lines += [(text, INK) for text in _summary(counts or {})]
        stamp = self._truth.stamp
        heading = f"{image.id}  ({stamp.name} {stamp.split}, {size[0]} x {size[1]}, {image.file_name})"
        self._album.save(str(image.id), side_by_side(heading, parts, lines, self._legend(truth, found, ignored)))

    def draw_rest(self, note: str = GONE) -> None:
        """Draw the truth of those images of which there is no picture yet."""
        absent = set(self._album.absent() if self._album else ())
        for image in self._truth.images:
            if str(image.id) in absent:
                one = self._truth.maps[str(image.id)]
                self.draw(image, (read_ids(self._truth.folder, one, image), segments(one)), None, note=note)

    def _painted(self, one: Segmented, striped: Flags) -> Any:
        """The segments in the colours of their categories, things of one category in shades, with edges between."""
        out: Pixels = np.zeros((*one[0].shape, 3), np.uint8)
        seen: dict[int, int] = {}
        for segment in one[1]:
            place = seen[segment.category] = seen.get(segment.category, -1) + 1
            colour = np.array(colour_of(self._label[segment.category])) * SHADES[place % len(SHADES)]
            out[one[0] == segment.id] = np.clip(colour, 0, 255).astype(np.uint8)
        out[edges(one[0])] = EDGE
        return from_labels(out, striped)

    def _legend(self, truth: Segmented, found: Segmented | None, ignored: Flags) -> list[tuple[Colour | None, str]]:
        """Colours and names of the categories that occur, with how many segments of them each side has."""
        sides = [one[1] for one in (truth, found) if one]
        entries: list[tuple[Colour | None, str]] = []
        for category in self._truth.categories:
            numbers = [sum(segment.category == category.id for segment in side) for side in sides]
            if any(numbers):
                entries.append((colour_of(self._label[category.id]), _entry(category, numbers)))
        if len(entries) > MOST_CATEGORIES:
            entries[MOST_CATEGORIES:] = [(INK, f"and {len(entries) - MOST_CATEGORIES} more")]
        if ignored.any():
            entries.append((None, "void or crowd"))
        if found and (found[0] == VOID).any():
            entries.append((NOTHING, "nothing predicted"))
        return entries


def categories(ids: Ids, of: Sequence[Segment]) -> NDArray[np.int64]:
    """Return the category (H, W) of each pixel, -1 where no segment is."""
    out = np.full(ids.shape, -1, np.int64)
    for segment in of:
        out[ids == segment.id] = segment.category
    return out


def edges(ids: Ids) -> Flags:
    """Return the pixels (H, W) whose right or lower neighbour is another segment."""
    out = np.zeros(ids.shape, bool)
    out[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    out[:-1] |= ids[:-1] != ids[1:]
    return out


def _entry(category: Category, numbers: Sequence[int]) -> str:
    return f"{category.name}{'' if category.isthing else ' (stuff)'}: {' / '.join(map(str, numbers))}"


def _summary(counts: Mapping[int, Counts]) -> list[str]:
    """How many segments match, are wrong and are missed."""
    right, wrong, missed = (sum(getattr(one, name) for one in counts.values()) for name in ("right", "wrong", "missed"))
    return [f"{right} segments match, {wrong} are wrong, {missed} are missed; below, segments: truth / prediction"]
