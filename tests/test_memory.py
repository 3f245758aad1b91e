"""Memory: what is known by construction, and how a GPU's peak is divided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from harness.costs.memory import (
    CLEAR_REFS,
    MIB,
    Peak,
    _process_bytes,
    memory,
    saved_bytes,
    split,
    storage_bytes,
    training_memory,
)
from harness.device import place, to_device
from harness.metric import Evaluation
from harness.record import Setup

ROOT = Path(__file__).resolve().parents[1]
SETUP = Setup(batch_size=4)
IMAGES = torch.zeros(4, 3, 8, 8)
needs_reset = pytest.mark.skipif(
    not CLEAR_REFS.exists(), reason="only Linux can reset the peak of a process's resident set"
)


def values(evaluation: Evaluation) -> dict[str, float | None]:
    return {measurement.metric.name: measurement.value for measurement in evaluation.measurements}


class Chain(nn.Module):
    """(B, 192) -> 16 -> ReLU -> 5, of which backward needs the first layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]


class Softmax(nn.Module):
    """Attention written out over 64 tokens of 3 channels; its value is the input."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2) * self.scale
        return (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def test_storages_count_once() -> None:
    tensor = torch.zeros(100)
    assert storage_bytes([tensor, tensor[:10], tensor.view(10, 10)]) == 400
    assert storage_bytes([tensor, torch.zeros(1)]) == 404


@pytest.mark.parametrize("batch", [1, 4])
def test_saved_activations_are_those_counted_by_hand(batch: int) -> None:
    # The layers save their inputs, the first one's being the image; ReLU saves its output, which is the second's input.
    assert saved_bytes(Chain(), IMAGES[:batch], SETUP) == 4 * batch * 16
    # The tokens (64, 3), saved by both products, and the attention map, saved by the softmax and the last product.
    assert saved_bytes(Softmax(), IMAGES[:batch], SETUP) == 4 * batch * (64 * 3 + 64 * 64)


def test_in_reduced_precision_the_casts_are_saved() -> None:
    # The cast image, the activations, and the second weight's cast; the first is only saved for an input's gradient.
    expected = 2 * (192 + 16) + 2 * 16 * 5
    assert saved_bytes(Chain(), IMAGES[:1], Setup(precision="bf16")) == expected


@needs_reset
def test_training_leaves_the_model_as_it_was() -> None:
    model = Chain().eval()
    found = values(training_memory(model, IMAGES, SETUP))
    assert found["saved_activations_b1"] == 4 * 16 / MIB
    parameters = 192 * 16 + 16 + 16 * 5 + 5
    assert found["gradients_memory"] == found["weights_memory"] == 4 * parameters / MIB
    assert {"training_resident_b1", "training_resident_b4"} <= found.keys()
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_running_statistics_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training_memory(model, IMAGES + 1, SETUP)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_batch_that_cannot_be_trained_on_is_an_empty_cell() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    found = {m.metric.name: m for m in training_memory(model, IMAGES, SETUP).measurements}
    assert found["training_resident_b1"].value is None
    assert "Expected more than 1 value per channel" in found["training_resident_b1"].reason
    assert found["saved_activations_b1"].value is None
    assert not CLEAR_REFS.exists() or found["training_resident_b4"].value is not None


HOARDER = """
import json, torch
from torch import nn
from harness.costs.memory import memory, training_memory
from harness.record import Setup

