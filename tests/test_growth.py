"""Growth and crossings over token counts, on curves whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_records import PARAMETERS, cost
from msgspec.structs import replace

from harness.growth import IS_CONTROL, QUANTITIES, Pair, Points, below, interval_of, summarise, token_counts
from harness.growth_report import figures, grouped, points_rows, summary, tables
from harness.metric import Measurement
from harness.record import Record, Setup
from harness.scaling import THRESHOLD, crossing, crossing_interval, forecast
from harness.store import Store

SIZES = (49, 196, 784, 3136, 4096)


def test_a_crossing_is_where_two_power_laws_meet() -> None:
    # N against N^2 / 1000: they meet at 1,000, and the ratio reaches the threshold a little later.
    ratios = [1000 / size for size in SIZES]
    assert crossing(SIZES, ratios) == pytest.approx(1000 / THRESHOLD)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [([0.5, 0.6, 0.7], 49), ([0.5, 0.6, 1.0], math.inf), ([0.9, 1.5, 0.99], math.inf), ([0.1, 0.985, 0.9], 196)],
)
def test_what_always_or_never_is_below(ratios: list[float], expected: float) -> None:
    assert crossing((49, 196, 784), ratios) == pytest.approx(expected, rel=0.35)
    assert math.isinf(crossing((49, 196, 784), ratios)) == math.isinf(expected)


def test_only_the_last_crossing_counts() -> None:
    found = crossing((10, 100, 1000, 10000), [0.5, 2.0, 2.0, 0.1])
    assert 1000 < found < 10000


def test_the_interval_of_a_crossing_holds_the_truth_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(0), 0
    truth = crossing(SIZES, [1000 / size for size in SIZES])
    for seed in range(100):
        ratios = [list(1000 / size * np.exp(0.2 * generator.standard_normal(25))) for size in SIZES]
        low, high = crossing_interval(SIZES, ratios, seed)
        held += low <= truth <= high
    assert held / 100 == pytest.approx(0.95, abs=0.05)


@pytest.mark.parametrize("rounds", [3, 4, 5, 6, 10, 30])
def test_the_interval_of_a_ratio_covers_it_however_few_the_rounds(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    covered = []
    for _ in range(1500):
        low, high = interval_of(np.exp(rng.normal(0.3, 0.05, rounds)).tolist())
        covered.append(low <= math.exp(0.3) <= high)
    assert 0.93 < np.mean(covered) < 0.975


def test_an_interval_that_may_never_cross_has_no_end() -> None:
    low, high = crossing_interval((49, 196), [[2.0] * 9, [0.7, 0.8, 0.9, 0.95, 0.97, 1.0, 1.1, 1.2, 1.3]])
    assert 49 < low < 196
    assert high == math.inf


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, None),
        ({49: 1.0}, None),
        ({4096: 1.0, 49: 1.0}, None),
        ({49: 1.0, 196: 4.0}, 64.0),
        ({49: 1.0, 196: 1.0}, 16.0),
        ({49: 1.0, 196: 16.0}, 4096.0),
        ({49: 1.0, 196: 999.0}, 999 * 256.0),
    ],
)
def test_a_forecast_grows_between_linearly_and_with_the_square(known: dict[int, float], expected: float | None) -> None:
    assert forecast(known, 3136) == (None if expected is None else pytest.approx(expected))


def points(rounds: int = 9) -> dict[int, dict[str, Pair]]:
    """Return curves: own grow as N, the control's as N^2 / 1000, but for the memory, which is alike."""
    generator = np.random.default_rng(0)

    def timed(value: float) -> tuple[float, ...]:
        return tuple(value * (1 + 0.01 * generator.standard_normal(rounds)))

    return {
        size: {
            "latency": Pair(timed(size), timed(size**2 / 1000)),
            "training_latency": Pair(reason="it burst") if size > 784 else Pair(timed(size), timed(size**2 / 1000)),
            "memory": Pair((size / 10,), (size / 10,)),
            "training_memory": Pair((0.0,), (0.0,)),
            "gmacs": Pair((size * 1.0,), (size**2 / 1000,)),
        }
        for size in SIZES
    }


