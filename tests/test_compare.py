"""Two models side by side: differences, tests, and the items that they disagree on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fake_records import SETUP, accuracy, cost
from msgspec.structs import replace
from test_gate import outcomes, samples
from typer.testing import CliRunner

from harness.cli import app
from harness.compare import compare, to_markdown
from harness.errors import RecordError, SetupError, UnknownName
from harness.metric import Measurement, Metric, Outcomes
from harness.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_every_shared_metric_is_compared(store: Store) -> None:
    store.save(accuracy("one", 70.0), outcomes(700))
    store.save(accuracy("two", 64.0), outcomes(640))
    store.save(cost("one", 10.0, samples(10, 1)))
    store.save(cost("two", 12.0, samples(12, 2)))
    store.save(accuracy("two", 50.0, task="cub"))
    found, items = compare(store, "one", "two")
    by_metric = {one.metric.name: one for one in found}
    assert sorted(by_metric) == ["gmacs", "latency_b1", "parameters", "top1"]
    top1, latency = by_metric["top1"], by_metric["latency_b1"]
    assert top1.change == pytest.approx(-6)
    assert top1.interval is not None
    assert top1.interval[0] < -6 < top1.interval[1] < 0
    assert top1.p is not None
    assert top1.p < 1e-9
    assert latency.change == pytest.approx(1.2, rel=0.01)
    assert latency.test.startswith("Mann-Whitney")
    assert by_metric["gmacs"].test == "one value each"
    assert len(items) == 10
    assert all(item.first == "right class at place 1" for item in items)
    assert all(item.second == "right class not in the top 5" for item in items)


def test_images_are_told_whose_own_iou_differs_most(store: Store) -> None:
    columns = ("item", "class", "right", "annotated", "predicted", "edge_right", "edge_annotated", "edge_predicted")
    miou = Measurement(Metric("miou", "%", True), 50.0)
    for name, right in (("one", (50, 40, 30)), ("two", (50, 0, 20))):
        rows = [(f"{image}.jpg", 3, pixels, 100, 100, 1, 2, 3) for image, pixels in enumerate(right)]
        store.save(accuracy(name, task="ade20k", measurements=(miou,)), Outcomes(columns, tuple(rows)))
    _, items = compare(store, "one", "two")
    # By hand: intersection over union 40 / 160 against 0, and 30 / 170 against 20 / 180.
    assert [(item.item, item.first, item.second) for item in items] == [
        ("1.jpg", "miou 0.25", "miou 0.00"), ("2.jpg", "miou 0.18", "miou 0.11"),
    ]  # fmt: skip


def test_p_is_corrected_for_the_number_of_tests(store: Store) -> None:
    for task in ("imagenet", "cub"):
        store.save(accuracy("one", 70.0, task=task), outcomes(700))
        store.save(accuracy("two", 69.3, task=task), outcomes(693))
    found, _ = compare(store, "one", "two")
    alone = 2 * 0.5**7
    assert [one.p for one in found] == pytest.approx([2 * alone, 2 * alone])


def test_nothing_is_divided_by_nought_and_no_chance_is_nought(store: Store) -> None:
    for name, right in (("one", 20_000), ("two", 10_000)):
        store.save(accuracy(name, right / 200), outcomes(right, 20_000))
        behind = Measurement(Metric("race_behind_b1", "%", False), 0.0)
        store.save(cost(name, 1.0, task="race", measurements=(behind,)))
    page = to_markdown("one", "two", *compare(store, "one", "two"))
    assert "nan" not in page
    assert "<1e-99 | exact McNemar" in page


def test_resident_sets_of_one_process_each_are_not_tested(store: Store) -> None:
    """Those of two runs of one ResNet-18: alike within a process, and apart between the two."""
    resident = Metric("resident_b1", "MiB", higher_is_better=False)
    for name, taken in (("one", (2.04, 1.96, 1.97)), ("two", (1.44, 1.39, 1.40))):
        store.save(cost(name, 1.0, measurements=(Measurement(resident, taken[2], taken),)))
    ((found,), _) = compare(store, "one", "two")
    assert (found.p, found.interval, found.test) == (None, None, "one process each")


def test_disturbed_timings_are_not_tested(store: Store) -> None:
    store.save(cost("one", 10.0, samples(10, 1)))
    store.save(cost("two", 12.0, samples(12, 2), details={"disturbed": ["company"]}))
    (latency,) = [one for one in compare(store, "one", "two")[0] if one.metric.name == "latency_b1"]
    assert latency.p is None
    assert "company" in latency.test


def test_what_cannot_be_compared(store: Store) -> None:
    store.save(accuracy("one", 70.0))
    with pytest.raises(UnknownName, match=r"no records of 'onn'. Did you mean 'one'\?"):
        compare(store, "one", "onn")
    with pytest.raises(SetupError, match="'one' is both models"):
        compare(store, "one", "one")
    store.save(accuracy("two", 70.0, setup=replace(SETUP, precision="bf16")))
    with pytest.raises(RecordError, match="share no task under equal conditions"):
        compare(store, "one", "two")
    store.save(replace(accuracy("one", 71.0), key="ffffffff"))
    store.save(replace(accuracy("two", 71.0), key="ffffffff"))
    with pytest.raises(RecordError, match="'one' has two records on imagenet"):
        compare(store, "one", "two")


def test_the_command_prints_a_page(store: Store) -> None:
    for name, right in (("on|e", 700), ("two", 640)):
        made = outcomes(right)
        rows = tuple((f"\x1b[2J{row[0]}", *row[1:]) for row in made.rows)
        store.save(accuracy(name, right / 10), dataclasses.replace(made, rows=rows))
    done = CliRunner().invoke(app, ["compare", "on|e", "two", "--results", str(store.root)])
    assert done.exit_code == 0, done.output
    assert "exact McNemar" in done.output
    assert r"\x1b\[2Jimage_640" in done.output
    assert "not in the top 5" in done.output
    assert "on\\|e" in done.output
