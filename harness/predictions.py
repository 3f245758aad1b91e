"""Records of predictions that were made elsewhere: the same data, rules and boards, and no model runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from harness.album import clear
from harness.errors import DataError, SetupError
from harness.progress import say
from harness.record import Record, Setup, Weights, digest, slug
from harness.resampling import with_intervals
from harness.runner import Job, Request, describe, with_panels
from harness.store import Store
from harness.task import ReadsPredictions, build_task


def measure_predictions(
    file: Path,
    tasks: Sequence[str],
    store: Store,
    *,
    model: str | None = None,
    annotations: Path | None = None,
    data: Path | None = None,
    rerun: bool = False,
    panels: int = 0,
) -> tuple[list[Record], int]:
    """Measure a file or a folder of predictions, and return the records with how many were there before.

    Args:
        model: the name in records; the file's stem by default.
        panels: of how many images pictures are kept.
        annotations: the truth, where it is not in the data root.

    Raises:
        BenchError: predictions that cannot be measured; nothing has been written for them.
    """
    if not file.exists():
        raise DataError(f"There are no predictions {str(file)!r}. Check the path.")
    if annotations is not None and not annotations.exists():
        raise DataError(f"There are no annotations {str(annotations)!r}. Check the path.")
    weights = Weights(source="predictions", file=file.name, file_sha256=content_sha256(file))
    records, skipped = [], 0
    for task_id in tasks:
        task_id, task = _reader(task_id, file, data, annotations)
        job = Job(
            model=model or slug(file.stem),
            task=task_id,
            setup=Setup(weights=weights),
            data=data,
            annotations=annotations,
            panels=panels,
        )
        stamp = task.data()
        key = digest(job.model, job.task, task.version, job.setup, stamp)
        request = Request(job=job, key=key, data=stamp, source_sha256="")
        request = replace(request, panels=store.panels / request.name)
        found = None if rerun else store.find(request.name)
        skipped += found is not None
        records.append(found or _measure(request, task, file, store))
    return records, skipped


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file and of the folder that has its name without the ending, or of a folder."""
    total = hashlib.sha256()
    folder = path if path.is_dir() else path.with_suffix("")
    files = [path] if path.is_file() else []
    for part in files + sorted(found for found in folder.rglob("*") if found.is_file() and folder.is_dir()):
        total.update(part.name.encode() + hashlib.sha256(part.read_bytes()).digest())
    return total.hexdigest()


def _reader(task_id: str, file: Path, data: Path | None, annotations: Path | None) -> tuple[str, ReadsPredictions]:
    """The task that reads a file, and its id: that which was asked for, or one that it hands the file on to."""
    if ":" in task_id:
        raise SetupError(
            f"{task_id!r} says how a model is adapted, and none runs here: use {task_id.partition(':')[0]!r}."
        )
    task = build_task(task_id, data, annotations=annotations)
    if not isinstance(task, ReadsPredictions):
        raise SetupError(f"The task {task_id!r} does not read predictions: give it a --model.")
    other = task.belongs_to(file)
    if other is None:
        return task_id, task
    say(f"{file.name} is for the task {other}, which measures it.")
    return _reader(other, file, data, annotations)


def _measure(request: Request, task: ReadsPredictions, file: Path, store: Store) -> Record:
    started, clock = datetime.now(UTC), time.perf_counter()
    if request.panels:
        clear(request.panels)
    task.album = request.album()
    evaluation = with_panels(with_intervals(task.evaluate_predictions(file)), task.album)
    seconds = time.perf_counter() - clock
    record = describe(request, request.job.setup, evaluation, None, started, seconds, "predictions")
    return store.save(record, evaluation.outcomes)
