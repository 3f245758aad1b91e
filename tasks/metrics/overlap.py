"""Which detections overlap which objects of their image and category, and by how much."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import MissingPackage

if TYPE_CHECKING:
    from tasks.metrics.detection import Detections, Objects

Integers = NDArray[np.int64]

LEAST = 0.5  # below it nothing can match
AT_ONCE = 60


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a detection and an object, and their intersection over union; for a crowd, over the detection's area.

    Args:
        detection: place among the detections that are evaluated.
        object: row among the objects.
    """

    detection: Integers
    object: Integers
    value: NDArray[np.float64]


def box_overlaps(objects: Objects, detections: Detections, rows: Integers) -> Overlaps:
    """Return the pairs of boxes that overlap by half or more."""
    detection, target = _pairs(objects, detections, rows)
    one, other = detections.boxes[rows[detection]], objects.boxes[target]
    least, most = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    shared = np.clip(most - least, 0, None).prod(axis=1)
    union = one[:, 2] * one[:, 3] + np.where(objects.crowd[target], 0, other[:, 2] * other[:, 3] - shared)
    return _near(detection, target, np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0))


def mask_overlaps(objects: Objects, detections: Detections, rows: Integers) -> Overlaps:
    """Return the pairs of masks that overlap by half or more.

    Raises:
        MissingPackage: pycocotools, which compares masks.
    """
    codes = mask_codes()
    detection, target = _pairs(objects, detections, rows)
    value = np.zeros(len(detection))
    group = objects.image[target] * (objects.category.max(initial=0) + 1) + objects.category[target]
    bounds = [*np.flatnonzero(np.diff(group, prepend=-1)).tolist(), len(group)]
    for start, stop in pairwise(bounds):
        # Every detection of a group meets every object of it, in this order.
        them = target[start:stop][detection[start:stop] == detection[start]]
        ones = detection[start : stop : len(them)]
        found = codes.iou(
            [detections.masks[row] for row in rows[ones]],
            [objects.masks[row] for row in them],
            objects.crowd[them].astype(np.uint8),
        )
        value[start:stop] = np.asarray(found).reshape(-1)
    return _near(detection, target, value)


def mask_codes() -> Any:
    """Return pycocotools' module of run-length codes.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingPackage("pycocotools", "Reading masks as COCO codes them") from error
    return mask


def mask_areas(masks: Sequence[Any]) -> NDArray[np.float64]:
    """Return the areas (N,) of run-length codes, in pixels."""
    return _in_parts(mask_codes().area, masks, ())


def mask_boxes(masks: Sequence[Any]) -> NDArray[np.float64]:
    """Return left, top, width and height (N, 4) of what run-length codes cover."""
    return _in_parts(mask_codes().toBbox, masks, (4,))


def draw_mask(code: Any) -> NDArray[np.bool_]:
    """Return the pixels (H, W) of a run-length code."""
    with warnings.catch_warnings():
        # Of numpy's, to whoever wrote pycocotools.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return np.asarray(mask_codes().decode(code), bool)


def _in_parts(function: Any, masks: Sequence[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Call a function of pycocotools, which counts masks in a byte, on a few at a time."""
    found = np.zeros((len(masks), *shape))
    for start in range(0, len(masks), AT_ONCE):
        found[start : start + AT_ONCE] = function(list(masks[start : start + AT_ONCE]))
    return found


def _pairs(objects: Objects, detections: Detections, rows: Integers) -> tuple[Integers, Integers]:
    """All pairs of a detection and an object of one image and category: detection by detection, objects in order."""
    size = max(objects.image.max(initial=0), detections.image.max(initial=0)) + 1
    keys = objects.category * size + objects.image
    order = np.argsort(keys, kind="stable")
    wanted = detections.category[rows] * size + detections.image[rows]
    first = np.searchsorted(keys[order], wanted, side="left")
    count = np.searchsorted(keys[order], wanted, side="right") - first
    detection = np.repeat(np.arange(len(rows)), count)
    within = np.arange(len(detection)) - np.repeat(count.cumsum() - count, count)
    return detection, order[np.repeat(first, count) + within]


def _near(detection: Integers, target: Integers, value: NDArray[np.float64]) -> Overlaps:
    near = value >= LEAST
    return Overlaps(detection[near], target[near], value[near])