class Hoarder(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return (torch.ones(len(images), 8 * 2**20) * self.scale).sum(dim=1)

torch.set_num_threads(1)
images = torch.zeros(2, 3, 8, 8)
found = memory(Hoarder(), images, Setup()).measurements
found += training_memory(Hoarder(), images[:1], Setup()).measurements
values = {m.metric.name: (m.value, len(m.samples)) for m in found}
print(json.dumps(values))
"""


@needs_reset
def test_peaks_are_those_of_a_known_allocation() -> None:
    """A model that holds 32 MiB an image twice, in a process of its own, as costs are measured."""
    done = subprocess.run([sys.executable, "-c", HOARDER], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name: value for name, (value, _) in json.loads(done.stdout).items()}
    assert found["resident_b1"] == pytest.approx(64, abs=6)
    assert found["resident_b2"] == pytest.approx(128, abs=10)
    assert json.loads(done.stdout)["resident_b2"][1] == 3
    assert found["weights_memory"] == 4 / MIB
    assert found["input_memory_b2"] == 2 * 3 * 64 * 4 / MIB
    # Forward keeps the ones and their product lives until the sum; backward makes the gradient of the product.
    assert found["saved_activations_b1"] == 32
    assert found["training_resident_b1"] == pytest.approx(64, abs=6)


def test_without_a_peak_to_reset_the_cell_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("harness.costs.memory.CLEAR_REFS", tmp_path)  # a folder, which cannot be written to
    first = memory(Chain(), IMAGES, SETUP).measurements[0]
    assert (first.metric.name, first.value) == ("resident_b1", None)
    assert "cannot reset the peak" in first.reason


def test_a_gpus_peak_is_divided() -> None:
    mib = 2**20
    peak = Peak(before=130 * mib, allocated=190 * mib, reserved=256 * mib, process=800 * mib)
    parts = split(peak, weights=100 * mib, held=20 * mib, used=5 * mib)
    assert parts == {
        "memory": 175, "activations": 60, "workspace": 10, "reserved": 256, "process": 800, "context": 544
    }  # fmt: skip
    assert parts["memory"] == 100 + 5 + parts["activations"] + parts["workspace"]  # type: ignore[operator]
    silent = split(Peak(0, 0, 0, None), 0, 0, 0)
    assert (silent["process"], silent["context"]) == (None, None)


def test_on_a_gpu_the_record_holds_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = Peak(before=20_000, allocated=50_000, reserved=2**21, process=None)
    monkeypatch.setattr("harness.costs.memory._cuda_peak", lambda step, device: peak)
    measurements = {m.metric.name: m for m in memory(Chain(), IMAGES, Setup(device="cuda")).measurements}
    parts = ("memory", "activations", "workspace", "reserved", "process", "context", "input_memory")
    assert measurements.keys() == {f"{part}_b{batch}" for part in parts for batch in (1, 4)} | {"weights_memory"}
    assert [name for name, m in measurements.items() if not m.metric.minor] == ["memory_b1", "memory_b4"]
    assert measurements["memory_b1"].value == (50_000 - 3 * 192 * 4) / MIB, "three images are not of this batch"
    assert "the driver does not tell" in measurements["process_b4"].reason


@pytest.mark.parametrize(("pid", "expected"), [(os.getpid(), 700), (os.getpid() + 1, None)])
def test_the_driver_is_asked_for_this_process(pid: int, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver(ModuleType):
        NVMLError = OSError
        nvmlInit = staticmethod(lambda: None)  # noqa: N815
        nvmlDeviceGetHandleByUUID = staticmethod(lambda uuid: uuid)  # noqa: N815
        nvmlDeviceGetComputeRunningProcesses = staticmethod(  # noqa: N815
            lambda handle: [SimpleNamespace(pid=pid, usedGpuMemory=700)] if handle == "GPU-12" else []
        )

    monkeypatch.setitem(sys.modules, "pynvml", Driver("pynvml"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12"))
    assert _process_bytes("cuda") == expected


class Hoarder(nn.Module):
    """Holds 32 MiB an image while it runs, and, with gradients, another 32 for backward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return (torch.ones(len(images), 8 * 2**20, device=images.device) * self.scale).sum(dim=1)


@pytest.mark.gpu
def test_on_a_gpu_the_parts_are_those_of_known_tensors() -> None:
    setup = Setup(batch_size=4, device="cuda")
    model = place(Hoarder(), setup)
    found = values(memory(model, to_device(IMAGES, setup), setup))
    assert found["activations_b1"] == pytest.approx(64, abs=1)
    assert found["memory_b4"] == pytest.approx(256, abs=20)
    assert found["reserved_b4"] >= found["memory_b4"]  # type: ignore[operator]
