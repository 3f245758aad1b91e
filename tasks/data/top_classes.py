"""Predicted classes from a table, as text, JSON or parquet: a line an image, its name and its best classes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.errors import DataError, MissingPackage, reason
from harness.metric import Row
from tasks.data.coco import name_some
from tasks.data.json_file import read_json
from tasks.data.labelled import LabelledImages, is_image, to_targets

EXPECTED = "a line an image: its file name, then its classes, the best first, as class ids or indices from 0"
# The head of the first column; pandas gives an index none.
HEADS = frozenset({"", "image", "item", "file", "filename", "file_name", "image_id", "imageid", "id", "name", "path"})
MOST = 5


def read_top_classes(path: Path, images: LabelledImages) -> list[Row]:
    """Return one row an image, in the images' own order: name, target, and its best classes, five at most.

    Raises:
        DataError: images that are missing, unknown or repeated, or classes that are none.
    """
    table = _table(path)
    places = _places(path, [line[0] for line in table], images.names)
    flat = to_targets([label for line in table for label in line[1:]], images.classes, path.name)
    width = len(table[0]) - 1
    best = {place: tuple(flat[n * width : (n + 1) * width]) for n, place in enumerate(places)}
    for place, classes in best.items():
        if len(set(classes)) < width:
            raise DataError(
                f"{path.name} gives {images.names[place]!r} a class twice: expected {width} different ones."
            )
    return [(name, images.targets[n], *best[n][:MOST]) for n, name in enumerate(images.names)]


def _table(path: Path) -> list[list[str]]:
    """The cells of every line, all of one length, without a header."""
    lines = READERS.get(path.suffix.lower(), _from_text)(path)
    if not lines or len(lines[0]) < 2:
        raise DataError(f"{path.name} holds no predictions: expected {EXPECTED}.")
    for line in lines:
        if len(line) != len(lines[0]) or not all(line):
            raise DataError(
                f"{path.name} has {sum(map(bool, line)) - 1} classes for {line[0]!r} and {len(lines[0]) - 1} for "
                f"{lines[0][0]!r}: expected as many for every image."
            )
    return lines


def _from_text(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} is not a readable text file ({error}). Expected {EXPECTED}.") from error
    mark = next((mark for mark in ",;\t" if mark in text.partition("\n")[0]), " ")
    lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines(), delimiter=mark) if line]
    if lines and not any(line[-1] for line in lines):
        lines = [line[:-1] for line in lines]
    return lines[1:] if lines and lines[0][0].lower() in HEADS else lines


def _from_json(path: Path) -> list[list[str]]:
    expected = "a JSON object from file names to lists of classes, the best first"
    found = read_json(path, dict[str, list[int | str] | int | str], expected)
    return [[name, *map(str, best if isinstance(best, list) else [best])] for name, best in found.items()]


def _from_parquet(path: Path) -> list[list[str]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise MissingPackage("pyarrow", "Reading parquet") from error
    except Exception as error:
        raise DataError(f"{path.name} is not readable parquet ({reason(error)}). Expected {EXPECTED}.") from error
    frame = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    return [[str(cell) for cell in line] for line in frame.itertuples(index=False)]


READERS: dict[str, Callable[[Path], list[list[str]]]] = {".json": _from_json, ".parquet": _from_parquet}


def _places(path: Path, given: Sequence[str], names: Sequence[str]) -> list[int]:
    """The place of each line's image, by its name, or by the name without folder and ending where these are unique."""
    place = {name: n for n, name in enumerate(names)}
    short = {_stem(name): n for n, name in enumerate(names)}
    if len(short) < len(names):
        short = {}
    found = [place.get(name, short.get(_stem(name), -1)) for name in given]
    if unknown := [name for name, n in zip(given, found, strict=True) if n < 0]:
        raise DataError(
            f"{path.name} has {len(unknown)} images that the data set does not know: {name_some(unknown)}. "
            f"Expected names such as {names[0]!r}."
        )
    if twice := [names[n] for n, count in Counter(found).items() if count > 1]:
        raise DataError(f"{path.name} has {len(twice)} images more than once: {name_some(twice)}. Keep one line each.")
    there = set(found)
    if missing := [name for n, name in enumerate(names) if n not in there]:
        raise DataError(
            f"{path.name} lacks {len(missing)} of {len(names)} images: {name_some(missing)}. Predict all of them."
        )
    return found


def _stem(name: str) -> str:
    """A file's name without its folder, and without its ending where that is an image's."""
    name = name.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] if is_image(name) else name
