"""The processor time that a container or a scheduler allows this process: the CPU quota of Linux's control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def quota() -> float | None:
    """Return how many cores' time the tightest quota allows; None where there is none."""
    return min((limit for limit, _ in _limits()), default=None)


def periods() -> tuple[int, int]:
    """Return the periods of the tightest quota so far, and how many of them were throttled; none without a quota."""
    _, folder = min(_limits(), default=(0.0, None))
    if folder is None:
        return 0, 0
    fields = dict(line.split() for line in _text(folder / "cpu.stat").splitlines())
    return int(fields.get("nr_periods", 0)), int(fields.get("nr_throttled", 0))


def _limits() -> Iterator[tuple[float, Path]]:
    """Yield the quota in cores of each control group that this process is in, and its folder."""
    for folder in _folders():
        # Version 2 has both numbers in one file, version 1 one in each of two.
        parts = _text(folder / "cpu.max") or "".join(
            _text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        )
        allowed, period = (*parts.split(), "", "")[:2]
        if allowed.isdigit() and period.isdigit():  # `max` and -1 stand for no quota
            yield int(allowed) / int(period), folder


def _folders() -> Iterator[Path]:
    """Yield the folders of this process's control groups, from the innermost to the root.

    A container may show the path that its host sees, which is not there inside; its own group is then the root.
    """
    for line in _text(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            root = ROOT / controllers
            inner = root / path.strip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
