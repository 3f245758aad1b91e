"""Intervals and tests against scipy, and against series whose truth is known."""

from __future__ import annotations

import numpy
import pytest
from scipy import stats

from harness.statistics import (
    LEVEL,
    compare_rounds,
    compare_runs,
    least_rounds,
    median_error,
    proportion_interval,
    quantile_interval,
    rank_test,
    ratio_of_intervals,
    repeatability_limit,
    signed_rank_test,
)

Rounds = list[list[float]]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("decimals", [8, 1])  # the second makes ties
def test_rank_tests_agree_with_scipy(seed: int, decimals: int) -> None:
    generator = numpy.random.default_rng(seed)
    first = generator.normal(10, 1, 20).round(decimals)
    second = generator.normal(10.5, 1, 25).round(decimals)
    expected = stats.mannwhitneyu(first, second, method="asymptotic").pvalue
    assert rank_test(first.tolist(), second.tolist()) == pytest.approx(expected, rel=1e-9)
    differences = (second[:20] - first).round(decimals)
    expected = stats.wilcoxon(differences, method="asymptotic", correction=True).pvalue
    assert signed_rank_test(differences.tolist()) == pytest.approx(expected, rel=1e-9)


def test_equal_series_do_not_differ() -> None:
    assert rank_test([1.0, 1.0], [1.0, 1.0]) == 1
    assert signed_rank_test([0.0, 0.0]) == 1
    assert not compare_rounds([[2.0]] * 20, [[2.0]] * 20).differs


@pytest.mark.parametrize(("slower", "least", "most"), [(1.0, 0, 1), (1.3, 90, 100)])
def test_a_tail_differs_where_its_intervals_say_so(slower: float, least: int, most: int) -> None:
    generator, told = numpy.random.default_rng(0), 0
    for _ in range(100):
        sides = []
        for factor in (1.0, slower):
            samples = (factor * generator.lognormal(0, 0.1, 200)).tolist()
            sides.append((float(numpy.quantile(samples, 0.95)), quantile_interval(samples, 0.95)))
        told += ratio_of_intervals(sides[0], sides[1]).differs
    assert least <= told <= most


def test_values_without_a_width_differ_where_they_are_not_equal() -> None:
    assert ratio_of_intervals((2.0, (2.0, 2.0)), (3.0, (3.0, 3.0))).differs
    assert not ratio_of_intervals((2.0, (2.0, 2.0)), (2.0, (2.0, 2.0))).differs


def test_the_quick_error_of_a_median() -> None:
    assert median_error([5.0] * 15) == 0
    assert median_error([1.0, 2.0, 3.0]) == float("inf")
    samples = numpy.random.default_rng(2).normal(100, 1, 400).tolist()
    assert median_error(samples) == pytest.approx(1.253 * 1.96 / 20 / 100, rel=0.5)


def rounds(generator: numpy.random.Generator, drift: numpy.ndarray, slower: float = 1.0) -> Rounds:
    """Return the samples of rounds that drift, with noise of 2 % and now and then a sample of twice the time."""
    noise = generator.normal(1, 0.02, (len(drift), 3)) * numpy.where(generator.random((len(drift), 3)) < 0.05, 2, 1)
    return (slower * drift[:, None] * noise).tolist()  # type: ignore[no-any-return]


def test_a_model_does_not_differ_from_itself_and_five_per_cent_are_found() -> None:
    generator = numpy.random.default_rng(4)
    false = found = 0
    for _ in range(500):
        drift = 10 * (1 + 0.3 * generator.random() * numpy.linspace(0, 1, 40))
        false += compare_rounds(rounds(generator, drift), rounds(generator, drift)).differs
        found += compare_rounds(rounds(generator, drift), rounds(generator, drift, 1.05)).differs
    assert false == 0
    assert found >= 495


def test_a_difference_below_the_least_effect_is_none() -> None:
    difference = compare_rounds([[100.0 + i] for i in range(40)], [[101.0 + 1.01 * i] for i in range(40)])
    assert difference.p < difference.level
    assert not difference.differs
    assert compare_rounds([[100.0 + i] for i in range(40)], [[105.0 + 1.05 * i] for i in range(40)]).differs


def test_a_gain_is_a_difference_too() -> None:
    difference = compare_rounds([[100.0 + i] for i in range(40)], [[95.0 + 0.95 * i] for i in range(40)])
    assert difference.differs
    assert difference.ratio == pytest.approx(0.95)
    assert difference.low <= difference.ratio <= difference.high


def test_fewer_than_fifteen_rounds_find_nothing() -> None:
    first, second = [[1.0]] * 15, [[2.0 + i / 100] for i in range(15)]
    assert compare_rounds(first, second).differs
    assert not compare_rounds(first[:14], second[:14]).differs


def test_runs_are_compared_by_their_medians_alone() -> None:
    generator = numpy.random.default_rng(5)

    def run(slower: float = 1.0) -> list[float]:
        return (slower * generator.normal(10, 0.1) * generator.normal(1, 0.01, 300)).tolist()  # type: ignore[no-any-return]

    assert not any(compare_runs([run() for _ in range(10)], [run() for _ in range(10)]).differs for _ in range(50))
    difference = compare_runs([run() for _ in range(10)], [run(1.05) for _ in range(10)])
    assert difference.differs
    assert difference.low < 1.05 < difference.high


@pytest.mark.parametrize(("comparisons", "rounds"), [(0, 15), (1, 15), (2, 16), (10, 20)])
def test_least_rounds_are_those_in_which_one_that_always_wins_is_found(comparisons: int, rounds: int) -> None:
    assert least_rounds(comparisons) == rounds
    p, before = (
        stats.wilcoxon(range(1, n + 1), method="asymptotic", correction=True).pvalue for n in (rounds, rounds - 1)
    )
    assert p < LEVEL / max(1, comparisons) <= before


@pytest.mark.parametrize("trials", [1, 7, 120, 15_000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_the_interval_of_a_proportion_is_wilsons(trials: int, share: float, level: float) -> None:
    successes = round(share * trials)
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert proportion_interval(successes, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= expected.low < expected.high <= 1


@pytest.mark.parametrize("runs", [3, 23])
def test_two_runs_lie_within_the_repeatability_limit_as_often_as_it_says(runs: int) -> None:
    generator = numpy.random.default_rng(0)
    within = []
    for _ in range(2000):
        results = numpy.exp(generator.normal(3, 0.2, runs + 2))
        limit = repeatability_limit(results[2:].tolist())
        within.append(abs(numpy.log(results[0] / results[1])) <= numpy.log(limit))
    assert numpy.mean(within) == pytest.approx(0.95, abs=0.015)


def test_repeatability_of_few() -> None:
    assert repeatability_limit([5.0]) is None
    assert repeatability_limit([5.0, 5.0]) == 1
