"""How long a pass takes: forward, at batch 1 and at the setup's batch, and forward with backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy

from harness.costs.training import loss, training
from harness.device import evaluating
from harness.graphs import graphed
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import COSTS
from harness.statistics import Difference, compare_rounds, median_interval, quantile_interval
from harness.timing import Call, Series, describe, interleave, measure

if TYPE_CHECKING:
    from torch import Tensor, nn

# Below this share of the wall clock the GPU mostly waits for the processor to launch its work.
LAUNCH_BOUND = 0.8
# Each with the samples that it takes: a p99 of fewer than a hundred would be their greatest, whatever its name.
QUANTILES = {"p90": (0.90, 10), "p95": (0.95, 15), "p99": (0.99, 100)}
# Samples that have to lie beyond a quantile for an interval of it: the greatest of fewer lies below it too often.
BEYOND = 6
SHOWN = "p95"  # beside the median in ranked tables


@COSTS.register("latency")
def latency(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Return the median wall-clock time of a forward pass, with its quantiles and the interval of the median.

    Each sample is one pass, from the call to the device's synchronisation. Samples are kept in the record, in ms.
    """
    with evaluating(setup):
        calls = {batch: graphed(partial(model, images[:batch]), setup) for batch in sorted({1, len(images)})}
        series = {batch: measure(call, setup.device) for batch, call in calls.items()}
    return evaluation("latency", series, setup)


@COSTS.register("training_latency")
def training_latency(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Return the same of a forward pass in training mode with the backward pass to every parameter.

    The loss is the sum of the outputs; there is no optimizer step. At the setup's batch only.
    """
    with training(model):
        series = {len(images): measure(graphed(partial(train_pass, model, images, setup), setup), setup.device)}
    return evaluation("training_latency", series, setup)


def compare_latency(
    first: nn.Module, second: nn.Module, images: Tensor, setup: Setup, rounds: int = 40, passes: int = 3
) -> Difference:
    """Compare the forward passes of two models that take turns in this process.

    Args:
        first: placed on its device, as `second` is.
        second: its time is the numerator of the result's ratio.
        images: (B, 3, H, W), of both models.
        setup: precision, device, and the seed of the order of turns.
        rounds: turns of each model; at least 15, or no difference can be found.
        passes: that count in each turn.
    """
    with evaluating(setup):
        calls: list[Call] = [graphed(partial(model, images), setup) for model in (first, second)]
        timed = interleave(calls, setup.device, rounds, passes, setup.seed)
    return compare_rounds(timed[0], timed[1])


def train_pass(model: nn.Module, images: Tensor, setup: Setup) -> None:
    """Run a forward and a backward pass."""
    loss(model, images, setup).backward()
    model.zero_grad(set_to_none=True)


def evaluation(name: str, series: dict[int, Series], setup: Setup) -> Evaluation:
    """Return the measurements and details of some series by their batch."""
    measurements = [found for batch, one in series.items() for found in _measurements(name, batch, one)]
    details: dict[str, Any] = {f"b{batch}": describe(one) for batch, one in series.items()}
    details["disturbed"] = [f"b{batch}: {why}" for batch, one in series.items() for why in one.observation.disturbed]
    bound = [batch for batch, one in series.items() if one.busy_share is not None and one.busy_share < LAUNCH_BOUND]
    details["launch_bound"] = bound
    return Evaluation(tuple(measurements), details)


def _measurements(name: str, batch: int, series: Series) -> Iterator[Measurement]:
    """Yield the median with its samples, and what the tables leave out."""
    metric = Metric(f"{name}_b{batch}", "ms", higher_is_better=False)
    yield Measurement(metric, series.median, series.wall, interval=median_interval(series.wall))
    for quantile in QUANTILES:
        metric = Metric(f"{name}_{quantile}_b{batch}", "ms", higher_is_better=False, minor=quantile != SHOWN)
        yield _quantile(metric, series.wall, *QUANTILES[quantile])
    if series.busy_share is not None:
        share = Metric(f"{name}_gpu_busy_b{batch}", "%", higher_is_better=True, decimals=1, minor=True)
        yield Measurement(share, 100 * series.busy_share)


def _quantile(metric: Metric, samples: Sequence[float], share: float, least: int) -> Measurement:
    if len(samples) < least:
        return Measurement(metric, None, reason=f"needs {least} samples; time was up after {len(samples)}")
    enough = round(len(samples) * (1 - share), 6) >= BEYOND
    interval = quantile_interval(samples, share) if enough else None
    return Measurement(metric, float(numpy.quantile(samples, share)), interval=interval)
