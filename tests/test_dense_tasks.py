"""Detectors and segmenters, whatever they are, are measured as predictions are; and their generated data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as codes
from torch.nn import functional

from harness.errors import DataError, ModelError, SetupError
from harness.metric import Evaluation
from harness.record import Setup
from harness.task import build_task
from tasks.ade20k import Ade20k, to_labels
from tasks.coco import Coco
from tasks.data import mini_ade20k, mini_coco, mini_scenes
from tasks.data.coco import read_instances
from tasks.data.coco_panoptic import check_segments, read_ids, read_panoptic


def values(evaluation: Evaluation) -> dict[str, float | None]:
    return {measurement.metric.name: measurement.value for measurement in evaluation.measurements}


class Oracle:
    """A detector that knows the annotations, and takes the images in their order."""

    def __init__(self, task: Coco, masks: bool = True) -> None:
        self._objects = task.instances.objects(masks=True)
        self._masks = masks
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, images: Any) -> list[dict[str, Any]]:
        found = []
        for image in images:
            own = np.flatnonzero((self._objects.image == len(self.sizes)) & ~self._objects.crowd)
            self.sizes.append(image.size)
            boxes = torch.from_numpy(self._objects.boxes[own])
            found.append(
                {
                    "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
                    "labels": torch.from_numpy(self._objects.category[own]),
                    "scores": torch.rand(len(own)),
                    "masks": [self._objects.masks[row] for row in own] if self._masks else None,
                }
            )
        return found


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_detector_is_measured_on_whole_pictures_in_order(scenes: Path, batch_size: int) -> None:
    task = Coco(scenes)
    oracle = Oracle(task)
    evaluation = task.measure(oracle, Setup(batch_size=batch_size))
    assert values(evaluation)["box_ap"] == pytest.approx(1)
    assert values(evaluation)["mask_ap"] == pytest.approx(1)
    assert oracle.sizes == [(image.width, image.height) for image in task.instances.images]


def test_a_part_of_the_images_is_measured_against_its_own_objects(scenes: Path) -> None:
    task = Coco(scenes)
    evaluation = task.measure(lambda images: Oracle(task, masks=False)(images), Setup(limit=1))
    assert values(evaluation)["box_ap"] == pytest.approx(1)
    assert values(evaluation)["mask_ap"] is None
    assert evaluation.details["images"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [float("nan")]}, "NaN or infinite"),
        ({"boxes": [[0, 0, 1, float("inf")]]}, "NaN or infinite"),
        ({"labels": [1, 2]}, "8 boxes, 16 labels and 8 scores"),
        ({"labels": [6]}, "label 6; expected 0 to 5"),
    ],
)
def test_a_detector_that_breaks_its_contract_is_refused(scenes: Path, change: dict[str, Any], message: str) -> None:
    one = {"boxes": [[0, 0, 9, 9]], "labels": [0], "scores": [0.5], **change}
    with pytest.raises(ModelError, match=message):
        Coco(scenes).measure(lambda images: [one for _ in images], Setup())


def test_a_detector_that_finds_nothing_scores_zero(scenes: Path) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0), "masks": []}
    found = values(Coco(scenes).measure(lambda images: [nothing for _ in images], Setup()))
    assert {found["box_ap"], found["mask_ap"], found["box_ar100"]} == {0}


def test_a_segmenter_gives_logits_of_any_size_or_labels(scenes: Path) -> None:
    task = Ade20k(scenes)
    truth = [task.annotated.read(name) for name in task.annotated.names]

    def labels(images: Any) -> list[np.ndarray]:
        return [np.maximum(annotation, 1).astype(np.int64) - 1 for annotation in truth]

    def logits(images: Any) -> list[torch.Tensor]:
        return [functional.one_hot(torch.from_numpy(one), 150).permute(2, 0, 1).float() for one in labels(images)]

    def halves(images: Any) -> list[torch.Tensor]:
        return [functional.avg_pool2d(one, 2) for one in logits(images)]

    assert values(task.measure(labels, Setup()))["miou"] == 1
    assert values(task.measure(logits, Setup()))["miou"] == 1
    assert 0.8 < values(task.measure(halves, Setup()))["miou"] < 1


def test_logits_are_resized_before_the_best_class_is_taken() -> None:
    logits = torch.randn(150, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(logits[None], (31, 40), mode="bilinear", align_corners=False)[0].argmax(0)
    assert (to_labels(logits, (31, 40)) == expected.numpy()).all()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.full((150, 4, 4), float("nan")), "NaN or infinite"),
        (torch.zeros(19, 4, 4), "logits of 19 classes; expected ADE20K's 150"),
        (np.zeros((3, 3), np.int64), r"int64 \(3, 3\); expected"),
        (np.zeros((4, 4)), r"float64 \(4, 4\); expected"),
        (np.full((4, 4), 150), "label 150; expected 0 to 149"),
    ],
)
def test_a_segmenter_that_breaks_its_contract_is_refused(output: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        to_labels(output, (4, 4))


@pytest.mark.parametrize("name", ["coco", "coco_panoptic", "ade20k"])
def test_without_a_head_a_model_is_refused(name: str, scenes: Path) -> None:
    with pytest.raises(SetupError, match="--predictions"):
        build_task(name, scenes).evaluate(torch.nn.Identity(), Setup())


# The generated data


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_twice_gives_the_same_bytes_and_counts_do_not_matter(tmp_path: Path) -> None:
    for generator in (mini_coco, mini_ade20k):
        first, more = (digests(generator.generate(tmp_path / str(n), train=1, val=n)) for n in (1, 2))
        assert digests(generator.generate(tmp_path / "again", train=1, val=1)) == first
        pictures = {name: digest for name, digest in first.items() if name.endswith((".jpg", ".png"))}
        assert pictures.items() <= more.items()
        with pytest.raises(DataError, match=r"was made with val.*=1 instead of 2"):
            generator.generate(tmp_path / "1", train=1, val=2)
        with pytest.raises(SetupError, match="No data set has train=0"):
            generator.generate(tmp_path / "none", train=0)


def test_annotations_are_of_the_official_kinds(scenes: Path) -> None:
    folder = scenes / "coco" / "annotations"
    content = json.loads((folder / "instances_val2017.json").read_text())
    kinds = {type(one["segmentation"]).__name__ + str(one["iscrowd"]) for one in content["annotations"]}
    assert kinds == {"list0", "dict1"}, "polygons for objects, run lengths for crowds"
    instances = read_instances(folder / "instances_val2017.json")
    objects = instances.objects(masks=True)
    assert (codes.area([*objects.masks]) == objects.area).all()
    assert (codes.toBbox([*objects.masks]) == objects.boxes).all()
    panoptic = read_panoptic(folder / "panoptic_val2017.json")
    crowds = 0
    for image in panoptic.images:
        one = panoptic.maps[str(image.id)]
        ids = read_ids(panoptic.folder, one, image)
        check_segments(one, ids)
        assert all((ids == info.id).sum() == info.area for info in one.segments_info)
        crowds += sum(info.iscrowd for info in one.segments_info)
    assert crowds == objects.crowd.sum() > 0
    assert {category.isthing for category in panoptic.categories} == {0, 1}


def test_labels_go_from_zero_to_the_last_class() -> None:
    assert {1, 150} < set(mini_ade20k.LABELS.values())
    assert len(set(mini_ade20k.LABELS.values())) == 10


def test_difficulty_makes_colours_tell_less() -> None:
    def spread(difficulty: float) -> float:
        """How far the colours of discs lie from their mean."""
        colours = [
            scene.picture[thing.mask].mean(axis=0)
            for number in range(30)
            for scene in [mini_scenes.draw_scene((number,), difficulty)]
            for thing in scene.things
            if thing.kind == 0
        ]
        return float(np.std(colours, axis=0).mean())

    assert spread(0) * 3 < spread(0.3) * 2 < spread(1)


def test_colour_alone_tells_much_and_not_all() -> None:
    """Mean intersection over union of the nearest mean colour, on pixels of the scenes that the means are of."""
    scenes = [mini_scenes.draw_scene((number,)) for number in range(30)]
    colours = np.concatenate([scene.picture[::5, ::5].reshape(-1, 3) for scene in scenes]).astype(float)
    labels = np.concatenate([mini_ade20k.labels_of(scene)[::5, ::5].ravel() for scene in scenes])
    colours, labels = colours[labels > 0], labels[labels > 0]
    known = np.unique(labels)
    means = np.stack([colours[labels == label].mean(axis=0) for label in known])
    best = known[((colours[:, None] - means) ** 2).sum(-1).argmin(1)]
    iou = [((best == k) & (labels == k)).sum() / ((best == k) | (labels == k)).sum() for k in known]
    assert 0.5 < np.mean(iou) < 0.95
