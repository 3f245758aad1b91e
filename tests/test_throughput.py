"""Throughput and the largest batch, with models that take a known time and run out of a known memory."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from harness.costs import throughput as module
from harness.costs.throughput import NotRun, OutOfTime, Trial, search, throughput
from harness.record import Setup

SETUP = Setup(batch_size=4)
IMAGES = torch.zeros(4, 3, 2, 2)


class Sleeper(nn.Module):
    """Takes a time per image."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds * len(images))
        return images


class Glutton(nn.Module):
    """Runs out of memory above a batch, as CUDA's allocator would."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return images


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_SECONDS", 0.02)
    monkeypatch.setattr(module, "LARGEST_BATCH", 256)


def cells(model: nn.Module) -> dict[str, Any]:
    return {found.metric.name: found for found in throughput(model, IMAGES, SETUP).measurements}


def test_throughput_is_that_of_a_known_wait() -> None:
    found = cells(Sleeper(0.0005))
    assert list(found) == [
        "throughput_b4", "throughput_b1", "throughput_b8", "throughput_b32", "throughput_b128", "throughput_b256",
        "largest_batch",
    ]  # fmt: skip
    assert 500 < found["throughput_b256"].value <= 2000
    assert len(found["throughput_b256"].samples) == module.WINDOWS
    assert found["throughput_b4"].metric.higher_is_better


def test_a_batch_over_the_time_budget_is_an_empty_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASS_SECONDS", 0.1)
    found = cells(Sleeper(0.002))
    assert found["throughput_b32"].value
    assert found["throughput_b128"].value is None
    assert "a pass would take about" in found["throughput_b128"].reason
    assert found["largest_batch"].value is None
    assert found["largest_batch"].reason.startswith("at least 32: a pass would take")


def test_one_pass_that_was_held_up_does_not_end_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9000.0, 20.0, 30.0])
    monkeypatch.setattr(module, "time_pass", lambda call, device: next(times))
    assert Trial(nn.Identity(), IMAGES, SETUP).run(4) == pytest.approx(0.02)


def test_a_batch_that_runs_out_of_memory_is_never_replaced_by_a_smaller_one() -> None:
    found = cells(Glutton(most=37))
    assert found["throughput_b32"].value
    assert found["throughput_b128"].value is None
    assert found["throughput_b128"].reason == "out of memory at batch 128"
    assert found["largest_batch"].value == 37


def test_a_setup_whose_own_batch_does_not_fit_has_no_headline() -> None:
    headline = throughput(Glutton(most=3), IMAGES, SETUP).measurements[0]
    assert headline.metric.name == "throughput_b4"
    assert headline.value is None


def test_a_model_that_never_fits_has_no_largest_batch() -> None:
    found = cells(Glutton(most=0))
    assert found["largest_batch"].value is None
    assert all(cell.value is None for cell in found.values())


def test_a_kernel_that_refuses_a_batch_says_so() -> None:
    class Picky(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 8:
                raise RuntimeError("input tensor must fit into 32-bit index math\nsecond line")
            return images

    assert cells(Picky())["throughput_b32"].reason == (
        "batch 32 failed: input tensor must fit into 32-bit index math"
    )  # fmt: skip


def test_on_the_cpu_a_batch_that_would_take_half_the_free_memory_is_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "resident_peak", lambda call, setup: (80.0, ""))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4000 * 2**20))
    model = Glutton(most=10**9)
    trial = Trial(model, IMAGES, SETUP)
    trial.run(8)  # 10 MiB an image
    with pytest.raises(NotRun, match=r"about 2,010 MiB \(limit 2,000 MiB"):
        trial.run(201)
    trial.run(199)
    assert max(model.seen) == 199


@pytest.mark.parametrize(
    ("most", "low"),
    [(most, low) for most in (0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 1000, 4097) for low in (0, 1, 32) if low <= most],
)
def test_search_finds_the_largest_batch_to_three_per_cent(most: int, low: int) -> None:
    tried: list[int] = []

    def run(batch: int) -> None:
        tried.append(batch)
        if batch > most:
            raise NotRun

    found, bound = search(run, low, 2**16)
    assert not bound
    assert found <= most <= found + max(0, found // 32)
    if most < 64:
        assert found == most
    assert max(tried) <= max(1, 2 * most)
    assert min(tried) > low
    assert len(tried) < 25


def test_search_ends_at_its_cap_and_at_the_time_budget() -> None:
    assert search(lambda batch: None, 0, 64) == (64, "the search ends there")

    def slow(batch: int) -> None:
        if batch > 10:
            raise OutOfTime("too long")

    assert search(slow, 0, 64) == (8, "too long")


@pytest.mark.gpu
def test_the_largest_batch_of_a_known_allocation_on_a_gpu() -> None:
    class Hoarder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.empty(len(images), 2**30, dtype=torch.uint8, device=images.device)

    setup = Setup(device="cuda", batch_size=1)
    free = torch.cuda.mem_get_info()[0] / 2**30
    found = {m.metric.name: m.value for m in throughput(Hoarder(), IMAGES[:1].cuda(), setup).measurements}
    assert found["largest_batch"] == pytest.approx(free, rel=0.06, abs=2)
