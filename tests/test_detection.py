"""Average precision: pycocotools' numbers to the last digit, on whatever data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as codes

from tasks.metrics import detection_reference
from tasks.metrics.detection import NAMES, Detections, Objects, evaluate
from tasks.metrics.overlap import mask_areas

Case = tuple[Objects, Detections, int]


def boxes_in(rng: np.random.Generator, count: int, scale: float, grid: float) -> np.ndarray:
    sides = np.maximum(1, np.round(rng.exponential(scale, (count, 2)) * grid) / grid)
    return np.hstack([np.round(rng.uniform(0, 100, (count, 2)) * grid) / grid, sides])


def random_case(seed: int) -> Case:
    """Crowds, ties of scores and of overlaps, absent categories, empty images, over a hundred detections an image."""
    rng = np.random.default_rng(seed)
    images, categories = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    many, found = int(rng.integers(0, 50)), int(rng.integers(0, 500))
    scale, grid = rng.choice([20, 80, 250]), rng.choice([1, 4, 16])
    boxes = boxes_in(rng, many, scale, grid)
    objects = Objects(
        rng.integers(0, images, many), rng.integers(0, categories, many), boxes,
        boxes[:, 2] * boxes[:, 3] * rng.choice([1, 0.7]), rng.random(many) < 0.15,
    )  # fmt: skip
    image, category = rng.integers(0, images, found), rng.integers(0, categories, found)
    guesses = boxes_in(rng, found, scale, grid)
    if many:
        source, near = rng.integers(0, many, found), rng.random(found) < 0.7
        moved = boxes[source] + np.round(rng.normal(0, rng.choice([0, 1, 5]), (found, 4)) * grid) / grid
        moved[:, 2:] = np.maximum(moved[:, 2:], 1)
        guesses = np.where(near[:, None], moved, guesses)
        image, category = (
            np.where(near, objects.image[source], image),
            np.where(near, objects.category[source], category),
        )
    scores = np.round(rng.random(found), int(rng.integers(1, 4)))
    return objects, Detections(image, category, guesses, guesses[:, 2] * guesses[:, 3], scores), categories


def with_masks(case: Case, side: int = 110) -> Case:
    """The same case with masks: the boxes, cut to the image, with holes."""
    objects, detections, categories = case
    rng = np.random.default_rng(len(objects.image))

    def drawn(boxes: np.ndarray) -> list[Any]:
        masks = np.zeros((side, side, len(boxes)), np.uint8, order="F")
        for n, (x, y, w, h) in enumerate(np.minimum(boxes, side).astype(int)):
            masks[y : y + h, x : x + w, n] = 1
            masks[rng.integers(0, side) :: 7, :, n] = 0
        return codes.encode(masks) if len(boxes) else []

    own, found = drawn(objects.boxes), drawn(detections.boxes)
    return replace(objects, masks=own), replace(detections, masks=found, area=mask_areas(found)), categories


@pytest.mark.parametrize("block", range(8))
def test_boxes_equal_pycocotools_to_the_last_digit(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        case = random_case(seed)
        assert dict(evaluate(*case).values) == dict(detection_reference.evaluate(*case)), f"seed {seed}"


@pytest.mark.parametrize("block", range(4))
def test_masks_equal_pycocotools_to_the_last_digit(block: int) -> None:
    for seed in range(1000 + 8 * block, 1008 + 8 * block):
        case = with_masks(random_case(seed))
        values = evaluate(*case, kind="masks").values
        assert dict(values) == dict(detection_reference.evaluate(*case, kind="masks")), f"seed {seed}"


def test_the_cases_are_hard() -> None:
    cases = [random_case(seed) for seed in range(160)]
    ap = [evaluate(*case).values["ap"] for case in cases]
    assert sum(0.05 < value < 0.95 for value in ap) > 60
    assert any(value == -1 for value in ap), "no case without objects"
    assert any(objects.crowd.any() for objects, *_ in cases)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_faster_coco_eval_equals_pycocotools_to_the_last_digit(kind: str) -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: pip install faster-coco-eval")
    for seed in range(40) if kind == "boxes" else range(1000, 1010):
        case = random_case(seed) if kind == "boxes" else with_masks(random_case(seed))
        found = detection_reference.evaluate(*case, kind=kind, library="faster_coco_eval")
        assert dict(found) == dict(detection_reference.evaluate(*case, kind=kind)), f"seed {seed}"


@pytest.mark.parametrize(("right", "ap"), [(1, 1 - 2**-52), (2, 1.0)])
def test_a_precision_of_one_that_is_of_one_detection(right: int, ap: float) -> None:
    """With 300 objects one hit and two reach the same of the 101 recalls, and only what follows tells them apart."""
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: pip install faster-coco-eval")
    boxes = [[20.0 * n, 0, 9, 9] for n in range(300)]
    hits = [[20.0 * n, 0, 9, 9] if n < right else [20.0 * n, 50, 9, 9] for n in range(99)]
    case = one(boxes), one(hits, (1 - np.arange(99) / 100).tolist()), 1
    expected = dict(detection_reference.evaluate(*case))
    assert expected["ap"] == np.mean([ap, *[0.0] * 100] * 10)
    assert dict(detection_reference.evaluate(*case, library="faster_coco_eval")) == expected
    assert dict(evaluate(*case).values) == expected


def one(boxes: list[list[float]], scores: list[float] | None = None, category: int = 0) -> Any:
    """Some boxes of one image and category, as objects or as detections."""
    table = np.array(boxes, float).reshape(-1, 4)
    place, area = np.zeros(len(table), np.int64), table[:, 2] * table[:, 3]
    if scores is None:
        return Objects(place, place + category, table, area, np.zeros(len(table), bool))
    return Detections(place, place + category, table, area, np.array(scores, float))


def test_counted_by_hand() -> None:
    objects = one([[0, 0, 10, 10], [50, 50, 40, 40]])
    found = one([[0, 0, 10, 10], [200, 200, 10, 10]], [0.9, 0.8])
    values = evaluate(objects, found, 2).values
    assert values["ap"] == pytest.approx(51 / 101), "precision 1 up to recall 0.5, in 101 steps"
    assert (values["ar100"], values["ar_small"], values["ar_medium"]) == (0.5, 1, 0)
    assert values["ap_large"] == -1, "no large object is annotated"


def test_a_crowd_excuses_any_number_of_detections_and_wants_none() -> None:
    objects = replace(one([[0, 0, 100, 100], [300, 300, 50, 50]]), crowd=np.array([True, False]))
    found = one([[10, 10, 20, 20], [40, 40, 20, 20], [300, 300, 50, 50]], [0.9, 0.8, 0.1])
    assert evaluate(objects, found, 1).values["ap"] == pytest.approx(1)
    assert evaluate(replace(objects, crowd=np.array([False, False])), found, 1).values["ap"] < 0.5


def test_of_equal_overlaps_the_later_object_is_taken() -> None:
    objects = one([[0, 0, 10, 10], [4, 0, 10, 10]])
    found = one([[2, 0, 10, 10], [4, 0, 10, 10]], [0.9, 0.8])
    values = evaluate(objects, found, 1).values
    assert dict(values) == dict(detection_reference.evaluate(objects, found, 1))
    assert values["ap50"] == pytest.approx(51 / 101), "the second detection finds its object taken"


def test_only_the_hundred_best_of_an_image_and_category_count() -> None:
    objects = one([[0, 0, 50, 50]])
    found = one([[500, 500, 9, 9]] * 100 + [[0, 0, 50, 50]], [0.9] * 100 + [0.1])
    assert evaluate(objects, found, 1).values["ar100"] == 0
    assert (
        evaluate(objects, one([[500, 500, 9, 9]] * 99 + [[0, 0, 50, 50]], [0.9] * 99 + [0.1]), 1).values["ar100"] == 1
    )


def test_an_object_with_the_id_zero_can_be_found() -> None:
    """Pycocotools reads the id 0 as `not matched`; here objects have no ids."""
    assert evaluate(one([[0, 0, 9, 9]]), one([[0, 0, 9, 9]], [1.0]), 1).values["ap"] == pytest.approx(1)


def test_the_official_example_gives_its_numbers(shared_data: Path) -> None:
    from tasks.data.coco import read_instances
    from tasks.data.coco_results import box_detections, read_results

    folder = shared_data / "coco_eval"
    instances = read_instances(folder / "instances_val2014_100.json")
    results, details = read_results(folder / "instances_val2014_fakebbox100_results.json", instances)
    found = box_detections(results, instances)
    assert found is not None
    expected = json.loads((folder / "expected_stats.json").read_text())["bbox"]
    assert evaluate(instances.objects(), found, 80).values == dict(zip(NAMES, expected, strict=True))
    assert details["images_without_detections"] == 1


def test_real_masks_equal_pycocotools(shared_data: Path) -> None:
    from tasks.data.coco import read_instances

    for split in ("train2017", "val2017"):
        instances = read_instances(shared_data / "coco" / "annotations" / f"instances_{split}.json")
        objects = instances.objects(masks=True)
        rng = np.random.default_rng(0)
        chosen = rng.integers(0, len(objects.image), 400)
        masks = [objects.masks[n] for n in chosen]
        found = Detections(
            objects.image[chosen], objects.category[chosen], objects.boxes[chosen],
            mask_areas(masks), rng.random(400).round(2), masks,
        )  # fmt: skip
        values = evaluate(objects, found, 80, "masks").values
        assert values == dict(detection_reference.evaluate(objects, found, 80, "masks"))
        assert values["ar100"] > 0.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_images_are_evaluated_eight_times_as_fast() -> None:
    import time

    rng = np.random.default_rng(0)
    many, found, images = 36_000, 500_000, 5_000
    boxes = boxes_in(rng, many, 60, 16)
    place, kind = rng.integers(0, images, many), rng.integers(0, 80, many)
    objects = Objects(place, kind, boxes, boxes[:, 2] * boxes[:, 3], rng.random(many) < 0.01)
    source, near = rng.integers(0, many, found), rng.random(found) < 0.5
    moved = np.maximum(1, boxes[source] + rng.normal(0, 5, (found, 4)))
    guesses = np.where(near[:, None], moved, boxes_in(rng, found, 60, 16))
    image = np.where(near, objects.image[source], rng.integers(0, images, found))
    category = np.where(near, objects.category[source], rng.integers(0, 80, found))
    detections = Detections(image, category, guesses, guesses[:, 2] * guesses[:, 3], rng.random(found).round(4))
    clock = time.process_time()
    ours = evaluate(objects, detections, 80).values
    between = time.process_time()
    reference = detection_reference.evaluate(objects, detections, 80)
    ratio = (time.process_time() - between) / (between - clock)
    assert dict(ours) == dict(reference)
    assert ratio > 8, f"only {ratio:.1f} times as fast"
