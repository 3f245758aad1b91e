"""Sampling against a clock that tests turn by hand, and the comparison of a model with itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pytest
import torch
from scipy.signal import lfilter
from torch import Tensor, nn

from harness import timing
from harness.costs.latency import compare_latency
from harness.observe import Observation
from harness.record import Setup
from harness.statistics import compare_rounds
from harness.timing import Rule, interleave, measure, queued_passes, sample, turns, warm


class Clock:
    """A clock that stands still until something takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)

    def takes(self, *milliseconds: float) -> Any:
        """Return a call that takes each of the times in turn, and then the last one for ever."""
        times = iter(milliseconds)
        last = milliseconds[-1]

        def call() -> None:
            self.now += next(times, last) / 1000

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def nothing() -> None:
    """Look at nothing."""


def test_warm_up_ends_when_times_have_settled(clock: Clock) -> None:
    assert warm(clock.takes(900, 300, 200, 150, 101, 100, 100), "cpu") == (7, True)


def test_warm_up_lasts_three_passes_and_a_fifth_of_a_second(clock: Clock) -> None:
    assert warm(clock.takes(500), "cpu") == (3, True)
    assert warm(clock.takes(2), "cpu") == (101, True)


def test_warm_up_that_never_settles_ends_and_says_so(clock: Clock) -> None:
    passes, stable = warm(clock.takes(*([100, 200] * 100)), "cpu")
    assert not stable
    assert 1.1 < clock.now < 1.4
    assert passes in (8, 9)


def test_a_first_pass_that_compiles_is_no_part_of_the_warm_ups_time(clock: Clock) -> None:
    assert warm(clock.takes(30_000, 300, 100), "cpu") == (5, True)


def test_sampling_stops_when_the_median_is_known(clock: Clock) -> None:
    samples, stopped = sample(clock.takes(10), "cpu", Rule(), nothing)
    assert stopped == "error"
    assert 50 <= len(samples) <= 61
    assert set(samples) == {10.0}


def test_sampling_of_a_restless_call_stops_at_the_cap(clock: Clock) -> None:
    generator = numpy.random.default_rng(0)
    samples, stopped = sample(clock.takes(*generator.uniform(5, 15, 1000)), "cpu", Rule(), nothing)
    assert stopped == "cap"
    assert 2.0 <= sum(samples) / 1000 < 2.02


def test_a_slow_call_is_sampled_fifteen_times_and_a_quick_one_not_for_ever(clock: Clock) -> None:
    assert len(sample(clock.takes(1000), "cpu", Rule(), nothing)[0]) == 15
    assert len(sample(clock.takes(0.01), "cpu", Rule(), nothing)[0]) == 2000


def test_the_first_third_of_the_samples_decides_and_the_others_come_whatever_they_are(clock: Clock) -> None:
    restless = numpy.random.default_rng(0).uniform(5, 15, 400)
    samples, stopped = sample(clock.takes(*[10.0] * 17, *restless), "cpu", Rule(), nothing)
    assert (len(samples), stopped) == (51, "error")
    # And if they agree only later, that is not asked of them.
    samples, stopped = sample(clock.takes(*restless[:100], *[10.0] * 60), "cpu", Rule(), nothing)
    assert len(samples) > 160


def alike(count: int, memory: float, seed: int) -> list[float]:
    """Ms of passes with a median of 10, of which each remembers the one before."""
    fresh = numpy.random.default_rng(seed).normal(0, (1 - memory**2) ** 0.5, count)
    fresh[0] /= (1 - memory**2) ** 0.5
    return (10 * numpy.exp(0.03 * lfilter([1], [1, -memory], fresh))).tolist()  # type: ignore[no-any-return]


def test_the_more_alike_neighbours_are_the_longer_is_sampled(clock: Clock) -> None:
    taken = [
        numpy.mean(
            [len(sample(clock.takes(*alike(250, memory, seed)), "cpu", Rule(), nothing)[0]) for seed in range(20)]
        )
        for memory in (0.0, 0.8)
    ]
    assert taken[0] < 0.8 * taken[1]


def test_looking_is_not_a_part_of_any_sample(clock: Clock) -> None:
    samples, _ = sample(clock.takes(10), "cpu", Rule(), clock.takes(50))
    assert set(samples) == {10.0}


class FakeWatch:
    """Reports what the test prepared."""

    def __init__(self, reasons: list[tuple[str, ...]]) -> None:
        self.reasons = reasons

    def look(self) -> None:
        """See nothing."""

    def report(self) -> Observation:
        return Observation({}, self.reasons.pop(0))


