"""What the HTML page holds, as its script reads it: tables of cells, and everything that records share held once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from harness.budget import ALSO
from harness.leaderboard import Board, Identity, Interval, LeftOut, Row, identity
from harness.metric import Measurement
from harness.published import beside, shown
from harness.record import Record, Setup

Value = float | None


class PageRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A row of a board.

    Args:
        model: the number of its model.
        identity: a number that rows have alike whose parameters and MACs are the same.
    """

    rank: int
    tied: bool
    ranks: tuple[int, int] | None
    label: tuple[str, str, str]
    model: int
    identity: int
    note: str
    values: tuple[Value, ...]
    intervals: tuple[Interval | None, ...]


class PageRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record of a model; numbers tell which of the shared parts are its own.

    Args:
        refused: why it does not rank; empty where it does.
        reasons: why values are missing, in their order.
    """

    task: str
    key: str
    provenance: str
    command: str
    refused: str
    started_at: str
    seconds: float
    source_sha256: str
    data: int
    environment: int
    weights: int
    preprocessing: int
    setup: int
    quantities: int
    values: tuple[Value, ...]
    reasons: tuple[str, ...]


class PageMetric(msgspec.Struct, frozen=True):
    """The head of a column of a board."""

    name: str
    unit: str
    higher: bool
    decimals: int


class PageBoard(msgspec.Struct, frozen=True):
    """A board; `hardware` is empty where the machine does not matter, and `best` is by its metrics, as printed."""

    task: str
    title: str
    hardware: str
    conditions: tuple[tuple[str, str], ...]
    metrics: tuple[PageMetric, ...]
    best: tuple[str, ...]
    rows: tuple[PageRow, ...]


class PageModel(msgspec.Struct, frozen=True):
    """A model: its records, and what others published of it."""

    name: str
    family: str
    records: tuple[PageRecord, ...]
    published: tuple[tuple[str, ...], ...]


class PageData(msgspec.Struct, frozen=True):
    """The data of a page.

    Args:
        columns: the names of the cells of a row and of a record.
        elsewhere: how many published values are of models that the page does not show.
        also: other names of metrics in budgets.
        setups: without weights and preprocessing, which are lists of their own.
        quantities: names and units of the values of records.
    """

    summary: str
    columns: dict[str, tuple[str, ...]]
    boards: tuple[PageBoard, ...]
    models: tuple[PageModel, ...]
    elsewhere: int
    also: dict[str, str]
    data: tuple[Raw, ...]
    environments: tuple[Raw, ...]
    weights: tuple[Raw, ...]
    preprocessing: tuple[Raw, ...]
    setups: tuple[Raw, ...]
    quantities: tuple[tuple[tuple[str, str], ...], ...]


def page_data(boards: Sequence[Board], left_out: Sequence[LeftOut]) -> PageData:
    """Return what the page of some boards holds; equal boards give equal data."""
    models: dict[str, list[PageRecord]] = defaultdict(list)
    published, shared = defaultdict(list), _Parts()
    for board in boards:
        for row in board.rows:
            models[row.record.model].append(shared.record(row.record, ""))
    ranked = len(models)
    for item in left_out:
        if item.record.provenance != "published":
            models[item.record.model].append(shared.record(item.record, item.reason))
    found = beside(boards, left_out)
    for one in found:
        published[one.record.model].append((one.kind, one.record.task, one.image, *one.cells))
    for one in shown(found):
        models[one.record.model] += []
    numbers = {name: number for number, name in enumerate(models)}
    count = sum(len(board.rows) for board in boards)
    identities: dict[Identity, int] = {}
    return PageData(
        summary=f"{count:,} ranked results of {ranked:,} models on {len(boards):,} boards",
        columns={"row": PageRow.__struct_fields__, "record": PageRecord.__struct_fields__},
        boards=tuple([_board(board, numbers, identities) for board in boards]),
        models=tuple([
            PageModel(name, family(name), tuple(records), tuple(published[name])) for name, records in models.items()
        ]),
        elsewhere=sum(len(cells) for name, cells in published.items() if name not in models),
        also=ALSO,
        **shared.values(),
    )  # fmt: skip


_ORDERED = msgspec.json.Encoder(order="deterministic").encode


class _Shared:
    """Values that many records have alike; each is held once, and told by its number."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        # Most values are the same object, which is told without looking at it; kept, so that no other has its place.
        self._seen: dict[int, tuple[object, int]] = {}

    def number(self, value: object) -> int:
        """Return the number of a value."""
        if (seen := self._seen.get(id(value))) is None:
            number = self._numbers.setdefault(_ORDERED(value), len(self._numbers))
            seen = self._seen[id(value)] = value, number
        return seen[1]

    def values(self) -> tuple[Raw, ...]:
        """Return the values by their numbers."""
        return tuple(map(Raw, self._numbers))


