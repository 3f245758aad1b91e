"""All boards as one HTML page that needs no network and no server: tables, a plot, and every record behind them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness.leaderboard import Board, LeftOut
from harness.page_data import PageData, page_data

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
        b"data": _json(page_data(boards, left_out)),
    }
    return re.sub(rb"\{\{(\w+)\}\}", lambda found: parts[found[1]], html)


def _json(found: PageData) -> bytes:
    """JSON that can stand in a script element: nothing in it ends the element."""
    text = msgspec.json.encode(found)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter.encode(), b"\\u%04x" % ord(letter))
    return text
