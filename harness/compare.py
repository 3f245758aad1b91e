"""Two models side by side: every task that both were measured on, with the difference and what it is worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy

from harness.errors import RecordError, SetupError, UnknownName
from harness.factory import nearest
from harness.leaderboard import conditions, why_unranked
from harness.metric import Measurement, Metric, Outcomes
from harness.pairing import difference_of
from harness.progress import track
from harness.record import Record
from harness.resampling import AT_ONCE, Statistic, statistic_of
from harness.significance import check_same_items, disagreements, hits, holm
from harness.statistics import p_shown, ratio_of_series
from harness.store import Store


@dataclass(frozen=True)
class Comparison:
    """One metric of one task on two models.

    Args:
        change: the second's value less the first's; of a cost the ratio of the two.
        interval: the 95 % interval of `change`; None where one value each is all there is.
        p: corrected for the number of comparisons; None without a test.
        test: its name, or why there is none.
    """

    task: str
    metric: Metric
    first: float
    second: float
    change: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    test: str = ""
    ratio: bool = False


@dataclass(frozen=True)
class Disagreement:
    """An item on which two models disagree, with what either made of it: the right class's place, or its own value."""

    task: str
    item: str
    first: str
    second: str


def compare(store: Store, first: str, second: str) -> tuple[list[Comparison], list[Disagreement]]:
    """Compare two models on what both have comparable records of, and name the items on which they disagree most.

    Raises:
        UnknownName: a model has no records.
        SetupError: both are one model.
        RecordError: they share no task, or a model has several records that fit one of the other's.
    """
    records = [record for record in store.load() if not record.error and record.provenance != "published"]
    for model in (first, second):
        if all(record.model != model for record in records):
            known = sorted({record.model for record in records})
            raise UnknownName(f"There are no records of {model!r}.{nearest(model, known)} Run it first.")
    if first == second:
        raise SetupError(f"{first!r} is both models: name two. How far runs of one model differ, `rerun` tells.")
    pairs = list(_pairs(records, first, second))
    if not pairs:
        raise RecordError(
            f"{first!r} and {second!r} share no task under equal conditions, so there is nothing to compare. "
            "Run both on one task, with one setup."
        )
    found: list[Comparison] = []
    items: list[Disagreement] = []
    for one, other in pairs:
        more, apart = _compare_pair(store, one, other)
        found += more
        items += apart
    return _corrected(found), items


def _pairs(records: Iterable[Record], first: str, second: str) -> Iterator[tuple[Record, Record]]:
    """Yield the records of two models that were made under equal conditions, by task."""
    sides: list[dict[tuple[object, ...], Record]] = [{}, {}]
    for record in records:
        for side, model in zip(sides, (first, second), strict=True):
            place: tuple[object, ...] = (record.task, conditions(record), record.setup.limit)
            if record.model == model:
                other = side.setdefault(place, record)
                if other is not record:
                    raise RecordError(
                        f"{model!r} has two records on {record.task} under equal conditions, {other.key} and "
                        f"{record.key}: of other weights, code or image size. Move one to another folder."
                    )
    for shared in sorted(sides[0].keys() & sides[1].keys(), key=str):
        yield sides[0][shared], sides[1][shared]


def _compare_pair(store: Store, one: Record, other: Record) -> tuple[list[Comparison], list[Disagreement]]:
    """Compare every metric that tables show of two records."""
    values = {m.metric.name: m for m in other.measurements}
    paired = bool(one.outcomes_sha256 and other.outcomes_sha256)
    outcomes = [store.read_outcomes(record) for record in (one, other)] if paired else []
    ranked = bool(outcomes) and hits(outcomes[0], "top1") is not None
    if ranked:
        check_same_items(outcomes[0], outcomes[1], (one.name, other.name))
    found: list[Comparison] = []
    for measurement in one.measurements:
        match = values.get(measurement.metric.name)
        if measurement.metric.minor or match is None or measurement.value is None or match.value is None:
            continue
        difference = difference_of((store, store), (one, other), measurement.metric.name)
        if difference:
            found.append(Comparison(
                one.task, measurement.metric, measurement.value, match.value, difference.change,
                (difference.low, difference.high), difference.p, difference.test,
            ))  # fmt: skip
        else:
            found.append(_unpaired(one, other, measurement, match))
    if not ranked:
        return found, _furthest(one, other, outcomes)
    places = disagreements(outcomes[0], outcomes[1])
    return found, [Disagreement(one.task, item, _place(a), _place(b)) for item, a, b in places]


