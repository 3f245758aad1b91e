"""Attentions at an equal budget: differences paired by seed, Pareto fronts by hand, and pages that hold both."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from fake_records import GMACS, PARAMETERS, SETUP, TOP1, accuracy, cost
from msgspec.structs import replace
from test_gate import outcomes

from harness.compare import compare
from harness.gate import Policy, Verdict, judge
from harness.leaderboard import make_boards
from harness.metric import Measurement, Metric
from harness.plot import draw_tradeoff
from harness.ranking import with_ranks
from harness.record import Record, Weights
from harness.significance import all_seed_pairs, holm, seed_differences
from harness.statistics import mean_interval
from harness.store import Store
from harness.suite_cli import render
from harness.tables import rank_shown
from harness.tradeoff import Tradeoff, tradeoffs
from harness.tradeoff_page import to_csv, to_markdown, to_table

RANDOM = replace(SETUP, weights=Weights())
LATENCY, MEMORY = Metric("latency_b32", "ms", False), Metric("resident_b32", "MiB", False)
TASK = "clevr_count:scratch,budget=mini"


def trained(model: str, samples: Sequence[float], order: str = "aaaa", **fields: Any) -> Record:
    """A record of trainings with several seeds."""
    mean = Measurement(TOP1, float(np.mean(samples)), tuple(samples), interval=mean_interval(samples))
    trainings = [{"top1": value, "interval_over_images": [value - 3.0, value + 4.0]} for value in samples]
    details = {"seeds": list(range(len(samples))), "equal": {"recipe": "rrrr", "order": order}, "trainings": trainings}
    chosen = {"task": TASK, "measurements": (mean,), "details": details, "setup": RANDOM, "untrained": "rank"}
    return accuracy(model, **{**chosen, **fields})


def priced(model: str, gmacs: float, milliseconds: float = 10.0, **fields: Any) -> Record:
    found = {PARAMETERS: 1.0, GMACS: gmacs, LATENCY: milliseconds, MEMORY: 50.0}
    measurements = tuple(Measurement(metric, value) for metric, value in found.items())
    return cost(model, 1.0, **{"measurements": measurements, "setup": RANDOM, **fields})


def found_in(*records: Record) -> list[Tradeoff]:
    return tradeoffs(make_boards(records)[0], records)


# Statistics


def test_two_models_are_the_paired_t_test() -> None:
    first, second = [60.0, 64.5, 61.0, 66.0], [63.0, 65.0, 66.5, 68.0]
    expected = scipy.stats.ttest_rel(second, first)
    itself, other = seed_differences([first, second], 0)
    low, high = expected.confidence_interval()
    assert (other.change, other.p) == pytest.approx((np.mean(second) - np.mean(first), expected.pvalue))
    assert (other.low, other.high) == pytest.approx((low, high))
    assert (itself.change, itself.p) == (0.0, 1.0)
    assert all_seed_pairs([first, second])[0, 1] == pytest.approx(expected.pvalue)


def test_many_models_equal_least_squares() -> None:
    values = np.random.default_rng(0).normal(50, 3, (5, 3)) + np.array([0.0, 4.0, -3.0])
    models, seeds = (index.ravel() for index in np.indices(values.shape))
    # An intercept, models 1 to 4 against model 0, seeds 1 and 2 against seed 0.
    design = np.column_stack([np.ones(15), *(models == m for m in range(1, 5)), *(seeds == s for s in (1, 2))])
    solution, squares, *_ = np.linalg.lstsq(design, values.ravel(), rcond=None)
    degrees = 15 - 7
    errors = np.sqrt(squares[0] / degrees * np.diag(np.linalg.inv(design.T @ design)))[1:5]
    for index, one in enumerate(seed_differences(values.tolist(), 0)[1:]):
        assert one.change == pytest.approx(solution[1 + index])
        assert one.high - one.change == pytest.approx(scipy.stats.t.ppf(0.975, degrees) * errors[index])
        assert one.p == pytest.approx(2 * scipy.stats.t.sf(abs(solution[1 + index]) / errors[index], degrees))
        assert all_seed_pairs(values.tolist())[0, 1 + index] == pytest.approx(one.p)


def test_intervals_cover_the_difference_as_often_as_they_say() -> None:
    generator, covered = np.random.default_rng(1), 0
    for _ in range(1000):
        values = generator.normal(0, 2, (6, 3)) + generator.normal(0, 5, (1, 3)) + np.arange(6)[:, None]
        one = seed_differences(values.tolist(), 0)[3]
        covered += one.low < 3 < one.high
    assert 930 <= covered <= 970


def test_values_without_chance_differ_or_do_not() -> None:
    same, other, shifted = seed_differences([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], 0)
    assert (same.p, other.p, shifted.p) == (1.0, 1.0, 0.0)


# Boards


def test_ranks_and_comparisons_pair_seeds_and_not_the_images_of_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # The outcomes of the first seed alone would tell them apart.
    store.save(trained("v", [70.0, 60.0, 65.0]), outcomes(700))
    store.save(trained("v+a", [50.0, 72.0, 64.0]), outcomes(500))
    (board,) = make_boards(store.load())[0]
    assert [rank_shown(row) for row in with_ranks(board, store).rows] == ["1= (1–2)", "2= (1–2)"]
    one = next(each for each in compare(store, "v", "v+a")[0] if each.metric == TOP1)
    expected = scipy.stats.ttest_rel([50.0, 72.0, 64.0], [70.0, 60.0, 65.0])
    assert (one.p, one.change, one.test) == (pytest.approx(expected.pvalue), pytest.approx(-3), "paired t over 3 seeds")


def test_the_gate_judges_means_over_seeds_by_these(tmp_path: Path) -> None:
    before, after = Store(tmp_path / "before"), Store(tmp_path / "after")
    before.save(trained("v", [70.0, 60.0, 65.0]), outcomes(700))
    after.save(trained("v", [70.0, 40.0, 20.0]), outcomes(700))
    (found,) = judge(before.load(), after.load(), Policy(), (before, after))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "3 seeds" in found.reason
    after.save(trained("v", [30.0, 20.1, 25.0]), outcomes(300))
    (found,) = judge(before.load(), after.load(), Policy(), (before, after))
    assert found.verdict is Verdict.WORSE


def test_many_seeds_that_agree_tell_models_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for model, samples in (("v", (60.0, 65.0, 58.0)), ("v+a", (60.5, 65.0, 57.0)), ("v+b", (70.0, 75.5, 67.0))):
        store.save(trained(model, samples))
    (board,) = make_boards(store.load())[0]
    assert [rank_shown(row) for row in with_ranks(board, store).rows] == ["1", "2= (2–3)", "3= (2–3)"]


def test_another_order_of_images_is_another_board() -> None:
    boards, _ = make_boards([trained("v", [1.0, 2.0]), trained("v+a", [1.0, 2.0], order="bbbb")])
    assert [dict(board.conditions)["order of images"] for board in boards] == ["aaaa", "bbbb"]


# Trade-offs


def test_each_carrier_is_compared_with_itself() -> None:
    table = {"v": [60.0, 64.0, 62.0], "v+a": [66.0, 69.0, 70.0], "v+b": [50.0, 52.0, 51.0], "p": [80.0, 81.0, 82.0],
             "p+a": [80.5, 80.0, 83.0], "alone": [1.0, 2.0, 3.0]}  # fmt: skip
    found = found_in(*(trained(model, samples) for model, samples in table.items()))
    assert [one.carrier for one in found] == ["p", "v"]
    pyramid, plain = ({each.attention: each for each in one.contenders} for one in found)
    assert list(plain) == ["a", "softmax", "b"]
    assert plain["softmax"].change is None
    expected = seed_differences([table["v"], table["v+a"], table["v+b"]], 0)
    corrected = holm([expected[1].p, expected[2].p])
    for name, raw, p in (("a", expected[1], corrected[0]), ("b", expected[2], corrected[1])):
        assert plain[name].change == dataclasses.replace(raw, p=p)
    assert pyramid["a"].change is not None
    assert pyramid["a"].change.p == pytest.approx(scipy.stats.ttest_rel(table["p"], table["p+a"]).pvalue)
    assert plain["a"].over_images == pytest.approx(3.5)


def test_the_front_is_what_nothing_beats() -> None:
    # Accuracy and MACs: b is beaten by a, which is as good and cheaper; d is the cheapest; c the best.
    table = {"v": (60.0, 2.0), "v+a": (70.0, 3.0), "v+b": (70.0, 4.0), "v+c": (75.0, 5.0), "v+d": (50.0, 1.0)}
    records = [trained(model, [level, level + 1]) for model, (level, _) in table.items()]
    (found,) = found_in(*records, *(priced(model, gmacs) for model, (_, gmacs) in table.items()))
    assert {each.attention for each in found.contenders if "gmacs" in each.front} == {"softmax", "a", "c", "d"}
    assert {each.attention for each in found.contenders if "parameters" in each.front} == {"c"}
    assert [metric.name for metric in found.costs] == ["parameters", "gmacs", "latency_b32", "resident_b32"]
    assert dict(found.place)["device"] == "a processor"


def test_costs_are_those_of_the_trained_size_and_of_one_machine() -> None:
    records = [trained(model, [60.0, 61.0]) for model in ("v", "v+a", "v+b")]
    larger = replace(RANDOM, preprocessing=replace(RANDOM.preprocessing, image_size=(512, 512)))
    there = replace(
        priced("v", 2.0, 7.0),
        environment=replace(records[0].environment, device="another", versions={}),
    )
    costs = [
        priced("v", 2.0, 11.0), priced("v+a", 3.0, 12.0, details={"disturbed": ["latency: company"]}),
        priced("v+b", 9.0, 99.0, setup=larger), replace(there, key="ffffffff"),
    ]  # fmt: skip
    (found,) = found_in(*records, *costs)
    by_name = {each.attention: {name: m.value for name, m in each.costs.items()} for each in found.contenders}
    assert by_name["softmax"] == {"parameters": 1.0, "gmacs": 2.0, "latency_b32": 11.0, "resident_b32": 50.0}
    assert by_name["a"] == {"parameters": 1.0, "gmacs": 3.0, "resident_b32": 50.0}  # the rest is not disturbed
    assert by_name["b"] == {}


def test_without_a_control_there_are_no_differences() -> None:
    (found,) = found_in(trained("v+a", [60.0, 61.0]), trained("v+b", [50.0, 51.0]))
    assert [each.change for each in found.contenders] == [None, None]
    assert [line.split("|")[5].strip() for line in to_table(found).splitlines() if " ±" in line][1:] == ["–", "–"]


def test_what_was_not_trained_with_seeds_is_no_trade_off() -> None:
    assert found_in(accuracy("v"), accuracy("v+a"), priced("v", 1.0)) == []
    assert found_in(trained("v", [60.0]), trained("v+a", [61.0])) == []


# Pages


@pytest.fixture
def board() -> Tradeoff:
    samples = {"v": [60.0, 64.0, 62.0], "v+a": [66.0, 69.0, 70.0], "v+<b>|": [50.0, 52.0, 51.0]}
    records = [trained(model, values) for model, values in samples.items()]
    (found,) = found_in(*records, *(priced(model, 1.0 + place) for place, model in enumerate(samples)))
    return found


def test_the_table_holds_mean_difference_and_costs(board: Tradeoff) -> None:
    page = to_markdown([board], [("light.svg", "dark.svg")])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert lines[0] == [
        "#", "attention", "top1 (%) ↑ ±seeds", "±images", "against softmax", "p (Holm)", "parameters (M) ↓",
        "gmacs (G) ↓", "latency_b32 (ms) ↓", "resident_b32 (MiB) ↓",
    ]  # fmt: skip
    change = board.contenders[0].change
    assert change is not None
    low, high = mean_interval([66.0, 69.0, 70.0]) or (0.0, 0.0)
    assert lines[2][:4] == ["1", "a", f"68.33 ±{(high - low) / 2:.2f}", "3.50"]
    assert lines[2][4] == f"+6.33 ({change.low:+.2f} to {change.high:+.2f})"
    assert lines[3][1:6] == ["softmax", "62.00 ±4.97", "3.50", "control", ""]
    assert lines[3][7] == "1.00 ◆"
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert 'srcset="dark.svg"' in page


def test_the_csv_holds_every_number(board: Tradeoff) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv([board]))))
    assert [row["attention"] for row in rows] == ["a", "softmax", "<b>|"]
    assert rows[0]["by_seed"] == "66 69 70"
    assert float(rows[0]["difference"]) == pytest.approx(19 / 3)
    assert (rows[1]["difference"], rows[1]["gmacs"], rows[1]["gmacs_front"]) == ("", "1.0", "True")


def test_figures_repeat_and_name_every_attention(board: Tradeoff) -> None:
    drawn = draw_tradeoff(board, "light")
    assert drawn == draw_tradeoff(board, "light") != draw_tradeoff(board, "dark")
    assert drawn.count(b">2  softmax</text>") == 1
    assert drawn.count(b">2</text>") == len(board.costs) == 4  # its number in each plot
    bare = draw_tradeoff(dataclasses.replace(board, costs=board.costs[:1]), "dark")
    assert bare.count(b">2</text>") == 1


def test_pages_are_those_of_the_records(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for model in ("v", "v+a"):
        store.save(trained(model, [60.0, 61.0]))
        store.save(trained(model, [60.0, 61.0], order="bbbb"))
    assert set(render(store)) >= {"README.md", "leaderboard.html", "tradeoff.md", "tradeoff.csv"}


def test_the_committed_pages_are_those_of_the_committed_records() -> None:
    results = Path(__file__).resolve().parents[1] / "results" / "attention"
    for name, content in render(Store(results)).items():
        assert content == (results / name).read_bytes(), name
