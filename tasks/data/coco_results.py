"""Results in COCO's format: a list of boxes and masks with scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.errors import DataError
from tasks.data.coco import Id, Instances, known, name_some
from tasks.data.json_file import read_json
from tasks.data.masks import to_codes
from tasks.metrics.detection import Detections
from tasks.metrics.overlap import box_overlaps, mask_areas, mask_boxes

EXPECTED = "a list of COCO results, each with image_id, category_id, score, and bbox or segmentation"
ENOUGH = 10  # boxes from which their convention can be told


class Result(msgspec.Struct, gc=False):
    """One detection; `bbox` is left, top, width, height in pixels of the original image."""

    image_id: Id
    category_id: int
    score: float
    bbox: tuple[float, ...] | None = None
    segmentation: msgspec.Raw = msgspec.Raw()
    keypoints: msgspec.Raw = msgspec.Raw()


def read_results(path: Path, instances: Instances) -> tuple[Sequence[Result], Mapping[str, Any]]:
    """Read and check a result file, and return what a record says of it.

    Raises:
        DataError: entries that cannot be measured; the first few are named.
    """
    results = read_json(path, list[Result], EXPECTED)
    if not results:
        raise DataError(f"{path.name} holds no detections: expected {EXPECTED}.")
    for n, result in enumerate(results):
        if not result.bbox and not _has_mask(result):
            other = ", and holds keypoints, which are not measured" if bytes(result.keypoints) else ""
            raise DataError(f"Entry {n} of {path.name} has neither bbox nor segmentation{other}: expected {EXPECTED}.")
    known(path, "image", (result.image_id for result in results), set(instances.number()))
    _check_categories(path, results, instances)
    _check_numbers(path, results, instances)
    seen = {str(result.image_id) for result in results}
    empty = [str(image.id) for image in instances.images if str(image.id) not in seen]
    keys = {hash((str(r.image_id), r.category_id, r.score, r.bbox, bytes(r.segmentation))) for r in results}
    return results, {
        "detections": len(results),
        "images_without_detections": len(empty),
        "first_images_without_detections": empty[:20],
        "repeated_detections": len(results) - len(keys),
        "in_some_only": [
            kind for kind, has in {"boxes": _has_box, "masks": _has_mask}.items() if _some(map(has, results))
        ],
    }


def _some(flags: Iterable[bool]) -> bool:
    """Whether there is a yes and a no among them."""
    return len(set(flags)) == 2


def _has_box(result: Result) -> bool:
    return bool(result.bbox)


def _check_categories(path: Path, results: Sequence[Result], instances: Instances) -> None:
    """Refuse categories that are not annotated, and say it where they are places in the list of those that are."""
    used, there = {result.category_id for result in results}, {category.id for category in instances.categories}
    for first in (0, 1):
        if used - there and used <= set(range(first, first + len(there))) and min(used) == first:
            raise DataError(
                f"{path.name} has category ids that the annotations do not know: {name_some(sorted(used - there))}. "
                f"They seem to be labels from {first} to {first + len(there) - 1}: write the annotations' own ids, "
                f"{name_some(sorted(there))}."
            )
    known(path, "category", used, set(map(str, there)))


def box_detections(results: Sequence[Result], instances: Instances) -> Detections | None:
    """Return the boxes; those of the masks where no result has any, and None where only some have."""
    if not any(result.bbox for result in results):
        return mask_detections(results, instances)
    if not all(result.bbox for result in results):
        return None
    boxes = np.array([result.bbox for result in results], np.float64)
    return _detections(results, instances, boxes, boxes[:, 2] * boxes[:, 3], ())


def mask_detections(results: Sequence[Result], instances: Instances) -> Detections | None:
    """Return the masks, with their own areas and boxes; None where not every result has one."""
    if not all(map(_has_mask, results)):
        return None
    number = instances.number()
    masks = to_codes(
        (result.segmentation, instances.images[number[str(result.image_id)]], f"entry {n}")
        for n, result in enumerate(results)
    )
    try:
        area, boxes = mask_areas(masks), mask_boxes(masks)
    except Exception as error:
        raise DataError(
            f"The masks are no run-length codes ({type(error).__name__}: {error}). Encode them anew."
        ) from error
    return _detections(results, instances, boxes, area, masks)


def _detections(results: Sequence[Result], instances: Instances, boxes: Any, area: Any, masks: Any) -> Detections:
    number, label = instances.number(), instances.label()
    return Detections(
        image=np.array([number[str(result.image_id)] for result in results], np.int64),
        category=np.array([label[result.category_id] for result in results], np.int64),
        boxes=boxes.reshape(-1, 4),
        area=area,
        scores=np.array([result.score for result in results], np.float64),
        masks=masks,
    )


def _has_mask(result: Result) -> bool:
    return bytes(result.segmentation) not in (b"", b"[]", b"null")


def _check_numbers(path: Path, results: Sequence[Result], instances: Instances) -> None:
    """Refuse scores and boxes that cannot be, and boxes that are plainly something else."""
    if strange := [n for n, result in enumerate(results) if not isfinite(result.score)]:
        raise DataError(f"{path.name} has scores that are not finite, at entries {name_some(strange)}. Mend them.")
    rows = np.array([n for n, result in enumerate(results) if result.bbox], np.int64)
    if uneven := [n for n in rows.tolist() if len(results[n].bbox or ()) != 4]:
        raise DataError(f"{path.name} has boxes that are not four numbers, at entries {name_some(uneven)}. Mend them.")
    boxes = np.array([results[n].bbox for n in rows.tolist()], np.float64).reshape(-1, 4)
    faults = {"not finite": ~np.isfinite(boxes).all(axis=1), "of negative width or height": (boxes[:, 2:] < 0).any(1)}
    for fault, there in faults.items():
        if there.any():
            raise DataError(
                f"{path.name} has {there.sum()} boxes {fault}, at entries {name_some(rows[there])}: "
                "expected left, top, width, height in pixels."
            )
    if len(boxes) >= ENOUGH and 0 < boxes.max() <= 1:
        raise DataError(
            f"The boxes of {path.name} look like shares of the image: expected pixels. Multiply by its size."
        )
    if len(boxes) >= ENOUGH and _are_corners([results[n] for n in rows.tolist()], boxes, instances):
        raise DataError(
            f"The boxes of {path.name} look like left, top, right, bottom: read so, more of them meet annotated boxes "
            "than as COCO's left, top, width, height. Subtract the first two numbers from the last two."
        )


def _are_corners(results: Sequence[Result], boxes: Any, instances: Instances) -> bool:
    """Whether boxes are left, top, right, bottom: hardly any would be empty, and more of them meet objects."""
    if ((boxes[:, 2:] > boxes[:, :2]).all(axis=1)).mean() <= 0.99:
        return False
    objects, rows = instances.objects(), np.arange(len(boxes))
    found = _detections(results, instances, boxes, boxes[:, 2] * boxes[:, 3], ())
    turned = replace(found, boxes=np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]))
    given, other = (len(np.unique(box_overlaps(objects, one, rows).detection)) for one in (found, turned))
    sizes = np.array([(image.width, image.height) for image in instances.images], np.float64).reshape(-1, 2)
    leaves = ((boxes[:, :2] + boxes[:, 2:]) > sizes[found.image] + 1).any(axis=1).mean()
    return (other >= ENOUGH and other > 3 * given) or bool(leaves > 0.1 and other > given)
