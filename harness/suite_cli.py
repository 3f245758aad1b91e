"""The command `suite`: measure what a suite lists, then write its pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import options
from harness.command import set_quiet

if TYPE_CHECKING:
    from harness.store import Store

EXIT_FAILED = 1

File = Annotated[Path, typer.Argument(help="What is measured, such as results/suites/attention.toml.")]
Only = Annotated[
    list[str] | None, typer.Option(help="Only these tasks of it, such as cost or cost:latency. Several may follow.")
]
Pages = Annotated[bool, typer.Option("--pages", help="Measure nothing; write the pages of what there is.")]
Root = Annotated[Path | None, typer.Option(help="Where its data sets go; by default data/ and the suite's name.")]
Folder = Annotated[
    str | None,
    typer.Option(help="Of records and pages, or an address; by default results/ and the suite's name."),
]


def suite(
    file: File,
    results: Folder = None,
    data: Root = None,
    only: Only = None,
    pages: Pages = False,
    rerun: options.Rerun = False,
    device: options.Device = None,
    workers: Annotated[int, typer.Option(help="Processes that load data.")] = 0,
    executor: options.Executor = "process",
    quiet: options.Quiet = False,
) -> None:
    """Draw the data sets of a suite, measure what has no record yet, and write boards, trade-offs and figures.

    An interrupted suite goes on where it stopped. Exit code 1 where something failed.
    """
    set_quiet(quiet)
    from harness.store import Store
    from harness.suite import make_data, read_suite, run_suite

    what, store = read_suite(file), Store(results or f"results/{file.stem}")
    failed = False
    if not pages:
        root = data or Path("data") / file.stem
        make_data(what, root)
        records = run_suite(
            what, root, store, only=only or (), rerun=rerun, executor=executor, workers=workers, device=device
        )
        failed = bool(records.failed)
    write(store)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def write(store: Store) -> None:
    """Write the boards of a results folder, and its trade-offs as a page, a table and figures."""
    from harness.progress import say

    content = render(store)
    store.location.write(content)
    say(f"Written to {store}: {', '.join(content)}.")


def render(store: Store) -> dict[str, bytes]:
    """Return the content of every page by its name; equal records give equal bytes."""
    from harness.board import render as render_boards
    from harness.leaderboard import make_boards
    from harness.plot import draw_tradeoff
    from harness.ranking import with_ranks
    from harness.tradeoff import tradeoffs
    from harness.tradeoff_page import figure_names
    from harness.tradeoff_page import pages as tradeoff_pages

    boards, left_out = make_boards(records := store.load())
    boards = [with_ranks(board, store) for board in boards]
    found = tradeoffs(boards, records)
    pages = render_boards(boards, left_out) | tradeoff_pages(found)
    for one, names in zip(found, figure_names(found), strict=True):
        pages |= {name: draw_tradeoff(one, theme) for theme, name in names.items()}
    return pages
