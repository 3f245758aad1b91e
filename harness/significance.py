"""Whether models differ on the same images: paired tests, corrected for their number, and ranks as intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from harness.errors import RecordError
from harness.metric import Outcomes
from harness.statistics import t_quantile

LEVEL = 0.05
EXACT = 1e-9

Hits = NDArray[numpy.bool_]
Floats = NDArray[numpy.float64]


@dataclass(frozen=True)
class PairedDifference:
    """How two models differ on the same items, or over the same seeds.

    Args:
        change: the second's value less the first's, in the metric's unit.
        low: lower end of the 95 % interval of `change`.
        high: upper end.
        p: two-sided.
        test: its name.
        counts: what was counted, in words; empty for nothing.
    """

    change: float
    low: float
    high: float
    p: float
    test: str
    counts: str = ""


@dataclass(frozen=True)
class Resampled:
    """A metric on the whole set and on resamples of its images, which are the same for all models.

    Args:
        value: on the whole set.
        items: how many images there are.
        replicates: on each resample; NaN where nothing was drawn.
    """

    value: float
    items: int
    replicates: Floats


def hits(outcomes: Outcomes, metric: str) -> Hits | None:
    """Return which items count as right for a metric `top1`, `top5`, ...; None for a metric of another kind.

    Outcomes of classification have the columns `item`, `target`, `top1`, `top2`, ...: the classes by falling score.
    """
    if metric not in outcomes.columns or outcomes.columns[:2] != ("item", "target"):
        return None
    last = outcomes.columns.index(metric)
    return numpy.fromiter((row[1] in row[2 : last + 1] for row in outcomes.rows), bool, len(outcomes.rows))


def check_same_items(first: Outcomes, second: Outcomes, names: tuple[str, str]) -> None:
    """Raise RecordError unless two outcomes are of the same items in the same order."""
    if [row[0] for row in first.rows] != [row[0] for row in second.rows]:
        raise RecordError(
            f"{names[0]} and {names[1]} were not evaluated on the same items in the same order, so they cannot be "
            "paired. Run both again on the same data."
        )


def paired_difference(first: Hits, second: Hits) -> PairedDifference:
    """Compare which items two models get right.

    The interval is Wald's with one item added to either side of the disagreements (Agresti and Min 2005), which keeps
    its coverage where they are few.
    """
    count = len(first)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    points = 100 * (gained - lost) / count
    b, c, n = gained + 0.5, lost + 0.5, count + 2
    reach = 100 * 1.959964 * float(numpy.sqrt(b + c - (b - c) ** 2 / n)) / n
    centre = 100 * (b - c) / n
    p = float(mcnemar(numpy.array(gained), numpy.array(lost)))
    words = f"{gained} items gained and {lost} lost"
    return PairedDifference(points, centre - reach, centre + reach, p, "exact McNemar", words)


def resampled_difference(first: Resampled, second: Resampled) -> PairedDifference:
    """Compare the values of a metric that is no mean over images, by resamples that both share.

    The difference of the values over its standard deviation in the resamples is compared with Student's t.
    """
    change = second.value - first.value
    p = resampled_pairs([first, second])[0, 1]
    apart = second.replicates - first.replicates
    items = min(first.items, second.items)
    reach = t_quantile(0.95, items - 1) * float(numpy.nanstd(apart, ddof=1))
    return PairedDifference(change, change - reach, change + reach, float(p), "paired bootstrap", f"{items} images")


def resampled_pairs(models: Sequence[Resampled]) -> Floats:
    """Return the p (M, M) of the paired bootstrap between every two of M models."""
    from scipy.special import stdtr

    values = numpy.array([model.value for model in models])
    table = numpy.stack([model.replicates for model in models])
    covariance = numpy.cov(table[:, ~numpy.isnan(table).any(axis=0)])
    variance = numpy.diag(covariance)
    spread = numpy.sqrt(numpy.maximum(0, variance[:, None] + variance[None, :] - 2 * covariance))
    distance = numpy.abs(values[:, None] - values[None, :])
    # What rounding leaves of the variance of two equal models is no spread.
    spread[spread < 1e-9 * numpy.sqrt(variance.max(initial=0))] = 0
    t = numpy.divide(distance, spread, out=numpy.where(distance > 0, numpy.inf, 0.0), where=spread > 0)
    degrees = min(model.items for model in models) - 1
    p: Floats = numpy.minimum(1, 2 * stdtr(degrees, -t))
    return p


def mcnemar(gained: Any, lost: Any) -> Any:
    """Return the two-sided p of the exact McNemar test for arrays of counts of disagreements.

    Source: McNemar 1947; exact, by the binomial distribution, so that few disagreements need no approximation.
    """
    from scipy.stats import binom

    total = gained + lost
    return numpy.minimum(1.0, 2 * binom.cdf(numpy.minimum(gained, lost), total, 0.5))


def all_pairs(correct: Sequence[Hits]) -> NDArray[numpy.float64]:
    """Return the p (M, M) of the exact McNemar test between every two of M models on the same items."""
    matrix = numpy.stack(correct).astype(numpy.float32)
    # Counts up to 2**24 are exact in single precision.
    both = (matrix @ matrix.T).astype(numpy.int64)
    right = numpy.diag(both)
    p: NDArray[numpy.float64] = mcnemar(right[:, None] - both, right[None, :] - both)
    return p


def seed_differences(values: Sequence[Sequence[float]], first: int) -> list[PairedDifference]:
    """Return how each of M models differs from one of them, from values (M, S) under the same S seeds, two at least.

    A randomised block design: a value is that of its model, plus that of its seed, plus chance. Chance is taken to be
    alike for all models and is estimated from all of them, which a few seeds of two models could not. Of two models
    it is the paired t-test.
    """
    table = numpy.asarray(values, dtype=float)
    error, degrees = _block_error(table)
    points = table.mean(axis=1) - table[first].mean()
    reach, p = t_quantile(0.95, degrees) * error, _p_of_points(points, error, degrees)
    words = f"{table.shape[1]} seeds"
    test = f"paired t over {words}"
    return [
        PairedDifference(float(each), float(each - reach), float(each + reach), float(chance), test, words)
        for each, chance in zip(points, p, strict=True)
    ]


def all_seed_pairs(values: Sequence[Sequence[float]]) -> NDArray[numpy.float64]:
    """Return the p (M, M) between every two of M models of values (M, S), as `seed_differences` finds it."""
    table = numpy.asarray(values, dtype=float)
    means = table.mean(axis=1)
    return _p_of_points(means[:, None] - means[None, :], *_block_error(table))


def _block_error(table: NDArray[numpy.float64]) -> tuple[float, int]:
    """The standard error of the difference between two rows' means, and its degrees of freedom."""
    models, seeds = table.shape
    left = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    degrees = (models - 1) * (seeds - 1)
    return float(numpy.sqrt(2 * (left**2).sum() / degrees / seeds)), degrees


