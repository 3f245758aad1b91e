"""Names for models, attentions, wrappers, tasks, protocols and costs, filled by importing what lies below their folders."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.errors import BenchError, DuplicateName, UnknownName

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = "backbone_bench.plugins"
RESERVED = frozenset("+:/@ ,*?[]\\")

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered callable with its card and the place that registered it."""

    name: str
    build: T
    card: Any
    place: str


class Registry(Generic[T]):
    """A mapping from names to callables, filled on the first look-up.

    Args:
        kind: what it holds, in the singular, as messages say it.
        package: the package below which every module is imported on the first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry[T]] = {}
        self._discovered = False

    def register(self, name: str, card: Any = None) -> Callable[[T], T]:
        """Return a decorator that files a callable under `name`.

        Raises:
            DuplicateName: the name is taken by another callable; both places are named.
            BenchError: the name holds a character that model and task ids give a meaning to.
        """
        if not name or RESERVED & set(name):
            raise BenchError(f"{name!r} cannot name a {self.kind}: use letters, digits, '_', '-' and '.'.")

        def decorate(build: T) -> T:
            entry = Entry(name, build, card, _place(build))
            taken = self._entries.get(name)
            if taken is not None and taken.place != entry.place:
                raise DuplicateName(
                    f"Two {self.kind}s are named {name!r}: one in {taken.place}, one in {entry.place}. Rename one."
                )
            self._entries[name] = entry
            return build

        return decorate

    def get(self, name: str) -> Entry[T]:
        """Return the entry of `name`.

        Raises:
            UnknownName: with the nearest names.
        """
        self._discover()
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.6)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UnknownName(
                f"No {self.kind} is named {name!r}.{hint} "
                f"`run_bench.py list {self.kind}s` shows all {len(self._entries)}."
            )
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._discover()
        return len(self._entries)

    def _discover(self) -> None:
        if not self._discovered:
            self._discovered = True
            discover(self.package)
            load_plugins()


def _place(build: Callable[..., Any]) -> str:
    """Return `path:line` of a callable, the path relative to the project where it lies inside."""
    try:
        path = Path(inspect.getsourcefile(build) or "").resolve()
        line = inspect.getsourcelines(build)[1]
    except (OSError, TypeError):
        return f"{getattr(build, '__module__', '?')}.{getattr(build, '__qualname__', build)}"
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}"


def discover(package: str) -> None:
    """Import every module below `package`, a dotted name such as `baselines.attention`.

    Raises:
        BenchError: another package of that name comes first on the path; the culprit is named.
    """
    module = importlib.import_module(package)
    home = ROOT.joinpath(*package.split("."))
    folders = [Path(folder).resolve() for folder in module.__path__]
    if home not in folders:
        raise BenchError(
            f"The package {package!r} was found in {folders[0] if folders else '?'}, not in {home}: "
            "it shadows the harness's own. Rename it, or take its folder off PYTHONPATH."
        )
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        importlib.import_module(found.name)


_loaded_plugins: set[str] = set()


def load_plugins() -> None:
    """Import the entry points that other installed packages give in the group `backbone_bench.plugins`, once each.

    Raises:
        BenchError: an entry point that cannot be imported; its package is named.
    """
    for point in entry_points(group=PLUGINS):
        if point.value in _loaded_plugins:
            continue
        _loaded_plugins.add(point.value)
        try:
            point.load()
        except DuplicateName:
            raise
        except Exception as error:
            owner = point.dist.name if point.dist else "an installed package"
            raise BenchError(
                f"The plugin {point.name!r} of {owner} cannot be imported ({type(error).__name__}: {error}). "
                f"Mend it or uninstall {owner}."
            ) from error


MODELS: Registry[Callable[..., Any]] = Registry("model", "baselines.backbones")
ATTENTIONS: Registry[Callable[..., Any]] = Registry("attention", "baselines.attention")
WRAPPERS: Registry[Callable[..., Any]] = Registry("wrapper", "baselines.wrappers")
TASKS: Registry[Callable[..., Any]] = Registry("task", "tasks")
PROTOCOLS: Registry[Callable[..., Any]] = Registry("protocol", "tasks.protocols")
COSTS: Registry[Callable[..., Any]] = Registry("cost", "harness.costs")
GENERATORS: Registry[Callable[..., Any]] = Registry("generator", "tasks.data")
