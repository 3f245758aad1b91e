"""Where an mmsegmentation configuration lies, and what it consists of; nothing is executed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from harness.errors import ModelError, UnknownName, reason

PREFIX = "mmseg:"
SHIPPED = Path(".mim", "configs")  # in the installed package


def config_file(name: str) -> Path:
    """Return the file of a configuration: a path, or one below the configurations that mmsegmentation comes with.

    Raises:
        UnknownName: there is none.
    """
    shipped = _shipped("mmseg")
    for path in (Path(name), *([shipped / name] if shipped else [])):
        if path.suffix == ".py" and path.is_file():
            return path
    place = "" if shipped else " (mmsegmentation, which comes with some, is not installed)"
    raise UnknownName(
        f"There is no mmsegmentation configuration {name!r}{place}: expected mmseg:path/to/config.py, or a path below "
        "mmsegmentation's configs/, such as mmseg:upernet/upernet_r50_4xb4-80k_ade20k-512x512.py."
    )


def config_sha256(name: str) -> str:
    """Return the SHA-256 over a configuration and all that it is based on, whatever folder they lie in.

    Raises:
        UnknownName: one of the files is not there.
        ModelError: one cannot be parsed.
    """
    pending, seen = [config_file(name)], dict[Path, bytes]()
    while pending:
        path = pending.pop().resolve()
        if path not in seen:
            seen[path] = path.read_bytes()
            pending += _bases(path, seen[path])
    total = hashlib.sha256()
    for content in seen.values():
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def _bases(path: Path, content: bytes) -> Iterator[Path]:
    """The files that a configuration names in `_base_`, or imports from where it lies."""
    try:
        tree = ast.parse(content)
        names = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_base(node)]
        found = [ast.literal_eval(value) for value in names]
    except (SyntaxError, ValueError) as error:
        raise ModelError(f"The configuration {path.name!r} cannot be read ({reason(error)}). Mend it.") from error
    for base in (base for bases in found for base in ([bases] if isinstance(bases, str) else bases)):
        package, mark, inside = base.partition("::")
        yield _existing((_shipped(package) or Path(package)) / inside if mark else path.parent / base, base, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            yield from _modules(folder.joinpath(*(node.module or "").split(".")), [alias.name for alias in node.names])


def _modules(path: Path, names: list[str]) -> Iterator[Path]:
    """The files that `from path import names` reads."""
    found = [path.with_suffix(".py"), *(path / f"{name}.py" for name in names)]
    yield from (file for file in found if file.is_file())


def _is_base(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "_base_" for target in node.targets)


def _existing(path: Path, base: str, user: Path) -> Path:
    if not path.is_file():
        raise UnknownName(f"The configuration {user.name!r} is based on {base!r}, which is not there. Restore it.")
    return path


def _shipped(package: str) -> Path | None:
    """The configurations that an installed package comes with."""
    spec = PathFinder.find_spec(package)
    return Path(spec.origin).parent / SHIPPED if spec and spec.origin else None
