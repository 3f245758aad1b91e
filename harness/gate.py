"""The regression gate: every cell of a baseline against the same cell of a candidate, with a verdict each.

A cell is one metric of one model on one task under one setup. Accuracy is judged by a paired test on the same images
and by an absolute floor, cost by a test of its samples and a least effect, what is counted exactly.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from math import inf, isfinite
from pathlib import Path
from typing import Any

import msgspec

from harness.errors import RecordError, SetupError
from harness.leaderboard import conditions
from harness.metric import Measurement, Metric
from harness.pairing import Source, difference_of
from harness.record import Record
from harness.statistics import Difference, p_shown, ratio_of_intervals, ratio_of_series

Pair = tuple[str, str, str]  # model, task, setup
Cell = tuple[str, str, str, str]  # model, task, setup, metric
# What decides a cost beside the setup, as boards name it.
MACHINE = ("device", "torch", "threads", "CPU quota", "CUDA", "driver", "power limit")


class Verdict(StrEnum):
    """What is said of a cell."""

    SAME = "same"
    BETTER = "better"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    CHANGED = "environment changed"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What counts as a change, as a TOML file says it.

    Args:
        exact: metrics that must be equal; for them any change is `worse` or `better`.
        accuracy_level: of the paired test.
        accuracy_margin: points, hundredths of a share in 0..1; a difference whose interval lies within it is `same`.
        floors: least values by `task metric`, such as `"imagenet top1" = 75.0`; below one is `worse`, whatever the
            baseline.
        cost_level: of the test of the samples.
        cost_least_effect: share; a smaller change of a cost is none, however certain.
        memory_least_effect: MiB; a smaller change of memory is none: two processes of one model differ by as much.
        tolerate: verdicts that do not fail the gate.
    """

    exact: tuple[str, ...] = ("parameters", "gmacs")
    accuracy_level: float = 0.01
    accuracy_margin: float = 1.0
    floors: dict[str, float] = field(default_factory=dict)
    cost_level: float = 0.001
    cost_least_effect: float = 0.05
    memory_least_effect: float = 4.0
    tolerate: tuple[Verdict, ...] = (Verdict.INCONCLUSIVE,)


@dataclass(frozen=True)
class Finding:
    """The verdict on one cell, with what it rests on.

    Args:
        reason: one line with the numbers.
        copied: whether the candidate's record is the baseline's own, so that nothing was measured for it.
    """

    cell: Cell
    verdict: Verdict
    reason: str
    before: float | None = None
    after: float | None = None
    copied: bool = False


