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

from harness.budget import ALSO
from harness.leaderboard import Board, Identity, LeftOut, Row, identity
from harness.metric import Measurement, Metric
from harness.published import beside, shown
from harness.record import Record

TEMPLATE = Path(__file__).parent / "assets" / "page"
FILES = ("page.html", "page.css", "plot.js", "page.js")


def to_html(boards: Sequence[Board], left_out: Sequence[LeftOut]) -> bytes:
    """Return the page in UTF-8; equal boards give equal bytes.

    Whatever comes from a record is data in a JSON block, and the script shows it as text. The page's own policy lets no
    other script run and nothing be fetched.
    """
    html, style, *scripts = map(Path.read_bytes, (TEMPLATE / name for name in FILES))
    script = b"\n".join(scripts)
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
    """Return what the script draws: boards, models with their records and published values, and what these share."""
    models, published = _Models(), defaultdict(list)
    for board in boards:
        for row in board.rows:
            models.add(row.record, "")
    ranked = len(models.numbers)
    for item in left_out:
        if item.record.provenance != "published":
            models.add(item.record, item.reason)
    found = beside(boards, left_out)
    for one in found:
        published[one.record.model].append((one.kind, one.record.task, one.image, *one.cells))
    for one in shown(found):
        models.numbers.setdefault(one.record.model, len(models.numbers))
    count = sum(len(board.rows) for board in boards)
    identities: dict[Identity, int] = {}
    return {
        "summary": f"{count:,} ranked results of {ranked:,} models on {len(boards):,} boards",
        "boards": [_board(board, models.numbers, identities) for board in boards],
        "models": [
            {"name": name, "records": models.found[name], "published": published[name]} for name in models.numbers
        ],
        "elsewhere": sum(len(cells) for name, cells in published.items() if name not in models.numbers),
        "also": ALSO,
        **{kind: shared.values() for kind, shared in models.shared.items()},
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
        self._quantities: dict[tuple[str, ...], int] = {}

    def add(self, record: Record, refused: str) -> None:
        """Take in a record, with the reason for which it does not rank."""
        self.numbers.setdefault(record.model, len(self.numbers))
        shared = self.shared
        self.found[record.model].append(_packed({
            "task": record.task, "key": record.key, "provenance": record.provenance, "command": record.command,
            "refused": refused, "environment": shared["environments"].number(record.environment),
            "setup": shared["setups"].number(record.setup), "data": shared["data"].number(record.data),
            "quantities": self._number(record.measurements), "values": [one.value for one in record.measurements],
            "reasons": [one.reason for one in record.measurements if one.value is None],
            "about": {
                "started_at": record.started_at, "seconds": record.seconds, "source_sha256": record.source_sha256,
            },
        }))  # fmt: skip

    def _number(self, measurements: Sequence[Measurement]) -> int:
        """The number of the names and units of measurements, which most records of a task have alike."""
        names = (*[one.metric.name for one in measurements], *[one.metric.unit for one in measurements])
        number = self._quantities.get(names)
        if number is None:
            pairs = [(one.metric.name, one.metric.unit) for one in measurements]
            number = self._quantities[names] = self.shared["quantities"].number(pairs)
        return number


def _board(board: Board, numbers: Mapping[str, int], identities: dict[Identity, int]) -> dict[str, Any]:
    shared = dict(board.conditions)
    return {
        "task": board.task,
        "title": board.title,
        "hardware": shared.get("device", ""),
        "machineBound": "device" in shared,
        "conditions": [[label, value] for label, value in board.facts],
        "metrics": [_metric(metric) for metric in board.metrics],
        "best": board.best,
        "rows": [_packed(_row(row, len(board.metrics), numbers, identities)) for row in board.rows],
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {"name": metric.name, "unit": metric.unit, "higher": metric.higher_is_better, "decimals": metric.decimals}


def _row(row: Row, count: int, numbers: Mapping[str, int], identities: dict[Identity, int]) -> dict[str, Any]:
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
        "values": row.values[:count],
        "intervals": row.intervals[:count],
    }


def family(model: str) -> str:
    """Return the family of a model: the first word of a timm name, the carrier of a combination, a user's file."""
    base = model.partition("+")[0]
    if base.startswith("timm:"):
        return base.removeprefix("timm:").partition("_")[0]
    return base.partition(":")[0]
