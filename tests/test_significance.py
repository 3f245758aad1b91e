"""Paired tests against scipy and against truth: coverage, false differences, power, ranks."""

from __future__ import annotations

import numpy
import pytest
from scipy.stats import binomtest

from harness.errors import RecordError
from harness.metric import Outcomes
from harness.significance import (
    Hits,
    all_pairs,
    check_same_items,
    disagreements,
    hits,
    holm,
    mcnemar,
    paired_difference,
    rank_intervals,
)

ROWS = (("a", 1, 1, 2), ("b", 2, 1, 2), ("c", 0, 1, 2))
OUTCOMES = Outcomes(("item", "target", "top1", "top2"), ROWS)


def answers(generator: numpy.random.Generator, rates: list[float], items: int, shared: float = 0.7) -> list[Hits]:
    """Answers of models with given accuracies, alike on a share of the items since some are easy and some hard."""
    common, alike = generator.random(items), generator.random(items) < shared
    return [numpy.where(alike, common, generator.random(items)) < rate for rate in rates]


def test_hits_of_each_metric() -> None:
    for metric, expected in (("top1", [True, False, False]), ("top2", [True, True, False])):
        found = hits(OUTCOMES, metric)
        assert found is not None
        assert found.tolist() == expected
    assert hits(OUTCOMES, "mean_per_class") is None
    assert hits(Outcomes(("item", "iou"), (("a", 3),)), "iou") is None


def test_mcnemar_equals_scipy() -> None:
    for gained, lost in ((0, 0), (1, 0), (5, 5), (3, 12), (40, 71)):
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert float(mcnemar(numpy.array(gained), numpy.array(lost))) == pytest.approx(expected, rel=1e-9)


def test_all_pairs_equals_one_pair_at_a_time() -> None:
    models = answers(numpy.random.default_rng(0), [0.5, 0.6, 0.62, 0.9], 400)
    found = all_pairs(models)
    for i, first in enumerate(models):
        for j, second in enumerate(models):
            assert found[i, j] == pytest.approx(paired_difference(first, second).p if i != j else 1.0)


def test_the_interval_of_a_difference_covers_the_truth() -> None:
    generator = numpy.random.default_rng(1)
    covered = []
    for _ in range(2000):
        found = paired_difference(*answers(generator, [0.70, 0.73], 500))
        covered.append(found.low <= 3.0 <= found.high)
    assert 0.93 <= numpy.mean(covered) <= 0.97


def test_equal_models_are_rarely_told_apart() -> None:
    generator = numpy.random.default_rng(2)
    assert sum(paired_difference(*answers(generator, [0.7, 0.7], 500)).p < 0.05 for _ in range(200)) <= 10


def test_one_point_on_fifty_thousand_images_is_found() -> None:
    generator = numpy.random.default_rng(3)
    for _ in range(20):
        found = paired_difference(*answers(generator, [0.76, 0.77], 50_000))
        assert found.p < 0.001
        assert found.low > 0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rank_intervals_of_clear_and_unclear_differences() -> None:
    p = numpy.array([[1, 0.5, 1e-9], [0.5, 1, 1e-9], [1e-9, 1e-9, 1]])
    assert rank_intervals([70, 71, 60], p) == [(1, 2), (1, 2), (3, 3)]
    assert rank_intervals([70, 71, 60], numpy.ones((3, 3))) == [(1, 3)] * 3
    assert rank_intervals([70], numpy.ones((1, 1))) == [(1, 1)]


def test_rank_intervals_hold_the_true_rank_jointly() -> None:
    generator, rates = numpy.random.default_rng(4), [0.60, 0.62, 0.64, 0.70, 0.80]
    missed = 0
    for _ in range(200):
        models = answers(generator, rates, 600)
        found = rank_intervals([model.mean() for model in models], all_pairs(models))
        missed += any(not low <= rank <= high for (low, high), rank in zip(found, (5, 4, 3, 2, 1), strict=True))
    assert missed <= 10


def test_the_items_on_which_two_models_disagree_most() -> None:
    other = Outcomes(OUTCOMES.columns, (("a", 1, 0, 2), ("b", 2, 2, 0), ("c", 0, 1, 2)))
    assert disagreements(OUTCOMES, other) == [("a", 1, 0), ("b", 2, 1)]
    assert disagreements(OUTCOMES, other, most=1) == [("a", 1, 0)]
    assert disagreements(OUTCOMES, OUTCOMES) == []


def test_outcomes_of_other_items_are_not_paired() -> None:
    check_same_items(OUTCOMES, OUTCOMES, ("one", "two"))
    with pytest.raises(RecordError, match="one and two were not evaluated on the same items"):
        check_same_items(OUTCOMES, Outcomes(OUTCOMES.columns, ROWS[:2]), ("one", "two"))
