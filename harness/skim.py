"""Very many records at once: read without what boards do not look at, and what they have alike held once."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import force_setattr

from harness.details import Details
from harness.errors import BenchError
from harness.metric import Measurement, Metric
from harness.record import SCHEMA, Record, from_json


def skim(text: bytes, origin: str) -> Record:
    """Read a record as `from_json` does, without the samples of a single run and without details that boards pass over.

    Args:
        origin: where the text came from, for messages.

    Raises:
        RecordError: the text is no record, or was written by a newer harness.
    """
    try:
        record: Record = _RECORDS.decode(text)
    except (msgspec.MsgspecError, BenchError, RecursionError):
        return from_json(text, origin)
    if record.schema > SCHEMA:
        return from_json(text, origin)
    looked: object = record.details
    if looked == _NOTHING:
        force_setattr(record, "details", {})
        return record
    details = _DETAILS.decode(text).details
    # Where several trainings are equal, samples by seed are what these are compared by.
    if "equal" in details:
        return from_json(text, origin)
    force_setattr(record, "details", details)
    return record


class _Unsampled(Measurement, frozen=True, gc=False):
    """A measurement whose samples are passed over, since no text has this name for them, and whose metric is shared."""

    samples: tuple[float, ...] = msgspec.field(default=(), name="never read")

    def __post_init__(self) -> None:
        known = _METRICS.setdefault(self.metric.name, self.metric)
        if known is not self.metric and known == self.metric:
            force_setattr(self, "metric", known)
        if self.value is None or self.interval:
            super().__post_init__()


class _Looked(Details, frozen=True, gc=False):
    """The details that boards look at, and what published records say of themselves."""

    source: Any = None
    protocol: Any = None


class _Skimmed(Record, frozen=True, kw_only=True, gc=False):
    measurements: tuple[_Unsampled, ...]
    details: _Looked = _Looked()  # type: ignore[assignment]


class _Detailed(msgspec.Struct):
    details: dict[str, Any] = {}


_NOTHING = _Looked()
_METRICS: dict[str, Metric] = {}
_RECORDS = msgspec.json.Decoder(_Skimmed)
_DETAILS = msgspec.json.Decoder(_Detailed)


class Sharing:
    """Lets records that are read one after the other have their equal parts in common, most of their memory."""

    def __init__(self) -> None:
        self._known: dict[object, Any] = {}

    def __call__(self, record: Record) -> Record:
        """Return a record, of whose parts those are replaced that an earlier record had."""
        place = record.environment
        self._share(record, "environment", (place.device, place.commit, place.threads))
        self._share(record, "data", record.data)
        if self._share(record, "setup", record.setup):
            self._share(record.setup, "weights", record.setup.weights)
            self._share(record.setup, "preprocessing", record.setup.preprocessing)
        return record

    def _share(self, owner: msgspec.Struct, name: str, mark: object) -> bool:
        """Give the owner the earlier part with this mark, if it is equal, and return whether there was none."""
        part = getattr(owner, name)
        earlier = self._known.setdefault(mark, part)
        if earlier is part:
            return True
        if earlier == part:
            force_setattr(owner, name, earlier)
        return False
