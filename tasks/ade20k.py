"""ADE20K: one of 150 classes for every pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, ModelError
from harness.journal import Kept
from harness.metric import Evaluation, Measurement, Metric, Outcomes
from harness.progress import track
from harness.record import DataStamp, Setup
from harness.registry import SEGMENTERS, TASKS
from tasks.dense_task import DenseTask

if TYPE_CHECKING:
    from tasks.data.ade20k import LabelMaps
    from tasks.metrics.segmentation import Segmentation
    from tasks.panels.segmentation import LabelPanels

NAMES = {"miou": False, "macc": False, "aacc": False, "fwiou": True, "boundary_iou": True}  # whether minor
Predict = Callable[[Sequence[Any]], Sequence[Any]]


@TASKS.register("ade20k")
class Ade20k(DenseTask):
    """Mean intersection over union and accuracies, in 0..1, from one confusion matrix over the data set.

    Annotated label 0, `other`, does not count; labels are compared at the size of the annotation.

    A segmenter is what a variant's `adapt(model, task, setup)` returns: a function from some images, PIL pictures in
    RGB at their original sizes, to one of these an image:

    - logits (150, h, w), a tensor of any size, which is resized to the image's (bilinear, `align_corners=False`) before
      the best class is taken, or
    - labels (H, W) from 0 to 149, whole numbers at the image's original size.

    Args:
        data: root of the data sets; None for the default.
        workers: processes that load data, for segmenters that use them.
        variant: the entry of the segmenter's protocol.
        annotations: a folder of label PNG files in place of the data root's.

    Source: Zhou et al. 2017 (arXiv:1608.05442).
    """

    variants = SEGMENTERS
    default_variant = "own"
    version = 3
    name = "ade20k"

    @cached_property
    def annotated(self) -> LabelMaps:
        """The annotations of the evaluated images."""
        from tasks.data.ade20k import read_split

        return read_split(self.root, self.evaluated_on, self._annotations)

    @cached_property
    def training(self) -> LabelMaps:
        """The annotations that protocols train on."""
        from tasks.data.ade20k import read_split

        return read_split(self.root, "train")

    def training_file(self, name: str) -> Path:
        """Return the file of a training image."""
        from tasks.data.ade20k import image_file

        return image_file(self.root, "train", name)

    def stamp(self, training: bool) -> DataStamp:
        """Return the stamp of the annotations that are evaluated, or trained on."""
        return (self.training if training else self.annotated).stamp

    def measure(self, predict: Predict, setup: Setup) -> Evaluation:
        """Measure a segmenter on all images, or on so many as the setup allows; see the class for its contract."""
        from tasks.data.ade20k import image_file
        from tasks.data.loader import spread
        from tasks.data.picture import read_picture

        meter = self._meter()
        chosen = [self.annotated.names[n] for n in spread(len(self.annotated.names), setup.limit)]
        panels = self._panels(chosen)

        def look(places: Sequence[int]) -> list[Kept]:
            names, found = [chosen[place] for place in places], []
            annotations = [self.annotated.read(name) for name in names]
            files = [image_file(self.root, self.evaluated_on, name) for name in names]
            outputs = predict(
                [read_picture(file, one.shape[::-1]) for file, one in zip(files, annotations, strict=True)]
            )
            for name, annotation, output in zip(names, annotations, outputs, strict=True):
                labels = to_labels(output, annotation.shape) + 1
                found.append(meter.count(name, labels, annotation))
                panels.draw(name, annotation, labels)
            return found

        for entry in self.entries(len(chosen), setup, look, "segment"):
            meter.add(entry)
        panels.draw_rest()
        return self._evaluation(meter)

    def _panels(self, names: Sequence[str]) -> LabelPanels:
        from tasks.panels.segmentation import LabelPanels

        return LabelPanels(self.album, self.annotated, self.root, names)

    def draw_truth(self) -> None:
        """Draw the annotations of the images that the album takes."""
        self._panels(self.annotated.names).draw_rest("")

    def belongs_to(self, file: Path) -> str | None:
        """Return None: every file is for this task."""
        return None

    def evaluate_predictions(self, file: Path) -> Evaluation:
        """Measure a folder of label PNG files: 1 to 150 for the classes as in the annotations, 0 for none.

        Raises:
            DataError: images that are missing or unknown, labels that cannot be, or maps of another size.
        """
        from tasks.data.ade20k import CLASSES, match_predictions, read_labels

        meter, panels = self._meter(), self._panels(self.annotated.names)
        for name, path in track(match_predictions(file, self.annotated).items(), "compare labels"):
            labels, annotation = read_labels(path), self.annotated.read(name)
            if labels.shape != annotation.shape:
                raise DataError(
                    f"{path.name} is {labels.shape[1]} x {labels.shape[0]} pixels; expected {annotation.shape[1]} x "
                    f"{annotation.shape[0]}, the annotation's size. Resize logits before the best class is taken."
                )
            if labels.size and labels.max() > CLASSES:
                raise DataError(
                    f"{path.name} holds the label {labels.max()}; expected 1 to {CLASSES} for the classes, 0 for none."
                )
            meter.update(name, labels, annotation)
            panels.draw(name, annotation, labels)
        meter.check_origin()
        return self._evaluation(meter)

    def _meter(self) -> Segmentation:
        from tasks.data.ade20k import CLASSES
        from tasks.metrics.segmentation import Segmentation

        return Segmentation(CLASSES)

    def _evaluation(self, meter: Segmentation) -> Evaluation:
        from tasks.metrics.sums_resampled import SEGMENTATION

        values = meter.values()
        measurements = [
            Measurement(metric, None, reason="no pixel is annotated")
            if math.isnan(values[name])
            else Measurement(metric, values[name])
            for name, minor in NAMES.items()
            for metric in [Metric(name, "", higher_is_better=True, decimals=4, minor=minor)]
        ]
        classes = self.annotated.classes or [str(label) for label in range(1, meter.classes + 1)]
        iou = [None if math.isnan(share) else float(share) for share in meter.by_class()]
        details = {
            "ignored": "label 0, other, and 255",
            "size": "that of the annotation",
            "classes": list(classes),
            "iou_by_class": iou,
            "classes_that_occur": sum(share is not None for share in iou),
        }
        return Evaluation(tuple(measurements), details, Outcomes(SEGMENTATION, tuple(meter.rows)))


def to_labels(output: Any, shape: tuple[int, ...]) -> Any:
    """Return labels (H, W) from logits (C, h, w), or from labels of that size.

    Raises:
        ModelError: the output is neither, or not finite.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    from tasks.data.ade20k import CLASSES

    if isinstance(output, torch.Tensor) and output.ndim == 3 and output.is_floating_point():
        if len(output) != CLASSES:
            raise ModelError(f"The segmenter returned logits of {len(output)} classes; expected ADE20K's {CLASSES}.")
        if not output.isfinite().all():
            raise ModelError("The segmenter returned logits that are NaN or infinite. Try --precision fp32.")
        if tuple(output.shape[1:]) != tuple(shape):
            output = functional.interpolate(output.float()[None], size=shape, mode="bilinear", align_corners=False)[0]
        output = output.argmax(dim=0)
    labels = np.asarray(output.cpu() if isinstance(output, torch.Tensor) else output)
    if labels.shape != tuple(shape) or labels.dtype.kind not in "iu":
        raise ModelError(
            f"The segmenter returned {labels.dtype} {labels.shape}; expected logits (classes, h, w), or whole numbers "
            f"{tuple(shape)}, the image's original size."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < CLASSES:
        wrong = labels.max() if labels.max() >= CLASSES else labels.min()
        raise ModelError(f"The segmenter returned the label {wrong}; expected 0 to {CLASSES - 1}.")
    return labels.astype(np.uint8)