def by_name(found: Points, **options: Any) -> dict[str, Measurement]:
    return {measurement.metric.name: measurement for measurement in summarise(found, **options)}


def test_curves_come_to_exponents_and_crossings() -> None:
    found = by_name(points())
    assert found["latency_growth"].value == pytest.approx(1, abs=0.02)
    assert found["latency_control_growth"].value == pytest.approx(2, abs=0.02)
    assert found["gmacs_growth"].interval == pytest.approx((1, 1))
    assert found["faster_from"].value == pytest.approx(1000 / THRESHOLD, rel=0.02)
    low, high = found["faster_from"].interval or (0, 0)
    assert low < 1000 / THRESHOLD < high < 1100
    assert found["fewer_macs_from"].value == pytest.approx(1000 / THRESHOLD)
    assert found["fewer_macs_from"].interval is None


def test_what_cannot_be_told_says_why() -> None:
    found = by_name(points(), device="cuda")
    assert found["training_latency_growth"].value is None, "two sizes from 196 tokens on are no slope"
    assert found["training_faster_from"].reason == "never up to 784 tokens"
    assert found["lighter_from"].reason == "never up to 4,096 tokens", "equal is not lighter"
    assert found["training_lighter_from"].reason == "there is nothing to compare"
    assert found["training_latency_n3136"].reason == "it burst"
    assert found["training_memory_ratio_n49"].value is None


def test_the_smallest_sizes_have_no_part_in_the_exponent() -> None:
    changed = points()
    changed[49]["latency"] = Pair((999.0,) * 9, (999.0,) * 9)
    assert by_name(changed)["latency_growth"] == by_name(points())["latency_growth"]


def test_a_model_against_itself_is_not_faster() -> None:
    generator = np.random.default_rng(1)
    same = points()
    for size in SIZES:
        own, control = (tuple(size * (1 + 0.1 * generator.standard_normal(9))) for _ in range(2))
        same[size]["latency"] = Pair(own, control)
    assert by_name(same)["faster_from"].value is None


def test_the_control_has_no_crossings() -> None:
    found = by_name(points(), device="cuda", is_control=True)
    assert {found[quantity.below].reason for quantity in QUANTITIES} == {IS_CONTROL}
    assert found["latency_growth"].value, "it has a growth like any other"


@pytest.mark.parametrize("name", ["memory", "training_memory"])
def test_one_run_does_not_tell_what_a_coarse_measure_is_worth(name: str) -> None:
    lighter = points()
    for size in SIZES:
        lighter[size][name] = Pair((0.9 * size,), (1.0 * size,))
    metric = next(quantity.below for quantity in QUANTITIES if quantity.name == name)
    assert by_name(lighter)[metric].reason.startswith("one run does not tell by how much two differ")
    assert by_name(lighter, device="cuda:1")[metric].value == SIZES[0], "what tensors hold is exact"


def test_a_coarse_measure_counts_beyond_its_limits() -> None:
    memory = next(quantity for quantity in QUANTITIES if quantity.name == "memory")
    # 500 / N of the control's: a factor of 2 apart from 1,000 tokens on, 2 % from 510 tokens on.
    pairs = {size: Pair((500.0,), (float(size),)) for size in SIZES}
    assert below(pairs, memory).value == pytest.approx(500 / THRESHOLD)
    assert below(pairs, memory, limits=dict.fromkeys(SIZES, 2.0)).value == pytest.approx(1000)
    assert below(pairs, memory, limits=dict.fromkeys(SIZES, 1.001)).value == pytest.approx(500 / THRESHOLD)
    assert below(pairs, memory, limits=dict.fromkeys(SIZES, 9.0)).reason == "never up to 4,096 tokens"
    assert below(pairs, memory, limits={4096: 2.0}).value == 4096, "sizes without a limit do not count"
    assert below(pairs, memory, limits={}).value is None


