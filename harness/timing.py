"""Taking samples of how long a call takes: warmed up, long enough, watched, and in turns where models are compared."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from harness.device import synchronize
from harness.observe import Observation, observing
from harness.statistics import median_error

Call = Callable[[], object]

# Warm-up: after the first pass, which may compile, at least two more and 0.2 s, until the last three are within a tenth
# of each other; 1 s at most.
WARM_UP_PASSES = 3
WARM_UP_SECONDS = 0.2
WARM_UP_CAP_SECONDS = 1.0
WARM_UP_SPREAD = 0.10
# A passing neighbour is waited out by measuring once more, unless that takes longer than it is worth.
ATTEMPTS = 2
REPEATABLE_SECONDS = 3.0
# Passes that are timed by CUDA events, and the longest delay that they are queued behind: launches that take longer
# would not fit into the queue.
QUEUED_PASSES = 5
QUEUE_MILLISECONDS = 50
# Whether samples are enough is asked of the first third of them, at counts that grow by half.
PARTS = 3
NEXT_LOOK = 1.5


@dataclass(frozen=True)
class Rule:
    """When there are samples enough.

    Args:
        least: samples to take whatever they cost.
        seconds: to sample for at least.
        error: then stop with so many that the 95 % interval of the median reaches no further than this share of it to
            either side, by what the first third of them tells.
        cap_seconds: or after so long.
        cap: or with so many samples.
    """

    least: int = 15
    seconds: float = 0.5
    error: float = 0.01
    cap_seconds: float = 2.0
    cap: int = 2000


@dataclass(frozen=True)
class Series:
    """Samples of one call.

    Args:
        wall: ms from the call to the end of the device's work, one pass each, in the order in which they were taken.
        device: ms that the GPU needed for passes that were queued ahead, by CUDA events; empty on the CPU.
        warm_up: passes before the first sample.
        stable: whether the warm-up ended because times had settled, not because it had to end.
        stopped: `error` where there are samples enough for the rule's error of the median, `cap` where time or their
            number ran out before.
        observation: what went on around them.
        attempts: how often they were taken; only the last ones are kept.
    """

    wall: tuple[float, ...]
    device: tuple[float, ...]
    warm_up: int
    stable: bool
    stopped: str
    observation: Observation
    attempts: int

    @property
    def median(self) -> float:
        """Ms on the wall clock."""
        return float(numpy.median(self.wall))

    @property
    def busy_share(self) -> float | None:
        """Share of the wall clock in which the GPU had work; None on the CPU."""
        return float(numpy.median(self.device)) / self.median if self.device else None


RULE = Rule()


def measure(call: Call, device: str, rule: Rule = RULE) -> Series:
    """Take samples of a call; where they were disturbed, once more if that is quick."""
    warm_up, stable = warm(call, device)
    for attempt in range(1, ATTEMPTS + 1):
        with observing(device) as watch:
            wall, stopped = sample(call, device, rule, watch.look)
            observation = watch.report()
        if not observation.disturbed or attempt == ATTEMPTS or sum(wall) > 1000 * REPEATABLE_SECONDS:
            break
    queued = queued_passes(call, device, float(numpy.median(wall))) if device.startswith("cuda") else []
    return Series(tuple(wall), tuple(queued), warm_up, stable, stopped, observation, attempt)


def time_pass(call: Call, device: str) -> float:
    """Return the ms on the wall clock of one call and of the work that it gave the device."""
    start = time.perf_counter_ns()
    call()
    synchronize(device)
    return (time.perf_counter_ns() - start) / 1e6


def warm(call: Call, device: str) -> tuple[int, bool]:
    """Run a call until its times have settled; return how often, and whether they have."""
    times = [time_pass(call, device)]
    begin = time.perf_counter()
    while True:
        times.append(time_pass(call, device))
        elapsed, last = time.perf_counter() - begin, times[-WARM_UP_PASSES:]
        if len(times) < WARM_UP_PASSES or elapsed < WARM_UP_SECONDS:
            continue
        stable = max(last) <= (1 + WARM_UP_SPREAD) * min(last)
        if stable or elapsed > WARM_UP_CAP_SECONDS:
            return len(times), stable


def sample(call: Call, device: str, rule: Rule, look: Call) -> tuple[list[float], str]:
    """Return the ms of single passes, and which part of the rule ended them.

    To stop where samples happen to agree would leave intervals that cover too little. So a third of them decides how
    many there will be, and the others come whatever they are.

    Args:
        look: called between passes.
    """
    samples: list[float] = []
    begin, check, enough = time.perf_counter(), rule.least / PARTS, math.inf
    while True:
        samples.append(time_pass(call, device))
        look()
        count, elapsed = len(samples), time.perf_counter() - begin
        if math.isinf(enough) and count >= check and elapsed >= rule.seconds / PARTS:
            check = NEXT_LOOK * count
            if median_error(samples) <= rule.error * math.sqrt(PARTS):
                enough = PARTS * count
        if count < rule.least:
            continue
        if elapsed >= rule.cap_seconds or count >= rule.cap:
            return samples, "cap"
        if count >= enough and elapsed >= rule.seconds:
            return samples, "error"


def queued_passes(call: Call, device: str, milliseconds: float) -> list[float]:
    """Return the ms that a GPU works on a pass when it need not wait for launches, by CUDA events.

    The GPU is kept idle until the launches of the pass are queued, so that the gaps between them do not count. The
    queue holds about a thousand launches: of a longer pass the rest waits, and the time is an upper bound.

    Args:
        milliseconds: a pass on the wall clock, which is as long as its launches can take.
    """
    import torch

    # GPUs run at up to about 2 GHz; a clock that is slower only waits longer.
    cycles = int(min(milliseconds, QUEUE_MILLISECONDS) * 2e6)
    found = []
    for _ in range(QUEUED_PASSES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.device(device):
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
            start.record()
            call()
            end.record()
        synchronize(device)
        found.append(float(start.elapsed_time(end)))
    return found


def interleave(
    calls: Sequence[Call],
    device: str,
    rounds: int = 40,
    passes: int = 3,
    seed: int = 0,
    look: Call = lambda: None,
) -> list[list[list[float]]]:
    """Time several calls in turns, so that drift hits all alike.

    Each round runs every call, in an order drawn anew; a turn starts with a pass that does not count, since the caches
    are still full of another's weights.

    Args:
        look: called after each turn.

    Returns:
        For each call its rounds, each with the ms of its passes.
    """
    for call in calls:
        warm(call, device)
    return turns(calls, device, rounds, passes, seed, look)


def turns(
    calls: Sequence[Call],
    device: str,
    rounds: int,
    passes: int = 1,
    seed: int = 0,
    look: Call = lambda: None,
    *,
    discarded: int = 1,
    least: int = 1,
    seconds: float = math.inf,
) -> list[list[list[float]]]:
    """Time several calls that are warm in turns, as `interleave` does and returns.

    Args:
        rounds: at most so many.
        discarded: passes at the start of a turn that do not count; none where a pass is so long that cold caches are
            nothing to it.
        least: rounds to make whatever they take.
        seconds: after which no other round begins.
    """
    found: list[list[list[float]]] = [[] for _ in calls]
    order, generator, begin = list(range(len(calls))), random.Random(seed), time.perf_counter()
    for made in range(rounds):
        if made >= least and time.perf_counter() - begin > seconds:
            break
        generator.shuffle(order)
        for index in order:
            for _ in range(discarded):
                time_pass(calls[index], device)
            found[index].append([time_pass(calls[index], device) for _ in range(passes)])
            look()
    return found


def describe(series: Series) -> dict[str, Any]:
    """Return what a record says of a series beside its samples."""
    found: dict[str, Any] = {
        "warm_up": series.warm_up,
        "stable": series.stable,
        "stopped": series.stopped,
        "attempts": series.attempts,
        "observed": series.observation.seen,
    }
    if series.device:
        found["device_samples"] = series.device
    return found
