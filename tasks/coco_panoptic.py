"""COCO's panoptic task: every pixel belongs to a thing or to stuff."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import SetupError
from harness.metric import Evaluation, Measurement, Metric, Outcomes, Row
from harness.progress import track
from harness.record import DataStamp, Setup
from harness.registry import TASKS, Entry, Registry
from harness.task import Task

if TYPE_CHECKING:
    from torch import nn

    from tasks.data.coco_panoptic import Panoptic
    from tasks.metrics.panoptic import Counts

REGIONS: dict[str, int | None] = {"": None, "_things": 1, "_stuff": 0}
QUALITIES = ("pq", "sq", "rq")
SCALE = 10**9  # of overlaps in outcomes, which hold whole numbers


@TASKS.register("coco_panoptic")
class CocoPanoptic(Task):
    """Panoptic, segmentation and recognition quality, in 0..1, of all categories, of things and of stuff.

    Args:
        data: root of the data sets; None for the default.
        variant: the entry of the protocol; there is none yet, so a model needs predictions made elsewhere.
        annotations: a panoptic annotation file, with its PNG files in the folder of its name, in place of the data
            root's.

    Source: Kirillov et al. 2019 (arXiv:1801.00868); github.com/cocodataset/panopticapi.
    """

    variants: ClassVar[Registry[Any] | None] = None
    evaluated_on: ClassVar[str] = "val"

    def __init__(
        self, data: Path | None = None, variant: Entry[Any] | None = None, annotations: Path | None = None
    ) -> None:
        self.root = data
        self._annotations = annotations

    @cached_property
    def panoptic(self) -> Panoptic:
        """The annotations of the evaluated images."""
        from tasks.data.coco import annotation_file
        from tasks.data.coco_panoptic import read_panoptic

        return read_panoptic(self._annotations or annotation_file(self.root, "panoptic", self.evaluated_on))

    def data(self) -> DataStamp:
        """Return the stamp of the annotations."""
        return self.panoptic.stamp

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Refuse: no protocol makes panoptic segments of a backbone."""
        raise SetupError("coco_panoptic measures predictions only: give --predictions FILE.json with its PNG files.")

    def belongs_to(self, file: Path) -> str | None:
        """Return None: every file is for this task."""
        return None

    def evaluate_predictions(self, file: Path) -> Evaluation:
        """Measure a JSON file of segments with its folder of PNG files.

        Raises:
            DataError: images or segments that are missing, unknown or repeated, or maps of another size.
        """
        from tasks.data.coco_panoptic import check_segments, read_ids, read_panoptic_results, segments
        from tasks.metrics.panoptic import Counts, compare
        from tasks.metrics.sums_resampled import PANOPTIC

        truth = self.panoptic
        things = {category.id: category.isthing for category in truth.categories}
        maps, folder = read_panoptic_results(file, truth)
        total: dict[int, Counts] = {category.id: Counts() for category in truth.categories}
        rows: list[Row] = []
        for image in track(truth.images, "compare segments"):
            one, other = truth.maps[str(image.id)], maps[str(image.id)]
            found = read_ids(folder, other, image)
            check_segments(other, found)
            annotated, guessed = segments(one), segments(other)
            for category, counts in compare(read_ids(truth.folder, one, image), annotated, found, guessed).items():
                total[category] += counts
                rows.append(_row(str(image.id), category, things[category], counts))
        return Evaluation(self._measure(total), self._details(total), Outcomes(PANOPTIC, tuple(rows)))

    def _measure(self, total: dict[int, Counts]) -> tuple[Measurement, ...]:
        """All categories first, then things and stuff."""
        from tasks.metrics.panoptic import average

        measurements = []
        for region, thing in REGIONS.items():
            ids = [category.id for category in self.panoptic.categories if thing in (None, category.isthing)]
            quality = average(total, ids)
            for name in QUALITIES:
                minor = bool(region) and name != "pq"
                metric = Metric(name + region, "", higher_is_better=True, decimals=4, minor=minor)
                measurements.append(
                    Measurement(metric, getattr(quality, name))
                    if quality
                    else Measurement(metric, None, reason="no such segments are annotated or predicted")
                )
        return tuple(measurements)

    def _details(self, total: dict[int, Counts]) -> dict[str, Any]:
        """The quality of each category."""
        from tasks.metrics.panoptic import average

        found = {category.name: average(total, [category.id]) for category in self.panoptic.categories}
        return {
            "images": len(self.panoptic.images),
            "category_ids": [category.id for category in self.panoptic.categories],
            "pq_by_category": {name: quality.pq if quality else None for name, quality in found.items()},
        }


def _row(item: str, category: int, thing: int, counts: Counts) -> Row:
    return item, category, thing, counts.right, counts.wrong, counts.missed, round(SCALE * counts.overlap)
