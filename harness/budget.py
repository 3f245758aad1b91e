"""Budgets: which models stay within `gmacs<5,latency_b1<10`, whichever board measured that."""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.errors import SetupError, UnknownName
from harness.factory import nearest
from harness.leaderboard import Board, Identity, Row, identity

SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
TERM = re.compile(r"\s*([A-Za-z]\w*)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
# What people say for what records call otherwise.
ALSO = {"p50_ms": "latency_b1", "p95_ms": "latency_p95_b1", "params": "parameters", "macs": "gmacs"}


@dataclass(frozen=True)
class Limit:
    """One condition, such as gmacs < 5."""

    metric: str
    sign: str
    value: float


def parse(text: str) -> list[Limit]:
    """Read a budget.

    Raises:
        SetupError: a part is no condition.
    """
    found = []
    for part in text.split(","):
        term = TERM.fullmatch(part)
        try:
            limit = float(term[3]) if term else None
        except ValueError:
            limit = None
        if term is None or limit is None:
            raise SetupError(f"{part.strip()!r} is no budget; expected conditions such as gmacs<5,latency_b1<10.")
        found.append(Limit(ALSO.get(term[1], term[1]), term[2], limit))
    return found


def within(boards: Sequence[Board], limits: Sequence[Limit]) -> list[Board]:
    """Return the boards with those rows that stay within every limit; ranks stay those among all.

    A row's own value decides. Where it has none, as accuracy has no latency, any that was measured of its model at its
    image size does, on whichever board; where nothing was measured, the row stays out.

    Raises:
        UnknownName: no board has such a metric.
    """
    values: dict[Identity, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for board in boards:
        for row in board.rows:
            for name, value in row.every_value().items():
                if value is not None:
                    values[identity(row.record)][name].append(value)
    known = sorted({name for found in values.values() for name in found})
    for limit in limits:
        if limit.metric not in known:
            hint = nearest(limit.metric, known) or " The heads of the tables that `board` writes name them."
            raise UnknownName(f"No board has a metric named {limit.metric!r}.{hint}")
    kept = [replace(board, rows=tuple(row for row in board.rows if _fits(row, values[identity(row.record)], limits)))
            for board in boards]  # fmt: skip
    return [board for board in kept if board.rows]


def _fits(row: Row, elsewhere: Mapping[str, Sequence[float]], limits: Sequence[Limit]) -> bool:
    """Whether the row's value of each metric, or one measured elsewhere, is within its limit."""
    own = row.every_value()
    for limit in limits:
        value = own.get(limit.metric)
        values = elsewhere.get(limit.metric, ()) if value is None else (value,)
        if not any(SIGNS[limit.sign](value, limit.value) for value in values):
            return False
    return True
