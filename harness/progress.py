"""Progress on standard error, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from harness import distributed

T = TypeVar("T")

# Worker processes inherit the environment, so that one switch quiets all of them.
QUIET = "BACKBONE_BENCH_QUIET"


def quiet() -> bool:
    """Whether the user asked for silence, or another rank speaks."""
    return bool(os.environ.get(QUIET)) or not distributed.first()


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """Yield the items under a progress bar on standard error; without a terminal or with --quiet, just yield them."""
    if quiet() or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total = len(items) if isinstance(items, Sized) else None
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show a spinner on standard error while something of unknown length goes on."""
    if quiet() or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(description):
        yield


def say(message: str) -> None:
    """Print one line for the user on standard error, unless quiet."""
    if not quiet():
        print(message, file=sys.stderr, flush=True)
