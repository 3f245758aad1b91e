"""The twelve numbers of `tasks.metrics.detection` from the libraries that define them, on the same arrays."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.errors import MissingPackage
from tasks.metrics.detection import NAMES, Detections, Objects

LIBRARIES = ("pycocotools", "faster_coco_eval")


def evaluate(
    objects: Objects, detections: Detections, categories: int, kind: str = "boxes", library: str = "pycocotools"
) -> Mapping[str, float]:
    """Return the twelve numbers.

    Args:
        kind: `boxes` or `masks`.
        library: `pycocotools`, the reference, or `faster_coco_eval`.

    Raises:
        MissingPackage: the library is not installed.
    """
    dataset, evaluator = _classes(library)
    images = range(int(max(objects.image.max(initial=-1), detections.image.max(initial=-1))) + 1)
    head = {
        "images": [{"id": i, "height": 0, "width": 0} for i in images],
        "categories": [{"id": k} for k in range(categories)],
    }
    # The library reads an id of 0 as `not matched`.
    truth = _dataset(dataset, {**head, "annotations": _rows(objects, kind, crowd=objects.crowd)})
    found = _dataset(dataset, {**head, "annotations": _rows(detections, kind, score=detections.scores)})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(truth, found, "bbox" if kind == "boxes" else "segm")
        evaluation.params.imgIds, evaluation.params.catIds = list(images), list(range(categories))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats[: len(NAMES)]), strict=True))


def _classes(library: str) -> tuple[Any, Any]:
    try:
        if library == "faster_coco_eval":
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    except ImportError as error:
        raise MissingPackage(library.replace("_", "-"), "The reference for detection") from error


def _dataset(dataset: Any, content: dict[str, Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        made = dataset()
        made.dataset = content
        made.createIndex()
    return made


def _rows(them: Objects | Detections, kind: str, crowd: Any = None, score: Any = None) -> list[dict[str, Any]]:
    """Annotations as the libraries hold them."""
    crowd = np.zeros(len(them.image), bool) if crowd is None else crowd
    rows = [
        {"id": n + 1, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": int(many)}
        for n, (image, category, box, area, many) in enumerate(
            zip(them.image.tolist(), them.category.tolist(), them.boxes.tolist(), them.area.tolist(), crowd.tolist(),
                strict=True)
        )
    ]  # fmt: skip
    for n, row in enumerate(rows):
        if kind == "masks":
            row["segmentation"] = them.masks[n]
        if score is not None:
            row["score"] = float(score[n])
    return rows
