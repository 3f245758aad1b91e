"""What is seen around a measurement, with a GPU that is not there, and what must not rank."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import observe
from harness.nvml import NotReadable, open_gpu
from harness.observe import ProcessorWatch, Watches, observing, spread


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the state of a machine of four cores, which the test advances."""
    state = {"wall": 0.0, "own": 0.0, "busy": 0.0}

    class Clock:
        perf_counter = staticmethod(lambda: state["wall"])
        process_time = staticmethod(lambda: state["own"])

    monkeypatch.setattr(observe, "time", Clock)
    monkeypatch.setattr(observe, "busy_seconds", lambda: state["busy"])
    monkeypatch.setattr(observe, "cores", lambda: 4)
    return state


@pytest.mark.parametrize(
    ("threads", "others", "disturbed"),
    [
        (4, 0.3, False),  # 7.5 % of four threads
        (4, 0.5, True),
        (1, 2.9, False),  # three cores are free
        (1, 3.2, True),
        (3, 1.2, False),
        (3, 1.4, True),
    ],
)
def test_company_is_what_others_take_beyond_the_cores_that_are_free(
    machine: dict[str, float], threads: int, others: float, disturbed: bool
) -> None:
    watch = ProcessorWatch(threads)
    machine |= {"wall": 10.0, "own": 10.0 * threads, "busy": 10 * (threads + others) + 0.04}
    found = watch.report()
    assert bool(found.disturbed) == disturbed
    assert found.seen["others_busy_cores"] == pytest.approx(others)


def test_the_reason_names_the_share_and_the_limit(machine: dict[str, float]) -> None:
    watch = ProcessorWatch(4)
    machine |= {"wall": 10.0, "own": 20.0, "busy": 40.04}
    assert watch.report().disturbed == (
        "other processes took 50 % of the time of the 4 measured threads (limit 10 %)",
    )  # fmt: skip


def test_one_tick_of_a_short_measurement_is_no_company(machine: dict[str, float]) -> None:
    watch = ProcessorWatch(4)
    machine |= {"wall": 0.05, "own": 0.2, "busy": 0.24}
    assert not watch.report().disturbed


def test_busy_neighbours_are_noticed_on_this_machine() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(0.3)
        watch = ProcessorWatch(cores)
        end = time.perf_counter() + 1.5
        while time.perf_counter() < end:
            sum(range(1000))
        found = watch.report()
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert found.disturbed


def test_looks_are_seldom(machine: dict[str, float]) -> None:
    class Counting:
        looks = 0

        def look(self) -> None:
            self.looks += 1

    counting = Counting()
    watches = Watches([counting], {})  # type: ignore[list-item]
    for _ in range(1000):
        machine["wall"] += 0.001
        watches.look()
    assert 9 <= counting.looks <= 11


def test_the_processor_is_observed_everywhere() -> None:
    with observing("cpu") as watch:
        seen = watch.report().seen
    assert seen["threads"] == torch.get_num_threads()
    assert set(seen["load_average"]) == {"min", "median", "max"}


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert spread([]) == {}


def gpu_report(nvml: Any, **state: Any) -> observe.Observation:
    nvml.state |= state
    with open_gpu("cuda") as gpu:
        watch = observe.GpuWatch(gpu)
        watch.look()
        return watch.report()


def test_a_gpu_by_itself_is_not_disturbed(nvml: Any) -> None:
    temperatures = iter([40, 60, 50])
    nvml.state |= {"temperature": lambda: next(temperatures), "pids": (os.getpid(),)}
    with open_gpu("cuda") as gpu:
        watch = observe.GpuWatch(gpu)
        for _ in range(3):
            watch.look()
        found = watch.report()
    assert not found.disturbed
    assert found.seen["temperature"] == {"min": 40, "median": 50, "max": 60}
    assert found.seen["sm_clock"]["median"] == 1980
    assert found.seen["power"]["median"] == 350
    assert found.seen["power_limit"] == 700


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        (0x08, "hardware slowdown"),
        (0x20, "software thermal slowdown"),
        (0x40, "hardware thermal slowdown"),
        (0x80, "hardware power brake"),
    ],
)
def test_throttling_disturbs(nvml: Any, bits: int, reason: str) -> None:
    found = gpu_report(nvml, throttling=bits | 0x01)
    assert found.disturbed == (f"the GPU throttled: {reason}",)
    assert found.seen["throttling"] == {reason: 1.0}


@pytest.mark.parametrize("bits", [0x00, 0x01, 0x02, 0x10, 0x100])
def test_an_idle_or_set_clock_is_no_throttling(nvml: Any, bits: int) -> None:
    assert not gpu_report(nvml, throttling=bits).disturbed


def test_a_power_cap_disturbs_only_where_the_limit_was_lowered(nvml: Any) -> None:
    found = gpu_report(nvml, throttling=0x04)
    assert not found.disturbed
    assert found.seen["throttling"] == {"software power cap": 1.0}
    assert gpu_report(nvml, throttling=0x04, limit=500_000).disturbed == ("the GPU throttled: software power cap",)


@pytest.mark.parametrize(
    ("pids", "others"), [((), 0), ((os.getpid(),), 0), ((os.getpid(), 7), 1), ((4242,), 0), ((4242, 7, 8), 2)]
)
def test_other_processes_on_the_gpu_disturb(nvml: Any, pids: tuple[int, ...], others: int) -> None:
    found = gpu_report(nvml, pids=pids)
    assert found.seen["other_gpu_processes"] == others
    assert found.disturbed == ((f"{others} other processes were on the GPU",) if others else ())


def test_what_a_gpu_does_not_report_is_left_out(nvml: Any) -> None:
    found = gpu_report(nvml, clock=None, limit=None, pids=None, throttling=None)
    assert "sm_clock" not in found.seen
    assert found.seen["power_limit"] is None
    assert not found.disturbed


def test_the_gpu_is_found_by_its_uuid_and_given_back(nvml: Any) -> None:
    with observing("cuda") as watch:
        assert nvml.opened == 1
        assert watch.report().seen["sm_clock"]["max"] == 1980
    assert nvml.opened == 0
    assert nvml.asked == ["GPU-1234"]


def test_a_gpu_that_cannot_be_read_is_not_observed_and_says_why(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.state["driver"] = False
    with observing("cuda") as watch:
        assert watch.report().seen["gpu"] == "not observed: NVML: Driver Not Loaded"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with observing("cuda") as watch:
        assert "pip install" in watch.report().seen["gpu"]


def test_a_gpu_that_nvml_does_not_know_is_an_error_and_closes(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="another"))
    with pytest.raises(NotReadable, match="Not Found"), open_gpu("cuda"):
        pass
    assert nvml.opened == 0


@pytest.mark.gpu
def test_a_real_gpu_is_observed() -> None:
    with observing("cuda") as watch:
        seen = watch.report().seen
    assert seen["sm_clock"]["max"] > 100
    assert 0 < seen["temperature"]["max"] < 110
    assert seen["power"]["max"] > 1
