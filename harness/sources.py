"""The code that a network runs: a hash over source files, so that no cache hides a change of it."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# These say by their version what they are; the harness's own part in a result is hashed apart.
KNOWN = frozenset({*sys.stdlib_module_names, "torch", "torchvision", "timm", "numpy", "PIL", "harness", "tasks"})
OWN = ("blocks", "device", "factory", "features", "images", "models", "preprocessing", "weights")


def code_sha256(module: nn.Module) -> str:
    """Return the hash of the source files of all classes in a network, and of all that these import.

    Imports inside functions count, those by a name that is made while running do not. Of installed packages the files
    of the classes count; those libraries that the key of a cache names with their versions are left out.
    """
    pending = {kind.__module__ for part in module.modules() for kind in type(part).__mro__}
    seen: dict[str, Path] = {}
    while pending:
        name = pending.pop()
        if name in seen or name.partition(".")[0] in KNOWN:
            continue
        path = _source(name)
        if path is not None:
            seen[name] = path
            pending |= set() if "site-packages" in path.parts else _imports(name, path)
    return files_sha256(*sorted(set(seen.values())))


@cache
def own_sha256() -> str:
    """Return the hash of the harness's source files that have a part in features."""
    return files_sha256(*(Path(__file__).parent / f"{name}.py" for name in OWN))


def files_sha256(*paths: Path) -> str:
    """Return the hash of the contents of files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _source(name: str) -> Path | None:
    """The file of a module, imported already or not; None for what is no Python file."""
    origin = getattr(sys.modules.get(name), "__file__", None) or _origin(name)
    path = Path(origin) if origin else None
    return path if path and path.suffix == ".py" and path.is_file() else None


def _origin(name: str) -> str | None:
    """Where a module that is not imported would be found, without importing anything."""
    parent: ModuleType | None = sys.modules.get(name.rpartition(".")[0])
    if "." in name and parent is None:
        return None
    try:
        spec = PathFinder.find_spec(name, getattr(parent, "__path__", None))
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def _imports(name: str, path: Path) -> set[str]:
    """The modules that a source file imports anywhere in it, and their packages."""
    found: set[str] = set()
    for node in ast.walk(_parsed(path)):
        for target in _targets(node, name, path.name == "__init__.py"):
            words = target.split(".")
            found |= {".".join(words[: end + 1]) for end in range(len(words))}
    return found


def _parsed(path: Path) -> ast.AST:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError:  # Of another Python; it counts by its content.
        return ast.Module([], [])


def _targets(node: ast.AST, name: str, is_package: bool) -> Iterator[str]:
    """The absolute names that an import statement may mean: `from a import b` is a module b of a, or a name in a."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        words = name.split(".")
        around = words[: len(words) - node.level + is_package]
        start = [*(around if node.level else []), *(node.module or "").split(".")]
        base = ".".join(word for word in start if word)
        yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
