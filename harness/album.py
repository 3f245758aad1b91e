"""Pictures of a few evaluated images, for people to look at; no number depends on them."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.progress import say
from harness.record import Record
from harness.store import write_atomically

PAGE = "index.html"
LONGEST = 80  # letters of an item in a file name
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:24px;background:#f4f4f4;color:#111}"
    "img{display:block;max-width:100%;margin:0 0 20px;border:1px solid #ccc;background:#fff}"
)


class Album:
    """A folder with one picture for each of a few items: PNG files, in the order of the data set.

    A picture is written as soon as its prediction is there, so that an evaluation which goes on after an interruption
    finds the earlier ones in place.

    Args:
        folder: of the pictures; made when the first is saved.
        count: how many items.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self._files: dict[str, Path] = {}
        self._waiting: set[str] = set()
        self._lost: dict[str, str] = {}

    def choose(self, items: Sequence[str]) -> None:
        """Take these items, and remove pictures of others from the folder."""
        self._files = {item: self.folder / file_name(place, item) for place, item in enumerate(items, 1)}
        self._waiting = set(items)
        clear(self.folder, keep=set(self._files.values()))

    def wants(self, item: str) -> bool:
        """Whether an item was chosen, and not drawn since."""
        return item in self._waiting

    def absent(self) -> list[str]:
        """Return the chosen items of which there is no picture, neither from now nor from before an interruption."""
        return [item for item, path in self._files.items() if item in self._waiting and not path.is_file()]

    def save(self, item: str, picture: Any) -> None:
        """Write the picture, a PIL image, of an item that was chosen; where the disk does not take it, say so."""
        self._waiting.discard(item)
        content = io.BytesIO()
        picture.save(content, "PNG")
        try:
            write_atomically(self._files[item], content.getvalue())
        except OSError as error:
            self._lost[item] = error.strerror or str(error)
            say(f"The panel of {item!r} cannot be written ({self._lost[item]}); the evaluation goes on.")

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the pictures; empty where no item was chosen."""
        if not self._files:
            return {}
        found: dict[str, Any] = {"items": list(self._files), "chosen": "spread evenly over the evaluated images"}
        return {"panels": found | ({"not_written": self._lost} if self._lost else {})}


def file_name(place: int, item: str) -> str:
    """Return a picture's file name: no letter of an item leads out of the folder, nor makes two names equal."""
    return f"{place:03d}_{re.sub(r'[^A-Za-z0-9._+-]', '-', item)[-LONGEST:]}.png"


def pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder, in their order."""
    return sorted(folder.glob("*.png"))


def clear(folder: Path, keep: set[Path] = frozenset()) -> None:  # type: ignore[assignment]
    """Remove the pictures of a folder, and the page that shows them."""
    for path in [*pictures(folder), folder / PAGE]:
        if path not in keep:
            path.unlink(missing_ok=True)


def write_page(folder: Path, title: str) -> Path:
    """Write a page that shows all pictures of a folder one below the other, and return its path."""
    shown = "\n".join(
        f'<img src="{quote(path.name)}" alt="{html.escape(path.stem)}" loading="lazy">' for path in pictures(folder)
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>\n{shown}\n</html>\n"
    )
    write_atomically(folder / PAGE, page.encode())
    return folder / PAGE


def announce(record: Record, folder: Path) -> None:
    """Write the page of a record's pictures, and say where it is, or that there are none."""
    if record.error:
        return
    if "panels" not in record.details:
        say(f"{record.task} has no pictures to save: it evaluates no images, or does not draw them.")
        return
    try:
        say(f"Panels: {write_page(folder, record.name)}")
    except OSError as error:
        say(f"The page of panels cannot be written ({error.strerror}).")
