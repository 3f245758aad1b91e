"""COCO: average precision of boxes and masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, ModelError, SetupError
from harness.journal import Kept
from harness.metric import Evaluation, Measurement, Metric, Outcomes, Row
from harness.progress import say
from harness.record import DataStamp, Setup
from harness.registry import DETECTORS, TASKS
from tasks.dense_task import DenseTask

if TYPE_CHECKING:
    from tasks.data.coco import Instances
    from tasks.metrics.detection import Detections, Objects, Summary

# Who computes the twelve numbers: `pycocotools` or `faster_coco_eval`; ours by default, which equals the former.
BACKEND = "BENCH_COCO_BACKEND"
KINDS = {"box": "boxes", "mask": "masks"}
ARRAYS = ("labels", "scores", "boxes")
RANKED = ("ap", "ap50", "ap75")
ABSENT = "no such objects are annotated, where pycocotools says -1"

Found = Mapping[str, Any]
Predict = Callable[[Sequence[Any]], Sequence[Found]]


@TASKS.register("coco")
class Coco(DenseTask):
    """The official twelve numbers for boxes and for masks, in 0..1.

    A detector is what a variant's `adapt(model, task, setup)` returns: a function from some images, PIL pictures in RGB
    at their original sizes, to one mapping an image, of arrays or CPU tensors:

    - `boxes` (N, 4): left, top, right, bottom in pixels of the original image;
    - `labels` (N,): positions in `task.instances.categories`, 0 to 79 in COCO;
    - `scores` (N,): finite; only their order matters;
    - `masks`: N run-length codes at the original size, as `pycocotools.mask.encode` makes them; only where the
      detector makes masks, and then for every image.

    Args:
        data: root of the data sets; None for the default.
        workers: processes that load data, for detectors that use them.
        variant: the entry of the detector's protocol.
        annotations: an annotation file in place of the data root's.

    Source: Lin et al. 2014 (arXiv:1405.0312); cocodataset.org/#detection-eval.
    """

    variants = DETECTORS
    version = 2
    name = "coco"

    @cached_property
    def path(self) -> Path:
        """The annotation file."""
        from tasks.data.coco import annotation_file

        return self._annotations or annotation_file(self.root, "instances", self.evaluated_on)

    @cached_property
    def instances(self) -> Instances:
        """The annotations of the evaluated images."""
        from tasks.data.coco import read_instances

        return read_instances(self.path)

    @cached_property
    def training_path(self) -> Path:
        """The annotation file that protocols train on."""
        from tasks.data.coco import annotation_file

        return annotation_file(self.root, "instances", "train")

    @cached_property
    def training(self) -> Instances:
        """The annotations that protocols train on.

        Raises:
            DataError: their categories are not those of the evaluated images.
        """
        from tasks.data.coco import read_instances

        found = read_instances(self.training_path)
        if found.category_map() != self.instances.category_map():
            raise DataError(
                f"{self.training_path.name} and {self.path.name} have different categories: expected the same. "
                "Restore the official files."
            )
        return found

    def stamp(self, training: bool) -> DataStamp:
        """Return the stamp of the annotations that are evaluated, or trained on."""
        return (self.training if training else self.instances).stamp

    def measure(self, predict: Predict, setup: Setup) -> Evaluation:
        """Measure a detector on all images, or on so many as the setup allows; see the class for its contract."""
        from tasks.data.coco import image_folder
        from tasks.data.loader import spread
        from tasks.data.picture import read_picture

        folder, images = image_folder(self.root, self.path), self.instances.images
        chosen = spread(len(images), setup.limit)

        def look(places: Sequence[int]) -> list[Kept]:
            infos = [images[chosen[place]] for place in places]
            found = predict([read_picture(folder / one.file_name, (one.width, one.height)) for one in infos])
            return to_entries(found, len(infos))

        found = [from_entry(entry) for entry in self.entries(len(chosen), setup, look, "detect")]
        boxes, masks = to_detections(found, chosen, len(self.instances.categories))
        return self._score(boxes, masks, chosen, {"images": len(chosen)})

    def belongs_to(self, file: Path) -> str | None:
        """Return the task of panoptic segments for a file of these."""
        from tasks.data.coco_panoptic import is_panoptic

        return "coco_panoptic" if is_panoptic(file) else None

    def evaluate_predictions(self, file: Path) -> Evaluation:
        """Measure a list of results in COCO's format: boxes, masks or both.

        Raises:
            DataError: results that cannot be measured.
        """
        from tasks.data.coco_results import box_detections, mask_detections, read_results

        results, details = read_results(file, self.instances)
        if details["images_without_detections"]:
            say(
                f"{file.name} has nothing for {details['images_without_detections']} of {self.instances.stamp.size} "
                f"images, such as {details['first_images_without_detections'][0]}: they count as without detections."
            )
        boxes = box_detections(results, self.instances)
        masks = mask_detections(results, self.instances) if self.instances.has_masks else None
        origin = "the results' own" if any(result.bbox for result in results) else "those of the masks"
        partly = {kind: f"Only some of the results hold {kind}." for kind in details["in_some_only"]}
        lacking = partly if self.instances.has_masks else {**partly, "masks": "The annotations hold no masks."}
        details = {**details, "boxes": origin}
        return self._score(boxes, masks, range(len(self.instances.images)), details, lacking)

    def draw_truth(self) -> None:
        """Draw the annotated objects of the images that the album takes."""
        self._draw({}, range(len(self.instances.images)))

    def _draw(self, scored: Mapping[str, Scored], images: Sequence[int]) -> None:
        if self.album:
            from tasks.panels.detections import draw_detections

            draw_detections(self.album, self.instances, self.root, self.path, scored, images)

    def _score(
        self,
        boxes: Detections | None,
        masks: Detections | None,
        images: Sequence[int],
        details: Mapping[str, Any],
        lacking: Mapping[str, str] | None = None,
    ) -> Evaluation:
        """Compute the numbers of both kinds; `lacking` says why those of a kind are not there."""
        from tasks.metrics.detection import evaluate
        from tasks.metrics.detection_resampled import COLUMNS

        library = os.environ.get(BACKEND, "")
        count = len(self.instances.categories)
        scored: dict[str, Scored] = {}
        measurements: list[Measurement] = []
        rows: list[Row] = []
        more: dict[str, Any] = {"evaluator": library or "backbone-bench", **self.instances.category_map()}
        for (name, kind), detections in zip(KINDS.items(), (boxes, masks), strict=True):
            if detections is None:
                why = (lacking or {}).get(kind, f"The results hold no {kind}.")
                measurements += [_measurement(name, number, None, why) for number in _names()]
                continue
            objects = _only(self.instances.objects(masks=kind == "masks"), images)
            summary = evaluate(objects, detections, count, kind)
            values = _by_library(objects, detections, count, kind, library) if library else summary.values
            measurements += [_measurement(name, number, values[number]) for number in _names()]
            more[f"{name}_ap_by_category"] = [None if ap < 0 else float(ap) for ap in summary.by_category]
            rows += outcome_rows(self.instances, objects, detections, summary, kind)
            scored[kind] = Scored(objects, detections, summary)
        self._draw(scored, images)
        return Evaluation(tuple(measurements), {**details, **more}, Outcomes(COLUMNS, tuple(rows)))


@dataclass(frozen=True)
class Scored:
    """Objects, detections, and which of them are right: of boxes or of masks."""

    objects: Objects
    detections: Detections
    summary: Summary


def to_entries(found: Sequence[Found], images: int) -> list[Kept]:
    """Return boxes, labels, scores and masks of each image in plain numbers and texts; every number stays as it is.

    Raises:
        ModelError: not as many as there are images.
    """
    import numpy as np

    if len(found) != images:
        raise ModelError(f"The detector returned {len(found)} results for {images} images: expected one each.")
    entries: list[Kept] = []
    for one in found:
        masks = one.get("masks")
        codes = None if masks is None else [[list(code["size"]), _text(code["counts"])] for code in masks]
        entries.append((*(np.asarray(one[key], float).tolist() for key in ARRAYS), codes))
    return entries


def _text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode("ascii")


def from_entry(entry: Kept) -> Found:
    """Return one image's detections from an entry."""
    *arrays, codes = entry
    masks = None if codes is None else [{"size": size, "counts": counts.encode("ascii")} for size, counts in codes]
    return {**dict(zip(ARRAYS, arrays, strict=True)), "masks": masks}


