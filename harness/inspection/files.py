"""Which entries of a stranger's folder may be opened at all."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

KIB, MIB = 2**10, 2**20
MOST_FILES = 200_000
DEEPEST = 16
MOST_SHOWN = 20
# Control characters, and those that change the direction of text.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    Args:
        code: stable, for machines.
        message: what is wrong, with the value.
        fix: the next step.
        place: `file:line` where it is in the file itself; empty for the line that names the file.
    """

    code: str
    message: str
    fix: str
    place: str = ""


def inspect_tree(folder: Path) -> list[Problem]:
    """Return every entry of a folder that is neither a plain file nor a folder, or whose name cannot be shown.

    Nothing is opened and no link is followed.
    """
    found: list[Problem] = []
    pending, count = [(folder, 0)], 0
    while pending and len(found) < MOST_SHOWN:
        place, depth = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                count += 1
                if count > MOST_FILES or depth > DEEPEST:
                    message = f"The folder holds more than {MOST_FILES:,} files, or folders in folders without end."
                    return [*found, Problem("size", message, "Leave only what is submitted.")]
                found += _inspect_entry(entry, Path(entry.path).relative_to(folder).as_posix())
                if entry.is_dir(follow_symlinks=False):
                    pending.append((Path(entry.path), depth + 1))
    return sorted(found[:MOST_SHOWN], key=lambda problem: problem.message)


def _inspect_entry(entry: os.DirEntry[str], name: str) -> list[Problem]:
    """Look at the kind and the name of one entry."""
    if UNPRINTABLE.search(entry.name):
        return [Problem("path", f"The name {name[:120]!r} holds control characters.", "Rename it.")]
    if entry.is_symlink():
        return [Problem("link", f"{name[:120]!r} is a link.", "Put the file itself there.")]
    kind = entry.stat(follow_symlinks=False).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        return [Problem("special", f"{name[:120]!r} is no plain file: a pipe, socket or device.", "Remove it.")]
    return []


def inside(folder: Path, name: str, largest: int, kind: str = "file") -> Problem | None:
    """Return why a name is not a plain file of a folder that may be read; None where it is one.

    Absolute names, `..`, links and special files are refused before anything is opened.

    Args:
        largest: bytes that the file may have.
        kind: `file`, or `folder` where one of these is meant.
    """
    pure = PurePosixPath(name)
    if not name or "\\" in name or ":" in name or pure.is_absolute() or ".." in pure.parts or UNPRINTABLE.search(name):
        return Problem(
            "path", f"{name[:120]!r} is no path inside the folder.", "Name a file of the folder, without '..'."
        )
    try:
        about = _without_links(folder, pure)
    except (OSError, ValueError):
        return Problem("absent", f"There is no {kind} {name[:120]!r} in the folder.", "Add it, or correct the name.")
    if about is None:
        return Problem("link", f"{name[:120]!r} is a link, or lies behind one.", "Put the file itself there.")
    if kind == "folder":
        wrong = not stat.S_ISDIR(about.st_mode)
        return Problem("special", f"{name[:120]!r} is no folder.", "Put a folder there.") if wrong else None
    if not stat.S_ISREG(about.st_mode):
        return Problem("special", f"{name[:120]!r} is no plain file.", "Put a plain file there.")
    if about.st_size > largest:
        limit = f"{largest / MIB:,.0f} MiB" if largest >= MIB else f"{largest / KIB:,.0f} KiB"
        return Problem("size", f"{name[:120]!r} has {about.st_size:,} bytes.", f"The limit is {limit}.")
    if about.st_size == 0:
        return Problem("empty", f"{name[:120]!r} is empty.", "Copy it again.")
    return None


def _without_links(folder: Path, pure: PurePosixPath) -> os.stat_result | None:
    """What is at a path; None where it or a folder on the way is a link."""
    place, about = folder, folder.stat()
    for part in pure.parts:
        place = place / part
        about = place.lstat()
        if stat.S_ISLNK(about.st_mode):
            return None
    return about


def printable(text: str) -> str:
    """Return text that a terminal shows as it is: control characters as escapes."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
