"""What intervals and tests promise: 95 % of the intervals hold the truth, and equal models are rarely told apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy.stats import binom
from test_significance import answers

from harness.gate import Policy
from harness.metric import Evaluation, Measurement, Metric, Outcomes
from harness.resampling import RESAMPLES, replicates, statistic_of, whole, with_intervals
from harness.significance import (
    Resampled,
    all_pairs,
    paired_difference,
    rank_intervals,
    resampled_difference,
    resampled_pairs,
)
from harness.statistics import proportion_interval
from tasks.metrics.accuracy import class_mean_interval
from tasks.metrics.detection_resampled import COLUMNS
from tasks.metrics.sums_resampled import PANOPTIC, SEGMENTATION

LOW, HIGH = 0.93, 0.97
World = Callable[[np.random.Generator], Outcomes]


@pytest.mark.parametrize("images", [720, 1_000, 3_669, 5_794, 15_000, 50_000])
def test_wilsons_interval_covers_a_share(images: int) -> None:
    """Exactly, by the binomial distribution, at the sizes of the field's test sets."""
    ends = np.array([proportion_interval(right, images) for right in range(images + 1)])
    chances = np.arange(images + 1)
    for share in np.linspace(0.03, 0.97, 95):
        covers = (ends[:, 0] <= share) & (share <= ends[:, 1])
        assert LOW < binom.pmf(chances[covers], images, share).sum() < HIGH, f"at {share}"


@pytest.mark.parametrize(
    ("classes", "images", "shape"),
    [(102, 20, (20, 1)), (102, 60, (99, 1)), (100, 33, (4, 1.5)), (37, 99, (12, 1)), (1000, 10, (2, 1))],
)
def test_the_mean_of_classes_is_covered(classes: int, images: int, shape: tuple[float, float]) -> None:
    """At the sizes of Flowers, Aircraft, Pets and iNaturalist, with classes as different as shape says."""
    rng = np.random.default_rng(0)
    shares = rng.beta(*shape, classes)
    covered = []
    for right in rng.binomial(images, shares, (1500 if classes < 1000 else 300, classes)).tolist():
        low, high = class_mean_interval([(one, images) for one in right])
        covered.append(low <= shares.mean() <= high)
    assert LOW < np.mean(covered) < HIGH


def test_all_right_is_not_certain() -> None:
    low, high = class_mean_interval([(20, 20)] * 100)
    assert (low, high) == pytest.approx(proportion_interval(2000, 2000))
    low, high = class_mean_interval([(1, 1), (0, 1)])
    assert low < 0.2
    assert high > 0.8


def ease(rng: np.random.Generator, images: int) -> np.ndarray:
    return rng.normal(0, 0.6, (images, 1))


def segments(rng: np.random.Generator, images: int = 400, classes: int = 20, skill: float = 1.0) -> Outcomes:
    """Segmentation: few images have most of the classes, and areas differ a thousandfold."""
    there = rng.random((images, classes)) < np.maximum(np.minimum(1, 3 / np.arange(1, classes + 1)), 12 / images)
    sizes = np.exp(rng.normal(8, 1.2, there.shape)).astype(int) + 1
    right = sizes / (1 + np.exp(-(skill + ease(rng, images) + rng.normal(0, 1, there.shape))))
    wrong = sizes * rng.beta(1, 4, there.shape)
    rows = [
        (f"{i}", int(k), int(right[i, k]), int(sizes[i, k]), int(right[i, k]) + int(wrong[i, k]), 1, 2, 3)
        for i, k in zip(*np.nonzero(there), strict=True)
    ]
    return Outcomes(SEGMENTATION, tuple(rows))