def test_sizes_are_read_from_names() -> None:
    assert token_counts(list(by_name(points()))) == list(SIZES)


def records() -> list[Record]:
    """Return records of two mixers in one carrier; one was disturbed."""
    found = (*summarise(points()), Measurement(PARAMETERS, 0.1))
    setup = Setup(batch_size=1)
    return [
        cost(f"vit_t16+{mixer}", 1.0, task="attention,scope=alone", measurements=found, setup=setup, details=details)
        for mixer, details in (("agent", {"disturbed": ["a neighbour"]}), ("window", {}))
    ]


def test_records_of_one_carrier_make_one_table() -> None:
    (group,) = grouped([*records(), replace(records()[0], task="cost")])
    page = summary([group])
    assert "## vit_t16: the first two mixers alone" in page
    assert "| agent" in page
    assert "Disturbed by other work on the machine: 1 of 2." in page
    row = next(line for line in page.splitlines() if line.startswith("| window"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[3].endswith("at 784"), "the most tokens that were measured in training"
    assert cells[11] == "never", "all runs found the same, which is not lighter"
    rows = points_rows(group)
    assert len(rows) == 2 * len(QUANTITIES) * len(SIZES)


def run_of(mixer: str, control: float) -> Record:
    """Return a record of a mixer that takes 0.8 of the control's memory, which is not alike in all runs."""
    found = points()
    for size in SIZES:
        found[size]["memory"] = found[size]["training_memory"] = Pair((0.8 * control * size,), (control * size,))
    is_control = mixer == "softmax"
    measurements = (*summarise(found, is_control=is_control), Measurement(PARAMETERS, 0.1))
    details = {"control": "vit_t16+softmax"}
    return cost(
        f"vit_t16+{mixer}", 1.0, task="attention", measurements=measurements, setup=Setup(batch_size=1), details=details
    )


@pytest.mark.parametrize(
    ("controls", "lighter"),
    [((1.0, 1.02, 0.98, 1.01), "always"), ((1.0, 1.3, 0.8, 0.9), "never"), ((1.0,), "–"), ((1.0, 1.0), "always")],
)
def test_how_far_the_controls_of_all_runs_differ_decides_what_is_lighter(
    controls: tuple[float, ...], lighter: str
) -> None:
    mixers = ("agent", "softmax", "window", "linear")
    (group,) = grouped([run_of(mixer, control) for mixer, control in zip(mixers, controls, strict=False)])
    rows = {row.split("|")[1].strip(): row for row in summary([group]).splitlines() if row.startswith("| ")}
    cells = {mixer: [cell.strip() for cell in row.split("|")[1:-1]] for mixer, row in rows.items()}
    assert cells["agent"][11:13] == [lighter, lighter]
    if len(controls) > 1:
        assert cells["softmax"][9:] == [IS_CONTROL] * 5


def test_figures_repeat_and_hold_a_panel_for_each_mixer() -> None:
    (group,) = grouped(records())
    drawn = figures(group)
    assert drawn == figures(group)
    assert sorted(drawn) == [
        f"vit_t16_alone_b1_fp32_cpu_{name}_{theme}.svg"
        for name in ("latency", "memory", "training_latency")
        for theme in ("dark", "light")
    ]
    text = drawn["vit_t16_alone_b1_fp32_cpu_latency_light.svg"].decode()
    assert "window, 1.00" in text
    assert "agent, 1.00" in text
    assert "latency (ms)" in text


def test_the_committed_tables_are_those_of_the_committed_records() -> None:
    results = Path(__file__).resolve().parents[1] / "results"
    groups, folder = grouped(Store(results).load()), results / "token_counts"
    assert folder.exists() == bool(groups)
    for name, content in tables(groups).items() if groups else ():
        assert content == (folder / name).read_bytes(), name
