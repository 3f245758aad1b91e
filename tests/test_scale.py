"""A hundred thousand records: all boards and the gate, from a cold process on one core, in time and in memory."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_records import accuracy
from many_records import many_records, write_records
from msgspec.structs import replace
from test_gate import outcomes

from harness.leaderboard import make_boards
from harness.page import to_html
from harness.ranking import with_ranks
from harness.record import Record
from harness.significance import holm, rank_intervals
from harness.store import Store
from harness.tables import to_csv, to_latex, to_markdown

ROOT = Path(__file__).resolve().parents[1]
MEASURE = """
import resource, sys
sys.argv[0] = "run_bench.py"
from harness.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, file=sys.stderr)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10, file=sys.stderr)
"""


def measure(words: Sequence[object]) -> tuple[int, float, float]:
    """Run a command in a process of its own, and return its exit code, seconds of the processor and peak MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=280,
        env={"OMP_NUM_THREADS": "1", "HOME": str(Path.home()), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    code, used = done.stderr.splitlines()[-2:]
    seconds, peak = map(float, used.split())
    return 0 if code == "None" else int(code), seconds, peak


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("models", "accuracies", "costs"), [(5000, 12, 8), (2500, 24, 16), (1000, 24, 76)])
def test_all_boards_of_a_hundred_thousand_records_are_made_and_verified(
    tmp_path: Path, models: int, accuracies: int, costs: int
) -> None:
    assert write_records(tmp_path, many_records(models, accuracies, costs)) == 100_000
    code, seconds, peak = measure(["board", "--results", tmp_path, "-q"])
    assert code == 0
    # Ten seconds on a quiet core; twice that where others use the machine.
    assert seconds < 20
    assert peak < 2048
    assert (tmp_path / "leaderboard.csv").read_bytes().count(b"\n") == 100_001
    code, seconds, peak = measure(["verify", "--results", tmp_path])
    assert code == 0
    assert seconds < 30
    assert peak < 2048


def moved(record: Record, numbers: random.Random) -> Record:
    """Return a record as another run would have measured it."""
    return replace(record, measurements=tuple(
        one if one.value is None else replace(
            one, value=one.value * (1 + 0.01 * numbers.random()),
            samples=tuple(sample * (1 + 0.02 * numbers.random()) for sample in one.samples),
        ) for one in record.measurements
    ))  # fmt: skip


@pytest.mark.slow
def test_the_gate_judges_ten_thousand_cells(tmp_path: Path) -> None:
    records, numbers = list(many_records(models=120, accuracies=6, costs=8)), random.Random(1)
    cells = sum(not one.metric.minor and one.value is not None for record in records for one in record.measurements)
    assert cells >= 10_000
    write_records(tmp_path / "before", iter(records))
    write_records(tmp_path / "after", (moved(record, numbers) for record in records))
    code, seconds, _ = measure(["check", "--results", tmp_path / "after", "--baseline", tmp_path / "before"])
    assert code in (0, 3)
    assert seconds < 6  # Three on a quiet core.


def test_boards_grow_in_step_with_their_records() -> None:
    few, many = (make_boards(many_records(models, 3, 2)) for models in (5, 10))
    assert sum(len(board.rows) for board in many[0]) == 2 * sum(len(board.rows) for board in few[0]) == 50
    assert not many[1]


def test_pages_do_not_depend_on_the_order_of_the_records(tmp_path: Path) -> None:
    records = list(many_records(6, 3, 2))
    boards, turned = (
        [with_ranks(board, Store(tmp_path)) for board in make_boards(order)[0]] for order in (records, records[::-1])
    )
    for page in (to_csv, to_latex):
        assert page(boards) == page(turned)
    for page in (to_markdown, to_html):
        assert page(boards, []) == page(turned, [])


def test_ranks_are_those_of_holms_correction() -> None:
    import numpy

    generator = numpy.random.default_rng(0)
    for count in (2, 3, 30):
        for power in (0.5, 2, 8):
            p = numpy.triu(generator.random((count, count)) ** power, 1)
            p += p.T + numpy.eye(count)
            scores = list(generator.random(count))
            upper = numpy.triu_indices(count, 1)
            differs = numpy.zeros((count, count), dtype=bool)
            differs[upper] = numpy.array(holm(p[upper].tolist())) < 0.05
            differs |= differs.T
            expected = [
                (1 + sum(differs[i, j] and scores[j] > scores[i] for j in range(count)),
                 count - sum(differs[i, j] and scores[j] < scores[i] for j in range(count)))
                for i in range(count)
            ]  # fmt: skip
            assert rank_intervals(scores, p) == expected


def test_a_board_of_many_models_with_outcomes_has_ranks(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(20):
        store.save(accuracy(f"net_{number}", 50.0 + number), outcomes(500 + 10 * number))
    (board,) = (with_ranks(board, store) for board in make_boards(store.load())[0])
    assert all(row.ranks is not None for row in board.rows)
