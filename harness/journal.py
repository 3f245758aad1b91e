"""What an evaluation has found so far, so that an interrupted one goes on after its last whole batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What is kept of an item: numbers, texts, and lists of these.
Kept = tuple[Any, ...]


class Journal:
    """A file of what was found, one line a batch, that lives only while its evaluation is unfinished.

    Args:
        path: of the file; it need not exist.
        state: stands for all that this depends on; a journal of another state is begun anew.
    """

    def __init__(self, path: Path, state: str) -> None:
        self._path = path
        self._state = state

    def under(self, state: str) -> Journal:
        """Return the journal in the same file that also depends on something else, such as trained weights."""
        return Journal(self._path, f"{self._state} {state}")

    def read(self) -> list[Kept]:
        """Return the entries of all whole batches, and leave nothing else in the file."""
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        batches = _whole(lines[1:]) if lines and lines[0] == self._state else []
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(f"{line}\n" for line in [self._state, *map(json.dumps, batches)]))
        return [tuple(row) for batch in batches for row in batch]

    def append(self, batch: Sequence[Kept]) -> None:
        """Add the entries of one batch."""
        with self._path.open("a") as file:
            file.write(json.dumps(batch) + "\n")

    @staticmethod
    def remove(path: Path) -> None:
        """Remove the file of a finished evaluation, and its folder with the last one."""
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _whole(lines: Sequence[str]) -> list[list[list[Any]]]:
    """Parse lines up to the first that was not written whole."""
    batches = []
    for line in lines:
        try:
            batches.append(json.loads(line))
        except ValueError:
            break
    return batches
