"""Embedded data sets appear whole or not at all, and are never mistaken for one another."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError, SetupError

CARD = "dataset.json"
ADVICE = "Delete the folder, or choose another."


def publish(folder: Path, card: Mapping[str, Any], names: Sequence[str], write: Callable[[Path], None]) -> Path:
    """Write a data set, all of it or nothing, and return its folder; an equal one that is there already is kept.

    Args:
        card: all that the files depend on; it becomes `dataset.json`.
        names: of all other files, relative to the folder.
        write: writes them into a new, empty folder.

    Raises:
        DataError: the folder is there and incomplete, or holds something else.
    """
    if folder.exists():
        check(folder, card, names)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        unfinished = Path(temporary) / folder.name
        unfinished.mkdir()
        write(unfinished)
        (unfinished / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        _place(unfinished, folder, card, names)
    return folder


def check_parameters(seed: int, difficulty: float, **counts: int) -> None:
    """Raise SetupError where a generated data set would have no images, seed or difficulty."""
    if min(counts.values()) < 1 or seed < 0 or not 0 <= difficulty <= 1:
        chosen = {**counts, "seed": seed, "difficulty": difficulty}
        given = ", ".join(f"{name}={value}" for name, value in chosen.items())
        raise SetupError(f"No data set has {given}: use counts from 1, a seed from 0 and a difficulty in 0..1.")


def _place(unfinished: Path, folder: Path, card: Mapping[str, Any], names: Sequence[str]) -> None:
    """Move a finished folder into place, or keep an equal one that another process put there meanwhile."""
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.exists():
            raise
        check(folder, card, names)


def check(folder: Path, card: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise DataError unless a folder is this data set, whole."""
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no readable {CARD}, so it was not made by this generator. {ADVICE}") from error
    if found != card:
        found = found if isinstance(found, dict) else {}
        differing = ", ".join(f"{k}={found.get(k)!r} instead of {v!r}" for k, v in card.items() if found.get(k) != v)
        raise DataError(f"{folder} was made with {differing or 'further parameters'}. {ADVICE}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} files, the first {missing[0]!r}. {ADVICE}")
