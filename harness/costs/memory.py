"""How much memory a forward pass and a training step need, with weights, activations and workspace apart."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from harness.costs.training import loss, training
from harness.device import evaluating, synchronize
from harness.errors import reason
from harness.graphs import NO_MEMORY
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import COSTS

if TYPE_CHECKING:
    from torch import Tensor, nn

MIB = 2**20
REPEATS = 3
STATUS = Path("/proc/self/status")
# Writing 5 resets the peak of the resident set (proc(5), /proc/[pid]/clear_refs).
CLEAR_REFS = Path("/proc/self/clear_refs")

Step = Callable[["Tensor"], None]


@COSTS.register("memory")
def memory(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Measure the peak of a forward pass at batch 1 and at the setup's batch, and what it is made of.

    On CUDA `memory` is the peak of what tensors hold: weights, input, activations and kept workspaces. On the CPU
    `resident` is the peak of the resident set above what it was before. They are different quantities.
    """
    if setup.cuda_graphs:
        return _not_in_graphs(images, "memory")

    def forward(part: Tensor) -> None:
        with evaluating(setup):
            model(part)
        synchronize(setup.device)

    found = [_peak(model, images, batch, setup, forward, "") for batch in sorted({1, len(images)})]
    return Evaluation((*chain.from_iterable(found), _minor("weights_memory", weights_bytes(model) / MIB)))


