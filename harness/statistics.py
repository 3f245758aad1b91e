"""What samples can and cannot tell: intervals of medians and proportions, and whether two models differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy
from numpy.typing import NDArray

# One false difference in a thousand comparisons; and what is below two per cent is nothing to report.
LEVEL = 0.001
LEAST_EFFECT = 0.02
# What a share in per cent can be.
PERCENT = (0.0, 100.0)
# Lags at which it is asked how much a sample tells of later ones.
LAGS = (1, 2, 4, 8, 16, 32)

Floats = NDArray[numpy.float64]
Error = tuple[float, float]  # a standard error, and its degrees of freedom


@dataclass(frozen=True)
class Difference:
    """How much slower a second series is than a first.

    Args:
        ratio: second over first.
        low: lower end of the 95 % interval of the ratio.
        high: upper end.
        p: of the hypothesis that there is no difference, two-sided.
        level: p must be below it.
        least_effect: and the ratio this far from 1, in either direction.
    """

    ratio: float
    low: float
    high: float
    p: float
    level: float = LEVEL
    least_effect: float = LEAST_EFFECT

    @property
    def differs(self) -> bool:
        """Whether the difference is both beyond chance and large enough to matter."""
        return self.p < self.level and abs(math.log(self.ratio)) > math.log1p(self.least_effect)


def median_interval(samples: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the median of samples in the order in which they were taken: see `quantile_interval`."""
    return quantile_interval(samples, 0.5, level)


