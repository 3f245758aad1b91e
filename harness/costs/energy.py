"""How much energy an image costs, from the counters of the hardware itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from harness.device import evaluating, synchronize
from harness.graphs import graphed
from harness.metric import Evaluation, Measurement, Metric
from harness.nvml import NotReadable, open_gpu
from harness.observe import observing
from harness.record import Setup
from harness.registry import COSTS
from harness.timing import Call, time_pass, warm

if TYPE_CHECKING:
    from torch import Tensor, nn

POWERCAP = Path("/sys/class/powercap")
WINDOWS = 3
# NVML's counter moves every 20 to 100 ms: over two seconds that is at most 5 %.
WINDOW_SECONDS = 2.0


@COSTS.register("energy")
def energy(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Return the joules an image of forward passes back to back, at the setup's batch and at batch 1.

    On CUDA of the whole board (NVML), on the CPU of all its packages (RAPL), in both cases with what the hardware uses
    when idle: the median of three windows of two seconds each.
    """
    found, details = [], {}
    disturbed: list[str] = []
    for batch in sorted({1, len(images)}, reverse=True):
        metric = Metric(f"energy_b{batch}", "J/image", higher_is_better=False, decimals=4)
        try:
            with evaluating(setup), joules(setup.device) as read, observing(setup.device) as watch:
                samples = sample(graphed(partial(model, images[:batch]), setup), setup.device, read, watch.look)
                observation = watch.report()
        except NotReadable as error:
            found.append(Measurement(metric, None, reason=str(error)))
            continue
        per_image = tuple(value / batch for value in samples)
        found.append(Measurement(metric, float(numpy.median(per_image)), per_image))
        details[f"b{batch}"] = {"observed": observation.seen}
        disturbed += [f"b{batch}: {reason}" for reason in observation.disturbed]
    return Evaluation(tuple(found), {**details, "disturbed": disturbed})


def sample(call: Call, device: str, read: Callable[[], float], look: Call) -> list[float]:
    """Return the joules of a pass in each window.

    Args:
        read: returns a running total in joules.
        look: called between windows.
    """
    warm(call, device)
    passes = math.ceil(1000 * WINDOW_SECONDS / time_pass(call, device))
    found = []
    for _ in range(WINDOWS):
        before = read()
        for _ in range(passes):
            call()
        synchronize(device)
        found.append((read() - before) / passes)
        look()
    return found


@contextmanager
def joules(device: str) -> Iterator[Callable[[], float]]:
    """Open the energy counter of a device, as a function that returns a running total in joules.

    Raises:
        NotReadable: there is none, or this user may not read it.
    """
    if not device.startswith("cuda"):
        yield Rapl(POWERCAP).read
        return
    with open_gpu(device) as gpu:
        if gpu.energy() is None:
            raise NotReadable("the GPU has no energy counter (NVML: Volta and later have one)")
        yield lambda: gpu.energy() or math.nan


class Rapl:
    """The running energy of all packages of the processor (Linux, powercap; AMD's are under Intel's name too).

    Args:
        root: the folder with one folder a zone; `intel-rapl:0` is a package, `intel-rapl:0:0` a part of it.

    Raises:
        NotReadable: there is no package, or its counter may not be read.
    """

    def __init__(self, root: Path) -> None:
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        try:
            packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
            self._ranges = {zone: self._number(zone, "max_energy_range_uj") for zone in packages}
            self._last = {zone: self._number(zone, "energy_uj") for zone in packages}
        except OSError as error:
            raise NotReadable(f"the processor's energy counter cannot be read ({error.strerror}): root may") from None
        if not packages:
            raise NotReadable("the system shows no energy counter of the processor (RAPL)")
        self._total = 0

    def read(self) -> float:
        """Return the joules since this was made. The counters start again at their range, once in some minutes."""
        for zone, span in self._ranges.items():
            now = self._number(zone, "energy_uj")
            self._total += (now - self._last[zone]) % (span + 1)
            self._last[zone] = now
        return self._total / 1e6

    @staticmethod
    def _number(zone: Path, name: str) -> int:
        return int((zone / name).read_text())
