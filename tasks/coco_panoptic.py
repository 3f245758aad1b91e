"""COCO's panoptic task: every pixel belongs to a thing or to stuff."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, ModelError
from harness.journal import Kept
from harness.metric import Evaluation, Measurement, Metric, Outcomes, Row
from harness.progress import track
from harness.record import DataStamp, Setup
from harness.registry import PANOPTIC_SEGMENTERS, TASKS
from tasks.dense_task import DenseTask

if TYPE_CHECKING:
    from tasks.data.coco import Image
    from tasks.data.coco_panoptic import Map, Panoptic
    from tasks.metrics.panoptic import Counts, Ids, Segment
    from tasks.panels.segments import SegmentPanels

    Compared = tuple[Image, Mapping[int, Counts]]
    Predict = Callable[[Sequence[Any]], Sequence[tuple[Ids, Sequence[Segment]]]]

REGIONS: dict[str, int | None] = {"": None, "_things": 1, "_stuff": 0}
QUALITIES = ("pq", "sq", "rq")
SCALE = 10**9  # of overlaps in outcomes, which hold whole numbers


@TASKS.register("coco_panoptic")
class CocoPanoptic(DenseTask):
    """Panoptic, segmentation and recognition quality, in 0..1, of all categories, of things and of stuff.

    A segmenter is what a variant's `adapt(model, task, setup)` returns: a function from some images, PIL pictures in
    RGB at their original sizes, to one pair an image: a map (H, W) of whole numbers at that size, the id of each
    pixel's segment and 0 for none, and the list of its segments (`tasks.metrics.panoptic.Segment`).

    Args:
        data: root of the data sets; None for the default.
        workers: processes that load data, for segmenters that use them.
        variant: the entry of the segmenter's protocol.
        annotations: a panoptic annotation file, with its PNG files in the folder of its name, in place of the data
            root's.

    Source: Kirillov et al. 2019 (arXiv:1801.00868); github.com/cocodataset/panopticapi.
    """

    variants = PANOPTIC_SEGMENTERS
    version = 2
    name = "coco_panoptic"

    @cached_property
    def path(self) -> Path:
        """The annotation file."""
        from tasks.data.coco import annotation_file

        return self._annotations or annotation_file(self.root, "panoptic", self.evaluated_on)

    @cached_property
    def panoptic(self) -> Panoptic:
        """The annotations of the evaluated images."""
        from tasks.data.coco_panoptic import read_panoptic

        return read_panoptic(self.path)

    @cached_property
    def training_path(self) -> Path:
        """The annotation file that protocols train on."""
        from tasks.data.coco import annotation_file

        return annotation_file(self.root, "panoptic", "train")

    @cached_property
    def training(self) -> Panoptic:
        """The annotations that protocols train on.

        Raises:
            DataError: their categories are not those of the evaluated images.
        """
        from tasks.data.coco_panoptic import read_panoptic

        found = read_panoptic(self.training_path)
        if found.category_map() != self.panoptic.category_map():
            raise DataError(
                f"{self.training_path.name} and {self.path.name} have different categories: expected the same. "
                "Restore the official files."
            )
        return found

    def stamp(self, training: bool) -> DataStamp:
        """Return the stamp of the annotations that are evaluated, or trained on."""
        return (self.training if training else self.panoptic).stamp

    def measure(self, predict: Predict, setup: Setup) -> Evaluation:
        """Measure a segmenter on all images, or on so many as the setup allows; see the class for its contract."""
        return self._evaluation(self._predicted(predict, setup))

    def belongs_to(self, file: Path) -> str | None:
        """Return None: every file is for this task."""
        return None

    def evaluate_predictions(self, file: Path) -> Evaluation:
        """Measure a JSON file of segments with its folder of PNG files.

        Raises:
            DataError: images or segments that are missing, unknown or repeated, or maps of another size.
        """
        from tasks.data.coco_panoptic import read_panoptic_results

        maps, folder = read_panoptic_results(file, self.panoptic)
        return self._evaluation(self._read(maps, folder))

    def _predicted(self, predict: Predict, setup: Setup) -> Iterator[Compared]:
        """How each image's annotation compares with what a segmenter finds in it."""
        from tasks.data.coco import image_folder
        from tasks.data.loader import spread
        from tasks.data.picture import read_picture
        from tasks.metrics.panoptic import Counts

        folder = image_folder(self.root, self.path)
        chosen = [self.panoptic.images[number] for number in spread(len(self.panoptic.images), setup.limit)]
        known = {category.id for category in self.panoptic.categories}
        by_id, panels = {str(image.id): image for image in chosen}, self._panels(chosen)

        def look(places: Sequence[int]) -> list[Kept]:
            images, entries = [chosen[place] for place in places], []
            found = predict([read_picture(folder / one.file_name, (one.width, one.height)) for one in images])
            for image, (ids, segments) in zip(images, found, strict=True):
                check_guess(ids, segments, (image.height, image.width), known)
                counts = self._compare(image, ids, segments, panels)
                entries.append((str(image.id), [[category, *astuple(one)] for category, one in counts.items()]))
            return entries

        for item, counted in self.entries(len(chosen), setup, look, "segment"):
            yield by_id[item], {category: Counts(*numbers) for category, *numbers in counted}
        panels.draw_rest()

    def _read(self, maps: Mapping[str, Map], folder: Path) -> Iterator[Compared]:
        """How each image's annotation compares with what files hold for it."""
        from tasks.data.coco_panoptic import check_segments, read_ids, segments

        panels = self._panels(self.panoptic.images)
        for image in track(self.panoptic.images, "compare segments"):
            one = maps[str(image.id)]
            ids = read_ids(folder, one, image)
            check_segments(one, ids)
            yield image, self._compare(image, ids, segments(one), panels)

    def _compare(
        self, image: Image, ids: Ids, guesses: Sequence[Segment], panels: SegmentPanels
    ) -> Mapping[int, Counts]:
        """What is right, wrong and missed in an image, by category."""
        from tasks.data.coco_panoptic import read_ids, segments
        from tasks.metrics.panoptic import compare

        one = self.panoptic.maps[str(image.id)]
        annotated = read_ids(self.panoptic.folder, one, image), segments(one)
        counts = compare(*annotated, ids, guesses)
        panels.draw(image, annotated, (ids, guesses), counts)
        return counts

    def _panels(self, images: Sequence[Image]) -> SegmentPanels:
        from tasks.panels.segments import SegmentPanels

        return SegmentPanels(self.album, self.panoptic, self.root, self.path, images)

    def draw_truth(self) -> None:
        """Draw the annotated segments of the images that the album takes."""
        self._panels(self.panoptic.images).draw_rest("")

    def _evaluation(self, found: Iterable[Compared]) -> Evaluation:
        """Add up what was counted in images."""
        from tasks.metrics.panoptic import Counts
        from tasks.metrics.sums_resampled import PANOPTIC

        things = {category.id: int(bool(category.isthing)) for category in self.panoptic.categories}
        total: dict[int, Counts] = {category: Counts() for category in things}
        rows: list[Row] = []
        images = 0
        for image, compared in found:
            images += 1
            for category, counts in compared.items():
                total[category] += counts
                rows.append(_row(str(image.id), category, things[category], counts))
        details = {"images": images, **self._details(total)}
        return Evaluation(self._measure(total), details, Outcomes(PANOPTIC, tuple(rows)))

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
            **self.panoptic.category_map(),
            "pq_by_category": {name: quality.pq if quality else None for name, quality in found.items()},
        }


def _row(item: str, category: int, thing: int, counts: Counts) -> Row:
    return item, category, thing, counts.right, counts.wrong, counts.missed, round(SCALE * counts.overlap)


def check_guess(ids: Any, segments: Sequence[Segment], shape: tuple[int, int], categories: set[int]) -> None:
    """Raise ModelError where a map of ids is of another size, or does not hold the segments that are listed."""
    import numpy as np

    if ids.shape != shape or ids.dtype.kind not in "iu":
        raise ModelError(
            f"The segmenter returned {ids.dtype} {ids.shape}; expected ids {shape}, the image's original size."
        )
    drawn, listed = set(np.unique(ids).tolist()) - {0}, [segment.id for segment in segments]
    if drawn != set(listed) or len(listed) != len(drawn):
        raise ModelError(f"The segmenter listed the segments {listed} and drew {sorted(drawn)}: expected the same.")
    if strange := {segment.category for segment in segments} - categories:
        raise ModelError(f"The segmenter returned the category {min(strange)}; expected those of the annotations.")
