"""How much memory a forward pass needs at its peak, at batch 1 and at the setup's batch."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.device import evaluating, synchronize
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import COSTS

if TYPE_CHECKING:
    from torch import Tensor, nn

MIB = 2**20
STATUS = Path("/proc/self/status")
# Writing 5 resets the peak of the resident set (proc(5), /proc/[pid]/clear_refs).
CLEAR_REFS = Path("/proc/self/clear_refs")


@COSTS.register("memory")
def memory(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Return the peak in MiB: of CUDA's allocator, or on the CPU of the resident set above what it was before.

    The two are different quantities (the first holds weights and input too) and have different names: `memory` and
    `resident`.
    """
    found = []
    for batch in sorted({1, len(images)}):
        measure = _cuda_peak if setup.device.startswith("cuda") else resident_peak
        name = f"{'memory' if setup.device.startswith('cuda') else 'resident'}_b{batch}"
        metric = Metric(name, "MiB", higher_is_better=False, decimals=1)
        part = images[:batch]

        def forward(part: Tensor = part) -> None:
            with evaluating(setup):
                model(part)
            synchronize(setup.device)

        value, reason = measure(forward, setup)
        found.append(Measurement(metric, value, reason=reason))
    return Evaluation(tuple(found))


def _cuda_peak(forward: Callable[[], None], setup: Setup) -> tuple[float | None, str]:
    """The peak of allocated memory during a forward pass after a warm-up."""
    import torch

    forward()
    torch.cuda.reset_peak_memory_stats(setup.device)
    forward()
    return torch.cuda.max_memory_allocated(setup.device) / MIB, ""


def resident_peak(forward: Callable[[], object], setup: Setup) -> tuple[float | None, str]:
    """Return the MiB of the resident set's peak in a pass after a warm-up, above what it was before; or why not."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return None, "this system cannot reset the peak of a process's resident set"
    forward()
    _give_back()
    CLEAR_REFS.write_text("5")
    before = _status("VmRSS")
    forward()
    return max(0.0, _status("VmHWM") - before), ""


def _give_back() -> None:
    """Return freed memory to the system, since the C library's reuse of it would hide a peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> float:
    """A field of the process's status, in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024
