"""Which entries of a stranger's folder may be opened at all."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

KIB, MIB = 2**10, 2**20
MOST_FILES = 50_000
# The largest checkpoint, and what may lie beside it.
MOST_BYTES = 65 * 2**30
DEEPEST = 16
MOST_SHOWN = 20
# Control characters, those that change the direction of text, and those that nobody sees. Joiners are left: names of
# persons have them.
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
)


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
    pending, count, size = [(folder, 0)], 0, 0
    while pending and len(found) < MOST_SHOWN:
        place, depth = pending.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    about = entry.stat(follow_symlinks=False)
                    count, size = count + 1, size + about.st_size
                    if count > MOST_FILES or depth > DEEPEST or size > MOST_BYTES:
                        return [*found, _TOO_MUCH]
                    found += _inspect_entry(entry.name, about, Path(entry.path).relative_to(folder).as_posix())
                    if stat.S_ISDIR(about.st_mode):
                        pending.append((Path(entry.path), depth + 1))
        except OSError as error:
            name = place.relative_to(folder).as_posix()
            found.append(Problem("special", f"{name[:120]!r} cannot be read ({error.strerror}).", "Allow it."))
    return sorted(found[:MOST_SHOWN], key=lambda problem: problem.message)


_TOO_MUCH = Problem(
    "size",
    f"The folder holds more than {MOST_FILES:,} files or {MOST_BYTES >> 30} GiB, or folders in folders without end.",
    "Leave only what is submitted.",
)


def _inspect_entry(base: str, about: os.stat_result, name: str) -> list[Problem]:
    """Look at the kind and the name of one entry."""
    if UNPRINTABLE.search(base):
        return [Problem("path", f"The name {name[:120]!r} holds control characters.", "Rename it.")]
    if stat.S_ISLNK(about.st_mode):
        return [Problem("link", f"{name[:120]!r} is a link.", "Put the file itself there.")]
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
        return [Problem("special", f"{name[:120]!r} is no plain file: a pipe, socket or device.", "Remove it.")]
    return [_second_name(name)] if _has_second_name(about) else []


def _has_second_name(about: os.stat_result) -> bool:
    """Whether a file is also one of another folder, which may be anybody's."""
    return stat.S_ISREG(about.st_mode) and about.st_nlink > 1


def _second_name(name: str) -> Problem:
    return Problem("link", f"{name[:120]!r} has a second name elsewhere: a hard link.", "Put a copy there.")


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
    if _has_second_name(about):
        return _second_name(name)
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