def to_detections(
    found: Sequence[Found], images: Sequence[int], categories: int
) -> tuple[Detections, Detections | None]:
    """Return what a detector found, boxes and masks, as arrays.

    Args:
        found: one mapping an image, see `Coco`.
        images: the number of each image.
        categories: how many there are.

    Raises:
        ModelError: lengths that differ, labels of no category, or numbers that are not finite.
    """
    import numpy as np

    from tasks.metrics.detection import Detections
    from tasks.metrics.overlap import mask_areas

    parts = [[np.asarray(one[key], float) for one in found] for key in ARRAYS]
    counts = [len(part) for part in parts[0]]
    labels, scores, corners = np.hstack(parts[0]), np.hstack(parts[1]), np.vstack([b.reshape(-1, 4) for b in parts[2]])
    if not len(labels) == len(scores) == len(corners):
        raise ModelError(
            f"The detector returned {len(corners)} boxes, {len(labels)} labels and {len(scores)} scores: "
            "expected as many of each in every image."
        )
    if not (np.isfinite(scores).all() and np.isfinite(corners).all()):
        raise ModelError("The detector returned boxes or scores that are NaN or infinite. Try --precision fp32.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < categories:
        wrong = labels[(labels < 0) | (labels >= categories)][0]
        raise ModelError(f"The detector returned the label {wrong:.0f}; expected 0 to {categories - 1}.")
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    made = Detections(
        np.repeat(np.asarray(images, np.int64), counts),
        labels.astype(np.int64),
        boxes,
        boxes[:, 2] * boxes[:, 3],
        scores,
    )
    if any(one.get("masks") is None for one in found):
        return made, None
    masks = [mask for one in found for mask in one["masks"]]
    return made, replace(made, masks=masks, area=mask_areas(masks))


def _names() -> tuple[str, ...]:
    from tasks.metrics.detection import NAMES

    return NAMES


def _measurement(kind: str, number: str, value: float | None, reason: str = "") -> Measurement:
    """One of the twelve numbers, an empty cell where it is -1."""
    metric = Metric(f"{kind}_{number}", "", higher_is_better=True, decimals=4, minor=number not in RANKED)
    if value is None:
        return Measurement(metric, None, reason=reason)
    return Measurement(metric, None, reason=ABSENT) if value < 0 else Measurement(metric, value)


def _by_library(objects: Objects, detections: Detections, count: int, kind: str, library: str) -> Mapping[str, float]:
    from tasks.metrics.detection_reference import LIBRARIES, evaluate

    if library not in LIBRARIES:
        raise SetupError(f"{BACKEND} is {library!r}; expected one of {', '.join(LIBRARIES)}, or nothing.")
    return evaluate(objects, detections, count, kind, library)


def _only(objects: Objects, images: Sequence[int]) -> Objects:
    """The objects of some images."""
    import numpy as np

    kept = np.isin(objects.image, images)
    if kept.all():
        return objects
    masks = [mask for mask, keep in zip(objects.masks, kept, strict=False) if keep]
    return replace(
        objects, image=objects.image[kept], category=objects.category[kept], boxes=objects.boxes[kept],
        area=objects.area[kept], crowd=objects.crowd[kept], masks=masks,
    )  # fmt: skip


def outcome_rows(
    instances: Instances, objects: Objects, detections: Detections, summary: Summary, kind: str
) -> list[Row]:
    """What average precision over any choice of images can be computed from.

    One row for each detection: its place among all by score, and a bit for each threshold at which it is right and at
    which it is ignored. And one row for the objects, crowds aside, of each image and category: place -1, their number.
    """
    import numpy as np

    ids, masks = [str(image.id) for image in instances.images], int(kind == "masks")
    chosen = summary.rows
    place = np.empty(len(chosen), np.int64)
    # Of equal scores the earlier image comes first, as in the evaluation.
    place[np.argsort(-detections.scores[chosen], kind="stable")] = np.arange(len(chosen))
    columns = (detections.image[chosen], detections.category[chosen], place, summary.right, summary.ignored)
    rows: list[Row] = [
        (ids[i], masks, *rest) for i, *rest in zip(*(column.tolist() for column in columns), strict=True)
    ]
    pairs, counts = np.unique(
        np.stack([objects.image, objects.category], axis=1)[~objects.crowd], axis=0, return_counts=True
    )
    return rows + [(ids[i], masks, k, -1, n, 0) for (i, k), n in zip(pairs.tolist(), counts.tolist(), strict=True)]
