"""Metrics of resampled images: equal to the official ones on data sets with images repeated; seeded; in records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_records import accuracy
from test_detection import Case, random_case, with_masks
from typer.testing import CliRunner

from harness.cli import app
from harness.compare import compare
from harness.gate import Policy, Verdict, judge
from harness.leaderboard import make_boards
from harness.metric import Evaluation, Measurement, Metric, Outcomes
from harness.ranking import with_ranks
from harness.resampling import RESAMPLES, halves, replicates, statistic_of, whole, with_intervals
from harness.store import Store
from tasks.coco import outcome_rows
from tasks.metrics import detection_reference
from tasks.metrics.accuracy import Accuracy
from tasks.metrics.detection import evaluate
from tasks.metrics.detection_resampled import COLUMNS
from tasks.metrics.panoptic import Counts, average
from tasks.metrics.segmentation import Segmentation
from tasks.metrics.sums_resampled import PANOPTIC, SEGMENTATION


def test_a_resample_is_a_random_half_that_depends_on_seed_and_name_alone() -> None:
    names = [f"image_{number}" for number in range(400)]
    found = halves(names)
    assert found.shape == (400, RESAMPLES)
    assert set(np.unique(found)) == {0, 1}
    assert found.mean() == pytest.approx(0.5, abs=0.005)
    assert found.sum(axis=0).std() == pytest.approx(10, rel=0.1), "images are drawn independently"
    assert (halves(names[7:9]) == found[7:9]).all()
    assert (halves(names[:1], seed=1) != found[:1]).any()
    assert halves(["a"], 12).tolist() == [[0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 1]], "resamples of past records stay"


def repeated(case: Case, counts: np.ndarray) -> Case:
    """The case with each image so many times, each time as an image of its own."""
    objects, detections, categories = case
    first = np.cumsum(counts) - counts

    def copied(them: Any) -> Any:
        copies = counts[them.image]
        rows = np.repeat(np.arange(len(them.image)), copies)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(copies) - copies, copies)
        names = [name for name in ("category", "boxes", "area", "crowd", "scores") if hasattr(them, name)]
        masks = [them.masks[row] for row in rows] if len(them.masks) else ()
        parts = {name: getattr(them, name)[rows] for name in names}
        return replace(them, image=first[them.image[rows]] + number, masks=masks, **parts)

    return copied(objects), copied(detections), categories


def without_ties(case: Case) -> Case:
    """The case with scores of its own for each detection: copies of ties would come in another order."""
    objects, detections, categories = case
    scores = np.random.default_rng(len(detections.scores)).permutation(len(detections.scores)).astype(float)
    return objects, replace(detections, scores=scores), categories


def detected(case: Case, kind: str) -> Outcomes:
    objects, detections, categories = case
    instances: Any = SimpleNamespace(images=[SimpleNamespace(id=number) for number in range(10)])
    rows = outcome_rows(instances, objects, detections, evaluate(objects, detections, categories, kind), kind)
    return Outcomes(COLUMNS, tuple(rows))


def counted(outcomes: Outcomes, counts: np.ndarray) -> dict[str, float]:
    """The metrics with the image that is named by a number counted so often."""
    statistic = statistic_of(outcomes)
    assert statistic is not None
    drawn = counts[[int(item) for item in statistic.items]].astype(np.uint8)[:, None]
    return {name: float(value[0]) for name, value in statistic.values(drawn, statistic.metrics).items()}


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_average_precision_is_that_of_pycocotools_on_repeated_images(kind: str) -> None:
    told = 0
    for seed in range(25 if kind == "boxes" else 6):
        case = without_ties(random_case(seed))
        case = with_masks(case) if kind == "masks" else case
        counts = np.random.default_rng(seed).poisson(1, 10)
        expected = detection_reference.evaluate(*repeated(case, counts), kind=kind)
        for name, value in counted(detected(case, kind), counts).items():
            reference = expected[name.partition("_")[2]]
            told += 0.05 < reference < 0.95
            assert np.nan_to_num(value, nan=-1) == pytest.approx(reference, rel=0, abs=1e-13), f"seed {seed}"
    assert told > (25 if kind == "boxes" else 6), "too few cases that are neither right nor wrong"


def test_with_every_image_once_ties_count_as_in_the_record() -> None:
    for seed in range(25):
        case = random_case(seed)
        statistic = statistic_of(detected(case, "boxes"))
        assert statistic is not None
        for name, value in whole(statistic, statistic.metrics).items():
            assert value == pytest.approx(evaluate(*case).values[name[4:]], rel=0, abs=1e-13), f"seed {seed}"


def test_segmentation_is_that_of_one_confusion_matrix_over_repeated_images() -> None:
    rng = np.random.default_rng(0)
    maps = [
        [np.kron(rng.integers(0, 7, (4, 5)), np.ones((6, 6), int)).astype(np.uint8) for _ in "ab"] for _ in range(8)
    ]
    once, counts = Segmentation(9), rng.poisson(1, 8)
    for number, (found, truth) in enumerate(maps):
        once.update(str(number), found, np.where(truth == 6, 8, truth).astype(np.uint8))
    several = Segmentation(9)
    for number in np.repeat(np.arange(8), counts):
        found, truth = maps[number]
        several.update("", found, np.where(truth == 6, 8, truth).astype(np.uint8))
    outcomes = Outcomes(SEGMENTATION, tuple(once.rows))
    assert counted(outcomes, counts) == pytest.approx(several.values(), rel=0, abs=1e-13)
    assert counted(outcomes, np.ones(8, int)) == pytest.approx(once.values(), rel=0, abs=1e-13)


def test_panoptic_quality_is_that_of_the_sums_over_repeated_images() -> None:
    rng, categories = np.random.default_rng(1), range(1, 9)
    parts = {
        (image, k): Counts(float(np.round(0.7 * right, 9)), int(right), *rng.integers(0, 4, 2).tolist())
        for image in range(12)
        for k in categories
        if (right := rng.integers(0, 4)) or k % 3
    }
    rows = [
        (str(image), k, k % 2, one.right, one.wrong, one.missed, round(1e9 * one.overlap))
        for (image, k), one in parts.items()
    ]
    counts, total = rng.poisson(1, 12), {k: Counts() for k in categories}
    for (image, k), one in parts.items():
        for _ in range(counts[image]):
            total[k] += one
    found = counted(Outcomes(PANOPTIC, tuple(rows)), counts)
    for region, thing in (("", None), ("_things", 1), ("_stuff", 0)):
        quality = average(total, [k for k in categories if thing in (None, k % 2)])
        assert quality is not None
        for name in ("pq", "sq", "rq"):
            assert found[name + region] == pytest.approx(getattr(quality, name), rel=0, abs=1e-9)


def test_the_mean_of_classes_is_that_of_repeated_images() -> None:
    rng = np.random.default_rng(2)
    rows = [(str(number), int(rng.integers(5)), int(rng.integers(5)), 7, 8, 9, 10) for number in range(40)]
    counts = rng.poisson(1, 40)
    meter = Accuracy(11, per_class=True)
    meter.rows += [row for number in range(40) for row in [rows[number]] * counts[number]]
    columns = ("item", "target", *(f"top{place}" for place in range(1, 6)))
    expected = meter.compute().measurements[0].value
    assert counted(Outcomes(columns, tuple(rows)), counts)["mean_per_class"] == pytest.approx(expected, abs=1e-12)


# In records


MIOU = Metric("miou", "", True, 4)


def segmented(skill: float, seed: int, images: int = 200, classes: int = 6, ease_seed: int = 0) -> Outcomes:
    """Outcomes of a segmenter: images are easy or hard for all models alike."""
    rng, ease = np.random.default_rng(seed), np.random.default_rng(ease_seed).normal(0, 0.7, (images, classes))
    sizes = np.random.default_rng(ease_seed + 1).integers(500, 4000, (images, classes))
    share = 1 / (1 + np.exp(-(skill + ease + rng.normal(0, 0.4, ease.shape))))
    right = (sizes * share).astype(int)
    rows = [
        (f"image_{i}", k + 1, int(right[i, k]), int(sizes[i, k]), int(right[i, k]) + 50, 1, 2, 3)
        for i in range(images)
        for k in range(classes)
        if (i + k) % 3
    ]
    return Outcomes(SEGMENTATION, tuple(rows))


def evaluated(outcomes: Outcomes, shift: float = 0.0) -> Evaluation:
    statistic = statistic_of(outcomes)
    assert statistic is not None
    value = whole(statistic, ["miou"])["miou"] + shift
    return with_intervals(Evaluation((Measurement(MIOU, value),), {"images": 200}, outcomes))


def saved(store: Store, model: str, outcomes: Outcomes, shift: float = 0.0) -> None:
    evaluation = evaluated(outcomes, shift)
    fields: dict[str, Any] = {"task": "ade20k", "details": evaluation.details}
    store.save(accuracy(model, measurements=evaluation.measurements, **fields), outcomes)


def test_a_record_says_how_its_intervals_were_made() -> None:
    found = evaluated(segmented(1.0, 1))
    (miou,) = found.measurements
    assert miou.value is not None
    assert miou.interval is not None
    assert miou.interval[0] < miou.value < miou.interval[1]
    assert found.details["images"] == 200
    assert found.details["bootstrap"] | {"draws": "", "interval": ""} == {
        "images": 200, "resamples": 1000, "seed": 0, "draws": "", "interval": "", "metrics": ["miou"],
    }  # fmt: skip
    assert evaluated(segmented(1.0, 1)) == found
    statistic = statistic_of(segmented(1.0, 1))
    assert statistic is not None
    other = replicates(statistic, ["miou"], seed=1)["miou"].std()
    assert miou.interval[1] - miou.interval[0] == pytest.approx(2 * 1.972 * other, rel=0.1)


def test_what_has_no_interval() -> None:
    assert evaluated(segmented(1.0, 1), shift=0.01).measurements[0].interval is None, "not what the outcomes give"
    assert evaluated(segmented(1.0, 1, images=9)).measurements[0].interval is None, "too few images"
    given = Measurement(MIOU, evaluated(segmented(1.0, 1)).measurements[0].value, interval=(0.1, 0.9))
    assert with_intervals(Evaluation((given,), {}, segmented(1.0, 1))).measurements == (given,)
    perfect = Outcomes(SEGMENTATION, tuple((f"{n}", 1, 9, 9, 9, 3, 3, 3) for n in range(50)))
    assert evaluated(perfect).measurements[0].interval is None, "no resample moves it"
    other = Outcomes(("item", "points"), (("a", 1),))
    assert statistic_of(other) is None
    assert with_intervals(Evaluation((given,), {}, other)) == Evaluation((given,), {}, other)


def test_boards_comparisons_and_the_gate_use_the_paired_bootstrap(tmp_path: Path) -> None:
    before, after = Store(tmp_path / "a"), Store(tmp_path / "b")
    for model, skill, seed in (("good", 1.2, 1), ("like it", 1.2, 2), ("poor", 0.9, 3)):
        saved(before, model, segmented(skill, seed))
    (board,) = make_boards(before.load())[0]
    assert {row.record.model: row.ranks for row in with_ranks(board, before).rows} == {
        "good": (1, 2), "like it": (1, 2), "poor": (3, 3),
    }  # fmt: skip
    (found,), items = compare(before, "good", "poor")
    assert len(items) == 10
    assert all(one.first.startswith("miou ") and one.first != one.second for one in items)
    assert found.test == "paired bootstrap"
    assert found.interval is not None
    assert found.p is not None
    assert found.interval[0] < found.change < found.interval[1] < 0
    assert found.p < 0.001
    first, second = (row.interval(MIOU) for row in (board.rows[0], board.rows[2]))
    assert found.interval[1] - found.interval[0] < 0.8 * (first[1] - first[0] + second[1] - second[0]) / 2
    done = CliRunner().invoke(app, ["compare", "good", "poor", "--results", str(before.root)])
    assert "| paired bootstrap |" in done.output
    assert f"{found.change:+.4f}" in done.output
    saved(after, "good", segmented(0.9, 4))
    saved(after, "like it", segmented(1.2, 5))
    saved(after, "poor", segmented(0.9, 3))
    policy = Policy(accuracy_margin=2.0)
    verdicts = {one.cell[0]: one for one in judge(before.load(), after.load(), policy, (before, after))}
    assert {model: one.verdict for model, one in verdicts.items()} == {
        "good": Verdict.WORSE, "like it": Verdict.SAME, "poor": Verdict.SAME,
    }  # fmt: skip
    assert "200 images, p = " in verdicts["good"].reason
    assert "points (" in verdicts["like it"].reason


def test_a_fall_of_a_share_is_counted_in_points(tmp_path: Path) -> None:
    sides = Store(tmp_path / "a"), Store(tmp_path / "b")
    for store, value in zip(sides, (0.41, 0.39), strict=True):
        store.save(accuracy("net", task="ade20k", measurements=(Measurement(MIOU, value),)))
    (found,) = judge(sides[0].load(), sides[1].load(), Policy(), sides)
    assert (found.verdict, found.reason.partition(";")[0]) == (Verdict.WORSE, "-2.00 points")


def test_a_mean_over_seeds_is_not_paired_by_the_outcomes_of_one(tmp_path: Path) -> None:
    rows = tuple((f"image_{n}", 1, int(n < 70), 2) for n in range(100))
    store = Store(tmp_path)
    for model, value in (("one", 70.0), ("two", 64.0)):
        store.save(accuracy(model, value), Outcomes(("item", "target", "top1", "top2"), rows))
    (found,), _ = compare(store, "one", "two")
    assert (found.p, found.test) == (None, "one value each")
