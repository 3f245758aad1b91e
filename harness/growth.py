"""Costs over token counts beside those of a control: how they grow, and from where on they are below the control's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy

from harness.errors import BenchError
from harness.metric import Measurement, Metric
from harness.scaling import crossing, crossing_interval, fit_power_law
from harness.statistics import compare_rounds, median_interval

# Fewer tokens take little but the time that it takes to launch the work, whatever the mixer.
FITTED_FROM = 196
# Of fewer rounds no interval is given.
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Quantity:
    """What is measured at each number of tokens.

    Args:
        name: of its metrics, as in `latency_n196`.
        below: the metric that says from where on it is less than the control's.
    """

    name: str
    unit: str
    below: str


QUANTITIES = (
    Quantity("latency", "ms", "faster_from"),
    Quantity("training_latency", "ms", "training_faster_from"),
    Quantity("memory", "MiB", "lighter_from"),
    Quantity("training_memory", "MiB", "training_lighter_from"),
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


def summarise(points: Points, seed: int = 0) -> list[Measurement]:
    """Return what curves come to, and then their points.

    Args:
        points: by the number of tokens, then by the name of the quantity.
    """
    return [
        *(_growth(points, quantity) for quantity in QUANTITIES),
        *(_below(points, quantity, seed) for quantity in QUANTITIES),
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


def _below(points: Points, quantity: Quantity, seed: int) -> Measurement:
    """The number of tokens from which on it costs less than the control."""
    metric = Metric(quantity.below, "tokens", higher_is_better=False, decimals=0)
    known = {tokens: pairs[quantity.name] for tokens, pairs in sorted(points.items()) if pairs[quantity.name].ratios}
    if not known:
        return Measurement(metric, None, reason="there is nothing to compare")
    sizes, last = list(known), known[max(known)]
    found = crossing(sizes, [float(numpy.median(pair.ratios)) for pair in known.values()])
    if math.isinf(found):
        return Measurement(metric, None, reason=f"never up to {sizes[-1]:,} tokens")
    if not all(pair.timed for pair in known.values()):
        return Measurement(metric, found)
    if _interval(last)[1] >= 1:
        return Measurement(metric, None, reason=f"not beyond chance at {sizes[-1]:,} tokens")
    low, high = crossing_interval(sizes, [pair.ratios for pair in known.values()], seed)
    return Measurement(metric, found, interval=(low, min(high, float(sizes[-1]))))


def _values(points: Points, quantity: Quantity) -> Iterator[Measurement]:
    """Yield own value, control's value and their ratio at each number of tokens."""
    for tokens, pairs in sorted(points.items()):
        pair = pairs[quantity.name]
        for middle, samples in (("", pair.own), ("_control", pair.control)):
            metric = Metric(f"{quantity.name}{middle}_n{tokens}", quantity.unit, False, decimals=3, minor=True)
            if not samples:
                yield Measurement(metric, None, reason=pair.reason)
                continue
            interval = median_interval(samples) if pair.timed else None
            yield Measurement(metric, float(numpy.median(samples)), samples, interval=interval)
        metric = Metric(f"{quantity.name}_ratio_n{tokens}", "", False, decimals=3, minor=True)
        reason = pair.reason or "there is nothing to divide by, or nothing to divide"
        yield Measurement(
            metric,
            pair.ratio,
            reason="" if pair.ratio is not None else reason,
            interval=_interval(pair) if pair.ratios and pair.timed else None,
        )


def _interval(pair: Pair) -> tuple[float, float]:
    """The 95 % interval of the ratio."""
    own, control = ([[sample] for sample in samples] for samples in (pair.own, pair.control))
    found = compare_rounds(control, own)
    return found.low, found.high


def token_counts(names: Sequence[str]) -> list[int]:
    """Return at which numbers of tokens the metrics of a record were measured."""
    counts = (name.rpartition("_n")[2] for name in names if name.startswith("latency_n"))
    return sorted(int(count) for count in counts)
