"""Top-1, top-5 and mean per-class accuracy, with a stated rule for ties and for outputs that are not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, ModelError
from harness.metric import Evaluation, Measurement, Metric, Outcomes, Row
from harness.statistics import proportion_interval
from harness.task import Batch
from tasks.metrics.class_order import find_shuffle

if TYPE_CHECKING:
    from torch import Tensor

TOP1 = Metric("top1", "%", higher_is_better=True)
TOP5 = Metric("top5", "%", higher_is_better=True)
MEAN_PER_CLASS = Metric("mean_per_class", "%", higher_is_better=True)
REAL = Metric("real_top1", "%", higher_is_better=True)
NONE = -1  # in the place of a class
TIES = "scores are compared in fp32; of equal scores the lower class index ranks first"


class Accuracy:
    """Ranks the classes of each image.

    A score of minus infinity excludes a class: it is never predicted. A row with NaN or plus infinity, or without
    any finite score, counts as wrong and is reported.

    Args:
        classes: how many.
        real: for items, the classes that are right in ImageNet ReaL (arXiv:2006.07159); those without any are left
            out of that number.
        per_class: whether the headline is the mean of the classes' accuracies, over those that have images.
        look: called with the items of each batch, their scores and their best classes.
    """

    def __init__(
        self,
        classes: int,
        real: Mapping[str, Sequence[int]] | None = None,
        per_class: bool = False,
        look: Callable[[Sequence[str], Tensor, Tensor], None] | None = None,
    ) -> None:
        self._classes = classes
        self._real = real or {}
        self._per_class = per_class
        self._look = look
        self.rows: list[Row] = []

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Rank scores (B, classes)."""
        ranked = rank(outputs, min(5, self._classes))
        for item, target, best in zip(batch.items, batch.targets.tolist(), ranked.tolist(), strict=True):
            self.rows.append((item, target, *best))
        if self._look:
            self._look(batch.items, outputs, ranked)

    def compute(self) -> Evaluation:
        """Return top-1, top-5 where there are more than five classes, and ReaL top-1 where there are labels.

        Predictions that are right but for the order of the classes are reported, and do not rank.

        Raises:
            ModelError: no row was finite.
            DataError: there were no rows.
        """
        if not self.rows:
            raise DataError("There were no images to evaluate: expected at least one. Check the data set and --limit.")
        broken = [row[0] for row in self.rows if row[2] == NONE]
        if len(broken) == len(self.rows):
            raise ModelError(
                f"All {len(self.rows)} outputs hold NaN or infinity: the weights or the precision are broken. "
                "Try --precision fp32."
            )
        measurements = [self._mean_per_class()] if self._per_class else []
        measurements.append(_share(TOP1, self._right(1), len(self.rows)))
        if self._classes > 5:
            measurements.append(
                _share(TOP5, self._right(5), len(self.rows))
                if self._width == 5
                else Measurement(TOP5, None, reason=f"only the {self._width} best classes of each image are known")
            )
        if judged := [row for row in self.rows if self._real.get(str(row[0]))]:
            right = sum(row[2] in self._real[str(row[0])] for row in judged)
            measurements.append(_share(REAL, right, len(judged)))
        details: dict[str, Any] = {"ties": TIES, "images": len(self.rows), "not_finite": len(broken)}
        if judged:
            details["real_images"] = len(judged)
        if broken:
            details["not_finite_items"] = broken[:20]
        details |= self._order()
        columns = ("item", "target", *(f"top{place}" for place in range(1, self._width + 1)))
        return Evaluation(tuple(measurements), details, Outcomes(columns, tuple(self.rows)))

    @property
    def _width(self) -> int:
        """How many classes of each image are known."""
        return len(self.rows[0]) - 2

    def _right(self, k: int) -> int:
        """How many images have their target among the best k."""
        return sum(row[1] in row[2 : 2 + k] for row in self.rows)

    def _mean_per_class(self) -> Measurement:
        """Percentage of a class's images that are right, averaged over the classes that have any."""
        images = Counter(row[1] for row in self.rows)
        right = Counter(row[1] for row in self.rows if row[1] == row[2])
        value = sum(right[target] / count for target, count in images.items()) / len(images)
        low, high = class_mean_interval([(right[target], count) for target, count in images.items()])
        return Measurement(MEAN_PER_CLASS, 100 * value, interval=(100 * low, 100 * high))

    def _order(self) -> dict[str, Any]:
        """What to say where the predictions are right but for the order of the classes; nothing otherwise."""
        shuffle = find_shuffle([(int(row[1]), int(row[2])) for row in self.rows if row[2] != NONE])
        if shuffle is None:
            return {}
        return {"class_order": shuffle.remark, "class_mapping": shuffle.pairs, "unranked": [shuffle.remark]}


def class_mean_interval(classes: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of classes' shares, within 0..1.

    It is Wilson's, for as many images as would give a plain share the variance that the mean of the classes has: the
    number of images of each class is taken as fixed. Half an image is spread over all classes on either side, so that
    no set is certain.

    Args:
        classes: right images and images of each class.
    """
    number, total = len(classes), sum(count for _, count in classes)
    mean = sum(right / count for right, count in classes) / number
    shares = [((right + 0.5 / number) / (count + 1 / number), count) for right, count in classes]
    variance = sum(share * (1 - share) / max(1, count - 1) for share, count in shares) / number**2
    images = mean * (1 - mean) / variance if 0 < mean < 1 else total
    return proportion_interval(mean * images, images)


def _share(metric: Metric, right: int, images: int) -> Measurement:
    """A percentage with Wilson's interval."""
    low, high = proportion_interval(right, images)
    return Measurement(metric, 100 * right / images, interval=(100 * low, 100 * high))


def rank(scores: Tensor, k: int) -> Tensor:
    """Return the best k classes (B, k) of scores (B, C), -1 where there is none."""
    import torch

    scores = scores.float().cpu()
    broken = (scores.isnan() | (scores == torch.inf)).any(dim=1, keepdim=True)
    best = scores.sort(dim=1, descending=True, stable=True)
    values, classes = best.values[:, :k], best.indices[:, :k]
    return classes.masked_fill((values == -torch.inf) | broken, NONE)
