"""How far from the machine's limits a forward pass runs: arithmetic intensity and the shares of the measured peaks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.costs.counter import count_macs, storage_id, stored_tensors
from harness.costs.latency import latency
from harness.costs.macs import describe_uncounted
from harness.costs.memory import storage_bytes, weights_bytes
from harness.costs.peaks import Peaks, machine_peaks
from harness.device import evaluating
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import COSTS

CONVENTION = (
    "FLOPs are 2 x MACs. Bytes are a lower bound for operators that run one by one: weights and input are read once, "
    "every new tensor is written once and, unless it is an output, read once; fused operators move what they make. "
    "Caches that hold a tensor between two operators, and compilers that fuse them, move less. Peaks are the best of "
    "a square matrix product in the setup's precision and of a copy, measured on this machine."
)


@COSTS.register("roofline")
def roofline(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Measure FLOP/byte, FLOP/s, and the shares of the machine's peaks, at batch 1 and at the setup's batch.

    `roofline` is the share of what the roofline model allows: the smaller of the matrix peak and of the intensity
    times the bandwidth peak (Williams, Waterman and Patterson, 2009, doi:10.1145/1498765.1498785).
    """
    count = count_macs(model, images[:1])
    missing = describe_uncounted(count)
    peaks = machine_peaks(setup)
    found: list[Measurement] = []
    for batch, duration in seconds(model, images, setup).items():
        part = images[:batch]
        # Work is counted once and scaled: it is the same for each image of a batch, unless it depends on the image.
        values = shares(2 * count.total * batch, moved_bytes(model, part, setup), duration, peaks)
        found += [_measure(f"{name}_b{batch}", value, missing) for name, value in values.items()]
    details = {
        "convention": CONVENTION,
        "peak_gflops": round(peaks.flops / 1e9, 1),
        "peak_gb_per_second": round(peaks.bandwidth / 1e9, 1),
    }
    return Evaluation(tuple(found), details)


def shares(flops: float, moved: float, duration: float, peaks: Peaks) -> dict[str, float]:
    """Return the figures of one batch: `roofline`, `compute_share` and `bandwidth_share` in %, the rest as named.

    Args:
        flops: of the batch.
        moved: bytes.
        duration: seconds.
    """
    intensity = flops / moved
    attainable = min(peaks.flops, intensity * peaks.bandwidth)
    return {
        "roofline": 100 * flops / duration / attainable if attainable else 0.0,
        "compute_share": 100 * flops / duration / peaks.flops,
        "bandwidth_share": 100 * moved / duration / peaks.bandwidth,
        "intensity": intensity,
        "gflops_per_second": flops / duration / 1e9,
    }


UNITS = {"intensity": "FLOP/B", "gflops_per_second": "GFLOP/s"}


def _measure(name: str, value: float, missing: str) -> Measurement:
    quantity = name.rpartition("_b")[0]
    metric = Metric(name, UNITS.get(quantity, "%"), higher_is_better=True, minor=quantity != "roofline")
    # Bytes and seconds are known without a formula for every operator; whatever holds FLOPs is not.
    reason = "" if quantity == "bandwidth_share" else missing
    return Measurement(metric, None if reason else value, reason=reason)


def seconds(model: nn.Module, images: Tensor, setup: Setup) -> dict[int, float]:
    """Return the median seconds of a forward pass by its batch, as the cost `latency` measures them."""
    found = {m.metric.name: m.value for m in latency(model, images, setup).measurements}
    medians = {batch: found[f"latency_b{batch}"] for batch in sorted({1, len(images)})}
    return {batch: value / 1e3 for batch, value in medians.items() if value}


def moved_bytes(model: nn.Module, images: Tensor, setup: Setup) -> int:
    """Return a lower bound of the bytes that a forward pass reads and writes, by what it runs on its own device."""
    traffic = _Traffic()
    with _eager(), evaluating(setup), traffic:
        outputs = stored_tensors(model(images))
    read = weights_bytes(model) + images.numel() * images.element_size()
    return read + 2 * traffic.made - min(storage_bytes(outputs), traffic.made)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the storages that operators make; a view, and what is written in place, makes none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {storage_id(tensor) for tensor in stored_tensors((args, kwargs))}
        made = {storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in stored_tensors(output)}
        self.made += sum(size for storage, size in made.items() if storage not in given)
        return output


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled models operator by operator."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and the import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
