"""A page of boards that is open in a browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from harness.leaderboard import make_boards
from harness.page import to_html
from harness.record import Record


class Opened:
    """A page with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def show(self, records: list[Record], path: Path) -> None:
        """Write the page of some records, and open it in this tab."""
        path.write_bytes(to_html(*make_boards(records)))
        self.page.goto(path.as_uri())

    def models(self) -> list[str]:
        found: list[str] = self.page.locator("#table tbody td.model button").all_text_contents()
        return found


def wait(page: Any, condition: str) -> None:
    """Wait until a condition holds. Playwright's own wait evaluates in the page, which the page's policy forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(10)
