"""What the pages of boards state, row by row, so that a page can be held against the records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# A line's number, its text, and what it states, without what its neighbours decide, such as widths and bold.
Statement = tuple[int, str, tuple[Any, ...]]
RANK = re.compile(r"(\d+)(?:=|\$=\$)?(?: \(\d+(?:–|--)\d+\))?")
EMPTY = ("", "–", "--")
DATA = re.compile(r'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)


def unsupported(name: str, page: str, fresh: str) -> Iterator[tuple[str, str]]:
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


def _markdown(page: str) -> Iterator[Statement]:
    """Titles, rows of tables and items of lists."""
    title, lines = "", page.split("\n")
    for number, line in enumerate(lines, 1):
        after = lines[number] if number < len(lines) else ""
        if line.startswith("#"):
            title = line
            yield number, line, (title,)
        elif line.startswith("- "):
            yield number, line, (title, line)
        elif line.startswith("|") and not line.startswith(("|:-", "|--")) and not after.startswith(("|:-", "|--")):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            yield number, " ".join(line.split()), (title, *_filled(cell.strip().strip("*") for cell in cells))


def _latex(page: str) -> Iterator[Statement]:
    """Captions, and rows of tables."""
    title, heading = "", False
    for number, line in enumerate(page.split("\n"), 1):
        if line.startswith("\\caption"):
            title = line
            yield number, line, (title,)
        elif line.endswith(" \\\\") and not heading:
            cells = re.split(r"(?<!\\) & ", line.removesuffix(" \\\\"))
            yield number, line, (title, *_filled(re.sub(r"^\\textbf\{(.*)\}$", r"\1", cell) for cell in cells))
        heading = line == "\\toprule"


def _filled(cells: Iterator[str]) -> Iterator[str]:
    """The cells of a row that hold something; of a rank only the number, since its neighbours decide the rest."""
    for place, cell in enumerate(cells):
        rank = None if place else RANK.fullmatch(cell)
        if cell not in EMPTY:
            yield rank[1] if rank else cell


def _html(page: str) -> Iterator[Statement]:
    """Every value of the boards and of the models' records, and the page around them."""
    parts = DATA.split(page)
    yield 0, "the page around the data", ("page", *parts[::2])
    for text in parts[1::2]:
        try:
            statements = list(_values(json.loads(text)))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            statements = [("data that cannot be read", text[:80])]
        yield from ((0, " ".join(map(str, one)), one) for one in statements)


def _values(data: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for board in data["boards"]:
        for row in board["rows"]:
            row_of = (board["title"], *row["label"])
            yield row_of
            for metric, value, interval in zip(board["metrics"], row["values"], row["intervals"], strict=True):
                if value is not None:
                    yield (*row_of, metric["name"], value, *(interval or ()))
    for model in data["models"]:
        yield from ((model["name"], *cells) for cells in model["published"])
        for record in model["records"]:
            for number, *value in record["measurements"]:
                yield (model["name"], record["task"], record["key"], *data["quantities"][number], *value)
    yield from (tuple(one) for one in data["leftOut"])


READERS: dict[str, Callable[[str], Iterator[Statement]]] = {
    "README.md": _markdown,
    "leaderboard.tex": _latex,
    "leaderboard.html": _html,
}
