"""Other images of the same kind: what a metric of a whole data set could have been on them, by the bootstrap.

Average precision, panoptic quality and mean intersection over union are no means over images. So images are drawn, and
the whole metric is computed again from the outcomes of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec
import numpy
from numpy.typing import NDArray

from harness.metric import Evaluation, Measurement, Metric, Outcomes
from harness.progress import track
from harness.registry import STATISTICS
from harness.statistics import t_quantile

RESAMPLES = 1000
SEED = 0
# Fewer images tell too little of how much images differ.
LEAST_ITEMS = 10
AT_ONCE = 50
# Two ways to one number differ by less.
AGREE = 1e-6

Counts = NDArray[numpy.uint8]  # (items, resamples)
Floats = NDArray[numpy.float64]
Values = Mapping[str, Floats]


class Statistic(Protocol):
    """Metrics that can be computed again with each image counted so many times.

    Args:
        items: the images that have outcomes.
        metrics: the names of the metrics.
    """

    items: Sequence[str]
    metrics: tuple[str, ...]

    def values(self, counts: Counts, wanted: Sequence[str]) -> Values:
        """Return some metrics (R,), each in its unit, for counts (items, R); NaN where nothing is counted."""


def statistic_of(outcomes: Outcomes | None) -> Statistic | None:
    """Return how metrics are computed from such outcomes; None where nothing registered reads them."""
    if outcomes is None:
        return None
    found = (entry.build(outcomes) for entry in STATISTICS.entries())
    return next((statistic for statistic in found if statistic is not None), None)


def halves(items: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED) -> Counts:
    """Return which images are in each resample (items, resamples): a random half of them, 1 or 0.

    About the value of the whole set, halves scatter as sets of its size do about the truth. Drawing with replacement
    scatters less than that where few images decide, as of a rare class.

    An image's draws depend on the seed and its name alone: all models meet the same resamples, and an image of which
    one model has no outcome moves nothing for the others.

    Source: Shao and Tu 1995, "The Jackknife and Bootstrap", section 5.3: the random half-sample bootstrap.
    """
    found = numpy.empty((len(items), resamples), numpy.uint8)
    for row, item in zip(found, items, strict=True):
        key = int.from_bytes(hashlib.sha256(f"{seed} {item}".encode()).digest()[:16], "little")
        # A bit generator's raw stream stays the same in all versions of numpy; the distributions made of it may not.
        raw = numpy.random.Philox(key=key).random_raw(-(-resamples // 64))
        row[:] = numpy.unpackbits(raw.astype("<u8").view(numpy.uint8), count=resamples)
    return found


def whole(statistic: Statistic, wanted: Sequence[str]) -> Mapping[str, float]:
    """Return metrics with every image counted once."""
    once = numpy.ones((len(statistic.items), 1), numpy.uint8)
    return {name: float(value[0]) for name, value in statistic.values(once, wanted).items()}


def replicates(statistic: Statistic, wanted: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED) -> Values:
    """Return metrics (resamples,) of resampled images."""
    counts = halves(statistic.items, resamples, seed)
    parts = [
        statistic.values(counts[:, start : start + AT_ONCE], wanted)
        for start in track(range(0, resamples, AT_ONCE), "resample")
    ]
    return {name: numpy.concatenate([part[name] for part in parts]) for name in wanted}


def spread(found: Floats) -> float:
    """Return the standard deviation of what came of resamples in which anything was counted."""
    there = found[~numpy.isnan(found)]
    return float(there.std(ddof=1)) if len(there) > 1 else 0.0


def with_intervals(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation whose metrics have 95 % intervals where its outcomes tell them, and says how.

    A metric that has one keeps it. One that the outcomes do not give, as a mean over seeds, gets none, nor does one
    that no resample moves.
    """
    statistic = statistic_of(evaluation.outcomes)
    if statistic is None or len(statistic.items) < LEAST_ITEMS:
        return evaluation
    named = {m.metric.name: m.value for m in evaluation.measurements if m.interval is None and m.value is not None}
    known = whole(statistic, [name for name in statistic.metrics if name in named])
    wanted = [name for name, value in known.items() if abs(value - named[name]) < AGREE]
    if not wanted:
        return evaluation
    found = replicates(statistic, wanted)
    reaches = {name: t_quantile(0.95, len(statistic.items) - 1) * spread(found[name]) for name in wanted}
    details = {
        "images": len(statistic.items),
        "resamples": RESAMPLES,
        "seed": SEED,
        "draws": "a random half of the images, by seed and name",
        "interval": "value -+ Student's t of images - 1 degrees x standard deviation of the resampled values",
        "metrics": wanted,
    }
    return replace(
        evaluation,
        measurements=tuple(_with_interval(one, reaches) for one in evaluation.measurements),
        details={**evaluation.details, "bootstrap": details},
    )


def _with_interval(one: Measurement, reaches: Mapping[str, float]) -> Measurement:
    reach = reaches.get(one.metric.name, 0.0) if one.interval is None else 0.0
    if not reach or one.value is None:
        return one
    return msgspec.structs.replace(
        one, interval=(max(0.0, one.value - reach), min(most(one.metric), one.value + reach))
    )


def most(metric: Metric) -> float:
    """Return the greatest value of a share: 100 in percent, else 1."""
    return 100.0 if metric.unit == "%" else 1.0
