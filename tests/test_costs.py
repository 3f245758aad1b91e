"""Costs against what is known by construction."""

from __future__ import annotations

import time

import numpy
import pytest
import torch
from torch import Tensor, nn

from harness.costs import latency as costs
from harness.costs import throughput
from harness.costs.latency import evaluation, latency, training_latency
from harness.costs.parameters import parameters
from harness.device import noise
from harness.observe import Observation
from harness.record import Preprocessing, Setup
from harness.registry import COSTS
from harness.task import build_task
from harness.timing import Series
from tasks.cost import Cost

SETUP = Setup(preprocessing=Preprocessing(image_size=(32, 32)), batch_size=4)
IMAGES = torch.zeros(4, 3, 32, 32)
SHOWN = ["latency_b1", "latency_p95_b1", "latency_b4", "latency_p95_b4"]


class Sleeper(nn.Module):
    """Sleeps five milliseconds an image."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.005 * len(images))
        return images


def test_parameters_counts_shared_ones_once_and_buffers_never() -> None:
    layer = nn.Linear(10, 10)
    model = nn.Sequential(layer, layer, nn.BatchNorm1d(10))
    (found,) = parameters(model, IMAGES, SETUP).measurements
    assert found.value == (110 + 20) / 1e6


def test_latency_is_that_of_a_known_wait() -> None:
    evaluation = latency(Sleeper(), IMAGES, SETUP)
    values = {m.metric.name: m for m in evaluation.measurements}
    assert [m.metric.name for m in evaluation.measurements if not m.metric.minor] == SHOWN
    assert 5 <= values["latency_b1"].value < 15  # type: ignore[operator]
    assert 20 <= values["latency_b4"].value < 40  # type: ignore[operator]
    samples = values["latency_b4"].samples
    assert len(samples) >= 15
    assert values["latency_b4"].value == numpy.median(samples)
    assert values["latency_p90_b4"].value == numpy.quantile(samples, 0.9)
    assert values["latency_p95_b4"].value == numpy.quantile(samples, 0.95)
    assert values["latency_b4"].interval is not None
    low, high = values["latency_b4"].interval
    assert min(samples) <= low <= values["latency_b4"].value <= high <= max(samples)  # type: ignore[operator]


def test_latency_of_batch_one_alone_is_measured_once() -> None:
    names = [m.metric.name for m in latency(nn.Identity(), IMAGES[:1], SETUP).measurements]
    assert names == ["latency_b1", *(f"latency_{what}_b1" for what in ("p90", "p95", "p99"))]


def test_a_quantile_that_no_sample_lies_beyond_is_an_empty_cell() -> None:
    found = evaluation("latency", {1: series([10.0] * 99)}, SETUP).measurements
    assert found[-1].metric.name == "latency_p99_b1"
    assert found[-1].value is None
    assert found[-1].reason == "needs 100 samples; time was up after 99"
    assert evaluation("latency", {1: series([10.0] * 100)}, SETUP).measurements[-1].value == 10


@pytest.mark.parametrize("count", [119, 120])
def test_a_tail_of_few_samples_has_no_interval(count: int) -> None:
    found = evaluation("latency", {1: series([10.0 + n % 7 for n in range(count)])}, SETUP).measurements
    given = {one.metric.name: one.interval is not None for one in found}
    tail = count == 120
    assert given == {"latency_b1": True, "latency_p90_b1": True, "latency_p95_b1": tail, "latency_p99_b1": False}


def series(wall: list[float], device: tuple[float, ...] = (), disturbed: tuple[str, ...] = ()) -> Series:
    return Series(tuple(wall), device, 3, True, "cap", Observation({"threads": 1}, disturbed), 1)


@pytest.mark.parametrize(("busy", "bound"), [(9.0, []), (7.0, [8])])
def test_a_gpu_that_waits_for_launches_is_flagged(busy: float, bound: list[int]) -> None:
    found = evaluation("latency", {8: series([10.0] * 15, (busy,))}, SETUP)
    assert found.details["launch_bound"] == bound
    assert {m.metric.name: m.value for m in found.measurements}["latency_gpu_busy_b8"] == pytest.approx(10 * busy)
    assert found.details["b8"]["device_samples"] == (busy,)


def test_the_record_says_what_was_observed_and_what_disturbed() -> None:
    found = evaluation("latency", {1: series([10.0] * 15), 8: series([10.0] * 15, disturbed=("heat",))}, SETUP)
    assert found.details["b1"]["observed"] == {"threads": 1}
    assert found.details["disturbed"] == ["b8: heat"]


def test_a_disturbed_cost_disturbs_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 10)).eval()
    for reasons, expected in (((), None), (("heat",), ["latency: b1: heat", "latency: b4: heat"])):
        monkeypatch.setattr(costs, "measure", lambda call, device, found=reasons: series([10.0] * 15, (), found))
        assert build_task("cost:latency").evaluate(model, SETUP).details.get("disturbed") == expected


class Normalised(nn.Module):
    """Has statistics that training changes, and a nested output of which a part lies elsewhere and has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.modes: set[bool] = set()

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        self.modes.add(self.training)
        return {"maps": [self.norm(images), images.detach().to("meta")]}


def test_training_latency_runs_the_backward_pass_and_leaves_the_model_as_it_was() -> None:
    model = Normalised().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients: list[int] = []
    model.norm.weight.register_hook(lambda gradient: gradients.append(1))
    found = training_latency(model, torch.randn(4, 3, 8, 8), SETUP).measurements
    assert found[0].metric.name == "training_latency_b4"
    assert len(gradients) > len(found[0].samples)
    assert model.modes == {True}
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.norm.weight.grad is None


def test_noise_has_the_models_size_and_is_seeded() -> None:
    images = noise(SETUP)
    assert images.shape == (4, 3, 32, 32)
    assert torch.equal(images, noise(SETUP))


def test_every_registered_cost_is_a_variant_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "LARGEST_BATCH", 64)
    monkeypatch.setattr(throughput, "WINDOW_SECONDS", 0.02)
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
