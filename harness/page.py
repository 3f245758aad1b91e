"""All boards as one HTML page that needs no network and no server: tables, a plot, and every record behind them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.leaderboard import Board, LeftOut, Row, identity
from harness.metric import Measurement, Metric
from harness.published import beside
from harness.record import Record

TEMPLATE = Path(__file__).parent / "assets" / "page"


def to_html(boards: Sequence[Board], left_out: Sequence[LeftOut]) -> bytes:
    """Return the page in UTF-8; equal boards give equal bytes.

    Whatever comes from a record is data in a JSON block, and the script shows it as text. The page's own policy lets no
    other script run and nothing be fetched.
    """
    html, style, script = ((TEMPLATE / name).read_bytes() for name in ("page.html", "page.css", "page.js"))
    parts = {
        b"style": style,
        b"script": script,
        b"script_hash": b"sha256-" + base64.b64encode(hashlib.sha256(script).digest()),
        b"data": _json(payload(boards, left_out)),
    }
    return re.sub(rb"\{\{(\w+)\}\}", lambda found: parts[found[1]], html)


def _json(found: Any) -> bytes:
    """JSON that can stand in a script element: nothing in it ends the element."""
    text = msgspec.json.encode(found)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter.encode(), b"\\u%04x" % ord(letter))
    return text


# Made once: a board has very many small parts.
_PLAIN = msgspec.json.Encoder().encode
_ORDERED = msgspec.json.Encoder(order="deterministic").encode


def _packed(found: Any) -> msgspec.Raw:
    """A part of the JSON as text, which takes a tenth of the memory of its objects."""
    return msgspec.Raw(_PLAIN(found))


def payload(boards: Sequence[Board], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Return what the script draws: boards, models with their records, what these share, and what was left out."""
    models, published = _Models(), defaultdict(list)
    for board in boards:
        for row in board.rows:
            models.add(row.record, "")
    for one in beside(boards, left_out):
        published[one.record.model].append(one.cells)
    left_out = [item for item in left_out if item.record.provenance != "published"]
    for item in left_out:
        models.add(item.record, item.reason)
    count = sum(len(board.rows) for board in boards)
    identities: dict[tuple[str, ...], int] = {}
    return {
        "summary": f"{count:,} ranked results of {len(models.found):,} models on {len(boards):,} boards",
        "boards": [_board(board, models.numbers, identities) for board in boards],
        "models": [
            {"name": name, "records": found, "published": published[name]} for name, found in models.found.items()
        ],
        **{kind: shared.values() for kind, shared in models.shared.items()},
        "leftOut": [[f"{one.record.model} on {one.record.task} ({one.record.key})", one.reason] for one in left_out],
    }


class _Shared:
    """Values that many records have alike; each is held once, and told by its number."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def number(self, value: object) -> int:
        """Return the number of a value."""
        text = _ORDERED(value)
        return self._numbers.setdefault(text, len(self._numbers))

    def values(self) -> list[msgspec.Raw]:
        """Return the values by their numbers."""
        return list(map(msgspec.Raw, self._numbers))


class _Models:
    """Records by model."""

    def __init__(self) -> None:
        self.found: dict[str, list[msgspec.Raw]] = defaultdict(list)
        self.numbers: dict[str, int] = {}
        self.shared = {kind: _Shared() for kind in ("environments", "setups", "data", "quantities")}
        self._quantities: dict[tuple[str, str], int] = {}

    def add(self, record: Record, refused: str) -> None:
        """Take in a record, with the reason for which it does not rank."""
        self.numbers.setdefault(record.model, len(self.numbers))
        shared = self.shared
        self.found[record.model].append(_packed({
            "task": record.task, "key": record.key, "provenance": record.provenance, "command": record.command,
            "refused": refused, "environment": shared["environments"].number(record.environment),
            "setup": shared["setups"].number(record.setup), "data": shared["data"].number(record.data),
            "measurements": [self._measurement(one) for one in record.measurements],
            "about": {
                "started_at": record.started_at, "seconds": record.seconds, "source_sha256": record.source_sha256,
            },
        }))  # fmt: skip

    def _measurement(self, one: Measurement) -> list[Any]:
        """The number of its quantity, the value, and where there is none the reason."""
        quantity = one.metric.name, one.metric.unit
        number = self._quantities.get(quantity)
        if number is None:
            number = self._quantities[quantity] = self.shared["quantities"].number(quantity)
        return [number, one.value] if one.value is not None else [number, None, one.reason]


def _board(board: Board, numbers: Mapping[str, int], identities: dict[tuple[str, ...], int]) -> dict[str, Any]:
    shared, names = dict(board.conditions), [metric.name for metric in board.metrics]
    return {
        "task": board.task,
        "title": board.title,
        "hardware": shared.get("device", ""),
        "machineBound": "device" in shared,
        "conditions": [[label, value] for label, value in board.facts],
        "metrics": [_metric(metric) for metric in board.metrics],
        "best": board.best,
        "rows": [_packed(_row(row, names, numbers, identities)) for row in board.rows],
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {"name": metric.name, "unit": metric.unit, "higher": metric.higher_is_better, "decimals": metric.decimals}


def _row(
    row: Row, names: Sequence[str], numbers: Mapping[str, int], identities: dict[tuple[str, ...], int]
) -> dict[str, Any]:
    record = row.record
    return {
        "rank": row.rank,
        "tied": row.tied,
        "ranks": row.ranks,
        "label": row.label,
        "model": numbers[record.model],
        "family": family(record.model),
        "identity": identities.setdefault(identity(record), len(identities)),
        "note": row.note,
        "values": list(map(row.values.get, names)),
        "intervals": list(map(row.intervals.get, names)),
    }


def family(model: str) -> str:
    """Return the family of a model: the first word of a timm name, the carrier of a combination, a user's file."""
    base = model.partition("+")[0]
    if base.startswith("timm:"):
        return base.removeprefix("timm:").partition("_")[0]
    return base.partition(":")[0]
