"""Costs over token counts beside those of a control: how they grow, and from where on they are below the control's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy

from harness.errors import BenchError
from harness.metric import Measurement, Metric
from harness.scaling import crossing, crossing_interval, fit_power_law
from harness.statistics import LEAST_EFFECT, mean_interval, median_interval

IS_CONTROL = "is the control"
# Fewer tokens take little but the time that it takes to launch the work, whatever the mixer.
FITTED_FROM = 196
# Of fewer rounds no interval is given.
LEAST_ROUNDS = 3
# The range of fewer samples holds their median less often than 95 times in a hundred.
ENOUGH_TO_ORDER = 6


@dataclass(frozen=True)
class Quantity:
    """What is measured at each number of tokens.

    Args:
        name: of its metrics, as in `latency_n196`.
        below: the metric that says from where on it is less than the control's.
        peak: whether it is what one pass adds to the memory, and neither timed in turns nor counted.
    """

    name: str
    unit: str
    below: str
    peak: bool = False

    def is_coarse(self, device: str) -> bool:
        """Return whether two runs differ in it by chance, though each has one value: by a process's resident set."""
        return self.peak and not device.startswith("cuda")


QUANTITIES = (
    Quantity("latency", "ms", "faster_from"),
    Quantity("training_latency", "ms", "training_faster_from"),
    Quantity("memory", "MiB", "lighter_from", peak=True),
    Quantity("training_memory", "MiB", "training_lighter_from", peak=True),
    Quantity("gmacs", "G", "fewer_macs_from"),
)


@dataclass(frozen=True)
class Pair:
    """Samples of one quantity of a model and of its control at one number of tokens.

    Args:
        own: in the order in which they were taken; one, where there is nothing to repeat.
        control: each beside the model's own of the same round.
        reason: why there are none; empty where there are.
    """

    own: tuple[float, ...] = ()
    control: tuple[float, ...] = ()
    reason: str = ""

    @property
    def timed(self) -> bool:
        """Whether there are samples enough for an interval."""
        return len(self.own) >= LEAST_ROUNDS

    @property
    def ratio(self) -> float | None:
        """The median of the ratios to the control; None where it, or what was measured, is nothing."""
        return float(numpy.median(self.ratios)) if self.ratios else None

    @property
    def ratios(self) -> list[float]:
        """Own over control, round by round; none where one of them is nothing."""
        if not self.own or min(*self.own, *self.control) <= 0:
            return []
        return [own / control for own, control in zip(self.own, self.control, strict=True)]


Points = Mapping[int, Mapping[str, Pair]]
# By which factor two runs of one model may differ by chance, by the number of tokens.
Limits = Mapping[int, float]


def summarise(points: Points, seed: int = 0, device: str = "cpu", is_control: bool = False) -> list[Measurement]:
    """Return what curves come to, and then their points.

    Args:
        points: by the number of tokens, then by the name of the quantity.
        is_control: whether the model is the control itself.
    """
    return [
        *(_growth(points, quantity) for quantity in QUANTITIES),
        *(_below(points, quantity, seed, device, is_control) for quantity in QUANTITIES),
        *(_growth(points, quantity, control=True) for quantity in QUANTITIES),
        *(found for quantity in QUANTITIES for found in _values(points, quantity)),
    ]


def _growth(points: Points, quantity: Quantity, control: bool = False) -> Measurement:
    """The exponent of the growth with the number of tokens."""
    name = f"{quantity.name}{'_control' if control else ''}_growth"
    metric = Metric(name, "", higher_is_better=False, minor=control)
    known: dict[int, float] = {}
    for tokens, pairs in points.items():
        samples = pairs[quantity.name].control if control else pairs[quantity.name].own
        if tokens >= FITTED_FROM and samples and (value := float(numpy.median(samples))) > 0:
            known[tokens] = value
    try:
        law = fit_power_law(list(known), list(known.values()))
    except BenchError as error:
        return Measurement(metric, None, reason=f"{error} (from {FITTED_FROM} tokens on)")
    return Measurement(metric, law.slope, interval=(law.low, law.high))


