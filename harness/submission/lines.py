"""Where in a TOML file a key stands, and faults that name the place."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from harness.inspection.files import Problem, printable
from harness.submission.manifest import FILE


@dataclass(frozen=True)
class Fault:
    """One thing to mend.

    Args:
        code: stable, for machines.
        place: `file:line`, or the file alone.
        message: what is wrong, with the value.
        fix: the next step.
    """

    code: str
    place: str
    message: str
    fix: str

    def __str__(self) -> str:
        return printable(f"{self.place}: {self.message} {self.fix} [{self.code}]")

    @classmethod
    def of(cls, problem: Problem, place: str) -> Fault:
        """Return the fault that a problem of a file is; its place is where the file is named, unless it has its own."""
        return cls(problem.code, problem.place or place, problem.message, problem.fix)


class Lines:
    """The lines of tables, of the n-th `[[table]]`, and of `key = value` at the start of lines."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        counts: dict[str, int] = defaultdict(int)
        table: tuple[str, ...] = ()
        for number, line in enumerate(text.split("\n"), 1):
            if head := re.match(r"\s*(\[\[?)\s*([A-Za-z0-9_.-]{1,80})\s*\]", line):
                table = tuple(head[2].split("."))
                if head[1] == "[[":
                    table = (*table, str(counts[head[2]]))
                    counts[head[2]] += 1
                self._lines.setdefault(table, number)
            elif key := re.match(r"\s*([A-Za-z0-9_-]{1,80})\s*=", line):
                self._lines.setdefault((*table, key[1]), number)

    def place(self, *keys: str) -> str:
        """Return `file:line` of a table or of a key in it, or of the nearest that is there.

        Args:
            keys: such as `"model", "entry"`, and of the n-th `[[claim]]` from 0 `"claim", "0", "value"`.
        """
        for end in range(len(keys), 0, -1):
            single = tuple(key for key in keys[:end] if not key.isdigit())  # where one bracket stands for two
            if number := self._lines.get(keys[:end]) or self._lines.get(single):
                return f"{FILE}:{number}"
        return FILE
