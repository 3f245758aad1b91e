"""Costs against what is known by construction."""

from __future__ import annotations

import time

import numpy
import pytest
import torch
from torch import Tensor, nn

from harness.costs.latency import latency
from harness.costs.memory import CLEAR_REFS, memory
from harness.costs.parameters import parameters
from harness.record import Preprocessing, Setup
from harness.registry import COSTS
from harness.task import build_task
from tasks.cost import Cost, noise

SETUP = Setup(preprocessing=Preprocessing(image_size=(32, 32)), batch_size=4)
IMAGES = torch.zeros(4, 3, 32, 32)


class Sleeper(nn.Module):
    """Sleeps five milliseconds an image."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.005 * len(images))
        return images


class Hoarder(nn.Module):
    """Holds 32 MiB an image while it runs."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 8 * 2**20).sum(dim=1)


def test_parameters_counts_shared_ones_once_and_buffers_never() -> None:
    layer = nn.Linear(10, 10)
    model = nn.Sequential(layer, layer, nn.BatchNorm1d(10))
    (found,) = parameters(model, IMAGES, SETUP).measurements
    assert found.value == (110 + 20) / 1e6


def test_latency_is_that_of_a_known_wait() -> None:
    values = {m.metric.name: m for m in latency(Sleeper(), IMAGES, SETUP).measurements}
    assert set(values) == {"latency_b1", "latency_p95_b1", "latency_b4", "latency_p95_b4"}
    assert 5 <= values["latency_b1"].value < 15  # type: ignore[operator]
    assert 20 <= values["latency_b4"].value < 40  # type: ignore[operator]
    samples = values["latency_b4"].samples
    assert len(samples) >= 15
    assert values["latency_b4"].value == numpy.median(samples)
    assert values["latency_p95_b4"].value == numpy.quantile(samples, 0.95)


def test_latency_of_batch_one_alone_is_measured_once() -> None:
    names = [m.metric.name for m in latency(nn.Identity(), IMAGES[:1], SETUP).measurements]
    assert names == ["latency_b1", "latency_p95_b1"]


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux can reset the peak of a process's resident set")
def test_memory_is_that_of_a_known_allocation() -> None:
    values = {m.metric.name: m.value for m in memory(Hoarder(), IMAGES, SETUP).measurements}
    assert values["resident_b1"] == pytest.approx(32, abs=4)
    assert values["resident_b4"] == pytest.approx(128, abs=8)


def test_noise_has_the_models_size_and_is_seeded() -> None:
    images = noise(SETUP)
    assert images.shape == (4, 3, 32, 32)
    assert torch.equal(images, noise(SETUP))


def test_every_registered_cost_is_a_variant_of_the_task() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 10)).eval()
    for name in COSTS:
        assert build_task(f"cost:{name}").evaluate(model, SETUP).measurements


def test_cost_measures_the_usual_costs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 10)).eval()
    evaluation = Cost().evaluate(model, SETUP)
    names = {m.metric.name for m in evaluation.measurements}
    assert {"latency_b1", "latency_b4", "parameters", "gmacs"} <= names
    gmacs = next(m.value for m in evaluation.measurements if m.metric.name == "gmacs")
    assert gmacs == pytest.approx((30 * 30 * 4 * 27 + 3600 * 10) / 1e9, rel=1e-6)
