"""The roofline: bytes and shares counted by hand, and peaks that are measured once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.cache import cache_folder
from harness.costs import peaks as peaks_module
from harness.costs.formulas import FORMULAS
from harness.costs.peaks import Peaks, machine_peaks, measure_peaks
from harness.costs.roofline import moved_bytes, roofline, seconds, shares
from harness.metric import Measurement
from harness.record import Setup

SETUP = Setup(batch_size=4)
IMAGES = torch.zeros(4, 3, 8, 8)
PEAKS = Peaks(flops=100e9, bandwidth=10e9)


class Chain(nn.Module):
    """(B, 192) -> 16 -> ReLU -> 5 -> ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 16), nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.first(images.flatten(1)).relu()
        return self.second(hidden.view(-1, 16)).relu_()  # type: ignore[no-any-return]


def values(measurements: tuple[Measurement, ...]) -> dict[str, float | None]:
    return {measurement.metric.name: measurement.value for measurement in measurements}


@pytest.mark.parametrize("batch", [1, 4])
def test_moved_bytes_are_those_counted_by_hand(batch: int) -> None:
    weights = 192 * 16 + 16 + 16 * 5 + 5
    # Two hidden tensors, each written and read; the output, written; views and work in place make nothing.
    expected = weights + batch * (192 + 2 * 2 * 16 + 5)
    assert moved_bytes(Chain(), IMAGES[:batch], SETUP) == 4 * expected


def test_a_compiled_model_moves_as_much_as_it_says() -> None:
    model = Chain()
    model.compile(backend="eager")
    assert moved_bytes(model, IMAGES[:1], SETUP) == moved_bytes(Chain(), IMAGES[:1], SETUP)


def test_fused_attention_moves_no_attention_map() -> None:
    class Attention(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tokens = images.reshape(1, 1, 1024, 16)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    moved = moved_bytes(Attention(), torch.zeros(1, 1, 128, 128), SETUP)
    assert moved < 4 * 1024 * 1024, "the map alone has 1024 x 1024 numbers"


def test_seconds_are_those_of_the_cost_latency() -> None:
    class Sleeper(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            time.sleep(0.005 * len(images))
            return images

    found = seconds(Sleeper(), IMAGES, SETUP)
    assert found.keys() == {1, 4}
    assert 0.005 <= found[1] < 0.015
    assert 0.02 <= found[4] < 0.04


def test_shares_are_those_counted_by_hand() -> None:
    # 20 GFLOP and 1 GB in a second: 20 FLOP/B, which the bandwidth would let run at 200, the matrices at 100 GFLOP/s.
    bound_by_compute = shares(20e9, 1e9, 1.0, PEAKS)
    assert bound_by_compute == {
        "roofline": 20, "compute_share": 20, "bandwidth_share": 10, "intensity": 20, "gflops_per_second": 20,
    }  # fmt: skip
    # 2 GFLOP and 1 GB: 2 FLOP/B, at most 20 GFLOP/s.
    assert shares(2e9, 1e9, 0.5, PEAKS)["roofline"] == pytest.approx(20)
    assert shares(0, 1e9, 0.5, PEAKS)["roofline"] == 0


def test_the_cost_reports_both_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.costs.roofline.machine_peaks", lambda setup: PEAKS)
    monkeypatch.setattr("harness.costs.roofline.seconds", lambda *_: {1: 1e-3, 4: 1e-3})
    evaluation = roofline(Chain(), IMAGES, SETUP)
    found = values(evaluation.measurements)
    flops = 2 * (192 * 16 + 16 * 5)
    assert found["gflops_per_second_b1"] == pytest.approx(flops / 1e6)
    assert found["gflops_per_second_b4"] == pytest.approx(4 * flops / 1e6)
    assert found["intensity_b4"] > found["intensity_b1"], "weights are read once a batch"  # type: ignore[operator]
    assert evaluation.measurements[0].metric.name == "roofline_b1"
    assert [m.metric.name for m in evaluation.measurements if not m.metric.minor] == ["roofline_b1", "roofline_b4"]
    assert (evaluation.details["peak_gflops"], evaluation.details["peak_gb_per_second"]) == (100, 10)


def test_without_a_count_there_are_no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.costs.roofline.machine_peaks", lambda setup: PEAKS)
    monkeypatch.delitem(FORMULAS, "aten::addmm")
    found = {m.metric.name: m for m in roofline(Chain(), IMAGES[:1], SETUP).measurements}
    assert found["roofline_b1"].value is None
    assert "aten::addmm" in found["roofline_b1"].reason
    assert found["bandwidth_share_b1"].value is not None


def test_a_product_of_matrices_is_near_the_machines_peak() -> None:
    """Measured for real, and loosely, since other work may share the processor."""
    found = values(
        roofline(nn.Sequential(nn.Flatten(), nn.Linear(1024, 1024)), torch.zeros(512, 1, 32, 32), SETUP).measurements
    )
    assert 10 < found["compute_share_b512"] < 200  # type: ignore[operator]
    assert found["compute_share_b1"] < found["compute_share_b512"]  # type: ignore[operator]


def test_peaks_are_measured_once_a_machine_and_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []

    def measure(setup: Setup) -> Peaks:
        calls.append(setup.precision)
        return Peaks(1.0 + len(calls), 2.0)

    monkeypatch.setattr(peaks_module, "cache_folder", lambda: tmp_path / "new")
    monkeypatch.setattr(peaks_module, "measure_peaks", measure)
    assert machine_peaks(SETUP) == machine_peaks(SETUP) == Peaks(2.0, 2.0)
    assert machine_peaks(Setup(precision="bf16")) == Peaks(3.0, 2.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert machine_peaks(SETUP) == Peaks(4.0, 2.0)
    assert calls == ["fp32", "bf16", "fp32"]
    for path in (tmp_path / "new").iterdir():
        path.write_text("{damaged")
    assert machine_peaks(SETUP) == Peaks(5.0, 2.0)
    assert {path.suffix for path in (tmp_path / "new").iterdir()} == {".json"}


def test_a_cache_that_cannot_be_written_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(peaks_module, "cache_folder", lambda: tmp_path / "file" / "below")
    monkeypatch.setattr(peaks_module, "measure_peaks", lambda setup: PEAKS)
    assert machine_peaks(SETUP) == PEAKS
    assert "cannot be kept" in capsys.readouterr().err


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == Path(os.environ["BENCH_CACHE"])
    monkeypatch.delenv("BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "backbone-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "backbone-bench"


@pytest.mark.gpu
def test_a_gpus_peaks_are_plausible() -> None:
    found = measure_peaks(Setup(device="cuda", precision="bf16"))
    assert 1e13 < found.flops < 1e16
    assert 1e11 < found.bandwidth < 1e13
