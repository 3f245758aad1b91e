"""What an evaluation has found so far, so that an interrupted one goes on after its last whole batch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.progress import say

# What is kept of an item: numbers, texts, and lists of these.
Kept = tuple[Any, ...]


class Journal:
    """A file of what was found, one line a batch, that lives only while its evaluation is unfinished.

    Where the disk does not take it, the evaluation goes on without.

    Args:
        path: of the file; it need not exist.
        state: stands for all that this depends on; a journal of another state is begun anew.
    """

    def __init__(self, path: Path, state: str) -> None:
        self._path = path
        self._state = state
        self._taken = True

    def under(self, state: str) -> Journal:
        """Return the journal in the same file that also depends on something else, such as trained weights."""
        return Journal(self._path, f"{self._state} {state}")

    def read(self) -> list[Kept]:
        """Return the entries of all whole batches, and leave nothing else in the file."""
        text = self._path.read_text() if self._path.is_file() else ""
        lines = text.splitlines()
        batches = _whole(lines[1:]) if lines and lines[0] == self._state else []
        content = "".join(f"{line}\n" for line in [self._state, *lines[1 : 1 + len(batches)]])
        with self._taking():
            if text.startswith(content):
                os.truncate(self._path, len(content.encode()))  # which a full disk allows too
            else:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_text(content)
        return [tuple(row) for batch in batches for row in batch]

    def append(self, batch: Sequence[Kept]) -> None:
        """Add the entries of one batch."""
        if self._taken:
            with self._taking(), self._path.open("a") as file:
                file.write(json.dumps(batch) + "\n")

    @contextmanager
    def _taking(self) -> Iterator[None]:
        """Say so where the disk does not take something, and write nothing more: after a gap no batch is of use."""
        try:
            yield
        except OSError as error:
            self._taken = False
            say(f"What is found is not kept for another run ({error.strerror or error}); the evaluation goes on.")

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