def quantile_interval(samples: Sequence[float], share: float, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a quantile of samples in the order in which they were taken.

    The samples that lie at the share less and more what chance allows it (Woodruff 1952), so that the distribution may
    have any shape; between two samples it is interpolated. It is as wide as the samples at most, which is too narrow
    where they are few: see "Intervals" in docs/numbers.md.
    """
    values = numpy.asarray(samples, dtype=float)
    ordered, (low, high) = numpy.sort(values), _places(values, share, level)
    ends, value = numpy.interp([low, high], numpy.arange(len(values)), ordered), float(numpy.quantile(values, share))
    return min(float(ends[0]), value), max(float(ends[1]), value)


def median_error(samples: Sequence[float]) -> float:
    """Return about half the width of the 95 % interval of the median, relative to the median, to stop sampling by.

    Quick enough to be asked while samples are taken. It takes what neighbours in time add to the variance for known:
    to stop where the interval itself is narrow by chance would leave intervals that cover too little.
    """
    values = numpy.asarray(samples, dtype=float)
    middle = (len(values) - 1) / 2
    reach = 0.98 * max(math.sqrt(len(values)), 2 * len(values) * _share_error(values, 0.5)[0])
    if reach > middle:
        return math.inf
    low, high = numpy.interp([middle - reach, middle + reach], numpy.arange(len(values)), numpy.sort(values))
    return float(high - low) / 2 / float(numpy.median(values))


def _places(values: Floats, share: float, level: float) -> tuple[float, float]:
    """Where the ends of a quantile's interval lie among the ordered samples, from 0; beyond them where they are few."""
    error, degrees = _share_error(values, share)
    middle, reach = len(values) * share - 0.5, len(values) * t_quantile(level, degrees) * error
    return middle - reach, middle + reach


def _share_error(values: Floats, share: float) -> tuple[float, float]:
    """The standard error of the share of samples that lie below a quantile, and its degrees of freedom.

    Neighbours in time are alike. What that adds to the variance is in the slow waves of the series of whether a sample
    lies below: the mean square of its first cosine coefficients (Lazarus, Lewis, Stock and Watson 2018,
    doi:10.1080/07350015.2018.1506926). The longer samples remember, the fewer of them are slow enough. Runs of samples
    beyond the quantile differ in length, so that the variance is less certain where these are few.
    """
    count = len(values)
    below = (values <= numpy.quantile(values, share)) - share
    if not numpy.ptp(below):
        return 0.0, 1.0
    variance, waves = _slow_variance(below, _memory(values))
    inflation = max(1.0, variance / (share * (1 - share)))
    runs = count * min(share, 1 - share) / inflation
    return math.sqrt(variance / count), 1 / (1 / waves + (1 - 1 / inflation) / runs)


def _slow_variance(series: NDArray[Any], memory: float) -> tuple[float, int]:
    """The variance of a sample by the slow waves of a series, and how many are slow where so much is remembered."""
    from scipy.fft import dct

    count = len(series)
    slow = min(0.13 * count * (1 - memory) / math.sqrt(memory), max(4.0, count ** (2 / 3) / 2), count - 1)
    waves = max(1, math.floor(max(slow, 2.0))) if count > 2 else 1
    return float((dct(series, norm="ortho")[1 : waves + 1] ** 2).mean()), waves


def _memory(values: Floats) -> float:
    """The autocorrelation of neighbouring samples' ranks, in 0..1, by the lag at which it is longest remembered.

    Jitter hides at lag 1 how slowly what lies below it moves; a correlation at a longer lag that is beyond chance
    shows it. Of a short series they are estimated too low, by (1 + 3 r) / n (Kendall 1954).
    """
    ranks = _ranks(values)[0] - (len(values) + 1) / 2
    power, found = float(ranks @ ranks), 1e-6
    for lag in (lag for lag in LAGS if lag == 1 or lag <= len(values) // 4):
        near = float(ranks[lag:] @ ranks[:-lag]) / power if power else 0.0
        near += (1 + 3 * near) / len(values)
        if near > (1.5 / math.sqrt(len(values)) if lag > 1 else 0.0):
            found = max(found, near ** (1 / lag))
    return min(0.98, found)


def proportion_interval(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion, within 0..1.

    At none and at all of the trials it keeps a width, where a bootstrap has none. The numbers may be effective ones.

    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953).
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    reach = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def mean_interval(
    values: Sequence[float], level: float = 0.95, within: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float] | None:
    """Return the interval of the mean of values, such as of seeds, by Student's t; None of fewer than two.

    Args:
        within: what a value can be at least and at most; the interval ends there.
    """
    if len(values) < 2:
        return None
    mean, spread = float(numpy.mean(values)), float(numpy.std(values, ddof=1))
    reach = t_quantile(level, len(values) - 1) * spread / math.sqrt(len(values))
    return max(within[0], mean - reach), min(within[1], mean + reach)


def repeatability_limit(results: Sequence[float], level: float = 0.95) -> float | None:
    """Return the factor by which two results of one measurement differ at most, with a probability; None of one result.

    Results differ by factors, so that logarithms are taken.

    Source: ISO 5725-6, repeatability limit, with Student's t for the number of results.
    """
    if len(results) < 2:
        return None
    spread = float(numpy.log(results).std(ddof=1))
    return math.exp(t_quantile(level, len(results) - 1) * math.sqrt(2) * spread)


def t_quantile(level: float, degrees: float) -> float:
    """Return the t that Student's distribution stays within, on both sides, with a probability."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def p_shown(p: float) -> str:
    """Return a p as it is printed: one that is too small for floating point is not nought."""
    return f"{p:.2g}" if p >= 1e-99 else "<1e-99"


def rank_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney U test: normal approximation, corrected for ties and continuity."""
    m, n = len(first), len(second)
    ranks, ties = _ranks([*first, *second])
    distance = abs(float(ranks[:m].sum()) - m * (m + n + 1) / 2)
    variance = m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1)))
    return _two_sided(distance, variance)


