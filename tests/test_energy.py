"""Energy from counters that tests turn, and an empty cell with its reason where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from harness.api import summary
from harness.costs import energy as module
from harness.costs.energy import Rapl, energy, joules
from harness.metric import Measurement, Metric
from harness.nvml import NotReadable
from harness.record import Setup, from_json

GOLDEN = Path(__file__).parent / "golden" / "record_v1.json"
IMAGES = torch.zeros(4, 3, 2, 2)


def write(root: Path, zone: str, name: str, microjoules: int, span: int = 10**9) -> Path:
    folder = root / zone
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "POWERCAP", tmp_path)
    monkeypatch.setattr(module, "WINDOW_SECONDS", 0.01)
    return tmp_path


def test_packages_are_added_and_their_parts_are_not(powercap: Path) -> None:
    first = write(powercap, "intel-rapl:0", "package-0", 5_000_000)
    second = write(powercap, "intel-rapl:1", "package-1", 7_000_000)
    part = write(powercap, "intel-rapl:0:0", "package-0-dram", 0)
    platform = write(powercap, "intel-rapl:2", "psys", 0)
    rapl = Rapl(powercap)
    assert rapl.read() == 0
    for counter, value in ((first, 6_000_000), (second, 9_000_000), (part, 10**8), (platform, 10**8)):
        counter.write_text(str(value))
    assert rapl.read() == 3
    assert rapl.read() == 3


def test_a_counter_that_starts_again_goes_on(powercap: Path) -> None:
    counter = write(powercap, "intel-rapl:0", "package-0", 9_000_000, span=9_999_999)
    rapl = Rapl(powercap)
    counter.write_text("500000")
    assert rapl.read() == 1.5


@pytest.mark.parametrize("zone", [None, "intel-rapl:0"])
def test_without_a_counter_the_cell_is_empty_with_its_reason(powercap: Path, zone: str | None) -> None:
    if zone:
        write(powercap, zone, "package-0", 1)
        (powercap / zone / "energy_uj").unlink()
    found = energy(nn.Identity(), IMAGES, Setup(batch_size=4)).measurements
    assert [cell.metric.name for cell in found] == ["energy_b4", "energy_b1"]
    assert [cell.value for cell in found] == [None, None]
    assert ("cannot be read" if zone else "no energy counter") in found[0].reason


class Burner(nn.Module):
    """Uses two joules an image, of a counter in a file."""

    def __init__(self, counter: Path) -> None:
        super().__init__()
        self.counter = counter

    def forward(self, images: Tensor) -> Tensor:
        self.counter.write_text(str(int(self.counter.read_text()) + 2_000_000 * len(images)))
        return images


def test_joules_are_those_of_an_image(powercap: Path) -> None:
    counter = write(powercap, "intel-rapl:0", "package-0", 0, span=10**15)
    evaluation = energy(Burner(counter), IMAGES, Setup(batch_size=4))
    assert {cell.metric.name: cell.value for cell in evaluation.measurements} == {"energy_b4": 2, "energy_b1": 2}
    assert len(evaluation.measurements[0].samples) == module.WINDOWS
    assert "others_share_of_threads" in evaluation.details["b4"]["observed"]


def test_on_a_gpu_the_boards_counter_is_read(nvml: Any) -> None:
    with joules("cuda") as read:
        before = read()
        nvml.state["energy"] += 3500
        assert read() - before == 3.5
    assert nvml.opened == 0


def test_an_old_gpu_has_no_counter(nvml: Any) -> None:
    nvml.state["energy"] = None
    with pytest.raises(NotReadable, match="no energy counter"), joules("cuda"):
        pass
    assert nvml.opened == 0


def test_the_line_on_a_run_without_a_counter_says_why() -> None:
    cell = Measurement(Metric("energy_b8", "J/image", higher_is_better=False), None, reason="there is no counter")
    record = from_json(GOLDEN.read_bytes(), "golden")
    assert "no energy_b8: there is no counter" in summary(replace(record, measurements=(cell,)))


@pytest.mark.gpu
def test_a_real_gpu_uses_energy() -> None:
    images = torch.randn(8, 3, 64, 64, device="cuda")
    found = energy(nn.Conv2d(3, 64, 3).cuda(), images, Setup(device="cuda", batch_size=8)).measurements
    assert all(cell.value and cell.value > 0 for cell in found)
