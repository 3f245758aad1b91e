"""What the commands of the command line share: lists of values, parsing, and tables on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from harness.errors import SetupError


class ListCommand(TyperCommand):
    """Lets `--model a b c` stand for `--model a --model b --model c`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat an option that takes many values before each of them."""
        many = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current = ""
        for word in args:
            if word.startswith("-"):
                current = word if word in many else ""
            elif current and spread[-1] != current:
                spread.append(current)
            spread.append(word)
        return super().parse_args(ctx, spread)


def own_stdout() -> Any:
    """Keep standard output for this command alone: whatever models and libraries print goes to standard error."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


def set_quiet(quiet: bool) -> None:
    """Silence progress and remarks, here and in worker processes, where that is asked."""
    from harness.progress import QUIET

    if quiet:
        os.environ[QUIET] = "1"


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read numbers separated by commas.

    Raises:
        SetupError: they are none.
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SetupError(
            f"--{option} is {text!r}; expected numbers separated by commas, such as 0.5,0.5,0.5."
        ) from None


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read a side, or a height and a width.

    Raises:
        SetupError: it is neither.
    """
    numbers = parse_numbers("image-size", text.replace("x", ",") if text else None)
    if numbers is None:
        return None
    if len(numbers) > 2:
        raise SetupError(f"--image-size is {text!r}; expected N or H,W.")
    return int(numbers[0]), int(numbers[-1])


def print_table(out: Any, head: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> None:
    """Print a table: by Rich on a terminal, otherwise as plain text of any width.

    Args:
        out: the stream.
        right: how many columns, the last ones, are numbers.
    """
    left = len(head) - right
    if not out.isatty():
        from tabulate import tabulate

        align = ("left",) * left + ("right",) * right
        out.write(
            tabulate(rows, head, tablefmt="simple", colalign=align if rows else None, disable_numparse=True) + "\n"
        )
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=out).print(table)