def rank_test_of_series(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney U test between series in which neighbours in time are alike.

    Each series counts as so many samples as it has the variance of: what its slow waves add to the variance of its own
    ranks is added to that of U, with Student's t on the number of these waves. Without such waves it is `rank_test`.
    """
    from scipy.special import stdtr

    m, n = len(first), len(second)
    ranks, ties = _ranks([*first, *second])
    variance = (m + n + 1 - ties / ((m + n) * (m + n - 1))) * (m + n) / 12
    (one, waves), (other, others) = (_inflation(numpy.asarray(samples, dtype=float)) for samples in (first, second))
    variances = variance * numpy.array([one / m, other / n])
    if not variance:
        return 1.0
    degrees = variances.sum() ** 2 / (variances**2 / [waves, others]).sum()
    # U moves in steps of one, the distance of the mean ranks in these.
    distance = abs(float(ranks[:m].mean() - ranks[m:].mean())) - 0.5 * (1 / m + 1 / n)
    return 2 * float(stdtr(degrees, -max(0.0, distance) / math.sqrt(variances.sum())))


def _inflation(values: Floats) -> tuple[float, int]:
    """By what factor neighbours that are alike add to the variance of a mean rank, and how many waves tell this."""
    ranks = _ranks(values)[0] - (len(values) + 1) / 2
    slow, waves = _slow_variance(ranks, _memory(values))
    alone = float(ranks @ ranks) / (len(values) - 1)
    return max(1.0, slow / alone) if alone else 1.0, waves


def signed_rank_test(differences: Sequence[float]) -> float:
    """Return the two-sided p of the Wilcoxon signed-rank test: zeros dropped, approximated and corrected likewise."""
    values = numpy.asarray([value for value in differences if value])
    n = len(values)
    ranks, ties = _ranks(numpy.abs(values))
    distance = abs(float(ranks[values > 0].sum()) - n * (n + 1) / 4)
    return _two_sided(distance, n * (n + 1) * (2 * n + 1) / 24 - ties / 48)


def least_rounds(comparisons: int) -> int:
    """Return how many rounds it takes to find a difference between models at the level that comparisons share.

    That is where one model is quicker in every round: the least p that the signed-rank test can give.
    """
    rounds = 1
    while signed_rank_test(range(1, rounds + 1)) >= LEVEL / max(1, comparisons):
        rounds += 1
    return rounds


def _ranks(values: Any) -> tuple[Any, float]:
    """Ranks from 1, equal values sharing their mean rank; and the sum of t^3 - t over groups of t equal values."""
    _, inverse, counts = numpy.unique(values, return_inverse=True, return_counts=True)
    last = numpy.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse], float((counts.astype(float) ** 3 - counts).sum())


def _two_sided(distance: float, variance: float) -> float:
    """The p of a statistic's distance from its mean, which moves in steps of one."""
    if variance <= 0:
        return 1.0
    return min(1.0, math.erfc(max(0.0, distance - 0.5) / math.sqrt(2 * variance)))


def compare_rounds(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """Compare two models that took turns, round by round.

    Samples within a round are alike, so a round counts once, by its median; drift hits both models of a round alike, so
    rounds are compared in pairs. Fewer than 15 rounds cannot reach the level.

    Args:
        first: the samples of each round of one model.
        second: of the other, in the same rounds.
    """
    logs = [math.log(float(numpy.median(b)) / float(numpy.median(a))) for a, b in zip(first, second, strict=True)]
    low, high = median_interval(logs)
    return Difference(math.exp(float(numpy.median(logs))), math.exp(low), math.exp(high), signed_rank_test(logs))


def compare_runs(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """Compare two models that ran apart, each several times in processes of its own.

    What changes from process to process (where memory lies, how warm the machine is) is not in the samples of one run,
    so a run counts once, by its median. The ratio is the median of those between any two runs, and its interval holds
    what the Mann-Whitney test does not reject (Hodges and Lehmann 1963).

    Args:
        first: the samples of each run of one model.
        second: of the other; the runs of the two are not paired.
    """
    a, b = ([math.log(numpy.median(run)) for run in runs] for runs in (first, second))
    apart, pairs = numpy.sort(numpy.subtract.outer(b, a), axis=None), len(a) * len(b)
    reach = NormalDist().inv_cdf(0.975) * math.sqrt(pairs * (len(a) + len(b) + 1) / 12)
    places = [pairs / 2 - 0.5 + side * reach for side in (-1, 0, 1)]
    low, ratio, high = numpy.exp(numpy.interp(places, numpy.arange(pairs), apart))
    return Difference(float(ratio), float(low), float(high), rank_test(a, b))


def ratio_of_series(
    first: Sequence[float], second: Sequence[float], level: float = LEVEL, least_effect: float = LEAST_EFFECT
) -> Difference:
    """Compare the samples of two runs that were made apart, one run each, by the ratio of their medians.

    An unpaired rank test that knows that neighbours in time are alike; and a t-test with the spread of samples, as if a
    run were one sample: of a short run ranks say little, and yet a gross difference is seen. The clearer of the two
    counts. The interval is Welch's, of the logarithms of the medians. What changes from process to process is not in
    the samples: the least effect must cover it.
    """
    (a, *one), (b, *other) = (_errors(numpy.asarray(samples, dtype=float)) for samples in (first, second))
    (_, near), (gross, far) = map(partial(_welch, b - a), one, other)
    p, reach = min(rank_test_of_series(first, second), gross), min(near, far)
    return Difference(math.exp(b - a), math.exp(b - a - reach), math.exp(b - a + reach), p, level, least_effect)


def ratio_of_intervals(
    first: tuple[float, tuple[float, float]],
    second: tuple[float, tuple[float, float]],
    level: float = LEVEL,
    least_effect: float = LEAST_EFFECT,
) -> Difference:
    """Compare two positive values that were measured apart, each given with its 95 % interval, on a log scale."""
    widths = [math.log(high) - math.log(low) for _, (low, high) in (first, second)]
    reach, ratio = math.hypot(*widths) / 2, second[0] / first[0]
    distance = 1.96 * abs(math.log(ratio)) / reach if reach else math.inf if ratio != 1 else 0.0
    p = math.erfc(distance / math.sqrt(2))
    return Difference(ratio, ratio / math.exp(reach), ratio * math.exp(reach), p, level, least_effect)


def _errors(values: Floats) -> tuple[float, Error, Error]:
    """The logarithm of a series' median, its standard error, and what that is at most: the spread of single samples."""
    count, ordered = len(values), numpy.sort(values)
    share, degrees = _share_error(values, 0.5)
    reach = max(1.0, 1.5 * share * count)
    places = numpy.clip(count / 2 - 0.5 + numpy.array([-reach, reach]), 0, count - 1)
    low, high = numpy.interp(places, numpy.arange(count), ordered)
    # How far apart samples lie around the median is told by as many of them as lie there.
    near = max(1.0, float(numpy.ptp(places)))
    median = float(numpy.median(values))
    error = float(high - low) / near * count * share / median, 1 / (1 / degrees + 1 / (2 * near))
    memory = _memory(values) ** 2
    # The quartiles' distance has two fifths of the degrees of freedom of a standard deviation.
    spread = float(numpy.subtract(*numpy.quantile(values, [0.75, 0.25]))) / 1.349 / median
    return math.log(median), error, (spread, max(1.0, 0.4 * count * (1 - memory) / (1 + memory)))


def _welch(apart: float, one: Error, other: Error) -> tuple[float, float]:
    """The two-sided p of a distance between two values with standard errors, and how far the 95 % interval reaches."""
    from scipy.special import stdtr

    variances = numpy.array([one[0], other[0]]) ** 2
    if not variances.sum():
        return float(apart == 0), 0.0
    error, degrees = math.sqrt(variances.sum()), variances.sum() ** 2 / (variances**2 / [one[1], other[1]]).sum()
    return 2 * float(stdtr(degrees, -abs(apart) / error)), t_quantile(0.95, degrees) * error