def _below(points: Points, quantity: Quantity, seed: int, device: str, is_control: bool) -> Measurement:
    """From where on it costs less than the control; a run by itself does not know how well a coarse measure repeats."""
    if is_control:
        return Measurement(_crossing_metric(quantity), None, reason=IS_CONTROL)
    pairs = {tokens: found[quantity.name] for tokens, found in points.items()}
    return below(pairs, quantity, seed, {} if quantity.is_coarse(device) else None)


def below(pairs: Mapping[int, Pair], quantity: Quantity, seed: int = 0, limits: Limits | None = None) -> Measurement:
    """Return the number of tokens from which on a quantity is less than the control's.

    Args:
        pairs: by the number of tokens.
        limits: of a coarse measure; a difference counts beyond them only, and a size without one does not count.
    """
    metric = _crossing_metric(quantity)
    known = {tokens: pair for tokens, pair in sorted(pairs.items()) if pair.ratios}
    if not known:
        return Measurement(metric, None, reason="there is nothing to compare")
    if limits is not None:
        known = {tokens: pair for tokens, pair in known.items() if tokens in limits}
    if not known:
        return Measurement(metric, None, reason="one run does not tell by how much two differ: see token_counts")
    sizes, last = list(known), known[max(known)]
    coarseness = [max(1.0, limits[size] / (1 + LEAST_EFFECT)) if limits else 1.0 for size in sizes]
    medians = [float(numpy.median(pair.ratios)) for pair in known.values()]
    found = crossing(sizes, [ratio * factor for ratio, factor in zip(medians, coarseness, strict=True)])
    if math.isinf(found):
        return Measurement(metric, None, reason=f"never up to {sizes[-1]:,} tokens")
    if not all(pair.timed for pair in known.values()):
        return Measurement(metric, found)
    if interval_of(last.ratios)[1] >= 1:
        return Measurement(metric, None, reason=f"not beyond chance at {sizes[-1]:,} tokens")
    low, high = crossing_interval(sizes, [pair.ratios for pair in known.values()], seed)
    return Measurement(metric, found, interval=(low, min(high, float(sizes[-1]))))


def _crossing_metric(quantity: Quantity) -> Metric:
    return Metric(quantity.below, "tokens", higher_is_better=False, decimals=0)


def _values(points: Points, quantity: Quantity) -> Iterator[Measurement]:
    """Yield own value, control's value and their ratio at each number of tokens."""
    for tokens, pairs in sorted(points.items()):
        pair = pairs[quantity.name]
        for middle, samples in (("", pair.own), ("_control", pair.control)):
            metric = Metric(f"{quantity.name}{middle}_n{tokens}", quantity.unit, False, decimals=3, minor=True)
            if not samples:
                yield Measurement(metric, None, reason=pair.reason)
                continue
            interval = interval_of(samples) if pair.timed else None
            yield Measurement(metric, float(numpy.median(samples)), samples, interval=interval)
        metric = Metric(f"{quantity.name}_ratio_n{tokens}", "", False, decimals=3, minor=True)
        reason = pair.reason or "there is nothing to divide by, or nothing to divide"
        yield Measurement(
            metric,
            pair.ratio,
            reason="" if pair.ratio is not None else reason,
            interval=interval_of(pair.ratios) if pair.ratios and pair.timed else None,
        )


def interval_of(samples: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median of positive samples; of few by Student's t of their logarithms."""
    if len(samples) >= ENOUGH_TO_ORDER:
        return median_interval(samples)
    low, high = mean_interval(numpy.log(samples).tolist()) or (-math.inf, math.inf)
    return math.exp(low), math.exp(high)


def token_counts(names: Sequence[str]) -> list[int]:
    """Return at which numbers of tokens the metrics of a record were measured."""
    counts = (name.rpartition("_n")[2] for name in names if name.startswith("latency_n"))
    return sorted(int(count) for count in counts)
