"""Finding data sets on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness.errors import DataError

VARIABLE = "BENCH_DATA"
DEFAULT = Path("data")


def data_root(given: Path | None) -> Path:
    """Return the root of the data sets: what the user gave, else `BENCH_DATA`, else `data`."""
    return given or Path(os.environ.get(VARIABLE) or DEFAULT)


def find(names: tuple[str, ...], given: Path | None, expected: str, marks: tuple[str, ...]) -> Path:
    """Return the folder of a data set below the root, or the root itself where it is that folder.

    Args:
        names: the folder's usual names, the data set's own first.
        expected: the layout in a few words, for the message.
        marks: patterns of which one must be there for the root itself to be the data set.

    Raises:
        DataError: it is not there.
    """
    root = data_root(given)
    for name in names:
        if (root / name).is_dir():
            return root / name
    if root.is_dir() and any(next(root.glob(mark), None) for mark in marks):
        return root
    if not root.exists():
        raise DataError(
            f"There is no data root {str(root)!r}: set {VARIABLE}, pass --data, or make the embedded data with "
            "`run_bench.py data mini`."
        )
    raise DataError(
        f"{names[0]} not found in {str(root / names[0])!r}: expected {expected}. Set {VARIABLE} or pass --data."
    )


def data_name(home: Path, usual: str) -> str:
    """Return the usual name of a data set, unless its folder's dataset.json gives it another.

    Raises:
        DataError: the file names nothing.
    """
    path = home / "dataset.json"
    if not path.is_file():
        return usual
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{str(path)!r} does not name the data set: expected {{'name': ...}}. Mend it, or remove it."
        ) from error
