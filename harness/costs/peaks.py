"""What a machine can do at most: the measured peak of matrix products and of copies, kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from harness.cache import cache_folder
from harness.device import synchronize
from harness.environment import machine
from harness.progress import say
from harness.record import Setup

# Raised whenever the same machine would give other peaks.
VERSION = 1
SECONDS = 0.7
REPEATS = 3
SIZES = {"cuda": (2048, 4096, 8192), "cpu": (512, 1024, 2048)}
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Peaks:
    """The best that was seen of a machine.

    Args:
        flops: of a product of square matrices in the setup's precision, in FLOP/s, 2 a multiply-add.
        bandwidth: of a copy, bytes read and bytes written both counted, in B/s.
    """

    flops: float
    bandwidth: float


def machine_peaks(setup: Setup) -> Peaks:
    """Return the peaks of this machine in a setup's precision: from the cache, else measured within seconds.

    They are found again by the device's name, the precision, the threads and the version of torch.
    """
    name = (VERSION, *machine(setup.device, torch.get_num_threads()), setup.precision)
    key = hashlib.sha256(msgspec.json.encode(name)).hexdigest()[:16]
    path = cache_folder() / f"peaks-{key}.json"
    peaks = _kept(path)
    if peaks is None:
        peaks = measure_peaks(setup)
        _keep(path, peaks)
    return peaks


def measure_peaks(setup: Setup) -> Peaks:
    """Measure both peaks; the matrices are seeded, since the power that a GPU draws depends on their values."""
    kind = setup.device.partition(":")[0]
    flops = max(_matrix_flops(size, setup) for size in SIZES[kind])
    source = torch.ones(COPY_BYTES[kind], dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    return Peaks(flops, 2 * COPY_BYTES[kind] / _fastest(lambda: target.copy_(source), setup.device))


def _matrix_flops(size: int, setup: Setup) -> float:
    generator = torch.Generator().manual_seed(setup.seed)
    dtype = DTYPES.get(setup.precision, torch.float32)
    left, right = (torch.randn(size, size, generator=generator).to(setup.device, dtype) for _ in range(2))
    output = torch.empty_like(left)
    return 2 * size**3 / _fastest(lambda: torch.mm(left, right, out=output), setup.device)


def _fastest(work: Callable[[], Any], device: str) -> float:
    """The seconds of the fastest of several repetitions; more of them while these are short."""
    work()
    synchronize(device)
    best, repeats, begin = float("inf"), 0, time.perf_counter()
    while repeats < REPEATS or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        work()
        synchronize(device)
        best, repeats = min(best, time.perf_counter() - start), repeats + 1
    return best


def _kept(path: Path) -> Peaks | None:
    """What the cache holds; None where that is nothing or damaged, so that it is measured anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Peaks)
    except (OSError, msgspec.MsgspecError):
        return None


def _keep(path: Path, peaks: Peaks) -> None:
    """Write a file of the cache whole or not at all; where it cannot be written, the next run measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(msgspec.json.encode(peaks))
        os.replace(file.name, path)
    except OSError as error:
        say(
            f"The machine's peaks cannot be kept in {str(path.parent)!r} ({error.strerror}), so they are measured anew."
        )
