"""What samples can and cannot tell: intervals of medians and proportions, and whether two models differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy

RESAMPLES = 1000
# One false difference in a thousand comparisons; and what is below two per cent is nothing to report.
LEVEL = 0.001
LEAST_EFFECT = 0.02


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


def median_interval(samples: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the median of samples in the order in which they were taken: see `quantile_interval`."""
    return quantile_interval(samples, 0.5, seed, level)


def quantile_interval(
    samples: Sequence[float], share: float, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the bootstrap interval of a quantile of samples in the order in which they were taken.

    Neighbours in time are alike, so whole blocks of about the square root of their number are drawn (the circular block
    bootstrap of Politis and Romano, 1992); drawing single samples would give too narrow an interval. Blocks are few:
    the interval is by Student's t on their number, and as wide as the samples at most.
    """
    values = numpy.asarray(samples, dtype=float)
    count = len(values)
    block = max(1, round(math.sqrt(count)))
    starts = numpy.random.default_rng(seed).integers(count, size=(RESAMPLES, -(-count // block), 1))
    drawn = values[(starts + numpy.arange(block)) % count].reshape(RESAMPLES, -1)[:, :count]
    blocks, value = max(2.0, count / block), float(numpy.quantile(values, share))
    spread = float(numpy.quantile(drawn, share, axis=1).std()) * math.sqrt(blocks / (blocks - 1))
    reach = t_quantile(level, blocks - 1) * spread
    return max(float(values.min()), value - reach), min(float(values.max()), value + reach)


def median_error(samples: Sequence[float]) -> float:
    """Return half the width of the 95 % order-statistic interval of the median, relative to the median.

    Quick enough to be asked while samples are taken; it knows nothing of their order.
    """
    ordered = sorted(samples)
    middle, reach = (len(ordered) - 1) / 2, 0.98 * math.sqrt(len(ordered))
    low, high = math.floor(middle - reach), math.ceil(middle + reach)
    if low < 0:
        return math.inf
    return (ordered[high] - ordered[low]) / 2 / ordered[math.floor(middle)]


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


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the interval of the mean of values, such as of seeds, by Student's t; None of fewer than two."""
    if len(values) < 2:
        return None
    mean, spread = float(numpy.mean(values)), float(numpy.std(values, ddof=1))
    reach = t_quantile(level, len(values) - 1) * spread / math.sqrt(len(values))
    return mean - reach, mean + reach


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


def rank_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney U test: normal approximation, corrected for ties and continuity."""
    m, n = len(first), len(second)
    ranks, ties = _ranks([*first, *second])
    distance = abs(float(ranks[:m].sum()) - m * (m + n + 1) / 2)
    variance = m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1)))
    return _two_sided(distance, variance)


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


def compare_rounds(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0) -> Difference:
    """Compare two models that took turns, round by round.

    Samples within a round are alike, so a round counts once, by its median; drift hits both models of a round alike, so
    rounds are compared in pairs. Fewer than 15 rounds cannot reach the level.

    Args:
        first: the samples of each round of one model.
        second: of the other, in the same rounds.
    """
    logs = [math.log(float(numpy.median(b)) / float(numpy.median(a))) for a, b in zip(first, second, strict=True)]
    low, high = median_interval(logs, seed)
    return Difference(math.exp(float(numpy.median(logs))), math.exp(low), math.exp(high), signed_rank_test(logs))


def compare_runs(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0) -> Difference:
    """Compare two models that ran apart, each several times in processes of its own.

    What changes from process to process (where memory lies, how warm the machine is) is not in the samples of one run,
    so a run counts once, by its median.

    Args:
        first: the samples of each run of one model.
        second: of the other; the runs of the two are not paired.
    """
    a, b = ([float(numpy.median(run)) for run in runs] for runs in (first, second))
    generator = numpy.random.default_rng(seed)
    drawn = [numpy.median(generator.choice(side, size=(RESAMPLES, len(side))), axis=1) for side in (a, b)]
    low, high = numpy.quantile(drawn[1] / drawn[0], [0.025, 0.975])
    ratio = float(numpy.median(b) / numpy.median(a))
    return Difference(ratio, float(low), float(high), rank_test(a, b))


def ratio_of_series(
    first: Sequence[float], second: Sequence[float], level: float = LEVEL, least_effect: float = LEAST_EFFECT
) -> Difference:
    """Compare the samples of two runs that were made apart, one run each.

    Neighbours in time are alike, so that blocks of samples count once, by their median: about the square root of their
    number of blocks, at most 30. What changes from process to process is not in them: the least effect must cover it.
    """
    a, b = (_blocks(samples) for samples in (first, second))
    logs = numpy.log(a), numpy.log(b)
    spread = math.sqrt(sum(float(side.var(ddof=1)) / len(side) for side in logs))
    ratio = float(numpy.median(b) / numpy.median(a))
    reach = math.exp(1.96 * 1.2533 * spread)  # the median's standard error is 1.2533 times the mean's
    return Difference(ratio, ratio / reach, ratio * reach, rank_test(a, b), level, least_effect)


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


def _blocks(samples: Sequence[float]) -> Any:
    """The medians of consecutive blocks of samples of equal length; what is left over at the start is dropped."""
    values = numpy.asarray(samples, dtype=float)
    blocks = min(len(values), 30, max(16, round(math.sqrt(len(values)))))
    return numpy.median(values[len(values) % blocks :].reshape(blocks, -1), axis=1)
