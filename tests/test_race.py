"""Races: models in turns, the quickest first, and only real differences named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.observe import Observation
from harness.race import Standing, race
from harness.record import Preprocessing, Setup
from harness.runner import Job
from harness.statistics import LEVEL, Difference
from harness.tables import race_to_markdown

ROOT = Path(__file__).resolve().parents[1]
SETUP = Setup(batch_size=1, preprocessing=Preprocessing(image_size=(32, 32)))


def test_the_quickest_comes_first_and_the_slow_one_is_found(nets: str) -> None:
    jobs = [Job(model=f"{nets}:{name}", task="cost", setup=SETUP) for name in ("slow", "tiny", "chatty")]
    standings, observation = race(jobs, rounds=16)
    assert standings[0].behind is None
    assert standings[-1].model == "nets.py:slow"
    assert standings[-1].behind is not None
    assert standings[-1].behind.differs
    assert standings[-1].behind.level == LEVEL / 2
    assert standings[-1].milliseconds > 200
    assert "load_average" in observation.seen


def test_the_table_names_only_real_differences() -> None:
    standings = [
        Standing("a|b", 10.0, None),
        Standing("c", 10.1, Difference(1.01, 0.99, 1.03, 0.2)),
        Standing("d", 12.0, Difference(1.2, 1.15, 1.25, 1e-6)),
    ]
    rows = race_to_markdown(standings, Observation({}, ("heat",))).splitlines()
    assert "a\\|b" in rows[2]
    assert "–" in rows[3]
    assert "+1.0 %" not in rows[3]
    assert "+20.0 %" in rows[4]
    assert rows[-1] == "Disturbed: heat."


@pytest.mark.parametrize(("rounds", "code"), [("15", 0), ("14", 2)])
def test_the_command_prints_a_table(nets: str, rounds: str, code: int) -> None:
    words = ["race", "--model", f"{nets}:tiny", f"{nets}:chatty", "--batch-size", "1", "--rounds", rounds]
    done = subprocess.run([sys.executable, str(ROOT / "run_bench.py"), *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("nets.py:tiny" in done.stdout) == (code == 0)
