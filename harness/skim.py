"""Very many records at once: read without what boards do not look at, and what they have alike held once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Raw
from msgspec.structs import force_setattr

from harness.details import Details
from harness.errors import BenchError
from harness.metric import Measurement
from harness.record import SCHEMA, DataStamp, Environment, Record, Setup, from_json

T = TypeVar("T")


def skim(text: bytes, origin: str) -> Record:
    """Read a record as `from_json` does, without the samples of a single run and without details that boards pass over.

    Args:
        origin: where the text came from, for messages.

    Raises:
        RecordError: the text is no record, or was written by a newer harness.
    """
    try:
        record: Any = _RECORDS.decode(text)
        force_setattr(record, "environment", _environment(bytes(record.environment)))
        force_setattr(record, "setup", _shared_setup(record.setup))
        force_setattr(record, "data", _data(bytes(record.data)))
    except (msgspec.MsgspecError, BenchError, RecursionError):
        return from_json(text, origin)
    if record.schema > SCHEMA:
        return from_json(text, origin)
    details = {} if record.details == _NOTHING else _DETAILS.decode(text).details
    # Where several trainings are equal, samples by seed are what these are compared by.
    if "equal" in details:
        return from_json(text, origin)
    force_setattr(record, "details", details)
    found: Record = record
    return found


@lru_cache(maxsize=2**17)
def _same(part: T) -> T:
    """The first of equal parts, so that the others need no memory."""
    return part


# Most records have these alike, to the letter.
_environment = lru_cache(maxsize=2**12)(msgspec.json.Decoder(Environment).decode)
_data = lru_cache(maxsize=2**12)(msgspec.json.Decoder(DataStamp | None).decode)


def _shared_setup(setup: Setup) -> Setup:
    """The first of equal setups, which has its parts in common with others."""
    known: Setup = _same(setup)
    if known is setup:
        force_setattr(setup, "weights", _same(setup.weights))
        force_setattr(setup, "preprocessing", _same(setup.preprocessing))
    return known


class _Unsampled(Measurement, frozen=True, gc=False):
    """A measurement whose samples are passed over, since no text has this name for them."""

    samples: tuple[float, ...] = msgspec.field(default=(), name="never read")

    def __post_init__(self) -> None:
        force_setattr(self, "metric", _same(self.metric))
        if self.value is None or self.interval:
            super().__post_init__()


class _Looked(Details, frozen=True, gc=False):
    """The details that boards look at, and what published records say of themselves."""

    source: Any = None
    protocol: Any = None


class _Skimmed(Record, frozen=True, kw_only=True, gc=False):
    measurements: tuple[_Unsampled, ...]
    details: _Looked = _Looked()  # type: ignore[assignment]
    environment: Raw  # type: ignore[assignment]
    data: Raw  # type: ignore[assignment]


class _Detailed(msgspec.Struct):
    details: dict[str, Any] = {}


_NOTHING = _Looked()
_RECORDS, _DETAILS = map(msgspec.json.Decoder, (_Skimmed, _Detailed))