def read_policy(path: Path | None) -> Policy:
    """Read a policy; None gives the default.

    Raises:
        SetupError: the file cannot be read, or says something that a policy does not have.
    """
    if path is None:
        return Policy()
    known = ", ".join(entry.name for entry in fields(Policy))
    try:
        return _sane(msgspec.convert(_strictly(tomllib.loads(path.read_text(encoding="utf-8"))), Policy))
    except OSError as error:
        raise SetupError(f"The policy {str(path)!r} cannot be read ({error.strerror}). Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, SetupError) as error:
        raise SetupError(f"The policy {str(path)!r} cannot be used ({error}). It may hold: {known}.") from error


def _strictly(found: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = found.keys() - {entry.name for entry in fields(Policy)}
    if unknown:
        raise SetupError(f"unknown key {sorted(unknown)[0]!r}")
    return found


def _sane(policy: Policy) -> Policy:
    """Refuse numbers with which nothing could ever be worse, or everything is."""
    shares = ("accuracy_level", "cost_level", "cost_least_effect")
    if wrong := [name for name in shares if not 0 < getattr(policy, name) < 1]:
        raise SetupError(f"{wrong[0]} is {getattr(policy, wrong[0])}; expected a share between 0 and 1")
    if not 0 <= policy.memory_least_effect < inf:
        raise SetupError(f"memory_least_effect is {policy.memory_least_effect}; expected MiB from 0 on")
    if not 0 <= policy.accuracy_margin <= 100:
        raise SetupError(f"accuracy_margin is {policy.accuracy_margin}; expected points between 0 and 100")
    if wrong := [name for name, floor in policy.floors.items() if not isfinite(floor)]:
        raise SetupError(f"the floor of {wrong[0]!r} is {policy.floors[wrong[0]]}; expected a number")
    return policy


def judge(
    before: Iterable[Record], after: Iterable[Record], policy: Policy, sources: tuple[Source, Source]
) -> list[Finding]:
    """Return a finding for every cell of the baseline, in a fixed order.

    Where a side has a cell from several machines or on several data, those made under equal conditions are compared,
    and where none are, the two that differ least.

    Args:
        before: the baseline's records.
        after: the candidate's.
        sources: of the outcomes of either.

    Raises:
        RecordError: two records of one side are of the same model, task and setup under equal conditions.
    """
    # A record of a failure has no cell that a candidate could be worse in.
    old = _by_pair((record for record in before if not record.error), "baseline")
    new = _by_pair(after, "candidate")
    found: list[Finding] = []
    for pair in sorted(old):
        for one, other in _matched(old[pair], new.get(pair, [])):
            # Cells of several machines are told apart by what differs between these.
            where = _apart(one, old[pair])
            found += _judge_pair((*pair[:2], f"{pair[2]}{where}"), one, other, policy, sources)
    return found + _of_nothing(found, policy)


def _of_nothing(found: Sequence[Finding], policy: Policy) -> list[Finding]:
    """Name what the policy asks of no cell: misspelt, or of a task that the baseline does not have."""
    cells = {(task, metric) for _, task, _, metric in (one.cell for one in found)}
    floors = {tuple(name.rpartition(" ")[::2]) for name in policy.floors} - cells
    # Those of the default hold wherever a cost was measured.
    exact = {*policy.exact} - {*Policy().exact} - {metric for _, metric in cells}
    reason = "the policy's {} is of no cell of the baseline: correct its name, or measure the task"
    asked = [(task, metric, "floor") for task, metric in sorted(floors)]
    asked += [("any task", metric, "exact metric") for metric in sorted(exact)]
    return [
        Finding(("any model", task, "", metric), Verdict.NOT_MEASURED, reason.format(what))
        for task, metric, what in asked
    ]


def _by_pair(records: Iterable[Record], side: str) -> Mapping[Pair, list[Record]]:
    """Records by model, task and setup; what others published is no cell."""
    found: dict[Pair, list[Record]] = defaultdict(list)
    for record in (record for record in records if record.provenance != "published"):
        alike = found[record.model, record.task, setup_of(record)]
        for other in alike:
            # Of a failure nobody knows the data, so that it may be of either.
            if record.error or other.error or not _environment(other, record):
                raise RecordError(
                    f"The {side} has two records of {record.model} on {record.task} with one setup, {other.key} and "
                    f"{record.key}, on one machine and data, or of a failure: of different code or weights. "
                    "Move one away."
                )
        alike.append(record)
    return found


def _matched(old: Sequence[Record], new: Sequence[Record]) -> list[tuple[Record, Record | None]]:
    """Pairs of records that were made under equal conditions; where there are none, the nearest pair."""
    equal = [(one, other) for one in old for other in new if not _environment(one, other)]
    if equal or not new:
        return [*equal] or [(old[0], None)]
    return [min(((one, other) for one in old for other in new), key=lambda pair: len(_environment(*pair)))]


def _apart(record: Record, others: Sequence[Record]) -> str:
    """What tells a record from others of its pair, in words; empty where it is the only one."""
    own = _conditions(record)
    differing = [name for name in own if any(_conditions(other).get(name) != own[name] for other in others)]
    return "".join(f", {name} {own[name]}" for name in differing)


def setup_of(record: Record) -> str:
    """Return what the user chose for a record, in words, without what it came to, such as hashes of the weights."""
    setup, preprocessing = record.setup, record.setup.preprocessing
    plain = [name for name in setup.__struct_fields__ if name not in ("weights", "preprocessing")]
    words = {
        "weights": setup.weights.source,
        **{name: getattr(setup, name) for name in plain},
        **{name: getattr(preprocessing, name) for name in preprocessing.overridden},
    }
    return ", ".join(f"{name} {value}" for name, value in words.items() if value not in (None, False))


def _judge_pair(
    pair: Pair, old: Record, new: Record | None, policy: Policy, sources: tuple[Source, Source]
) -> Iterator[Finding]:
    """Judge every metric of one record of the baseline."""
    values = {m.metric.name: m for m in new.measurements} if new and not new.error else {}
    copied = new is not None and bool(old.content_sha256) and old.content_sha256 == new.content_sha256
    changed = "; ".join(_environment(old, new)) if values and new else ""
    for measurement in old.measurements:
        metric = measurement.metric
        if metric.minor or measurement.value is None:
            continue
        cell = (*pair, metric.name)
        other = values.get(metric.name)
        if new is None or other is None or other.value is None:
            yield Finding(cell, Verdict.NOT_MEASURED, _why_not(new, other), measurement.value)
        elif below := _below_floor(old.task, metric, other.value, policy):
            yield Finding(cell, Verdict.WORSE, below, measurement.value, other.value, copied)
        elif changed and (metric.name not in policy.exact):
            yield Finding(cell, Verdict.CHANGED, changed, measurement.value, other.value)
        else:
            verdict, reason = _verdict((old, new), (measurement, other), policy, sources)
            yield Finding(cell, verdict, reason, measurement.value, other.value, copied)


def _below_floor(task: str, metric: Metric, value: float, policy: Policy) -> str:
    """What is wrong with a value that is beyond its floor, whatever the baseline; empty for any other."""
    floor = policy.floors.get(f"{task} {metric.name}")
    if floor is None or not (value < floor if metric.higher_is_better else value > floor):
        return ""
    return f"{value:.4g} is beyond the floor {floor:g}"


def _why_not(new: Record | None, other: Measurement | None) -> str:
    if new is None:
        return "the candidate has no record of it"
    if new.error:
        return f"the candidate failed: {new.error}"
    return other.reason if other else "the candidate's record has no such metric"


def _environment(old: Record, new: Record) -> list[str]:
    """What differs between two records beside the model, so that their values do not compare."""
    before, after = _conditions(old), _conditions(new)
    names = [name for name in (before | after) if before.get(name) != after.get(name)]
    return [f"{name} {before.get(name, 'none')} became {after.get(name, 'none')}" for name in names]


def _conditions(record: Record) -> dict[str, str]:
    """What must be equal for the values of two records of one setup to compare."""
    found = {"task version": str(record.task_version)}
    if record.data:
        # All of the stamp: two data sets of one fingerprint may be cut in other ways.
        found["data"] = " ".join(map(str, msgspec.structs.astuple(record.data)))
    if race := record.details.get("race"):
        found["race"] = str(race["id"])
    if record.machine_bound:
        shared = dict(conditions(record))
        found |= {name: shared[name] for name in MACHINE if name in shared}
    return found


def _verdict(
    records: tuple[Record, Record],
    pair: tuple[Measurement, Measurement],
    policy: Policy,
    sources: tuple[Source, Source],
) -> tuple[Verdict, str]:
    """Judge two measured values of one metric."""
    (before, after), metric = (one.value for one in pair), pair[0].metric
    assert before is not None
    assert after is not None
    if metric.name in policy.exact:
        return _exactly(before, after, metric.higher_is_better)
    if records[0].machine_bound:
        return _cost(records, pair, policy)
    return _accuracy(records, metric, (before, after), policy, sources)


def _exactly(before: float, after: float, higher_is_better: bool) -> tuple[Verdict, str]:
    if before == after:
        return Verdict.SAME, "equal"
    better = (after > before) == higher_is_better
    return Verdict.BETTER if better else Verdict.WORSE, f"{before:.6g} became {after:.6g}; it must be equal"


def _accuracy(
    records: tuple[Record, Record], metric: Metric, values: tuple[float, float], policy: Policy,
    sources: tuple[Source, Source],
) -> tuple[Verdict, str]:  # fmt: skip
    """Judge by the paired test where the outcomes of the items are there, else by the margin alone."""
    old, new = records
    # A mean over seeds may differ where the outcomes, which are of one, do not.
    if old.outcomes_sha256 and old.outcomes_sha256 == new.outcomes_sha256 and values[0] == values[1]:
        return Verdict.SAME, "the same outcome on every item"
    scale = 1 if metric.unit == "%" else 100
    paired = difference_of(sources, records, metric.name)
    if paired is None:
        points = scale * (values[1] - values[0])
        within = abs(points) <= policy.accuracy_margin
        reason = f"{points:+.2f} points; no outcomes to pair, so that chance is not known" if points else "equal"
        return (Verdict.SAME if not points else Verdict.INCONCLUSIVE if within or points > 0 else Verdict.WORSE), reason
    points, low, high = (scale * value for value in (paired.change, paired.low, paired.high))
    reason = f"{points:+.2f} points ({low:+.2f} to {high:+.2f}), {paired.counts}, p = {p_shown(paired.p)}"
    if paired.p < policy.accuracy_level:
        return (Verdict.BETTER if points > 0 else Verdict.WORSE), reason
    within = -policy.accuracy_margin <= low <= high <= policy.accuracy_margin
    return (Verdict.SAME if within else Verdict.INCONCLUSIVE), reason


def _cost(records: tuple[Record, Record], pair: tuple[Measurement, Measurement], policy: Policy) -> tuple[Verdict, str]:
    """Judge by the samples where there are any, else by the intervals, else by the least effect alone."""
    before, after = pair
    disturbed = [why for record in records for why in record.details.get("disturbed", ())]
    if before.samples == after.samples and before.value == after.value:
        return Verdict.SAME, "equal"
    assert before.value is not None
    assert after.value is not None
    if before.metric.unit == "MiB" and abs(after.value - before.value) <= policy.memory_least_effect:
        return Verdict.SAME, f"{before.value:.4g} became {after.value:.4g}; processes of one model differ by as much"
    least = policy.cost_least_effect
    found = _difference(before, after, policy)
    if found is None:
        return _without_chance(before.value, after.value, before.metric, least)
    by, low, high = (100 * (ratio - 1) for ratio in (found.ratio, found.low, found.high))
    reason = f"{by:+.1f} % ({low:+.1f} to {high:+.1f}), p = {p_shown(found.p)}"
    if disturbed:
        return Verdict.INCONCLUSIVE, f"{reason}; disturbed: {disturbed[0]}"
    if found.differs:
        better = (found.ratio > 1) == before.metric.higher_is_better
        return (Verdict.BETTER if better else Verdict.WORSE), reason
    within = 1 / (1 + least) <= found.low <= found.high <= 1 + least
    return (Verdict.SAME if within else Verdict.INCONCLUSIVE), reason


def _difference(before: Measurement, after: Measurement, policy: Policy) -> Difference | None:
    """The difference with its chance; None where one value each is all there is."""
    if min(len(before.samples), len(after.samples)) > 1 and min(before.value or 0, after.value or 0) > 0:
        return ratio_of_series(before.samples, after.samples, policy.cost_level, policy.cost_least_effect)
    if not before.interval or not after.interval or min(*before.interval, *after.interval) <= 0:
        return None
    assert before.value is not None
    assert after.value is not None
    sides = (before.value, before.interval), (after.value, after.interval)
    return ratio_of_intervals(*sides, policy.cost_level, policy.cost_least_effect)


def _without_chance(before: float, after: float, metric: Metric, least: float) -> tuple[Verdict, str]:
    """Judge two values by the least effect; of times, which chance changes by more, it proves nothing."""
    if before == 0 or abs(after / before - 1) <= least:
        return Verdict.SAME if before or not after else Verdict.INCONCLUSIVE, f"{before:.4g} became {after:.4g}"
    reason = f"{100 * (after / before - 1):+.1f} %, from one value each"
    if metric.unit == "ms":
        return Verdict.INCONCLUSIVE, f"{reason}; too few samples to know chance"
    better = (after > before) == metric.higher_is_better
    return Verdict.BETTER if better else Verdict.WORSE, reason


def exit_code(findings: Sequence[Finding], policy: Policy) -> int:
    """Return what the gate exits with: the gravest verdict that the policy does not tolerate.

    0 green; 3 worse; 4 something was not measured, or nothing at all; 5 the environment changed; 6 inconclusive.
    Where no cell that was measured anew is the same or better, tolerance makes nothing green: nothing was shown.
    """
    verdicts = {finding.verdict for finding in findings}
    shown = any(one.verdict in (Verdict.SAME, Verdict.BETTER) and not one.copied for one in findings)
    for verdict, code in CODES.items():
        if verdict in verdicts and (verdict not in policy.tolerate or not shown):
            return code
    return 0 if shown else CODES[Verdict.NOT_MEASURED]


CODES = {Verdict.WORSE: 3, Verdict.NOT_MEASURED: 4, Verdict.CHANGED: 5, Verdict.INCONCLUSIVE: 6}
