"""A suite: data sets, carriers, attentions and tasks in one file, so that one command makes all records anew."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from harness.api import EXECUTORS, Records, build_setup, run_jobs
from harness.errors import BenchError, SetupError
from harness.progress import say
from harness.registry import GENERATORS
from harness.runner import Job
from harness.store import Store
from harness.task_id import canonical


@dataclass(frozen=True, kw_only=True)
class Run:
    """A carrier with every attention of the suite, on some tasks.

    Args:
        image_size: side in pixels for tasks that do not choose it themselves, such as costs.
    """

    carrier: str
    tasks: tuple[str, ...]
    image_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What a suite's file says.

    Args:
        attentions: each in every carrier, beside the carrier itself.
        data: parameters of generators by their names.
        threads: of torch, for all runs.
    """

    attentions: tuple[str, ...]
    runs: tuple[Run, ...]
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    threads: int = 1

    def pairs(self, only: Sequence[str] = ()) -> list[tuple[str, str, int | None]]:
        """Return model, task and image size of all that is measured, in order.

        Args:
            only: tasks, such as `cost` or `cost:latency`; none for all.

        Raises:
            SetupError: no run has such a task.
        """
        every = [(run, task) for run in self.runs for task in run.tasks]
        names = list(dict.fromkeys(name for _, task in every for name in sorted(_names(task))))
        if unknown := [name for name in only if name not in names]:
            raise SetupError(f"--only is {unknown[0]!r}; the suite has: {', '.join(names)}.")
        return [
            (model, canonical(task), run.image_size)
            for run, task in every if not only or _names(task) & set(only)
            for model in (run.carrier, *(f"{run.carrier}+{attention}" for attention in self.attentions))
        ]  # fmt: skip


def _names(task: str) -> set[str]:
    """What `only` may call a task: with its variant or without, its options left out."""
    whole = task.partition(",")[0]
    return {whole, whole.partition(":")[0]}


def read_suite(path: Path) -> Suite:
    """Read a suite.

    Raises:
        SetupError: the file cannot be read, or says something that a suite does not have.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"The suite {str(path)!r} cannot be read ({error}). Give a TOML file.") from error
    runs = content.get("runs", ())
    for place, kind, given in [("", Suite, content), *((f" in runs[{i}]", Run, run) for i, run in enumerate(runs))]:
        known = [each.name for each in fields(kind)]
        if unknown := [name for name in given if name not in known]:
            raise SetupError(f"The suite {path.name} has no {unknown[0]!r}{place}; expected any of {', '.join(known)}.")
    try:
        return msgspec.convert(content, Suite)
    except msgspec.ValidationError as error:
        raise SetupError(f"The suite {path.name} cannot be used: {error}.") from error


def make_data(suite: Suite, root: Path) -> None:
    """Draw the data sets of a suite below a folder; what is there already is kept.

    Raises:
        DataError: a folder holds a data set of other parameters.
        SetupError: a generator takes no such parameters.
    """
    for name, parameters in suite.data.items():
        try:
            folder = GENERATORS.get(name).build(root, **parameters)
        except TypeError as error:
            raise SetupError(f"The data set {name!r} cannot be drawn: {error}.") from error
        say(f"{name}: {folder}")


def run_suite(
    suite: Suite,
    root: Path,
    store: Store,
    *,
    only: Sequence[str] = (),
    rerun: bool = False,
    executor: str = "process",
    workers: int = 0,
    device: str | None = None,
) -> Records:
    """Measure what has no record yet, and return all records.

    Args:
        root: of the data sets.
        only: tasks, as `Suite.pairs` takes them; none for all.
        rerun: measure again what has a record.

    Raises:
        BenchError: something that the suite names does not exist; nothing has been measured then.
    """
    jobs = []
    for model, task, size in suite.pairs(only):
        setup, _ = build_setup("random", device=device, image_size=size)
        jobs.append(Job(model=model, task=task, setup=setup, data=root, workers=workers, threads=suite.threads))
    if not jobs:
        raise BenchError("The suite has no runs. Give it some.")
    return run_jobs(jobs, store, EXECUTORS[executor], rerun)
