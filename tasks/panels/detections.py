"""The panels of a run on objects: which images, and which detections are theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.album import Album
from harness.errors import DataError
from harness.images import decode
from tasks.data.coco import Instances, image_folder
from tasks.data.loader import spread
from tasks.metrics.detection import Objects
from tasks.metrics.overlap import draw_mask
from tasks.panels.objects import Shapes, draw_objects

if TYPE_CHECKING:
    from tasks.coco import Scored


def draw_detections(
    album: Album,
    instances: Instances,
    root: Path | None,
    path: Path,
    scored: Mapping[str, Scored],
    images: Sequence[int],
) -> None:
    """Draw the panels of those images that the album takes.

    Args:
        path: of the annotation file.
        scored: of `boxes` and `masks`, whichever there are; empty for the truth alone.
        images: the numbers of those that are evaluated.
    """
    chosen = [images[place] for place in spread(len(images), album.count)]
    album.choose([str(instances.images[number].id) for number in chosen])
    names = [category.name for category in instances.categories]
    objects = _annotated(instances, chosen)
    for number in chosen:
        image, stamp = instances.images[number], instances.stamp
        rows = np.flatnonzero(objects.image == number)
        truth = Shapes(
            objects.category[rows], objects.boxes[rows], objects.crowd[rows],
            [draw_mask(objects.masks[row]) for row in rows.tolist()] if objects.masks else (),
        )  # fmt: skip
        found = _found(scored, number) if scored else None
        heading = f"{image.id}  ({stamp.name} {stamp.split}, {image.width} x {image.height}, {image.file_name})"
        picture = picture_of(root, path, image.file_name)
        size = (image.width, image.height)
        album.save(str(image.id), draw_objects(heading, picture, size, truth, found, names))


def _annotated(instances: Instances, chosen: Sequence[int]) -> Objects:
    """The objects of some images, with their masks; to decode those of all takes seconds."""
    ids = {str(instances.images[number].id) for number in chosen}
    some = [annotation for annotation in instances.annotations if str(annotation.image_id) in ids]
    return replace(instances, annotations=some).objects(masks=instances.has_masks)


def _found(scored: Mapping[str, Scored], number: int) -> Shapes:
    """The detections of one image that were evaluated; right is what no kind of evaluation calls wrong."""
    one, other = scored.get("boxes", scored.get("masks")), scored.get("masks", scored.get("boxes"))
    assert one
    assert other
    places = np.flatnonzero(one.detections.image[one.summary.rows] == number)
    rows = one.summary.rows[places]
    # Both kinds have the same detections with the same scores, so that these are the same rows.
    right = (one.summary.right | one.summary.ignored) & (other.summary.right | other.summary.ignored)
    masks = other.detections.masks
    return Shapes(
        one.detections.category[rows], one.detections.boxes[rows], (right[places] & 1).astype(bool),
        [draw_mask(masks[row]) for row in rows.tolist()] if len(masks) else (), one.detections.scores[rows],
    )  # fmt: skip


def picture_of(root: Path | None, annotations: Path, name: str) -> Any:
    """Return an image that an annotation file names; None where there is none, as with annotations alone."""
    try:
        return decode((image_folder(root, annotations) / name).read_bytes(), "pil", name)
    except (DataError, OSError):
        return None
