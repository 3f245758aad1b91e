"""Races: models in turns, the quickest first, and only real differences named."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.leaderboard import differences, make_boards
from harness.observe import Observation
from harness.race import Race, Standing, race
from harness.record import Preprocessing, Setup, from_json, to_json
from harness.runner import Job
from harness.statistics import LEVEL, Difference
from harness.store import Store
from harness.tables import race_to_markdown, to_markdown

ROOT = Path(__file__).resolve().parents[1]
SETUP = Setup(batch_size=1, preprocessing=Preprocessing(image_size=(32, 32)))


def finished(
    disturbed: tuple[str, ...] = (), seconds: float = 1.0, models: tuple[str, ...] = ("a|b", "c", "d")
) -> Race:
    """A race whose times are known."""
    behind = (None, Difference(1.01, 0.99, 1.03, 0.2), Difference(1.2, 1.15, 1.25, 1e-6))
    standings = (
        Standing(Job(model=model, task="cost", setup=SETUP), SETUP, [(9.0, 10.0, 11.0)] * 15, difference)
        for model, difference in zip(models, behind, strict=True)
    )
    return Race(tuple(standings), Observation({}, disturbed), datetime(2026, 1, 1, tzinfo=UTC), seconds)


def test_the_quickest_comes_first_and_the_slow_one_is_found(nets: str) -> None:
    jobs = [Job(model=f"{nets}:{name}", task="cost", setup=SETUP) for name in ("slow", "tiny", "chatty")]
    found = race(jobs, rounds=16)
    standings = found.standings
    assert standings[0].behind is None
    assert standings[-1].model == "nets.py:slow"
    assert standings[-1].behind is not None
    assert standings[-1].behind.differs
    assert standings[-1].behind.level == LEVEL / 2
    assert standings[-1].milliseconds > 200
    assert "load_average" in found.observation.seen


def test_the_table_names_only_real_differences() -> None:
    rows = race_to_markdown(finished(disturbed=("heat",))).splitlines()
    assert "a\\|b" in rows[2]
    assert "10.000" in rows[2]
    assert "–" in rows[3]
    assert "+1.0 %" not in rows[3]
    assert "+20.0 %" in rows[4]
    assert rows[-1] == "Disturbed: heat."


def test_each_model_of_a_race_leaves_a_record_with_its_rounds() -> None:
    first, second, third = finished().records()
    assert [record.task for record in (first, second, third)] == ["race"] * 3
    assert first.measurements[0].metric.name == "race_b1"
    assert first.measurements[0].samples == (9.0, 10.0, 11.0) * 15
    assert [record.values()["race_behind_b1"] for record in (first, second, third)] == [0.0, None, pytest.approx(20)]
    assert second.measurements[1].reason == "no difference from a|b was found (p = 0.2)"
    assert third.details["race"] | {"id": ""} == {
        "id": "", "models": ["a|b", "c", "d"], "rounds": 15, "passes": 3, "slower_than": "a|b", "ratio": 1.2,
        "low": 1.15, "high": 1.25, "p": 1e-6, "level": LEVEL, "least_effect": 0.02, "differs": True,
    }  # fmt: skip
    assert first.command.startswith("run_bench.py race --model a|b c d --rounds 15 --results results --batch-size 1")
    assert from_json(to_json(third), "race") == third


def test_a_race_is_a_board_of_its_own() -> None:
    records = [*finished().records(), *finished(seconds=2.0).records()]
    boards, left_out = make_boards(records)
    assert [[row.record.model for row in board.rows] for board in boards] == [["a|b", "c", "d"]] * 2
    assert differences(boards) == {"race": ["race"]}
    assert not left_out
    assert "3 models in turns, 15 rounds" in to_markdown(boards, [])


def test_a_disturbed_race_does_not_rank() -> None:
    boards, left_out = make_boards(finished(disturbed=("heat",)).records())
    assert not boards
    assert [item.reason[:15] for item in left_out] == ["disturbed: heat"] * 3


def test_a_model_may_race_against_itself() -> None:
    records = finished(models=("a", "a", "a")).records()
    assert len({record.name for record in records}) == 3


@pytest.mark.parametrize(("rounds", "code"), [("15", 0), ("14", 2)])
def test_the_command_prints_a_table_and_writes_records(nets: str, rounds: str, code: int, tmp_path: Path) -> None:
    words = ["race", "--model", f"{nets}:tiny", f"{nets}:chatty", "--batch-size", "1", "--rounds", rounds]
    words += ["--results", str(tmp_path)]
    done = subprocess.run([sys.executable, str(ROOT / "run_bench.py"), *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("nets.py:tiny" in done.stdout) == (code == 0)
    found = Store(tmp_path).load()
    assert len(found) == (2 if code == 0 else 0)
    assert all(record.setup.weights.sha256 and len(record.measurements[0].samples) == 45 for record in found)
