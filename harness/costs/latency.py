"""How long a forward pass takes, at batch 1 and at the setup's batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy

from harness.device import evaluating, synchronize
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import COSTS

if TYPE_CHECKING:
    from torch import Tensor, nn

WARM_UP_RUNS = 3
SAMPLES = 15
SECONDS = 2.0
MAX_SAMPLES = 300


@COSTS.register("latency")
def latency(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Return the median and the 95th percentile of the wall-clock time of a forward pass.

    Each sample is one forward pass, from the call to the device's synchronisation, after a warm-up; at least
    15 samples, and more until two seconds have passed. Samples are kept in the record, in ms.
    """
    found: list[Measurement] = []
    for batch in sorted({1, len(images)}):
        samples = time_forward(model, images[:batch], setup)
        median = float(numpy.median(samples))
        found += [
            Measurement(Metric(f"latency_b{batch}", "ms", higher_is_better=False), median, tuple(samples)),
            Measurement(
                Metric(f"latency_p95_b{batch}", "ms", higher_is_better=False), float(numpy.quantile(samples, 0.95))
            ),
        ]
    return Evaluation(tuple(found))


def time_forward(model: nn.Module, images: Tensor, setup: Setup) -> list[float]:
    """Return the milliseconds of single forward passes."""
    samples: list[float] = []
    with evaluating(setup):
        for _ in range(WARM_UP_RUNS):
            model(images)
        synchronize(setup.device)
        begin = time.perf_counter()
        while len(samples) < SAMPLES or (time.perf_counter() - begin < SECONDS and len(samples) < MAX_SAMPLES):
            start = time.perf_counter()
            model(images)
            synchronize(setup.device)
            samples.append(1e3 * (time.perf_counter() - start))
    return samples
