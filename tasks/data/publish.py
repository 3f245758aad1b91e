"""Putting a generated data set into place: all of it or nothing, and what is there already is kept."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError

CARD = "dataset.json"


def publish(folder: Path, card: Mapping[str, Any], files: Sequence[str], write: Callable[[Path], None]) -> Path:
    """Write a data set, and return its folder.

    Args:
        card: all that the files depend on; goes into `dataset.json`.
        files: names of all other files, relative to the folder.
        write: writes them below a folder that does not exist yet.

    Raises:
        DataError: the folder is there and incomplete, or holds something else.
    """
    if folder.exists():
        _check(folder, card, files)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        unfinished = Path(temporary) / folder.name
        write(unfinished)
        (unfinished / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        _put(unfinished, folder, card, files)
    return folder


def _put(unfinished: Path, folder: Path, card: Mapping[str, Any], files: Sequence[str]) -> None:
    """Move a finished folder into place, or keep an equal one that another process put there meanwhile."""
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.exists():
            raise
        _check(folder, card, files)


def _check(folder: Path, card: Mapping[str, Any], files: Sequence[str]) -> None:
    """Raise DataError unless a folder is this data set, whole."""
    advice = "Delete the folder, or choose another."
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no readable {CARD}, so it was not made by this generator. {advice}") from error
    if found != card:
        found = found if isinstance(found, dict) else {}
        differing = ", ".join(f"{k}={found.get(k)!r} instead of {v!r}" for k, v in card.items() if found.get(k) != v)
        raise DataError(f"{folder} was made with {differing or 'further parameters'}. {advice}")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} files, the first {missing[0]!r}. {advice}")