# A setup beside its weights and its preprocessing.
_REST = tuple(name for name in Setup.__struct_fields__ if name not in ("weights", "preprocessing"))


class _Parts:
    """The parts that records share."""

    def __init__(self) -> None:
        self._data, self._environments = _Shared(), _Shared()
        self._weights, self._preprocessing, self._setups = _Shared(), _Shared(), _Shared()
        self._seen: dict[int, tuple[Setup, tuple[int, int, int]]] = {}
        self._names: dict[tuple[str, ...], int] = {}
        self._quantities: list[tuple[tuple[str, str], ...]] = []

    def record(self, record: Record, refused: str) -> PageRecord:
        """Return what the page holds of a record, with the reason for which it does not rank."""
        weights, preprocessing, setup = self._setup(record.setup)
        measured = record.measurements
        return PageRecord(
            record.task, record.key, record.provenance, record.command, refused, record.started_at, record.seconds,
            record.source_sha256, self._data.number(record.data), self._environments.number(record.environment),
            weights, preprocessing, setup, self._number(measured), tuple([one.value for one in measured]),
            tuple([one.reason for one in measured if one.value is None]),
        )  # fmt: skip

    def values(self) -> dict[str, Any]:
        """Return the parts of each kind by their numbers."""
        return {
            "data": self._data.values(), "environments": self._environments.values(),
            "weights": self._weights.values(), "preprocessing": self._preprocessing.values(),
            "setups": self._setups.values(), "quantities": tuple(self._quantities),
        }  # fmt: skip

    def _setup(self, setup: Setup) -> tuple[int, int, int]:
        """The numbers of a setup's weights and preprocessing, and of the rest of it."""
        if (seen := self._seen.get(id(setup))) is None:
            weights, preprocessing = (
                self._weights.number(setup.weights),
                self._preprocessing.number(setup.preprocessing),
            )
            rest = self._setups.number({name: getattr(setup, name) for name in _REST})
            seen = self._seen[id(setup)] = setup, (weights, preprocessing, rest)
        return seen[1]

    def _number(self, measurements: Sequence[Measurement]) -> int:
        """The number of the names and units of measurements, which most records of a task have alike."""
        names = (*[one.metric.name for one in measurements], *[one.metric.unit for one in measurements])
        number = self._names.get(names)
        if number is None:
            number = self._names[names] = len(self._quantities)
            self._quantities.append(tuple([(one.metric.name, one.metric.unit) for one in measurements]))
        return number


def _board(board: Board, numbers: Mapping[str, int], identities: dict[Identity, int]) -> PageBoard:
    shared, count = dict(board.conditions), len(board.metrics)
    return PageBoard(
        task=board.task,
        title=board.title,
        hardware=shared.get("device", ""),
        conditions=tuple(board.facts),
        metrics=tuple(PageMetric(m.name, m.unit, m.higher_is_better, m.decimals) for m in board.metrics),
        best=tuple(board.best),
        rows=tuple([_row(row, count, numbers, identities) for row in board.rows]),
    )


def _row(row: Row, count: int, numbers: Mapping[str, int], identities: dict[Identity, int]) -> PageRow:
    record = row.record
    return PageRow(
        row.rank, row.tied, row.ranks, row.label, numbers[record.model],
        identities.setdefault(identity(record), len(identities)), row.note, row.values[:count], row.intervals[:count],
    )  # fmt: skip


def family(model: str) -> str:
    """Return the family of a model: the first word of a timm name, the carrier of a combination, a user's file."""
    base = model.partition("+")[0]
    if base.startswith("timm:"):
        return base.removeprefix("timm:").partition("_")[0]
    return base.partition(":")[0]