@pytest.mark.parametrize(
    ("milliseconds", "reasons", "attempts", "disturbed"),
    [
        (10, [()], 1, ()),
        (10, [("company",), ()], 2, ()),
        (10, [("company",), ("heat",)], 2, ("heat",)),
        (1000, [("company",)], 1, ("company",)),
    ],
)
def test_disturbed_samples_are_taken_once_more_where_that_is_quick(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, milliseconds: float, reasons: Any, attempts: int, disturbed: Any
) -> None:
    watch = FakeWatch(list(reasons))

    @contextmanager
    def observing(device: str) -> Iterator[FakeWatch]:
        yield watch

    monkeypatch.setattr(timing, "observing", observing)
    series = measure(clock.takes(milliseconds), "cpu")
    assert (series.attempts, series.observation.disturbed) == (attempts, disturbed)
    assert series.median == milliseconds
    assert series.busy_share is None
    assert not watch.reasons


def test_queued_passes_hide_the_launches_behind_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def elapsed_time(self, other: Event) -> float:
            return 1.5

    @contextmanager
    def device(name: str) -> Iterator[None]:
        log.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", log.append)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(timing, "synchronize", lambda device: log.append("synchronize"))
    found = queued_passes(lambda: log.append("call"), "cuda:1", 3.0)
    assert found == [1.5] * timing.QUEUED_PASSES
    assert log[:6] == ["cuda:1", 6_000_000, "record", "call", "record", "synchronize"]
    queued_passes(lambda: None, "cuda", 10_000.0)
    assert log[-5] == "cuda"
    assert log[-4] == 1e6 * 2 * timing.QUEUE_MILLISECONDS


def test_busy_share_is_device_over_wall() -> None:
    series = timing.Series((2.0, 4.0, 6.0), (1.0, 1.0), 3, True, "cap", Observation(), 1)
    assert series.busy_share == 0.25


def test_interleaved_rounds_hold_every_call_in_changing_order(clock: Clock) -> None:
    log: list[str] = []
    a, b = ((lambda letter=letter: (log.append(letter), clock.takes(100)())) for letter in "ab")
    found = interleave([a, b], "cpu", rounds=20, passes=3)
    turns = ["".join(log[-160:][start : start + 8]) for start in range(0, 160, 8)]
    assert set(turns) == {"aaaabbbb", "bbbbaaaa"}
    assert [[len(one) for one in rounds] for rounds in found] == [[3] * 20] * 2


def test_drift_is_no_difference_between_interleaved_calls(clock: Clock) -> None:
    generator = numpy.random.default_rng(0)

    def drifting() -> None:
        clock.now += 0.01 * (1 + 0.02 * clock.now) * generator.normal(1, 0.01)

    assert not compare_rounds(*interleave([drifting, drifting], "cpu", rounds=40)).differs
    # One after the other, the same two calls differ: it is the interleaving that holds.
    first, second = (interleave([drifting], "cpu", rounds=40)[0] for _ in range(2))
    assert compare_rounds(first, second).differs


def test_turns_end_when_time_is_up_and_not_before_the_least_are_made(clock: Clock) -> None:
    long, short = clock.takes(1000), clock.takes(10)
    assert [len(one) for one in turns([long, long], "cpu", 30, least=3, seconds=0.5, discarded=0)] == [3, 3]
    assert len(turns([short], "cpu", 30, seconds=0.095)[0]) == 5, "a pass that does not count takes time too"
    assert len(turns([short], "cpu", 4, least=9)[0]) == 4


class Work(nn.Module):
    """Multiplies matrices so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.randn(128, 128))

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(self.times):
            images = self.weight @ images
        return images


def test_a_model_that_takes_half_as_long_again_is_found() -> None:
    difference = compare_latency(Work(20), Work(30), torch.randn(128, 128), Setup())
    assert difference.differs
    assert 1.3 < difference.ratio < 1.7


@pytest.mark.slow
def test_fifty_comparisons_of_a_model_with_itself_raise_no_difference() -> None:
    model, images = Work(20), torch.randn(128, 128)
    differences = [compare_latency(model, model, images, Setup(seed=seed)) for seed in range(50)]
    assert [one for one in differences if one.differs] == []


@pytest.mark.slow
def test_an_injected_slow_down_of_five_per_cent_is_found() -> None:
    images = torch.randn(128, 128)
    found = [compare_latency(Work(40), Work(42), images, Setup(seed=seed), rounds=80).differs for seed in range(10)]
    assert sum(found) >= 9
