"""What the pages of boards state, row by row, so that a page can be held against the records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from harness.page_data import PageData, PageRecord

# A line's number, its text, and what it states, without what its neighbours decide, such as widths and bold.
Statement = tuple[int, str, tuple[Any, ...]]
RANK = re.compile(r"(\d+)(?:=|\$=\$)?(?: \(\d+(?:–|--)\d+\))?")
EMPTY = ("", "–", "--")
DATA = re.compile(rb'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)


def unsupported(name: str, page: bytes, fresh: bytes) -> Iterator[tuple[str, str]]:
    """Yield place and text of whatever a page states and a page that was made from the records does not.

    Args:
        name: of a page that `READERS` knows.
        page: as it was written.
        fresh: as the records give it.
    """
    read = READERS[name]
    known = {statement for _, _, statement in read(fresh)}
    for number, text, statement in read(page):
        if statement not in known:
            yield (f"{name}:{number}" if number else name), text


def _markdown(page: bytes) -> Iterator[Statement]:
    """Titles, rows of tables, and every other line but the heads of tables."""
    title, lines = "", _lines(page)
    for number, line in enumerate(lines, 1):
        after = lines[number] if number < len(lines) else ""
        if line.startswith("#"):
            title = line
            yield number, line, (title,)
        elif line and not line.startswith("|"):
            yield number, line, (title, line)
        elif line and not line.startswith(("|:-", "|--")) and not after.startswith(("|:-", "|--")):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            yield number, " ".join(line.split()), (title, *_filled(cell.strip().strip("*") for cell in cells))


def _latex(page: bytes) -> Iterator[Statement]:
    """Captions, and rows of tables."""
    title, heading = "", False
    for number, line in enumerate(_lines(page), 1):
        if line.startswith("\\caption"):
            title = line
            yield number, line, (title,)
        elif line.endswith(" \\\\") and not heading:
            cells = re.split(r"(?<!\\) & ", line.removesuffix(" \\\\"))
            yield number, line, (title, *_filled(re.sub(r"^\\textbf\{(.*)\}$", r"\1", cell) for cell in cells))
        heading = line == "\\toprule"


def _lines(page: bytes) -> list[str]:
    return page.decode(errors="replace").splitlines()


def _filled(cells: Iterator[str]) -> Iterator[str]:
    """The cells of a row that hold something; of a rank only the number, since its neighbours decide the rest."""
    for place, cell in enumerate(cells):
        rank = None if place else RANK.fullmatch(cell)
        if cell not in EMPTY:
            yield rank[1] if rank else cell


def _html(page: bytes) -> Iterator[Statement]:
    """Every value of the boards and of the models' records, and the page around them."""
    parts = DATA.split(page)
    yield 0, "the page around the data", ("page", *parts[::2])
    for text in parts[1::2]:
        try:
            for one in _values(msgspec.json.decode(text, type=PageData)):
                yield 0, " ".join(map(str, one)), one
        except (msgspec.MsgspecError, ValueError, IndexError, RecursionError):
            yield 0, "data that cannot be read", ("data", text)


def _values(data: PageData) -> Iterator[tuple[Any, ...]]:
    yield data.summary, data.elsewhere
    for board in data.boards:
        for row in board.rows:
            row_of = (board.title, *row.label)
            yield row_of
            for metric, value, interval in zip(board.metrics, row.values, row.intervals, strict=True):
                if value is not None:
                    yield (*row_of, metric.name, value, *(interval or ()))
    for model in data.models:
        yield from ((model.name, *cells) for cells in model.published)
        for record in model.records:
            yield from _told(record, model.name, data)


def _told(record: PageRecord, model: str, data: PageData) -> Iterator[tuple[Any, ...]]:
    """What a model's part of the page tells of one record."""
    of = (model, record.task, record.key)
    for quantity, value in zip(data.quantities[record.quantities], record.values, strict=True):
        yield (*of, *quantity, value)
    yield (*of, record.provenance, record.command, record.refused, *record.reasons)
    yield (*of, record.started_at, record.seconds, record.source_sha256)
    for shared, number in (
        (data.environments, record.environment), (data.data, record.data), (data.weights, record.weights),
        (data.preprocessing, record.preprocessing), (data.setups, record.setup),
    ):  # fmt: skip
        yield (*of, bytes(shared[number]).decode())


READERS: dict[str, Callable[[bytes], Iterator[Statement]]] = {
    "README.md": _markdown,
    "leaderboard.tex": _latex,
    "leaderboard.html": _html,
}
