"""Whether predictions have the form of predictions, as far as it can be told without the data."""

from __future__ import annotations

import csv
import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from harness.inspection.files import MIB, MOST_SHOWN, UNPRINTABLE, Problem, inside

LARGEST_JSON = 1024 * MIB
LARGEST_TABLE = 64 * MIB
LARGEST_IMAGE = 64 * MIB
MOST_PIXELS = 64_000_000
MOST_CELL = 200
# Each takes some hundred bytes of memory while it is looked at.
MOST_ROWS = 2_000_000
MOST_OBJECTS = 10_000_000
# What may be wrong with a row, as its cells stand one after another behind a tab; `_inspect_row` looks closer.
ODD = re.compile(r"\t\s*(?:[=+@-]|\t|$|[+-]?(?:nan|inf)\s*(?:\t|$))", re.IGNORECASE)
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
NUMBER = re.compile(r"\s*-?[0-9.]+(?:e[+-]?[0-9]+)?\s*", re.IGNORECASE)


class Found(msgspec.Struct):
    """What every prediction has; other keys are passed over, not kept."""

    image_id: int | str
    score: float | None = None


class Panoptic(msgspec.Struct):
    """Results of panoptic segmentation."""

    annotations: list[Found]


def inspect_predictions(folder: Path, name: str) -> list[Problem]:
    """Return what is wrong with a predictions file or folder."""
    if inside(folder, name, 0, "folder") is None:
        return _inspect_images(folder, name) or _at_least_one(folder, name)
    suffix = PurePosixPath(name).suffix
    if problem := inside(folder, name, LARGEST_JSON if suffix == ".json" else LARGEST_TABLE):
        return [problem]
    if suffix == ".csv":
        return list(_inspect_table(folder / name, name))
    if suffix == ".json":
        # Panoptic results have their images in a folder of their name, or beside them.
        return [*_inspect_json(folder / name, name), *_inspect_images(folder, str(PurePosixPath(name).parent))]
    return [Problem("predictions", f"{name!r} is neither .json nor .csv.", "See docs/submit.md for the forms.")]


def _at_least_one(folder: Path, name: str) -> list[Problem]:
    if any((folder / name).rglob("*.png")):
        return []
    return [Problem("predictions", f"{name!r} holds no PNG.", "Put one PNG an image there.")]


def _inspect_images(folder: Path, name: str) -> list[Problem]:
    """Check every PNG of a folder by its header."""
    found: list[Problem] = []
    for path in sorted((folder / name).rglob("*.png")):
        relative = path.relative_to(folder).as_posix()
        problem = inside(folder, relative, LARGEST_IMAGE) or _inspect_png(path, relative)
        found += [problem] if problem else []
        if len(found) == MOST_SHOWN:
            break
    return found


def _inspect_png(path: Path, name: str) -> Problem | None:
    """Check the first 24 bytes of a PNG: signature, and width times height."""
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Problem("predictions", f"{name[:120]!r} is no PNG.", "Save label images as PNG.")
    width, height = struct.unpack(">II", head[16:24])
    if width * height > MOST_PIXELS or not width * height:
        message = f"{name[:120]!r} has {width:,} x {height:,} pixels."
        return Problem("size", message, f"The limit is {MOST_PIXELS:,} in all.")
    return None


def _inspect_table(path: Path, name: str) -> Iterator[Problem]:
    """Check a table of classes by image: cells of sane length, no image twice, no number that is none."""
    seen: dict[str, int] = {}
    width, found = 0, 0
    try:
        text = path.read_text(encoding="utf-8-sig")
        mark = next((mark for mark in ",;\t" if mark in text.partition("\n")[0]), " ")
        for number, row in enumerate(csv.reader(io.StringIO(text), delimiter=mark), 1):
            if number > MOST_ROWS:
                yield Problem("size", f"{name!r} has more than {MOST_ROWS:,} rows.", "Give one row an image.")
                return
            if not row:
                continue
            width = width or len(row)
            if problem := None if _is_plain(row, width, seen) else _inspect_row(row, width, seen, f"{name}:{number}"):
                yield problem
                found += 1
                if found == MOST_SHOWN or width < 2:
                    return
            seen.setdefault(row[0], number)
    except (UnicodeDecodeError, csv.Error) as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        yield Problem("predictions", f"{name!r} is no CSV in UTF-8 ({reason}).", "Save it again.")
        return
    if not seen:
        yield Problem("predictions", f"{name!r} has no rows.", "Give one row an image.")


def _is_plain(row: list[str], width: int, seen: dict[str, int]) -> bool:
    """Whether a row is so ordinary that nothing can be wrong with it; most are, and are told fast."""
    cells, joined = "\t".join(["", *row]), "".join(row)
    sane = len(row) == width > 1 and len(cells) <= MOST_CELL and row[0] not in seen
    return sane and joined.isascii() and joined.isprintable() and not ODD.search(cells)


def _inspect_row(row: list[str], width: int, seen: dict[str, int], place: str) -> Problem | None:
    """What is wrong with a row of a table; None where nothing is."""
    if width < 2:
        return Problem("predictions", "The row has one cell.", "Give an image's name and its classes.", place)
    if len(row) != width:
        return Problem("predictions", f"The row has {len(row)} cells for {width}.", "Mend it.", place)
    if max(map(len, row)) > MOST_CELL:
        return Problem("predictions", f"A cell has more than {MOST_CELL} characters.", "Mend it.", place)
    if row[0] in seen:
        message = f"{row[0][:80]!r} is there twice, first in line {seen[row[0]]}."
        return Problem("duplicate", message, "Remove one.", place)
    if any(cell.strip().lower() in ("nan", "inf", "-inf", "") for cell in row):
        return Problem("predictions", "The row has an empty cell, NaN or infinity.", "Mend it.", place)
    if any(cell.lstrip().startswith(FORMULA) and not NUMBER.fullmatch(cell) for cell in row):
        return Problem("formula", "The row has a cell that a spreadsheet would run.", "Give names and classes.", place)
    if any(UNPRINTABLE.search(cell) for cell in row):
        return Problem("text", "The row has a cell with control characters.", "Give names and classes.", place)
    return None


def _inspect_json(path: Path, name: str) -> list[Problem]:
    """Check that a file is JSON, and a list of detections or an object with annotations, with finite numbers."""
    fix = "Save COCO's result format; NaN is no JSON."
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip()
        content = path.read_bytes()
        if content.count(b"{") > MOST_OBJECTS:
            return [Problem("size", f"{name!r} holds more than {MOST_OBJECTS:,} objects.", "Leave out low scores.")]
        if start.startswith(b"{"):
            count = len(msgspec.json.decode(content, type=Panoptic).annotations)
        else:
            count = len(msgspec.json.decode(content, type=list[Found]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [Problem("predictions", f"{name!r} holds no predictions ({str(error)[:160]}).", fix)]
    return [] if count else [Problem("predictions", f"{name!r} holds no predictions.", fix)]
