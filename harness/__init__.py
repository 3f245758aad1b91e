"""The engine of the benchmark: it names no task and no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import run

__all__ = ["run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "run":
        from harness.api import run

        return run
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