@COSTS.register("training_memory")
def training_memory(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Measure the peak of forward with backward in training mode, without an optimizer, and what backward is saved.

    The loss is the sum of the outputs. `saved_activations_b1` is exact on any device: the storages, each once, that
    autograd keeps between forward and backward, weights and input not among them. A batch that cannot be trained on,
    such as a single image where batch statistics are taken of one value, is an empty cell.
    """
    if setup.cuda_graphs:
        return _not_in_graphs(images, "training_memory")

    def step(part: Tensor) -> None:
        loss(model, part, setup).backward()
        model.zero_grad(set_to_none=True)
        synchronize(setup.device)

    with training(model):
        found = _tried("saved_activations_b1", lambda: [_saved(model, images[:1], setup)])
        for batch in sorted({1, len(images)}):
            found += _tried(
                f"training_{_headline(setup)}_b{batch}",
                lambda batch=batch: _peak(model, images, batch, setup, step, "training_"),  # type: ignore[misc]
            )
    gradients = storage_bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
    sizes = {"weights_memory": weights_bytes(model), "gradients_memory": gradients}
    return Evaluation((*found, *(_minor(name, size / MIB) for name, size in sizes.items())))


def weights_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return storage_bytes((*model.parameters(), *model.buffers()))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of some tensors, a shared one once."""
    from harness.costs.counter import storage_id

    return sum({storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def saved_bytes(model: nn.Module, images: Tensor, setup: Setup) -> int:
    """Return the bytes that autograd keeps from a forward pass for its backward, without weights and input."""
    from torch.autograd.graph import saved_tensors_hooks

    from harness.costs.counter import storage_id

    known = {storage_id(tensor) for tensor in (*model.parameters(), *model.buffers(), images)}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        # The graph keeps the tensor until backward, so that no other storage takes its place.
        if storage_id(tensor) not in known:
            saved[storage_id(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model, images, setup).backward()
    return sum(saved.values())


def _not_in_graphs(images: Tensor, name: str) -> Evaluation:
    batches = sorted({1, len(images)})
    return Evaluation(tuple(Measurement(_metric(f"{name}_b{batch}"), None, reason=NO_MEMORY) for batch in batches))


def _saved(model: nn.Module, image: Tensor, setup: Setup) -> Measurement:
    return Measurement(_metric("saved_activations_b1"), saved_bytes(model, image, setup) / MIB)


def _tried(headline: str, measure: Callable[[], list[Measurement]]) -> list[Measurement]:
    """What can be measured, or an empty cell that says why not: ValueError and RuntimeError are how torch refuses."""
    try:
        return measure()
    except (RuntimeError, ValueError) as error:
        return [Measurement(_metric(headline), None, reason=reason(error))]


def _peak(model: nn.Module, images: Tensor, batch: int, setup: Setup, step: Step, prefix: str) -> list[Measurement]:
    """Measure a step at one batch, and the size of its input."""
    part = images[:batch]
    name = f"{prefix}{{}}_b{batch}"
    if setup.device.startswith("cuda"):
        peak = _cuda_peak(partial(step, part), setup.device)
        found = _parts(split(peak, weights_bytes(model), _bytes(images), _bytes(part)), name)
    else:
        found = [_resident(partial(step, part), setup, _metric(name.format("resident")))]
    return [*found, _minor(f"input_memory_b{batch}", _bytes(part) / MIB)]


def _headline(setup: Setup) -> str:
    return "memory" if setup.device.startswith("cuda") else "resident"


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _metric(name: str, minor: bool = False) -> Metric:
    return Metric(name, "MiB", higher_is_better=False, decimals=1, minor=minor)


def _minor(name: str, value: float) -> Measurement:
    return Measurement(_metric(name, minor=True), value)


# --- CUDA ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak:
    """What CUDA's allocator and driver said of one pass, in bytes.

    Args:
        before: allocated before the pass, warmed up.
        allocated: the peak of what tensors held.
        reserved: the peak of what the allocator took from the driver.
        process: what the driver says that this process holds; None where it does not say.
    """

    before: int
    allocated: int
    reserved: int
    process: int | None


def split(peak: Peak, weights: int, held: int, used: int) -> dict[str, float | None]:
    """Divide a peak into its parts, in MiB.

    Weights and input are known exactly. What else was held before the pass are workspaces that libraries keep (cuBLAS
    through the allocator), and the allocator's rounding; what the pass added are activations, and workspaces that live
    no longer than a kernel. `context` is what the process holds beyond the allocator.

    Args:
        weights: bytes of parameters and buffers.
        held: bytes of all images that lie on the device.
        used: bytes of those that the pass took; the others do not count.
    """
    workspace = max(peak.before - weights - held, 0)
    parts = {
        "memory": peak.allocated - held + used,
        "activations": peak.allocated - peak.before,
        "workspace": workspace,
        "reserved": peak.reserved,
        "process": peak.process,
        "context": None if peak.process is None else max(peak.process - peak.reserved, 0),
    }
    return {name: None if size is None else size / MIB for name, size in parts.items()}


def _parts(sizes: Mapping[str, float | None], name: str) -> list[Measurement]:
    unsaid = "the driver does not tell what this process holds (no NVML, or a container with process ids of its own)"
    return [
        Measurement(_metric(name.format(part), minor=part != "memory"), size, reason=unsaid if size is None else "")
        for part, size in sizes.items()
    ]


def _cuda_peak(step: Callable[[], None], device: str) -> Peak:
    import torch

    step()
    step()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    # The allocator keeps what it reserved, so that the driver still counts it after the pass.
    return Peak(
        before,
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
        _process_bytes(device),
    )


def _process_bytes(device: str) -> int | None:
    """What the driver says that this process holds on a device."""
    import torch

    try:
        import pynvml
    except ImportError:
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
    try:
        pynvml.nvmlInit()
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return None
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


# --- CPU -------------------------------------------------------------------------------------------------------------


def _resident(step: Callable[[], object], setup: Setup, metric: Metric) -> Measurement:
    """The median of some peaks of the resident set, or why there is none."""
    samples: list[float] = []
    for _ in range(REPEATS):
        value, why = resident_peak(step, setup)
        if value is None:
            return Measurement(metric, None, reason=why)
        samples.append(value)
    return Measurement(metric, median(samples), tuple(samples))


def resident_peak(step: Callable[[], object], setup: Setup) -> tuple[float | None, str]:
    """Return the MiB of the resident set's peak in a pass after a warm-up, above what it was before; or why not."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return None, "this system cannot reset the peak of a process's resident set"
    step()
    _give_back()
    CLEAR_REFS.write_text("5")
    before = _status("VmRSS")
    step()
    return max(0.0, _status("VmHWM") - before), ""


def added_peak(step: Callable[[], object], setup: Setup) -> tuple[float | None, str]:
    """Return the MiB that a pass adds at its peak to what was held before it, warmed up; or why there is none.

    On CUDA what tensors hold counts, on the CPU the resident set.
    """
    if not setup.device.startswith("cuda"):
        return resident_peak(step, setup)

    def settled() -> None:
        step()
        synchronize(setup.device)

    peak = _cuda_peak(settled, setup.device)
    return (peak.allocated - peak.before) / MIB, ""


def free_bytes(device: str) -> int:
    """Return how much memory a device can give away now."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


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
