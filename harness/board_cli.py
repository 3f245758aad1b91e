"""The command `board`: rank the records, and write the pages; or say whether the written ones are stale."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from harness import options
from harness.errors import BenchError, SetupError

if TYPE_CHECKING:
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
    from harness.store import Store, uncollected

    if check and budget is not None:
        raise SetupError("--check compares the written pages and --budget writes none; give one of them.")
    store = Store(results)
    if not store.location.exists():
        raise BenchError(f"There are no results in {str(store)!r}. Run something first: run_bench.py run --help")
    with uncollected():
        _board(store, check, budget, quiet)


def _board(store: Store, check: bool, budget: str | None, quiet: bool) -> None:
    """Make what was asked for of the records in a store."""
    from harness.board import render
    from harness.budget import parse, within
    from harness.leaderboard import make_boards
    from harness.ranking import with_ranks
    from harness.skim import skim
    from harness.tables import to_markdown

    limits = None if budget is None else parse(budget)
    boards, left_out = make_boards(store.load(skim))
    boards = [with_ranks(found, store) for found in boards]
    if limits is not None:
        kept = within(boards, limits)
        print(to_markdown(kept, ()) if kept else f"No ranked model is within {budget}.")
        return
    pages = render(boards, left_out)
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
