"""Names for models, attentions, tasks and so on, filled by importing what lies below their folders."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Generic, TypeVar

from harness.errors import BenchError, DuplicateName, UnknownName, reason

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = "backbone_bench.plugins"
RESERVED = frozenset("+:=/@ ,*?[]\\")

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered callable with its card and the place that registered it.

    Args:
        place: `path:line` of the registration.
        scope: the variables of the module that registered it; a module that is executed anew has others.
    """

    name: str
    build: T
    card: Any
    place: str
    scope: Any = field(default=None, repr=False, compare=False)


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
            DuplicateName: the name is taken; both places are named.
            BenchError: the name holds a character that model and task ids give a meaning to.
        """
        if not name or RESERVED & set(name):
            raise BenchError(f"{name!r} cannot name a {self.kind}: use letters, digits, '_', '-' and '.'.")

        caller = sys._getframe(1)
        place, scope = _place(caller), caller.f_globals

        def decorate(build: T) -> T:
            entry = Entry(name, build, card, place, scope)
            taken = self._entries.get(name)
            if taken is not None and (taken.place != place or taken.scope is scope):
                raise DuplicateName(
                    f"Two {self.kind}s are named {name!r}: one in {taken.place}, one in {place}. Rename one."
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

    def entries(self) -> list[Entry[T]]:
        """Return all entries by name."""
        return [self.get(name) for name in self]

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
            try:
                discover(self.package)
                load_plugins()
            except BenchError:
                # The next look-up must say it again, and not that a name is unknown.
                self._discovered = False
                raise


def _place(frame: FrameType) -> str:
    """Return `path:line` of running code, the path relative to the project where it lies inside."""
    path = Path(frame.f_code.co_filename).resolve()
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{frame.f_lineno}"


def discover(package: str) -> None:
    """Import every module below `package`, a dotted name such as `baselines.attention`.

    Raises:
        BenchError: a module cannot be imported, or another package of that name comes first on the path.
    """
    _check_own(package.partition(".")[0])
    folders = _import(package).__path__
    for found in pkgutil.walk_packages(folders, package + "."):
        _import(found.name)


def _check_own(package: str) -> None:
    """Refuse, before it is imported, a stranger's package or module that shadows the harness's own."""
    spec = importlib.util.find_spec(package)
    places = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
    found = [Path(place).resolve() for place in places if place]
    if ROOT / package not in found:
        where = f"was found in {str(found[0])!r}, not" if found else "was not found"
        raise BenchError(
            f"The package {package!r} {where} in {str(ROOT / package)!r}: the harness needs its own. "
            "Rename what shadows it, or take its folder off PYTHONPATH."
        )


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BenchError:
        raise
    except Exception as error:
        raise BenchError(
            f"The module {name!r} cannot be imported ({reason(error)}). Mend it, or move it away."
        ) from error


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
        except Exception as error:
            _loaded_plugins.discard(point.value)
            if isinstance(error, DuplicateName):
                raise
            owner = point.dist.name if point.dist else "an installed package"
            raise BenchError(
                f"The plugin {point.name!r} of {owner} cannot be imported ({reason(error)}). "
                f"Mend it or uninstall {owner}."
            ) from error


MODELS: Registry[Callable[..., Any]] = Registry("model", "baselines.backbones")
ATTENTIONS: Registry[Callable[..., Any]] = Registry("attention", "baselines.attention")
WRAPPERS: Registry[Callable[..., Any]] = Registry("wrapper", "baselines.wrappers")
TASKS: Registry[Callable[..., Any]] = Registry("task", "tasks")
PROTOCOLS: Registry[Callable[..., Any]] = Registry("protocol", "tasks.protocols")
SEGMENTERS: Registry[Callable[..., Any]] = Registry("segmenter", "tasks.segmenters")
PANOPTIC_SEGMENTERS: Registry[Callable[..., Any]] = Registry("panoptic_segmenter", "tasks.panoptic_segmenters")
DETECTORS: Registry[Callable[..., Any]] = Registry("detector", "tasks.detectors")
HEADS: Registry[Callable[..., Any]] = Registry("head", "baselines.heads")
COSTS: Registry[Callable[..., Any]] = Registry("cost", "harness.costs")
STATISTICS: Registry[Callable[..., Any]] = Registry("statistic", "tasks.metrics")
GENERATORS: Registry[Callable[..., Any]] = Registry("generator", "tasks.data")