def things(rng: np.random.Generator, images: int = 300, categories: int = 20, skill: float = 0.5) -> Outcomes:
    """Panoptic segments, more of them in some images than in others."""
    mean = np.maximum(np.minimum(1, 3 / np.arange(1, categories + 1)), 12 / images)
    many = rng.poisson(rng.gamma(2, 0.5, (images, 1)) * mean)
    right = rng.binomial(many, 1 / (1 + np.exp(-(skill + ease(rng, images) + rng.normal(0, 0.5, many.shape)))))
    wrong = rng.poisson(0.3 * many)
    rows = [
        (f"{i}", int(k), int(k) % 2, int(right[i, k]), int(wrong[i, k]), int(many[i, k] - right[i, k]),
         round(1e9 * right[i, k] * float(np.clip(rng.normal(0.8, 0.07), 0.5, 1))))
        for i, k in zip(*np.nonzero(many), strict=True)
    ]  # fmt: skip
    return Outcomes(PANOPTIC, tuple(rows))


def detections(rng: np.random.Generator, images: int = 300, categories: int = 5, skill: float = 0.0) -> Outcomes:
    """Boxes: those of easy images score higher and overlap more; what takes no object scores lower."""
    mean = np.maximum(1.5 / np.arange(1, categories + 1), 15 / images)
    many, easy = rng.poisson(rng.gamma(2, 0.5, (images, 1)) * mean), ease(rng, images)
    image, category = np.nonzero(many)
    rows: list[tuple[str | int, ...]] = [
        (f"{i}", 0, int(k), -1, int(many[i, k]), 0) for i, k in zip(image, category, strict=True)
    ]
    image, category = (np.repeat(part, many[image, category]) for part in (image, category))
    quality = skill + easy[image, 0] + rng.normal(0, 1, len(image))
    level = np.clip((1 / (1 + np.exp(-quality - 0.5)) - 0.5) / 0.05 + 1, 0, 10).astype(int)
    false = rng.poisson(0.6 * mean * np.exp(-0.3 * easy))
    other = [np.repeat(part, false[np.nonzero(false)]) for part in np.nonzero(false)]
    scores = np.concatenate([quality + rng.normal(0, 0.8, len(quality)), rng.normal(-0.5, 1, len(other[0]))])
    right = np.concatenate([2**level - 1, np.zeros(len(other[0]), int)])
    image, category = np.concatenate([image, other[0]]), np.concatenate([category, other[1]])
    place = (1e6 * (20 - scores)).astype(int)  # not ranks: images of two such sets are mixed
    columns = zip(image.tolist(), category.tolist(), place.tolist(), right.tolist(), strict=True)
    return Outcomes(COLUMNS, tuple(rows + [(f"{i}", 0, k, n, bits, 0) for i, k, n, bits in columns]))


WORLDS: dict[str, World] = {"miou": segments, "pq": things, "box_ap": detections}


