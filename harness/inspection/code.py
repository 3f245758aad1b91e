"""Whether a Python file defines what it shall; it is parsed, never run."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.inspection.files import KIB, Problem, inside

LARGEST_CODE = 128 * KIB
FILE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*\.py", re.ASCII)
# What the harness gives to a factory whose arguments have no defaults.
GIVEN = frozenset({"num_classes"})


def inspect_code(folder: Path, name: str, entry: str, given: frozenset[str] = GIVEN) -> list[Problem]:
    """Return what is wrong with a Python file that shall define `entry`.

    Args:
        given: the arguments that the harness will give by name.
    """
    if not FILE_NAME.fullmatch(name):
        return [inside(folder, name, LARGEST_CODE) or _odd(name)]
    if problem := inside(folder, name, LARGEST_CODE):
        return [problem]
    try:
        text = (folder / name).read_text(encoding="utf-8-sig")
        with warnings.catch_warnings():
            # Python's remarks quote the code, and come with a line of whatever file has this name here.
            warnings.simplefilter("ignore")
            statements = list(_top_level(ast.parse(text, filename=name).body))
    except SyntaxError as error:
        place = f"{name}:{error.lineno}" if error.lineno else name
        return [Problem("syntax", f"{name!r} is not Python ({error.msg}).", "Mend this line.", place)]
    except (ValueError, RecursionError, MemoryError, SystemError) as error:
        reason = getattr(error, "reason", "") or str(error) or type(error).__name__
        return [Problem("syntax", f"{name!r} cannot be parsed ({reason}).", "Save plain Python source as UTF-8.")]
    if any(isinstance(one, ast.ImportFrom) and one.names[0].name == "*" for one in statements):
        return []
    defined = sorted({bound for one in statements for bound in _bound(one)})
    if entry not in defined:
        shown = ", ".join(bound[:40] for bound in defined[:8])
        offer = f"It defines {shown}." if defined else "It defines nothing."
        message = f"{name!r} does not define {entry[:80]!r} at its top level. {offer}"
        return [Problem("entry", message, "Correct the entry.")]
    return list(_check_signature(statements, name, entry, given))


def _odd(name: str) -> Problem:
    return Problem(
        "path", f"{name[:120]!r} cannot name a Python file on boards.", "Use letters, digits, '_', '-', '.' and '/'."
    )


def _top_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, and those that it makes on a condition."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def _bound(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((name.asname or name.name).partition(".")[0] for name in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (
                part.id for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            )


def _check_signature(statements: Sequence[ast.stmt], name: str, entry: str, given: frozenset[str]) -> Iterator[Problem]:
    """An entry is called with options by name alone."""
    for node in statements:
        if isinstance(node, ast.AsyncFunctionDef) and node.name == entry:
            fix = "Use a plain function that returns a module."
            yield Problem("entry", f"{entry!r} is asynchronous.", fix, f"{name}:{node.lineno}")
        elif isinstance(node, ast.FunctionDef) and node.name == entry:
            yield from _check_arguments(node.args, f"{name}:{node.lineno}", entry, given)
        elif isinstance(node, ast.ClassDef) and node.name == entry:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    yield from _check_arguments(method.args, f"{name}:{method.lineno}", entry, given, skip=1)


def _check_arguments(
    found: ast.arguments, place: str, entry: str, given: frozenset[str], skip: int = 0
) -> Iterator[Problem]:
    """Name the first argument without a default that nobody gives."""
    by_position = [*found.posonlyargs, *found.args]
    needed = [one.arg for one in by_position[skip : len(by_position) - len(found.defaults)]]
    needed += [one.arg for one, default in zip(found.kwonlyargs, found.kw_defaults, strict=True) if default is None]
    nameless = {one.arg for one in found.posonlyargs}
    if wrong := [one for one in needed if one not in given or one in nameless]:
        message = f"{entry!r} needs the argument {wrong[0][:60]!r}, which nobody gives it."
        yield Problem("entry", message, "Give it a default, such as num_classes=1000.", place)
