"""What went on around a measurement: clocks, heat, throttling and company. It is observed, never set."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.cgroup import periods, quota
from harness.environment import cores
from harness.nvml import POWER_CAP, Gpu, NotReadable, open_gpu

# Often enough to see a clock fall, seldom enough to cost nothing.
LOOK_SECONDS = 0.1
# Of the time of the threads that were measured. The median withstands a tenth of disturbed samples.
COMPANY_LIMIT = 0.10
# The kernel accounts for processor time in ticks, of which one a core may belong to either neighbour.
TICK_SECONDS = 0.01


@dataclass(frozen=True)
class Observation:
    """What was seen, and why the measurement cannot be trusted; nothing where it can.

    Args:
        seen: for each quantity its least, median and greatest value; or one value; or why there is none.
        disturbed: reasons, as a reader of the board sees them.
    """

    seen: Mapping[str, Any] = field(default_factory=dict)
    disturbed: tuple[str, ...] = ()


class Watch(Protocol):
    """Something that is looked at now and then while a measurement runs."""

    def look(self) -> None:
        """Take note of the present state."""

    def report(self) -> Observation:
        """Return what was seen since the start."""


class ProcessorWatch:
    """Load average, what other processes took of the cores that this one may use, and whether a CPU quota held it back.

    They disturb by what they took beyond the cores that the measured threads left free: on eight cores a measurement
    with four threads bears four busy neighbours, one with eight threads bears none.

    Args:
        threads: how many threads are measured.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._cores = threads, cores()
        self._loads: list[float] = []
        self._periods = periods()
        self._busy, self._own, self._clock = busy_seconds(), time.process_time(), time.perf_counter()

    def look(self) -> None:
        """Take note of the load average of the last minute."""
        import psutil

        self._loads.append(psutil.getloadavg()[0])

    def report(self) -> Observation:
        """Return the load average and the others' share."""
        wall, own = time.perf_counter() - self._clock, time.process_time() - self._own
        others = max(0.0, busy_seconds() - self._busy - own - TICK_SECONDS * self._cores)
        spare = max(0, self._cores - self._threads)
        company = max(0.0, others / wall - spare) / self._threads
        seen: dict[str, Any] = {
            "load_average": spread(self._loads),
            "threads": self._threads,
            "cores": self._cores,
            "others_busy_cores": round(others / wall, 3),
            "others_share_of_threads": round(company, 3),
        }
        disturbed = []
        if company > COMPANY_LIMIT:
            taken = f"other processes took {100 * company:.0f} % of the time of the {self._threads} measured threads"
            disturbed.append(f"{taken} (limit {100 * COMPANY_LIMIT:.0f} %)")
        allowed, held_back = quota(), self._held_back()
        if allowed is not None:
            seen |= {"cpu_quota": allowed, "cpu_quota_throttled": round(held_back, 3)}
        if held_back > COMPANY_LIMIT:
            kept = f"the CPU quota of {allowed:g} cores was used up in {100 * held_back:.0f} % of its periods"
            disturbed.append(f"{kept} (limit {100 * COMPANY_LIMIT:.0f} %)")
        return Observation(seen, tuple(disturbed))

    def _held_back(self) -> float:
        """The share of the quota's periods at whose end the processes of the control group had to wait."""
        passed, throttled = (now - before for now, before in zip(periods(), self._periods, strict=True))
        return throttled / passed if passed else 0.0


class GpuWatch:
    """Clock, temperature, power, throttling and company of a GPU.

    A software power cap at the limit that the board is sold with is its working point under full load: it is recorded,
    and disturbs only where somebody has lowered the limit.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._looks = gpu, 0
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._throttling: Counter[str] = Counter()
        self._others = 0

    def look(self) -> None:
        """Read every quantity once."""
        self._looks += 1
        for name in ("sm_clock", "temperature", "power"):
            value = getattr(self._gpu, name)()
            if value is not None:
                self._seen[name].append(value)
        self._throttling.update(self._gpu.throttling())
        self._others = max(self._others, int(self._gpu.others() or 0))

    def report(self) -> Observation:
        """Return the spread of each quantity, the share of the looks that saw each kind of throttling, and company."""
        limit, default = self._gpu.power_limit(), self._gpu.default_power_limit()
        lowered = limit is not None and default is not None and limit < default
        throttling = {name: round(count / self._looks, 3) for name, count in sorted(self._throttling.items())}
        seen: dict[str, Any] = {name: spread(values) for name, values in self._seen.items()}
        seen |= {"power_limit": limit, "throttling": throttling, "other_gpu_processes": self._others}
        disturbed = [f"the GPU throttled: {name}" for name in throttling if name != POWER_CAP or lowered]
        if self._others:
            disturbed.append(f"{self._others} other processes were on the GPU")
        return Observation(seen, tuple(disturbed))


class Watches:
    """Several watches as one, which looks at most once in 0.1 s."""

    def __init__(self, watches: list[Watch], notes: Mapping[str, str]) -> None:
        self._watches, self._notes, self._next = watches, notes, 0.0

    def look(self) -> None:
        """Look unless the last look is recent."""
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + LOOK_SECONDS
            for watch in self._watches:
                watch.look()

    def report(self) -> Observation:
        """Return everything that was seen since the start."""
        reports = [watch.report() for watch in self._watches]
        seen = {name: value for report in reports for name, value in report.seen.items()}
        return Observation({**seen, **self._notes}, tuple(reason for report in reports for reason in report.disturbed))


@contextmanager
def observing(device: str) -> Iterator[Watches]:
    """Watch a device from here on: the processor, and with `cuda` the GPU too.

    Launches come from one thread, so that a GPU's measurement needs one core. A GPU that NVML cannot read is noted as
    not observed.
    """
    import torch

    with ExitStack() as stack:
        on_gpu, notes = device.startswith("cuda"), {}
        watches: list[Watch] = [ProcessorWatch(1 if on_gpu else torch.get_num_threads())]
        if on_gpu:
            try:
                watches.append(GpuWatch(stack.enter_context(open_gpu(device))))
            except NotReadable as error:
                notes["gpu"] = f"not observed: {error}"
        found = Watches(watches, notes)
        found.look()
        yield found


def spread(values: list[float]) -> dict[str, float]:
    """Return the least, the median and the greatest value."""
    ordered = sorted(values)
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]} if ordered else {}


def busy_seconds() -> float:
    """Return how long the cores which this process may use were not free, with what a virtual machine's host took."""
    import psutil

    # Linux counts the guests' time among the users' already.
    idle = {"idle", "iowait", "guest", "guest_nice"}
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return sum(
        float(value)
        for core, times in enumerate(psutil.cpu_times(percpu=True))
        if usable is None or core in usable
        for name, value in times._asdict().items()
        if name not in idle
    )