def measured(outcomes: Outcomes, metric: str) -> Measurement:
    """The metric with its interval, as a record would have it."""
    statistic = statistic_of(outcomes)
    assert statistic is not None
    value = whole(statistic, [metric])[metric]
    return with_intervals(Evaluation((Measurement(Metric(metric, "", True), value),), {}, outcomes)).measurements[0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("metric", sorted(WORLDS))
def test_the_bootstrap_covers_what_sets_of_this_size_give(metric: str) -> None:
    rng = np.random.default_rng(0)
    found = [measured(WORLDS[metric](rng), metric) for _ in range(500)]
    truth = np.mean([one.value for one in found if one.value is not None])
    covered = [one.interval is not None and one.interval[0] <= truth <= one.interval[1] for one in found]
    assert LOW < np.mean(covered) < HIGH


def resampled(outcomes: Outcomes, metric: str, resamples: int = RESAMPLES) -> Resampled:
    statistic = statistic_of(outcomes)
    assert statistic is not None
    value = whole(statistic, [metric])[metric]
    return Resampled(value, len(statistic.items), replicates(statistic, [metric], resamples)[metric])


def alike(make: Callable[..., Outcomes], seed: int, count: int, gain: float = 0.0) -> list[Outcomes]:
    """Models on the same images; each answers a half of the images as the first does, by their numbers."""
    base = make(np.random.default_rng(seed))
    found = [base]
    for number in range(1, count):
        other = make(np.random.default_rng(seed + 1000 * number), **({"skill": gain} if gain else {}))
        rows = [row for row in base.rows if int(row[0]) % 2] + [row for row in other.rows if not int(row[0]) % 2]
        found.append(Outcomes(base.columns, tuple(rows)))
    return found


def test_two_hundred_pairs_of_equal_models_by_the_paired_bootstrap() -> None:
    make = partial(segments, images=80, classes=4)
    false = 0
    for seed in range(200):
        first, second = (resampled(one, "miou", 128) for one in alike(make, seed, 2))
        found = resampled_difference(first, second)
        false += found.p < 0.05
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert 0 < false <= 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("metric", sorted(WORLDS))
def test_a_thousand_pairs_of_equal_models_by_each_metric(metric: str) -> None:
    pairs = ([resampled(one, metric, 400) for one in alike(WORLDS[metric], seed, 2)] for seed in range(1000))
    p = [resampled_difference(first, second).p for first, second in pairs]
    assert 0 < sum(one < 0.05 for one in p) <= binom.ppf(0.95, 1000, 0.05), "a rate above 5 %, beyond chance"
    told_apart = sum(one < Policy().accuracy_level for one in p[:200])
    assert told_apart <= 10, "of 200 comparisons of equal models the gate calls more than 5 % better or worse"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("metric", sorted(WORLDS))
def test_the_interval_of_a_paired_difference_covers_it(metric: str) -> None:
    pairs = [[resampled(one, metric, 200) for one in alike(WORLDS[metric], seed, 2, gain=0.8)] for seed in range(500)]
    truth = np.mean([second.value - first.value for first, second in pairs])
    found = [resampled_difference(first, second) for first, second in pairs]
    assert LOW < np.mean([one.low <= truth <= one.high for one in found]) < HIGH


def test_pairs_of_equal_models_by_the_exact_test() -> None:
    rng = np.random.default_rng(1)
    false = [paired_difference(*answers(rng, [0.76, 0.76], 10_000)).p < 0.05 for _ in range(600)]
    assert sum(false) <= binom.ppf(0.99, 600, 0.05), "a rate above 5 %, beyond chance"


@pytest.mark.parametrize("shared", [0.5, 0.7, 0.9])
def test_one_point_on_fifty_thousand_images_is_told_apart(shared: float) -> None:
    """Where models agree on three quarters to nineteen in twenty of the images, as networks on ImageNet do."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        models = answers(rng, [0.76, 0.77], 50_000, shared)
        assert paired_difference(*models).p < 0.001
        assert rank_intervals([one.mean() for one in models], all_pairs(models)) == [(2, 2), (1, 1)]


def test_boards_of_equal_models_tell_none_apart_nineteen_times_in_twenty() -> None:
    """All pairs of six models together, corrected by Holm: one false difference anywhere spoils a board."""
    rng, spoiled = np.random.default_rng(3), 0
    for _ in range(200):
        models = answers(rng, [0.7] * 6, 2000)
        spoiled += any(r != (1, 6) for r in rank_intervals([one.mean() for one in models], all_pairs(models)))
    assert spoiled <= 10


def test_boards_by_the_paired_bootstrap_tell_no_equal_models_apart() -> None:
    make, spoiled = partial(segments, images=60, classes=4), 0
    for seed in range(30):
        models = [resampled(one, "miou", 100) for one in alike(make, seed, 4)]
        ranks = rank_intervals([one.value for one in models], resampled_pairs(models))
        spoiled += any(rank != (1, 4) for rank in ranks)
    assert spoiled <= 2


def test_a_better_model_is_found_by_the_paired_bootstrap() -> None:
    for seed in range(5):
        first, second = (resampled(one, "miou", 200) for one in alike(segments, seed, 2, gain=2.0))
        assert resampled_difference(first, second).p < 0.001


def test_a_model_does_not_differ_from_itself() -> None:
    one = resampled(segments(np.random.default_rng(0)), "miou", 100)
    found = resampled_difference(one, one)
    assert (found.change, found.low, found.high, found.p) == (0, 0, 0, 1)