def _furthest(one: Record, other: Record, outcomes: Sequence[Outcomes], most: int = 10) -> list[Disagreement]:
    """Return the images whose own values of the headline metric are furthest apart; none where they have no values."""
    statistics = [statistic for found in outcomes if (statistic := statistic_of(found)) is not None]
    shared = one.values().keys() & other.values().keys()
    metrics = [m.metric for m in one.measurements if all(m.metric.name in s.metrics for s in statistics)]
    chosen = next((metric for metric in metrics if metric.name in shared), None)
    if len(statistics) < len(outcomes) or not outcomes or chosen is None:
        return []
    first, second = (_by_item(statistic, chosen.name) for statistic in statistics)
    apart = sorted((-abs(first[item] - second[item]), item) for item in first.keys() & second.keys())
    return [
        Disagreement(one.task, item, *(f"{chosen.name} {side[item]:.{chosen.decimals}f}" for side in (first, second)))
        for distance, item in apart[:most]
        if distance
    ]


def _by_item(statistic: Statistic, metric: str) -> dict[str, float]:
    """The value of a metric on each image by itself, where it has one there."""
    found: dict[str, float] = {}
    for start in track(range(0, len(statistic.items), AT_ONCE), "measure image by image"):
        items = statistic.items[start : start + AT_ONCE]
        counts = numpy.zeros((len(statistic.items), len(items)), numpy.uint8)
        counts[range(start, start + len(items)), range(len(items))] = 1
        found |= zip(items, statistic.values(counts, [metric])[metric].tolist(), strict=True)
    return {item: value for item, value in found.items() if not numpy.isnan(value)}


def _unpaired(one: Record, other: Record, first: Measurement, second: Measurement) -> Comparison:
    """Compare two values that no items pair: a cost by its samples, anything else without a test.

    Passes of one process agree on its resident set, and processes of one model differ by more: that is not tested.
    """
    assert first.value is not None
    assert second.value is not None
    cost = one.machine_bound
    ratio = second.value / first.value if first.value else float("nan")
    plain = Comparison(
        one.task, first.metric, first.value, second.value, ratio if cost else second.value - first.value,
        test="one value each", ratio=cost,
    )  # fmt: skip
    if not cost or min(len(first.samples), len(second.samples)) < 2 or min(first.value, second.value) <= 0:
        return plain
    if why := why_unranked(one) or why_unranked(other):
        return replace(plain, test=why)
    if first.metric.unit == "MiB":
        return replace(plain, test="one process each")
    found = ratio_of_series(first.samples, second.samples)
    return replace(plain, interval=(found.low, found.high), p=found.p, test="Mann-Whitney, autocorrelated")


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p of all tests for their number."""
    tested = [one for one in found if one.p is not None]
    corrected = iter(holm([one.p for one in tested if one.p is not None]))
    return [replace(one, p=next(corrected)) if one.p is not None else one for one in found]


def to_markdown(first: str, second: str, found: Sequence[Comparison], items: Sequence[Disagreement]) -> str:
    """Return the page of a comparison."""
    from tabulate import tabulate

    from harness.tables import escape

    head = ["task", "metric", escape(first), escape(second), "difference", "95 % interval", "p (Holm)", "test"]
    rows = [[escape(one.task), escape(one.metric.name), *_numbers(one), escape(one.test)] for one in found]
    align = ("left", "left", *["right"] * 5, "left")
    parts = [f"## {escape(second)} against {escape(first)}"]
    parts.append(tabulate(rows, head, tablefmt="pipe", colalign=align, disable_numparse=True))
    if items:
        lines = [[escape(one.task), escape(one.item), one.first, one.second] for one in items]
        names = ["task", "item", escape(first), escape(second)]
        parts += ["### Where they disagree most", tabulate(lines, names, tablefmt="pipe", disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def _numbers(one: Comparison) -> list[str]:
    decimals = one.metric.decimals
    values = [f"{value:.{decimals}f}" for value in (one.first, one.second)]
    if one.ratio:
        change = f"x {one.change:.3f}" if one.first else "–"
        ends = [f"{end:.3f}" for end in one.interval or ()]
    else:
        change, ends = f"{one.change:+.{decimals}f}", [f"{end:+.{decimals}f}" for end in one.interval or ()]
    return [*values, change, " to ".join(ends) or "–", "–" if one.p is None else p_shown(one.p)]


def _place(place: int) -> str:
    return f"right class at place {place}" if place else "right class not in the top 5"
