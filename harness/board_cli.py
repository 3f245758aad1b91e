"""The command `board`: rank the records, and write the pages; or say whether the written ones are stale."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from harness import options
from harness.errors import BenchError, SetupError

if TYPE_CHECKING:
    from harness.leaderboard import Board, LeftOut
    from harness.record import Record
    from harness.store import Store

EXIT_STALE = 1

Check = Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 where a written page is stale.")]
Budget = Annotated[
    str | None, typer.Option(help="Show only models within it, and write nothing, such as 'gmacs<5,latency_b1<10'.")
]


def board(
    results: options.Results = "results",
    check: Check = False,
    budget: Budget = None,
    quiet: options.Quiet = False,
) -> None:
    """Rank the records, and write README.md, leaderboard.csv, .tex and .html beside them."""
    from harness.budget import parse, within
    from harness.skim import skim
    from harness.store import Store, uncollected
    from harness.tables import to_markdown

    if check and budget is not None:
        raise SetupError("--check compares the written pages and --budget writes none; give one of them.")
    store = Store(results)
    if not store.location.exists():
        raise BenchError(f"There are no results in {str(store)!r}. Run something first: run_bench.py run --help")
    limits = None if budget is None else parse(budget)  # Before all that is read.
    with uncollected():
        # Held until the boards are gone: in the order in which they lie in memory, very many are let go of much faster.
        records = store.load(skim)
        if limits is None:
            _pages(store, records, check, quiet)
        else:
            kept = within(_boards(store, records)[0], limits)
            print(to_markdown(kept, ()) if kept else f"No ranked model is within {budget}.")


def _boards(store: Store, records: Sequence[Record]) -> tuple[list[Board], list[LeftOut]]:
    """The boards of the records of a store, with the ranks that the data allow, and what ranks nowhere."""
    from harness.leaderboard import make_boards
    from harness.ranking import with_ranks

    boards, left_out = make_boards(records)
    return [with_ranks(found, store) for found in boards], left_out


def _pages(store: Store, records: Sequence[Record], check: bool, quiet: bool) -> None:
    """Write the pages, or say which of the written ones are stale."""
    from harness.board import render

    pages = render(*_boards(store, records))
    if check:
        stale = [name for name, content in pages.items() if store.location.read(name) != content]
        if stale:
            print(f"Stale: {', '.join(stale)}. Run `run_bench.py board` and commit.", file=sys.stderr)
            raise typer.Exit(EXIT_STALE)
        return
    store.location.write(pages)
    if not quiet:
        print(pages["README.md"].decode())
        print(f"Written to {store}: {', '.join(pages)}.", file=sys.stderr)
