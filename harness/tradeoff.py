"""Attentions trained at an equal budget: accuracy against each cost, and each against the carrier's own softmax."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from harness.leaderboard import Board, Identity, Row, by_seed, conditions, identity
from harness.metric import Measurement, Metric
from harness.record import Record
from harness.significance import PairedDifference, holm, seed_differences

# The first that a record holds stands for a cost; the batch is the larger one.
COSTS = (("parameters",), ("gmacs",), ("latency_b{batch}",), ("memory_b{batch}", "resident_b{batch}"))
DISTURBED = "latency"  # the usual cost that what else runs on a machine can change


@dataclass(frozen=True)
class Contender:
    """One attention in a carrier.

    Args:
        over_images: half the width of the interval that other test images would have moved one training within, the
            mean over seeds; None where the records do not say.
        change: from the control, seed by seed; None for the control, or without one.
        costs: by the metric's name, those that were measured.
        front: the costs on whose Pareto front it lies: nothing is both cheaper and as good, or better and as cheap.
    """

    row: Row
    samples: tuple[float, ...]
    over_images: float | None
    change: PairedDifference | None
    costs: Mapping[str, Measurement]
    front: frozenset[str] = frozenset()

    @property
    def attention(self) -> str:
        """The attention's name; the carrier's own is softmax."""
        return self.row.record.model.partition("+")[2] or "softmax"


@dataclass(frozen=True)
class Tradeoff:
    """A carrier's attentions on one task, best first.

    Args:
        board: where they rank, with all that they share.
        costs: those that at least one of them has.
        place: the conditions of the costs that depend on the machine; empty without any.
    """

    board: Board
    carrier: str
    costs: tuple[Metric, ...]
    place: tuple[tuple[str, str], ...]
    contenders: tuple[Contender, ...]

    @property
    def accuracy(self) -> Metric:
        """The headline."""
        return self.board.metrics[0]


def tradeoffs(boards: Sequence[Board], records: Iterable[Record]) -> list[Tradeoff]:
    """Return one trade-off for each carrier on each board of trainings with several seeds."""
    priced = [record for record in records if record.machine_bound and not record.error]
    found = []
    for board in boards:
        rows = [row for row in board.rows if by_seed(row.record, board.metrics[0].name)]
        for carrier in dict.fromkeys(_carrier(row) for row in rows):
            mine = [row for row in rows if _carrier(row) == carrier]
            if len(mine) > 1:
                found.append(_tradeoff(board, carrier, mine, priced))
    return found


def _carrier(row: Row) -> str:
    return row.record.model.partition("+")[0]


def _tradeoff(board: Board, carrier: str, rows: Sequence[Row], priced: Sequence[Record]) -> Tradeoff:
    place, costs = _costs(rows, priced)
    metrics = {m.metric.name: m.metric for found in costs.values() for m in found.values()}
    metrics = dict(sorted(metrics.items(), key=lambda item: _place_of(item[0])))
    samples = [by_seed(row.record, board.metrics[0].name) for row in rows]
    contenders = [
        Contender(row, values, _over_images(row.record), change, costs[identity(row.record)])
        for row, values, change in zip(rows, samples, _changes(rows, samples, carrier), strict=True)
    ]
    fronts = {name: front(contenders, name, board.metrics[0]) for name in metrics}
    return Tradeoff(
        board, carrier, tuple(metrics.values()), place,
        tuple(
            replace(one, front=frozenset(name for name in metrics if index in fronts[name]))
            for index, one in enumerate(contenders)
        ),
    )  # fmt: skip


def _changes(rows: Sequence[Row], samples: Sequence[tuple[float, ...]], carrier: str) -> list[PairedDifference | None]:
    """Each row's difference from the carrier itself, p corrected for their number."""
    control = next((index for index, row in enumerate(rows) if row.record.model == carrier), None)
    if control is None:
        return [None] * len(rows)
    found = seed_differences(samples, control)
    others = [one for index, one in enumerate(found) if index != control]
    corrected = iter(holm([one.p for one in others]))
    return [None if index == control else replace(one, p=next(corrected)) for index, one in enumerate(found)]


def _over_images(record: Record) -> float | None:
    intervals = [training.get("interval_over_images") for training in record.details.get("trainings", ())]
    return fmean((high - low) / 2 for low, high in intervals) if intervals and all(intervals) else None


def _costs(
    rows: Sequence[Row], priced: Sequence[Record]
) -> tuple[tuple[tuple[str, str], ...], dict[Identity, dict[str, Measurement]]]:
    """What each row costs at its image size; of costs that depend on the machine, those of one machine and setup."""
    known: dict[Identity, dict[str, Measurement]] = {identity(row.record): {} for row in rows}
    mine = [record for record in priced if identity(record) in known]
    places = Counter(conditions(record) for record in mine if len(_of_machine(record)))
    place = max(sorted(places), key=lambda each: places[each], default=())
    for record in mine:
        found = _counted(record) | (_of_machine(record) if conditions(record) == place else {})
        known[identity(record)] |= found
    return place, known


def _place_of(name: str) -> int:
    """Where a metric stands among the costs."""
    pattern = re.sub(r"_b\d+$", "_b{batch}", name)
    return next(place for place, names in enumerate(COSTS) if pattern in names)


def _chosen(record: Record, patterns: Iterable[tuple[str, ...]]) -> dict[str, Measurement]:
    """The first of each cost's names that a record holds with a value."""
    values = {m.metric.name: m for m in record.measurements if m.value is not None}
    wanted = [[name.format(batch=record.setup.batch_size) for name in names] for names in patterns]
    names = [next((name for name in each if name in values), None) for each in wanted]
    return {name: values[name] for name in names if name is not None}


def _counted(record: Record) -> dict[str, Measurement]:
    """Parameters and MACs."""
    return _chosen(record, COSTS[:2])


def _of_machine(record: Record) -> dict[str, Measurement]:
    """Latency and memory, without a latency that was disturbed."""
    disturbed = bool(record.details.get("disturbed"))
    found = _chosen(record, COSTS[2:])
    return {name: m for name, m in found.items() if not (disturbed and name.startswith(DISTURBED))}


def front(contenders: Sequence[Contender], cost: str, accuracy: Metric) -> set[int]:
    """Return which contenders are on the Pareto front of accuracy and a cost, by their estimates."""
    sign = 1 if accuracy.higher_is_better else -1
    known = {
        index: (sign * float(one.row.value(accuracy) or 0), -float(one.costs[cost].value or 0))
        for index, one in enumerate(contenders) if cost in one.costs
    }  # fmt: skip
    return {
        index for index, mine in known.items()
        if not any(a >= mine[0] and c >= mine[1] and (a, c) != mine for a, c in known.values())
    }  # fmt: skip
