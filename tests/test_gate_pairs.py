"""The gate: which records are compared where a side has several, and what is not green."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_records import ENVIRONMENT, accuracy, cost
from msgspec.structs import replace
from test_gate import POLICY, Sides, outcomes

from harness.errors import RecordError
from harness.gate import Policy, Verdict, exit_code, judge
from harness.record import Record


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def on(device: str, milliseconds: float, seconds: float = 1.0) -> Record:
    """A cost that was measured on a machine of that name."""
    return cost("net", milliseconds, environment=replace(ENVIRONMENT, device=device), seconds=seconds)


@pytest.mark.parametrize(
    ("machines", "verdicts"),
    [
        ({"A": 10.0}, [Verdict.SAME]),
        ({"B": 30.0}, [Verdict.WORSE]),
        ({"A": 10.0, "B": 20.0}, [Verdict.SAME, Verdict.SAME]),
        ({"A": 12.0, "C": 1.0}, [Verdict.WORSE]),
        ({"C": 10.0}, [Verdict.CHANGED]),
        ({}, [Verdict.NOT_MEASURED]),
    ],
)
def test_of_several_machines_equal_ones_are_compared(
    sides: Sides, machines: dict[str, float], verdicts: list[Verdict]
) -> None:
    sides.before.save(on("A", 10.0))
    sides.before.save(on("B", 20.0))
    for device, milliseconds in machines.items():
        sides.after.save(on(device, milliseconds, 2.0))
    found = judge(sides.before.load(), sides.after.load(), POLICY, (sides.before, sides.after))
    latencies = [one for one in found if one.cell[-1] == "latency_b1"]
    assert [one.verdict for one in latencies] == verdicts
    assert len({one.cell for one in found}) == len(found)
    assert all(f", device {'AB'[index]}" in one.cell[2] for index, one in enumerate(latencies) if len(verdicts) == 2)


def test_times_of_two_races_are_not_compared(sides: Sides) -> None:
    for store, races in ((sides.before, "ab"), (sides.after, "bc")):
        for race in races:
            details = {"race": {"id": race, "models": ["net"], "rounds": 40}}
            store.save(replace(cost("net", 10.0, details=details), key=8 * race, seconds=float(ord(races[0]))))
    found = judge(sides.before.load(), sides.after.load(), POLICY, (sides.before, sides.after))
    assert {(one.cell[2].rpartition(" ")[2], one.verdict) for one in found} == {("b", Verdict.SAME)}


def test_a_failure_hides_behind_no_other_record(sides: Sides) -> None:
    sides.before.save(accuracy("net", 70.0))
    sides.after.save(accuracy("net", 70.0, seconds=2.0))
    sides.after.save(replace(accuracy("net", error="it broke", measurements=(), data=None), key="ffffffff"))
    with pytest.raises(RecordError, match="The candidate has two records"):
        sides.judge()


def test_what_was_not_measured_again_is_not_green(sides: Sides) -> None:
    for store in (sides.before, sides.after):
        store.save(accuracy("net", 70.0), outcomes(700))
    code, page = sides.check()
    assert code == 4
    assert "Nothing was measured" in page
    sides.before.save(cost("net", 10.0))
    sides.after.save(cost("net", 10.0, seconds=2.0))
    assert sides.check()[0] == 0


def test_a_floor_of_nothing_is_not_green(sides: Sides) -> None:
    sides.before.save(accuracy("net", 70.0))
    sides.after.save(accuracy("net", 70.0, seconds=2.0))
    policy = Policy(floors={"imagnet top1": 60.0, "imagenet top1": 60.0})
    found = judge(sides.before.load(), sides.after.load(), policy, (sides.before, sides.after))
    assert [(one.cell[1], one.verdict) for one in found] == [
        ("imagenet", Verdict.SAME), ("imagnet", Verdict.NOT_MEASURED),
    ]  # fmt: skip
    assert exit_code(found, policy) == 4
