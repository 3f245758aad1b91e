"""Reading what an isolated process left behind: bounded, as the harness wrote it, and with text that can be shown."""

from __future__ import annotations

import gzip
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from harness.conformance import Check
from harness.errors import RecordError, SetupError
from harness.inspection.files import MIB, Problem, inside, inspect_tree, printable
from harness.metric import Outcomes
from harness.record import Record, content_sha256, from_json
from harness.store import Store
from harness.submission.plan import Plan

READ = ("records", "outcomes")
LARGEST_RECORD = 64 * MIB
LARGEST_RECORDS = 256 * MIB
LARGEST_OUTCOMES = 256 * MIB
METRIC = re.compile(r"[A-Za-z][\w.+-]{0,79}", re.ASCII)
UNIT = re.compile(r"[\w%/ .^-]{0,20}", re.ASCII)


def clear(isolated: Path) -> None:
    """Make a folder ready for another run: records of an earlier one stay, if they are what the harness leaves.

    Nothing else does: what code put into its home, or named as this run's folders, is there before it is confined.

    Raises:
        SetupError: something cannot be removed.
    """
    isolated.mkdir(parents=True, exist_ok=True)
    kept = () if problem_of(isolated) else READ
    for path in isolated.iterdir():
        if path.name in kept:
            continue
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except (OSError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or "folders in folders without end"
            raise SetupError(f"{str(path)!r} of an earlier run cannot be removed ({reason}). Remove it.") from error


def problem_of(isolated: Path) -> Problem | None:
    """Return why what is read of a folder cannot be; its home and temporary files are not looked at."""
    for name in READ:
        problem = inside(isolated, name, 0, "folder")
        found = inspect_tree(isolated / name) if problem is None else [problem] if problem.code != "absent" else []
        if found:
            return replace(found[0], message=f"{name}: {found[0].message}")
    return None


def checks_of(isolated: Path, report: str) -> tuple[Check, ...]:
    """Return what the conformance kit found, from a file that the submitted code could have written."""
    if inside(isolated, report, MIB):
        return ()
    try:
        return tuple(msgspec.json.decode((isolated / report).read_bytes(), type=list[Check]))
    except (msgspec.MsgspecError, RecursionError) as error:
        return (Check("report", False, f"The kit's report was overwritten ({error})."),)


def records_of(plan: Plan, model: str, store: Store) -> Iterator[tuple[Record, Outcomes | None]]:
    """Yield the records of a plan with their outcomes; what the code may have put there beside them is passed over.

    Args:
        model: the name that they give the model.

    Raises:
        BenchError, OSError: a file that is too large, no record, or not as it was written.
    """
    provenance = "predictions" if plan.predictions else "measured"
    total = 0
    for name in store.names():
        total += _size(store, f"records/{name}", LARGEST_RECORD)
        if total > LARGEST_RECORDS:
            raise RecordError(f"Its records have more than {LARGEST_RECORDS // MIB} MiB.")
        record = from_json(text := store.text(name), name)
        mine = record.model == model and record.setup.limit == plan.limit
        if not mine or (record.task not in plan.tasks and not plan.predictions) or name != f"{record.name}.json":
            continue
        if record.provenance != provenance or record.content_sha256 != content_sha256(text):
            raise RecordError(f"{name} is not as the harness wrote it.")
        yield _shown(record, name), _outcomes(store, record) if record.outcomes_sha256 else None


def _size(store: Store, name: str, largest: int) -> int:
    """Bytes of a plain file."""
    if problem := inside(store.root, name, largest):
        raise RecordError(f"{problem.message} {problem.fix}")
    return (store.root / name).stat().st_size


def _outcomes(store: Store, record: Record) -> Outcomes:
    """The outcomes of a record, which are unpacked only as far as they may go."""
    name = f"outcomes/{record.name}.csv.gz"
    _size(store, name, LARGEST_OUTCOMES)
    left = LARGEST_OUTCOMES
    try:
        with gzip.open(store.root / name) as file:
            while left >= 0 and (part := file.read(MIB)):
                left -= len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"{name} is damaged ({error}).") from error
    if left < 0:
        raise RecordError(f"{name} has more than {LARGEST_OUTCOMES // MIB} MiB when it is unpacked.")
    return store.read_outcomes(record)


def _shown(record: Record, name: str) -> Record:
    """A record with metrics that a task could have, and with control characters as escapes."""
    for metric in (measurement.metric for measurement in record.measurements):
        if not (METRIC.fullmatch(metric.name) and UNIT.fullmatch(metric.unit)):
            raise RecordError(f"{name} has a metric that no task has: {metric.name[:80]!r} in {metric.unit[:20]!r}.")
    return msgspec.convert(_printable(msgspec.to_builtins(record)), Record)


def _printable(found: Any) -> Any:
    if isinstance(found, dict):
        return {printable(key): _printable(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_printable(value) for value in found]
    return printable(found) if isinstance(found, str) else found
