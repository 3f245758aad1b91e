"""Results in COCO's format: a list of boxes and masks with scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.errors import DataError
from tasks.data.coco import Box, Id, Instances, known, name_some, to_code
from tasks.data.json_file import read_json
from tasks.metrics.detection import Detections
from tasks.metrics.overlap import mask_areas, mask_boxes

EXPECTED = "a list of COCO results, each with image_id, category_id, score, and bbox or segmentation"
ENOUGH = 10  # boxes from which their convention can be told


class Result(msgspec.Struct, gc=False):
    """One detection; `bbox` is left, top, width, height in pixels of the original image."""

    image_id: Id
    category_id: int
    score: float
    bbox: Box | None = None
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
    if any(bytes(result.keypoints) for result in results):
        raise DataError(f"{path.name} holds keypoints, which are not measured: expected {EXPECTED}.")
    bare = [n for n, result in enumerate(results) if result.bbox is None and not _has_mask(result)]
    if bare:
        raise DataError(f"Entry {bare[0]} of {path.name} has neither bbox nor segmentation: expected {EXPECTED}.")
    known(path, "image", (result.image_id for result in results), set(instances.number()))
    known(path, "category", (r.category_id for r in results), {str(c.id) for c in instances.categories})
    _check_boxes(path, results, instances)
    seen = {str(result.image_id) for result in results}
    empty = [str(image.id) for image in instances.images if str(image.id) not in seen]
    keys = {hash((str(r.image_id), r.category_id, r.score, r.bbox, bytes(r.segmentation))) for r in results}
    return results, {
        "detections": len(results),
        "images_without_detections": len(empty),
        "first_images_without_detections": empty[:20],
        "repeated_detections": len(results) - len(keys),
    }


def box_detections(results: Sequence[Result], instances: Instances) -> Detections | None:
    """Return the boxes; those of the masks where no result has any, and None where only some have."""
    if all(result.bbox is None for result in results):
        return mask_detections(results, instances)
    if any(result.bbox is None for result in results):
        return None
    boxes = np.array([result.bbox for result in results], np.float64)
    return _detections(results, instances, boxes, boxes[:, 2] * boxes[:, 3], ())


def mask_detections(results: Sequence[Result], instances: Instances) -> Detections | None:
    """Return the masks, with their own areas and boxes; None where not every result has one."""
    if not all(map(_has_mask, results)):
        return None
    number = instances.number()
    masks = [
        to_code(result.segmentation, instances.images[number[str(result.image_id)]], f"entry {n}")
        for n, result in enumerate(results)
    ]
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


def _check_boxes(path: Path, results: Sequence[Result], instances: Instances) -> None:
    """Refuse boxes that cannot be, and those that are plainly left, top, right, bottom."""
    number = instances.number()
    there = [(n, result) for n, result in enumerate(results) if result.bbox is not None]
    boxes = np.array([result.bbox for _, result in there], np.float64).reshape(-1, 4)
    if negative := [n for (n, _), box in zip(there, boxes, strict=True) if box[2] < 0 or box[3] < 0]:
        raise DataError(
            f"{path.name} has {len(negative)} boxes of negative width or height, at entries {name_some(negative)}: "
            "expected left, top, width, height in pixels."
        )
    sizes = np.array([(image.width, image.height) for image in instances.images], np.float64).reshape(-1, 2)
    size = sizes[[number[str(result.image_id)] for _, result in there]] if there else np.zeros((0, 2))
    as_corners = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= size + 1)).all(axis=1)
    leaves = (boxes[:, :2] + boxes[:, 2:] > size + 1).any(axis=1)
    if len(boxes) >= ENOUGH and as_corners.mean() > 0.99 and leaves.mean() > 0.1:
        raise DataError(
            f"The boxes of {path.name} look like left, top, right, bottom: {leaves.mean():.0%} of them leave their "
            "image when read as COCO's left, top, width, height. Subtract the first two numbers from the last two."
        )
