"""The bootstrap over images: equal to the official metrics on data sets with images repeated, seeded, and stored."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_detection import Case, random_case, with_masks

from harness.metric import Evaluation, Measurement, Metric, Outcomes
from harness.resampling import RESAMPLES, draws, replicates, statistic_of, whole, with_intervals
from tasks.coco import outcome_rows
from tasks.metrics import detection_reference
from tasks.metrics.detection import Detections, Objects, evaluate
from tasks.metrics.detection_resampled import COLUMNS

NUMBERS = ("ap", "ap50", "ap75")


def test_draws_are_poisson_and_depend_on_seed_and_name_alone() -> None:
    names = [f"image_{number}" for number in range(400)]
    found = draws(names)
    assert found.shape == (400, RESAMPLES)
    assert (found.mean(), found.var()) == pytest.approx((1, 1), abs=0.01)
    for count, share in enumerate((0.3679, 0.3679, 0.1839, 0.0613)):
        assert (found == count).mean() == pytest.approx(share, abs=0.003)
    assert (draws(names[7:9]) == found[7:9]).all()
    assert (draws(names[:1], seed=1) != found[:1]).any()
    assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.1
    assert draws(["a"], 12).tolist() == [[0, 0, 1, 0, 2, 1, 0, 2, 1, 2, 2, 1]], (
        "resamples of stored seeds stay the same"
    )


def repeated(case: Case, counts: np.ndarray) -> Case:
    """The case with each image so many times, each time as an image of its own."""
    objects, detections, categories = case
    first = np.cumsum(counts) - counts

    def parts(them: Any) -> Any:
        copies = counts[them.image]
        rows = np.repeat(np.arange(len(them.image)), copies)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(copies) - copies, copies)
        names = [name for name in ("category", "boxes", "area", "crowd", "scores") if hasattr(them, name)]
        chosen = {name: getattr(them, name)[rows] for name in names}
        masks = [them.masks[row] for row in rows] if len(them.masks) else ()
        return replace(them, image=first[them.image[rows]] + number, masks=masks, **chosen)

    return parts(objects), parts(detections), categories


def distinct(case: Case) -> Case:
    """The case without ties of scores: the order among repeated ties would be another."""
    objects, detections, categories = case
    scores = np.random.default_rng(len(detections.scores)).permutation(len(detections.scores)).astype(float)
    return objects, replace(detections, scores=scores), categories


def outcomes_of(case: Case, kind: str) -> Outcomes:
    objects, detections, categories = case
    instances: Any = SimpleNamespace(images=[SimpleNamespace(id=number) for number in range(10)])
    rows = outcome_rows(instances, objects, detections, evaluate(objects, detections, categories, kind), kind)
    return Outcomes(COLUMNS, tuple(rows))


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_average_precision_of_a_resample_is_that_of_pycocotools_on_repeated_images(kind: str) -> None:
    told = 0
    for seed in range(60 if kind == "boxes" else 10):
        case = distinct(random_case(seed))
        case = with_masks(case) if kind == "masks" else case
        statistic = statistic_of(outcomes_of(case, kind))
        assert statistic is not None
        counts = np.random.default_rng(seed).poisson(1, 10)
        expected = detection_reference.evaluate(*repeated(case, counts), kind=kind)
        drawn = counts[[int(item) for item in statistic.items]].astype(np.uint8)[:, None]
        found = statistic.values(drawn, statistic.metrics)
        for name in statistic.metrics:
            value = expected[name.partition("_")[2]]
            told += 0.05 < value < 0.95
            assert np.nan_to_num(found[name][0], nan=-1) == pytest.approx(value, abs=1e-12), f"seed {seed}"
    assert told > (60 if kind == "boxes" else 10)