def _p_of_points(points: NDArray[numpy.float64], error: float, degrees: int) -> NDArray[numpy.float64]:
    from scipy.special import stdtr

    if error < EXACT:  # Rounding is all that is left.
        return numpy.where(numpy.abs(points) < EXACT, 1.0, 0.0)
    found: NDArray[numpy.float64] = 2 * stdtr(degrees, -numpy.abs(points) / error)
    return found


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in their order.

    Source: Holm 1979; it holds under any dependence between the tests.
    """
    order = numpy.argsort(values, kind="stable")
    factors = len(values) - numpy.arange(len(values))
    adjusted = numpy.minimum(1.0, numpy.maximum.accumulate(numpy.asarray(values, dtype=float)[order] * factors))
    corrected = numpy.empty(len(values))
    corrected[order] = adjusted
    return [float(value) for value in corrected]


def rank_intervals(scores: Sequence[float], p: NDArray[numpy.float64], level: float = LEVEL) -> list[tuple[int, int]]:
    """Return for each model the best and the worst rank that the data allow, at a joint level.

    A model cannot rank above those that are significantly better, nor below those that are significantly worse. The
    tests of all pairs are corrected together, so that with probability 1 - level all intervals hold at once.

    Args:
        scores: higher is better.
        p: (M, M), of the hypothesis that two models do not differ; symmetric, and 1 of a model and itself.

    Source: Mogstad, Romano, Shaikh and Wilhelm 2024, "Inference for Ranks"; with Holm's correction.
    """
    count, values = len(scores), numpy.asarray(scores, dtype=float)
    differs = p < _threshold(p, level)
    # [i, j]: j has the higher score, or the lower.
    above = numpy.count_nonzero(differs & (values > values[:, None]), axis=1)
    below = numpy.count_nonzero(differs & (values < values[:, None]), axis=1)
    return [(1 + int(a), count - int(b)) for a, b in zip(above, below, strict=True)]


def _threshold(p: NDArray[numpy.float64], level: float) -> float:
    """Below which p, above the diagonal of a matrix, Holm's correction leaves less than a level.

    What lies below the level over the number of tests is rejected; that leaves fewer tests and so a higher threshold,
    until nothing more is rejected. This takes no sorting of millions of pairs.
    """
    tests = len(p) * (len(p) - 1) // 2
    open_ = p[numpy.triu(p < level, 1)]
    threshold, rejected = level / max(1, tests), 0
    while len(open_) and rejected < tests:
        below = open_ < threshold
        rejected += (found := int(numpy.count_nonzero(below)))
        if not found:
            break
        open_ = open_[~below]
        threshold = level / max(1, tests - rejected)
    return threshold


def disagreements(first: Outcomes, second: Outcomes, most: int = 10) -> list[tuple[str, int, int]]:
    """Return the items on which two models disagree most, as item and the place of the right class in either's order.

    The place is 0 where the right class is not among the stored ones. Items of which the right class is first for both,
    or for none, are no disagreement.
    """
    found = []
    for one, other in zip(first.rows, second.rows, strict=True):
        places = [row[2:].index(row[1]) + 1 if row[1] in row[2:] else 0 for row in (one, other)]
        if (places[0] == 1) != (places[1] == 1):
            distance = abs((places[0] or len(one)) - (places[1] or len(other)))
            found.append((-distance, str(one[0]), places[0], places[1]))
    return [(name, a, b) for _, name, a, b in sorted(found)[:most]]
