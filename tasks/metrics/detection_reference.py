"""The twelve numbers of `tasks.metrics.detection` from the library that defines them or from a fast one, alike."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import MissingPackage
from tasks.metrics.detection import NAMES, RECALLS, Detections, Objects, count_wanted, summarize

LIBRARIES = ("pycocotools", "faster_coco_eval")
ONE_OF_ONE = 1 / (1 + np.spacing(1))  # pycocotools' precision where one detection counts and is right


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
        if library == "faster_coco_eval":
            return _summarize_fast(evaluation, count_wanted(objects, categories))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True))


def _summarize_fast(evaluation: Any, wanted: NDArray[np.int64]) -> Mapping[str, float]:
    """The twelve numbers of faster-coco-eval with pycocotools' precision, to the last digit.

    pycocotools adds `numpy.spacing(1)` to the detections that precision is a share of, which is lost in rounding
    unless there is one: its precision is then a little below 1. faster-coco-eval adds nothing. Its 1 is of one
    detection where the recall of two objects is reached with less, or never, so this recall is asked for as well.
    """
    more, place = np.unique(2 / np.maximum(wanted, 1), return_inverse=True)
    evaluation.params.recThrs = np.concatenate([RECALLS, more])
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"]
    asked = (len(RECALLS) + place.reshape(wanted.shape))[None, None]
    of_two = np.take_along_axis(precision, asked, axis=1)
    precision = precision[:, : len(RECALLS)]
    precision = np.where((precision == 1) & (of_two < 1), ONE_OF_ONE, precision)
    return summarize(precision, recall.swapaxes(2, 3))


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
