"""How many images a second, at stated batches, and the largest batch that fits."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy

from harness.costs.memory import MIB, resident_peak
from harness.device import evaluating, synchronize, to_device
from harness.graphs import graphed
from harness.metric import Evaluation, Measurement, Metric
from harness.observe import observing
from harness.record import Setup
from harness.registry import COSTS
from harness.timing import Call, time_pass

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCHES = (1, 8, 32, 128, 256)
LARGEST_BATCH = 2**16
# The budget of one pass. A larger batch would only show what the smaller ones have shown.
PASS_SECONDS = 5.0
# On the CPU, whose memory is everybody's and where running out of it is no error but the end.
MEMORY_SHARE = 0.5
# Passes to time before the next batch is judged by the quickest, since one that was held up says nothing of it.
TIMED_PASSES = 3
WINDOWS = 5
WINDOW_SECONDS = 0.3


class NotRun(Exception):
    """A batch that cannot be run; the text says why."""


class OutOfTime(NotRun):
    """A batch whose pass would exceed the time budget."""


@COSTS.register("throughput")
def throughput(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Return images a second at batches 1, 8, 32, 128, 256 and the setup's, which comes first, and the largest batch.

    Passes run back to back and are synchronised once a window of at least 0.3 s, so that launches overlap with work:
    the median of five windows. A batch that does not fit has an empty cell with the reason, and is never replaced by a
    smaller one.
    """
    trial = Trial(model, images, setup)
    with evaluating(setup), observing(setup.device) as watch:
        found = {batch: _rate(trial, batch, watch.look) for batch in sorted({*BATCHES, len(images)})}
        observation = watch.report()
        largest = _largest(trial, max((batch for batch, cell in found.items() if cell.value is not None), default=0))
    measurements = [found.pop(len(images)), *found.values(), largest]
    return Evaluation(tuple(measurements), {"observed": observation.seen, "disturbed": list(observation.disturbed)})


class Trial:
    """Runs a model at one batch after another, and refuses those that would exceed the time or the memory there is."""

    def __init__(self, model: nn.Module, images: Tensor, setup: Setup) -> None:
        self._model, self._images, self._setup = model, images, setup
        self.device = setup.device
        self._seconds = self._mib = 0.0  # an image, in the last pass that ran

    def call(self, batch: int) -> Call:
        """Return the forward pass at a batch; the images are repeated as often as needed."""
        import torch

        repeated = self._images[torch.arange(batch, device=self._images.device) % len(self._images)]
        return graphed(partial(self._model, to_device(repeated, self._setup)), self._setup)

    def run(self, batch: int) -> float:
        """Run some passes at a batch, and return the seconds of the quickest.

        Raises:
            OutOfTime: a pass would take longer than the budget.
            NotRun: it would need more memory than there is, or it failed.
        """
        if (expected := self._seconds * batch) > PASS_SECONDS:
            raise OutOfTime(f"a pass would take about {expected:.0f} s (limit {PASS_SECONDS:.0f} s)")
        self._check_memory(batch)
        if failure := self._try(batch):
            # Outside the handler, whose traceback holds the tensors that are to be freed.
            _free(self.device)
            raise NotRun(failure)
        return self._seconds * batch

    def _check_memory(self, batch: int) -> None:
        import psutil

        if self.device == "cpu":
            free = MEMORY_SHARE * psutil.virtual_memory().available / MIB
            needed = (self._mib + self._images[0].nbytes / MIB) * batch
            if needed > free:
                raise NotRun(f"a pass would need about {needed:,.0f} MiB (limit {free:,.0f} MiB, half of what is free)")

    def _try(self, batch: int) -> str:
        """Run a batch and note what it took; return why it failed, or nothing."""
        import torch

        try:
            call = self.call(batch)
            if self.device == "cpu":
                self._mib = (resident_peak(call, self._setup)[0] or 0.0) / batch
            else:
                call()
            self._seconds = min(time_pass(call, self.device) for _ in range(TIMED_PASSES)) / 1000 / batch
        except torch.OutOfMemoryError:
            return f"out of memory at batch {batch}"
        except RuntimeError as error:  # kernels refuse tensors of more than 2^31 elements so
            return f"batch {batch} failed: {str(error).partition(chr(10))[0]}"
        return ""


def search(run: Callable[[int], object], low: int, cap: int) -> tuple[int, str]:
    """Find the largest batch that runs, by doubling, then by bisection to 3 %.

    Args:
        run: raises NotRun where a batch does not run.
        low: a batch that is known to run, or 0.
        cap: where to end.

    Returns:
        The batch, and why it is only a lower bound; an empty reason where larger ones do not fit.
    """
    high = 2 * low or 1
    while low < cap:
        try:
            run(high)
        except OutOfTime as limit:
            return low, str(limit)
        except NotRun:
            break
        low, high = high, 2 * high
    else:
        return low, "the search ends there"
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        try:
            run(middle)
        except NotRun:
            high = middle
        else:
            low = middle
    return low, ""


def _largest(trial: Trial, known: int) -> Measurement:
    metric = Metric("largest_batch", "images", higher_is_better=True, decimals=0)
    batch, bound = search(trial.run, known, LARGEST_BATCH)
    if bound:
        return Measurement(metric, None, reason=f"at least {batch:,}: {bound}")
    return Measurement(metric, batch or None, reason="" if batch else "not even one image fits")


def _rate(trial: Trial, batch: int, look: Call) -> Measurement:
    """Images a second at one batch."""
    metric = Metric(f"throughput_b{batch}", "images/s", higher_is_better=True, decimals=1)
    try:
        seconds = trial.run(batch)
    except NotRun as limit:
        return Measurement(metric, None, reason=str(limit))
    call, passes = trial.call(batch), math.ceil(WINDOW_SECONDS / seconds)
    rates = []
    for _ in range(WINDOWS):
        rates.append(batch * passes / _window(call, passes, trial.device))
        look()
    return Measurement(metric, float(numpy.median(rates)), tuple(rates))


def _window(call: Call, passes: int, device: str) -> float:
    """Seconds of some passes back to back."""
    start = time.perf_counter()
    for _ in range(passes):
        call()
    synchronize(device)
    return time.perf_counter() - start


def _free(device: str) -> None:
    """Give back the memory of a pass that failed."""
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
