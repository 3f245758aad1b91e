"""CPU quotas of control groups, both versions, as the kernel shows them; and what they do to records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import cgroup, environment, observe
from harness.environment import gpu_state, machine
from harness.observe import ProcessorWatch


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes the files of control groups, by their path, and what this process is in."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "MEMBERSHIP", tmp_path / "membership")

    def write(membership: str, **files: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("cpu_", "cpu.", 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return write


def test_version_2(groups: Any) -> None:
    groups("0::/pod/job\n", pod__job__cpu_max="150000 100000\n", pod__job__cpu_stat="nr_periods 40\nnr_throttled 7\n")
    assert cgroup.quota() == 1.5
    assert cgroup.periods() == (40, 7)


def test_the_tightest_level_counts(groups: Any) -> None:
    groups(
        "0::/pod/job\n",
        pod__job__cpu_max="max 100000\n",
        pod__cpu_max="50000 100000\n",
        cpu_max="400000 100000\n",
        pod__cpu_stat="nr_periods 9\nnr_throttled 1\n",
        cpu_stat="nr_periods 3\nnr_throttled 3\n",
    )
    assert (cgroup.quota(), cgroup.periods()) == (0.5, (9, 1))


def test_version_1_in_a_container_that_shows_the_hosts_path(groups: Any, tmp_path: Path) -> None:
    groups("9:name=systemd:/x\n4:cpu,cpuacct:/docker/abc\n")
    folder = tmp_path / "cgroup" / "cpu,cpuacct"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.stat").write_text("nr_periods 5\nnr_throttled 2\nthrottled_time 9\n")
    assert (cgroup.quota(), cgroup.periods()) == (2.0, (5, 2))
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert (cgroup.quota(), cgroup.periods()) == (None, (0, 0))


def test_without_control_groups_there_is_no_quota(groups: Any, tmp_path: Path) -> None:
    assert (cgroup.quota(), cgroup.periods()) == (None, (0, 0))
    groups("0::/\n", cpu_max="max 100000\n")
    assert (cgroup.quota(), cgroup.periods()) == (None, (0, 0))


@pytest.mark.parametrize(("throttled", "disturbed"), [(10, False), (11, True)])
def test_a_quota_that_holds_the_measurement_back_disturbs_it(
    groups: Any, monkeypatch: pytest.MonkeyPatch, throttled: int, disturbed: bool
) -> None:
    monkeypatch.setattr(observe, "busy_seconds", lambda: 0.0)
    groups("0::/\n", cpu_max="100000 100000\n", cpu_stat="nr_periods 100\nnr_throttled 50\n")
    watch = ProcessorWatch(1)
    groups("0::/\n", cpu_stat=f"nr_periods 200\nnr_throttled {50 + throttled}\n")
    found = watch.report()
    assert (found.seen["cpu_quota"], found.seen["cpu_quota_throttled"]) == (1.0, throttled / 100)
    assert found.disturbed == (
        ("the CPU quota of 1 cores was used up in 11 % of its periods (limit 10 %)",) if disturbed else ()
    )


def test_the_record_and_its_key_hold_the_quota(groups: Any) -> None:
    before = machine("cpu", 1)
    assert environment.environment("cpu").cpu_quota is None
    groups("0::/\n", cpu_max="100000 100000\n")
    assert environment.environment("cpu").cpu_quota == 1.0
    assert machine("cpu", 1) != before


def test_the_record_and_its_key_hold_the_state_of_the_gpu(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = environment.environment("cuda")
    assert (found.device, found.power_limit) == ("a GPU", 700.0)
    assert (found.versions["cuda"], found.versions["driver"]) == ("13.0", "580.1")
    before = machine("cuda", 0)
    for change in ({"limit": 500_000}, {"driver_version": "570"}):
        nvml.state |= change
        assert machine("cuda", 0) != before
        before = machine("cuda", 0)
    nvml.state["driver"] = False
    assert gpu_state("cuda") == ({"cuda": "13.0", "cudnn": str(torch.backends.cudnn.version())}, None)
