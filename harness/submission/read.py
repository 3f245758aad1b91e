"""Reading a submission: every fault of it at once, without running a line of its code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from harness.errors import SetupError
from harness.inspection.files import KIB, inside, inspect_tree
from harness.submission.content import check_content
from harness.submission.lines import Fault, Lines
from harness.submission.manifest import FILE, PARTS, ClaimPart, Submission

LARGEST_FILE = 64 * KIB
# Reading a dotted key takes the square of the number of its parts.
MOST_DOTS = 200
MOST_CLAIMS = 1000
TABLES = (*PARTS, "claim")


def read(folder: Path) -> tuple[Submission | None, list[Fault]]:
    """Read a submission and name all its faults; None where there are any.

    Nothing of the folder is imported, unpickled or decoded beyond its headers, and nothing outside it is read.

    Raises:
        SetupError: the folder is not there, or is none.
    """
    if folder.exists() and not folder.is_dir():
        raise SetupError(f"{str(folder)!r} is a file: give the folder that holds the submission.")
    if not folder.is_dir():
        raise SetupError(f"There is no folder {str(folder)!r}: `run_bench.py submit init {folder}` makes one.")
    folder = folder.resolve()
    tree = [Fault.of(problem, ".") for problem in inspect_tree(folder)]
    text, faults = _text(folder)
    if text is None:
        return None, tree + faults
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{FILE}:{line[1]}" if line else FILE
        return None, [*tree, Fault("toml", place, f"The file is not TOML ({str(error)[:160]}).", "Mend this line.")]
    lines = Lines(text)
    submission, faults = _build(found, lines)
    if submission is not None:
        known = {fault.place for fault in faults}
        # One fault a line: a key of another type would otherwise be named for its content once more.
        faults += [fault for fault in check_content(submission, folder, lines, bool(tree)) if fault.place not in known]
    return (None if tree + faults else submission), tree + faults


def _text(folder: Path) -> tuple[str | None, list[Fault]]:
    """The content of the file, or why it is not read."""
    if problem := inside(folder, FILE, LARGEST_FILE):
        fix = "`run_bench.py submit init` writes one with comments." if problem.code == "absent" else problem.fix
        return None, [Fault(problem.code, FILE, problem.message, fix)]
    try:
        text = (folder / FILE).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return None, [Fault("encoding", FILE, f"The file is not UTF-8 ({error.reason}).", "Save it as UTF-8.")]
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            message = f"The line has more than {MOST_DOTS} dots, and a key of so many parts takes long to read."
            return None, [Fault("toml", f"{FILE}:{number}", message, "Write a long text over several lines.")]
    return text, []


def _build(found: Mapping[str, Any], lines: Lines) -> tuple[Submission | None, list[Fault]]:
    """Turn tables into a submission, naming every key that is missing, unknown or of another type."""
    faults = [
        Fault("unknown-table", lines.place(name), f"There is no table {name[:80]!r}.", f"Use {', '.join(TABLES)}.")
        for name in found
        if name not in TABLES
    ]
    parts: dict[str, Any] = {}
    for name, kind in PARTS.items():
        if name in found:
            parts[name], more = _part(kind, found[name], (name,), lines)
            faults += more
    claims = found.get("claim", [])
    if not isinstance(claims, list):
        place = lines.place("claim")
        faults.append(Fault("type", place, "`claim` is one table.", "Write [[claim]], with two brackets."))
        claims = [claims]
    if len(claims) > MOST_CLAIMS:
        message = f"There are {len(claims):,} claims."
        faults.append(Fault("size", lines.place("claim"), message, f"Submit {MOST_CLAIMS:,} at once."))
    claims = claims[:MOST_CLAIMS]
    built = [_part(ClaimPart, claim, ("claim", str(number)), lines) for number, claim in enumerate(claims)]
    faults += [fault for _, more in built for fault in more]
    if "submission" not in found:
        faults.append(Fault("missing", FILE, "The table [submission] is missing.", "Add it, with name and kind."))
    whole = parts.get("submission") is not None
    return (Submission(**parts, claim=[claim for claim, _ in built]) if whole else None), faults


def _part(kind: type[Any], table: Any, where: tuple[str, ...], lines: Lines) -> tuple[Any, list[Fault]]:
    """Turn one table into its dataclass, with what can be used of it; what is missing becomes empty."""
    name = where[0]
    if not isinstance(table, Mapping):
        return None, [Fault("type", lines.place(*where), f"{name!r} is not a table.", f"Write [{name}].")]
    types, known, faults, values = get_type_hints(kind), {f.name: f for f in fields(kind)}, [], {}
    for key in sorted(table.keys() - known.keys()):
        message = f"There is no key {key[:80]!r} in [{name}]."
        faults.append(Fault("unknown-key", lines.place(*where, key), message, f"It may hold {', '.join(known)}."))
    for key, entry in known.items():
        needed = entry.default is MISSING and entry.default_factory is MISSING
        if key in table:
            try:
                values[key] = msgspec.convert(table[key], types[key])
                continue
            except (msgspec.ValidationError, RecursionError, OverflowError) as error:
                message = f"{key!r} cannot be used: {str(error)[:200]}."
                allowed = ", ".join(get_args(types[key])) if get_origin(types[key]) is Literal else ""
                fix = f"Use {allowed}." if allowed else "Mend the value."
                faults.append(Fault("type", lines.place(*where, key), message, fix))
        elif needed:
            faults.append(Fault("missing", lines.place(*where), f"[{name}] lacks the key {key!r}.", "Add it."))
        if needed:
            values[key] = 0.0 if types[key] is float else ""
    return kind(**values), faults
