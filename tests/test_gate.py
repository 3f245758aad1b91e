"""The gate: a verdict for every kind of change, an exit code for every verdict, and what machines read of it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from fake_records import DATA, ENVIRONMENT, GMACS, LATENCY, accuracy, cost
from msgspec.structs import replace
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import RecordError, SetupError
from harness.gate import Finding, Policy, Verdict, exit_code, judge, read_policy
from harness.metric import Measurement, Metric, Outcomes
from harness.record import Record
from harness.store import Store

POLICY = Policy()


def outcomes(right: int, items: int = 1000, lucky: int = 0) -> Outcomes:
    """Outcomes of a model that gets `right` items right, beginning at item `lucky`."""
    hit = [(index - lucky) % items < right for index in range(items)]
    rows = tuple((f"image_{index}", 1, 1 if good else 0, 2) for index, good in enumerate(hit))
    return Outcomes(("item", "target", "top1", "top2"), rows)


def samples(median: float, seed: int, spread: float = 0.01, count: int = 100) -> tuple[float, ...]:
    return tuple((median * numpy.random.default_rng(seed).normal(1, spread, count)).tolist())


class Sides:
    """Two results folders."""

    def __init__(self, tmp_path: Path) -> None:
        self.before, self.after = Store(tmp_path / "before"), Store(tmp_path / "after")

    def judge(self, policy: Policy = POLICY) -> dict[str, Finding]:
        found = judge(self.before.load(), self.after.load(), policy, (self.before, self.after))
        return {finding.cell[-1]: finding for finding in found}

    def check(self, *more: str) -> tuple[int, str]:
        words = ["check", "--baseline", str(self.before.root), "--results", str(self.after.root), *more]
        done = CliRunner().invoke(app, words)
        return done.exit_code, done.output


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def test_an_equal_record_is_the_same(sides: Sides) -> None:
    for store, seconds in ((sides.before, 1.0), (sides.after, 2.0)):
        store.save(accuracy("net", seconds=seconds), outcomes(700))
        store.save(cost("net", 10.0, samples(10, 1), seconds=seconds))
    assert {finding.verdict for finding in sides.judge().values()} == {Verdict.SAME}
    assert sides.check()[0] == 0


@pytest.mark.parametrize(
    ("right", "lucky", "verdict"),
    [
        (640, 0, Verdict.WORSE),
        (760, 0, Verdict.BETTER),
        (699, 0, Verdict.SAME),
        (690, 290, Verdict.INCONCLUSIVE),  # many items change sides, few more one way than the other
    ],
)
def test_accuracy_is_judged_item_by_item(sides: Sides, right: int, lucky: int, verdict: Verdict) -> None:
    sides.before.save(accuracy("net", 70.0), outcomes(700))
    sides.after.save(accuracy("net", right / 10), outcomes(right, lucky=lucky))
    finding = sides.judge()["top1"]
    assert finding.verdict is verdict
    assert "items gained" in finding.reason


@pytest.mark.parametrize(
    ("after", "verdict"), [(66.0, Verdict.WORSE), (69.5, Verdict.INCONCLUSIVE), (70.0, Verdict.SAME)]
)
def test_accuracy_without_outcomes(sides: Sides, after: float, verdict: Verdict) -> None:
    sides.before.save(accuracy("net", 70.0))
    sides.after.save(accuracy("net", after))
    assert sides.judge()["top1"].verdict is verdict


def test_an_exact_metric_of_no_cell_is_named(sides: Sides) -> None:
    for store in (sides.before, sides.after):
        store.save(accuracy("net"), outcomes(700))
    assert set(sides.judge(Policy())) == {"top1"}
    found = sides.judge(Policy(exact=("gmacs", "paramters", "top1")))
    assert set(found) == {"top1", "paramters"}
    assert found["paramters"].verdict is Verdict.NOT_MEASURED
    assert "the policy's exact metric is of no cell of the baseline: correct its name" in found["paramters"].reason


def test_a_floor_holds_whatever_the_baseline(sides: Sides) -> None:
    for store in (sides.before, sides.after):
        store.save(accuracy("net", 70.0), outcomes(700))
    assert sides.judge(Policy(floors={"imagenet top1": 75.0}))["top1"].verdict is Verdict.WORSE
    assert sides.judge(Policy(floors={"imagenet top1": 65.0}))["top1"].verdict is Verdict.SAME
    sides.after.save(accuracy("net", 70.0, task_version=2))
    assert sides.judge(Policy(floors={"imagenet top1": 75.0}))["top1"].verdict is Verdict.WORSE
    assert sides.judge(Policy(floors={"imagenet top1": 65.0}))["top1"].verdict is Verdict.CHANGED


@pytest.mark.parametrize(
    ("after", "spread", "verdict"),
    [
        (11.0, 0.01, Verdict.WORSE),
        (9.0, 0.01, Verdict.BETTER),
        (10.2, 0.01, Verdict.SAME),  # beyond chance, and too small to matter
        (10.4, 0.4, Verdict.INCONCLUSIVE),
    ],
)
def test_cost_is_judged_by_samples_and_least_effect(
    sides: Sides, after: float, spread: float, verdict: Verdict
) -> None:
    sides.before.save(cost("net", 10.0, samples(10, 1, spread)))
    sides.after.save(cost("net", after, samples(after, 2, spread)))
    assert sides.judge()["latency_b1"].verdict is verdict


def test_a_cost_of_nought_has_no_ratio(sides: Sides) -> None:
    sides.before.save(cost("net", 0.0, (0.0, 0.0, 0.0)))
    sides.after.save(cost("net", 3.0, (3.0, 3.0, 3.0)))
    assert sides.judge()["latency_b1"].verdict is Verdict.INCONCLUSIVE


def test_fifty_repeated_runs_of_one_model_raise_no_alarm(sides: Sides) -> None:
    for number in range(50):
        sides.before.save(cost(f"net_{number}", 10.0, samples(10, number)))
        sides.after.save(cost(f"net_{number}", 10.0, samples(10, 100 + number)))
    found = judge(sides.before.load(), sides.after.load(), POLICY, (sides.before, sides.after))
    assert {finding.verdict for finding in found} == {Verdict.SAME}


def test_a_disturbed_run_concludes_nothing(sides: Sides) -> None:
    sides.before.save(cost("net", 10.0, samples(10, 1)))
    sides.after.save(cost("net", 20.0, samples(20, 2), details={"disturbed": ["others took 40 % of the time"]}))
    finding = sides.judge()["latency_b1"]
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "others took" in finding.reason


P95 = Metric("latency_p95_b1", "ms", higher_is_better=False)


@pytest.mark.parametrize(
    ("after", "reach", "verdict"),
    [
        (10.7, 1.0, Verdict.INCONCLUSIVE),  # one tail of one run says little
        (13.0, 0.2, Verdict.WORSE),
        (7.0, 0.2, Verdict.BETTER),
        (10.1, 0.2, Verdict.SAME),
    ],
)
def test_a_tail_is_judged_by_its_interval(sides: Sides, after: float, reach: float, verdict: Verdict) -> None:
    for store, value in ((sides.before, 10.0), (sides.after, after)):
        tail = Measurement(P95, value, interval=(value - reach, value + reach))
        store.save(cost("net", 10.0, measurements=(tail,)))
    assert sides.judge()["latency_p95_b1"].verdict is verdict


def test_one_value_each_is_judged_by_the_least_effect_unless_it_is_a_time(sides: Sides) -> None:
    memory = Metric("memory_b1", "MiB", higher_is_better=False)
    for store, value in ((sides.before, 100.0), (sides.after, 106.0)):
        store.save(cost("net", 10.0, measurements=(Measurement(memory, value), Measurement(P95, value))))
    found = sides.judge()
    memory_found, tail = found["memory_b1"], found["latency_p95_b1"]
    assert (memory_found.verdict, memory_found.reason) == (Verdict.WORSE, "+6.0 %, from one value each")
    assert (tail.verdict, tail.reason[:28]) == (Verdict.INCONCLUSIVE, "+6.0 %, from one value each;")


@pytest.mark.parametrize(("after", "verdict"), [(13.9, Verdict.SAME), (14.5, Verdict.WORSE), (5.5, Verdict.BETTER)])
def test_memory_that_two_processes_of_one_model_differ_by_is_no_change(
    sides: Sides, after: float, verdict: Verdict
) -> None:
    resident = Metric("resident_b1", "MiB", higher_is_better=False)
    for store, value in ((sides.before, 10.0), (sides.after, after)):
        passes = Measurement(resident, value, (value, value + 0.01, value - 0.01))
        store.save(cost("net", 10.0, measurements=(passes,)))
    assert sides.judge()["resident_b1"].verdict is verdict


def test_what_is_counted_must_be_equal(sides: Sides) -> None:
    record = cost("net", 10.0)
    more = tuple(Measurement(GMACS, 1.26) if one.metric == GMACS else one for one in record.measurements)
    sides.before.save(record)
    sides.after.save(replace(record, measurements=more))
    found = sides.judge()
    assert (found["gmacs"].verdict, found["parameters"].verdict) == (Verdict.WORSE, Verdict.SAME)
    assert "1.25 became 1.26" in found["gmacs"].reason


def test_another_machine_makes_no_verdict_on_time_and_one_on_counts(sides: Sides) -> None:
    sides.before.save(cost("net", 10.0))
    sides.after.save(cost("net", 99.0, environment=replace(ENVIRONMENT, device="another processor")))
    found = sides.judge()
    assert found["latency_b1"].verdict is Verdict.CHANGED
    assert "device a processor became another processor" in found["latency_b1"].reason
    assert found["gmacs"].verdict is Verdict.SAME


def test_other_data_makes_no_verdict(sides: Sides) -> None:
    sides.before.save(accuracy("net", 70.0))
    sides.after.save(accuracy("net", 10.0, data=replace(DATA, fingerprint="f" * 16)))
    assert sides.judge()["top1"].verdict is Verdict.CHANGED


@pytest.mark.parametrize("missing", ["no record", "an error", "no value"])
def test_what_was_not_measured(sides: Sides, missing: str) -> None:
    sides.before.save(accuracy("net", 70.0))
    if missing == "an error":
        sides.after.save(accuracy("net", error="it broke", measurements=()))
    elif missing == "no value":
        sides.after.save(accuracy("net", None))
    finding = sides.judge()["top1"]
    assert finding.verdict is Verdict.NOT_MEASURED
    assert {"no record": "no record", "an error": "it broke", "no value": "not to be had"}[missing] in finding.reason
    assert sides.check()[0] == 4


def test_two_records_of_one_cell_are_refused(sides: Sides) -> None:
    sides.before.save(accuracy("net", 70.0))
    sides.after.save(accuracy("net", 70.0))
    sides.after.save(replace(accuracy("net", 60.0), key="ffffffff"))
    with pytest.raises(RecordError, match=r"The candidate has two records of net on imagenet .*Move one away"):
        sides.judge()


def finding(verdict: Verdict) -> Finding:
    return Finding(("net", "cost", "batch 8", "latency_b1"), verdict, "a reason, 5 % more", 1.0, 2.0)


@pytest.mark.parametrize(
    ("verdicts", "tolerate", "code"),
    [
        ([Verdict.SAME, Verdict.BETTER], (), 0),
        ([Verdict.SAME, Verdict.WORSE, Verdict.NOT_MEASURED], (), 3),
        ([Verdict.SAME, Verdict.NOT_MEASURED], (), 4),
        ([], (), 4),
        ([Verdict.SAME, Verdict.CHANGED], (), 5),
        ([Verdict.SAME, Verdict.INCONCLUSIVE], (), 6),
        ([Verdict.SAME, Verdict.INCONCLUSIVE], (Verdict.INCONCLUSIVE,), 0),
        ([Verdict.INCONCLUSIVE], (Verdict.INCONCLUSIVE,), 6),
        ([Verdict.NOT_MEASURED], tuple(Verdict), 4),
    ],
)
def test_exit_codes(verdicts: Sequence[Verdict], tolerate: tuple[Verdict, ...], code: int) -> None:
    assert exit_code([finding(verdict) for verdict in verdicts], Policy(tolerate=tolerate)) == code


def test_an_empty_baseline_is_not_green(sides: Sides) -> None:
    sides.before.root.mkdir()
    sides.after.save(accuracy("net"))
    code, page = sides.check()
    assert code == 4
    assert "nothing measured" in page
    assert "has no records to compare with" in page


def test_the_policy_is_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        'accuracy_margin = 0.5\ntolerate = ["inconclusive", "environment changed"]\n[floors]\n"cub top1" = 60'
    )
    assert read_policy(path) == Policy(
        accuracy_margin=0.5, tolerate=(Verdict.INCONCLUSIVE, Verdict.CHANGED), floors={"cub top1": 60}
    )
    numbers = (
        "accuracy_level = nan",
        "cost_level = 5",
        "memory_least_effect = -1",
        "cost_least_effect = -1",
        "[floors]\n'cub top1' = nan",
    )
    for wrong in (
        "margin = 3",
        "accuracy_level = 'high'",
        "tolerate = ['red']",
        "= 3",
        "accuracy_margin = -1",
        *numbers,
    ):
        path.write_text(wrong)
        with pytest.raises(SetupError, match=r"policy.toml' cannot be used .*It may hold: exact, accuracy_level"):
            read_policy(path)
    with pytest.raises(SetupError, match="Check the path"):
        read_policy(tmp_path / "none.toml")


def test_a_git_revision_is_a_baseline(sides: Sides, tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=tmp_path, check=True)

    sides.after.save(accuracy("net", 70.0), outcomes(700))
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "baseline")
    sides.after.save(accuracy("net", 50.0), outcomes(500))
    words = ["check", "--results", str(sides.after.root), "--baseline"]
    worse = CliRunner().invoke(app, [*words, "HEAD"])
    assert worse.exit_code == 3
    assert "worse" in worse.output
    # Results may lie in the root of their repository.
    shutil.copytree(sides.after.root, tmp_path, dirs_exist_ok=True)
    git("add", ".")
    git("commit", "-q", "-m", "in the root")
    same = CliRunner().invoke(app, ["check", "--results", str(tmp_path), "--baseline", "HEAD"])
    assert same.exit_code == 4
    assert "1 same" in same.output
    unknown = CliRunner().invoke(app, [*words, "nowhere"])
    assert isinstance(unknown.exception, RecordError)
    assert "neither a folder nor a git revision" in str(unknown.exception)


def test_the_candidate_is_no_baseline_of_itself(sides: Sides) -> None:
    sides.after.save(accuracy("net"))
    done = CliRunner().invoke(app, ["check", "--baseline", str(sides.after.root), "--results", str(sides.after.root)])
    assert isinstance(done.exception, SetupError)


# What the command line answers to each kind of two folders: the exit code, and the verdict that it tells.
ENDINGS = {
    "same": (0, accuracy("net", 70.0, seconds=2.0), "passed: 1 same"),
    "better": (0, accuracy("net", 75.0), "| better"),
    "worse": (3, accuracy("net", 60.0), "| worse"),
    "failed": (4, accuracy("net", error="it broke", measurements=()), "the candidate failed: it broke"),
    "renamed": (4, accuracy("another net", 70.0), "the candidate has no record of it"),
    "copied": (4, accuracy("net", 70.0), "Nothing was measured: every record is the baseline's own"),
    "other data": (5, accuracy("net", 70.0, data=replace(DATA, fingerprint="f" * 16)), "| environment changed"),
    "in doubt": (6, accuracy("net", 70.3), "| inconclusive"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_verdict_has_its_exit_code_on_the_command_line(ending: str, sides: Sides) -> None:
    code, after, told = ENDINGS[ending]
    right = {"better": 750, "worse": 600, "in doubt": 703}.get(ending, 700)
    sides.before.save(accuracy("net", 70.0), outcomes(700))
    sides.after.save(after, None if after.error else outcomes(right, lucky=290 if ending == "in doubt" else 0))
    found, page = sides.check()
    assert (found, told in page) == (code, True), page


def test_a_baseline_of_failures_is_not_green(sides: Sides) -> None:
    failure = accuracy("net", error="it broke", measurements=())
    sides.before.save(failure)
    sides.after.save(accuracy("net"))
    assert sides.check()[0] == 4
    sides.after.save(failure)
    assert sides.check()[0] == 4


def test_folders_that_are_not_there(sides: Sides) -> None:
    sides.before.save(accuracy("net"))
    assert sides.check()[0] == 4
    nowhere = CliRunner().invoke(app, ["check", "--baseline", "nowhere", "--results", str(sides.after.root)])
    assert "'nowhere' is neither a folder nor a git revision" in str(nowhere.exception)


@pytest.mark.slow
def test_ten_thousand_cells_in_three_seconds(sides: Sides) -> None:
    for number in range(3334):
        for store, seed in ((sides.before, number), (sides.after, number + 10_000)):
            store.save(cost(f"net_{number}", 10.0, samples(10, seed)))
    start = time.perf_counter()
    found: list[Finding] = judge(sides.before.load(), sides.after.load(), POLICY, (sides.before, sides.after))
    assert len(found) == 10_002
    assert time.perf_counter() - start < 3


def test_records_of_all_kinds_are_told_apart() -> None:
    records: list[Record] = [
        accuracy("net"),
        accuracy("net", setup=replace(accuracy("net").setup, batch_size=8)),
    ]
    found = judge(records, records, POLICY, (Store(Path()), Store(Path())))
    assert len({one.cell for one in found}) == 2
    assert LATENCY.name not in {one.cell[-1] for one in found}
