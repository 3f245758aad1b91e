"""The pages of the boards: which files there are, and what makes each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.leaderboard import Board, LeftOut
from harness.page import to_html
from harness.tables import to_csv, to_latex, to_markdown

CSV = "leaderboard.csv"
PAGES: dict[str, Callable[[Sequence[Board], Sequence[LeftOut]], bytes]] = {
    "README.md": lambda boards, left_out: to_markdown(boards, left_out).encode(),
    CSV: lambda boards, _: to_csv(boards).encode(),
    "leaderboard.tex": lambda boards, _: to_latex(boards).encode(),
    "leaderboard.html": to_html,
}


def render(boards: Sequence[Board], left_out: Sequence[LeftOut]) -> dict[str, bytes]:
    """Return the content of every page by its name; equal boards give equal bytes."""
    return {name: make(boards, left_out) for name, make in PAGES.items()}
