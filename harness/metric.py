"""What is measured: a metric with its unit and direction, a measurement of it, and the meter that makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, runtime_checkable

import msgspec
from msgspec import Meta

from harness.errors import BenchError


class Metric(msgspec.Struct, frozen=True, gc=False):
    """A quantity. It travels inside every record, so that no table has to guess its unit or direction.

    Args:
        name: unique among the metrics of one task, such as `top1` or `latency_b1`.
        unit: as printed in a column's head; empty for a bare number.
        higher_is_better: the direction of better.
        decimals: how many the tables show; records keep all.
        minor: records keep it, and ranked tables leave it out.
    """

    name: Annotated[str, Meta(min_length=1, max_length=80)]
    unit: Annotated[str, Meta(max_length=20)]
    higher_is_better: bool
    decimals: Annotated[int, Meta(ge=0, le=9)] = 2
    minor: bool = False


class Measurement(msgspec.Struct, frozen=True, gc=False):
    """One value of one metric; `samples` keeps the raw values that it was derived from.

    A value of None is a cell that could not be filled, and `reason` says why.

    Args:
        interval: the 95 % interval of the value; None where what was measured does not tell one.
    """

    metric: Metric
    value: float | None
    samples: tuple[float, ...] = ()
    reason: str = ""
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise BenchError(f"A measurement of {self.metric.name!r} without a value needs a reason.")
        if self.interval and not self.interval[0] <= self.interval[1]:
            raise BenchError(f"The interval of {self.metric.name!r} is {self.interval}; expected the lower end first.")


Row = tuple[str | int, ...]


@dataclass(frozen=True)
class Outcomes:
    """What happened to each item, one row an item, in the order of evaluation.

    Args:
        columns: the names of the columns, `item` first.
        rows: one tuple of strings and integers an item.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Evaluation:
    """What a task returns: measurements (the headline first), details for the record, and per-item outcomes."""

    measurements: tuple[Measurement, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    outcomes: Outcomes | None = None


class Meter(Protocol):
    """Turns outputs and targets, batch after batch, into an evaluation."""

    def update(self, outputs: Any, batch: Any) -> None:
        """Take in one batch of outputs with the batch that they were made from."""

    def compute(self) -> Evaluation:
        """Return the measurements of everything taken in, the headline first."""


@runtime_checkable
class ResumableMeter(Meter, Protocol):
    """A meter whose whole state is one row an item, in the order of evaluation; given these rows, it goes on."""

    rows: list[Row]
