"""What the harness itself reads of a record's details; a task may put anything else beside it."""

from __future__ import annotations

from typing import Any

import msgspec


class Race(msgspec.Struct, frozen=True):
    """Models that took turns."""

    id: str
    models: tuple[str, ...]
    rounds: int = 0


class Equal(msgspec.Struct, frozen=True):
    """Hashes of what several trainings had alike."""

    recipe: str
    order: str


class Training(msgspec.Struct, frozen=True):
    """One of several trainings."""

    interval_over_images: tuple[float, float] | None = None


class Submission(msgspec.Struct, frozen=True):
    """Who submitted what ran."""

    entry: str = ""
    sha256: str = ""


class Panels(msgspec.Struct, frozen=True):
    """Which items there are pictures of."""

    items: tuple[str, ...] = ()


class Details(msgspec.Struct, frozen=True, gc=False):
    """The types of those entries; `seeds` is a list where trainings are equal."""

    race: Race | None = None
    equal: Equal | None = None
    seeds: Any = None
    trainings: tuple[Training, ...] = ()
    submission: Submission = Submission()
    panels: Panels = Panels()
    unranked: tuple[str, ...] = ()
    disturbed: tuple[str, ...] = ()
    nominal: str = ""

    def __post_init__(self) -> None:
        if self.equal and not isinstance(self.seeds, list):
            raise ValueError(f"`seeds` is {self.seeds!r:.40}; beside `equal` a list is expected")
