"""What `submit run` has to do for a submission, and what its isolated process is told."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.device import default_device
from harness.errors import SetupError
from harness.models import public_id
from harness.registry import ROOT
from harness.submission.manifest import ModelPart, Submission

SUITES = {
    "quick": ("imagenet:knn", "cost"),
    "classification": ("imagenet", "cost"),
    "dense": ("coco", "ade20k", "cost"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the isolated process runs.

    Args:
        model: the model id with the file's place; for predictions the name in records.
        weights: `random`, `own`, or the path of a file; for predictions their path.
        tasks: canonical ids.
        data: root of the data sets.
        results: where its records go.
        image_size: 0 for the model's own.
        seconds: that all may take.
        rerun: measure again what has a record.
    """

    model: str
    weights: str
    tasks: tuple[str, ...]
    data: str
    results: str
    predictions: bool = False
    image_size: int = 0
    batch_size: int = 32
    precision: str = "fp32"
    device: str = "cpu"
    limit: int | None = None
    threads: int | None = None
    seconds: float = 0
    rerun: bool = False


def tasks_of(submission: Submission, tasks: Sequence[str] | None, suite: str | None) -> tuple[str, ...]:
    """Return the canonical ids of what is to be evaluated: those asked for, or those that the submission names.

    Raises:
        BenchError: a task or a suite that does not exist, or both given.
    """
    from harness.task_id import canonical

    if tasks and suite:
        raise SetupError("--task and --suite both say what to evaluate: give one of them.")
    if suite and suite not in SUITES:
        raise SetupError(f"There is no suite {suite!r}. Use {', '.join(SUITES)}.")
    chosen = tasks or (SUITES[suite] if suite else submission.submission.tasks)
    found = tuple(dict.fromkeys(map(canonical, chosen)))
    if submission.predictions and len(found) != 1:
        raise SetupError(f"Predictions are of one task, and {len(found)} were asked for.")
    return found


def make_plan(
    submission: Submission,
    folder: Path,
    tasks: tuple[str, ...],
    *,
    results: Path,
    data: str | None,
    device: str | None,
    limit: int | None,
    threads: int | None,
    seconds: float,
    rerun: bool = False,
) -> Plan:
    """Return what is to be run for a submission; all places are absolute.

    Raises:
        SetupError: there is nothing to run, or no data root.
    """
    root = Path(data or os.environ.get("BENCH_DATA") or "data").resolve()
    if not root.is_dir():
        if data or any(not task.startswith("cost") for task in tasks):
            raise SetupError(f"There is no folder of data {str(root)!r}: give --data, or make some with `data mini`.")
        root = ROOT
    model, weights = model_of(submission, folder.resolve())
    part = submission.model or ModelPart(entry="")
    return Plan(
        model=model, weights=weights, tasks=tasks, data=str(root), results=str(results), limit=limit, threads=threads,
        predictions=submission.predictions is not None, device=device or default_device(), seconds=seconds,
        image_size=part.image_size, batch_size=part.batch_size, precision=part.precision, rerun=rerun,
    )  # fmt: skip


def needs_trust(submission: Submission) -> bool:
    """Whether evaluating a submission runs code that came with it."""
    return submission.model is not None and ".py:" in submission.model.entry


def model_of(submission: Submission, folder: Path) -> tuple[str, str]:
    """Return the model id and the weights of a submission, with the places of its files."""
    if submission.predictions:
        return submission.submission.name, str(folder / submission.predictions.file)
    model = submission.model
    if model is None:
        raise SetupError(f"{submission.submission.name!r} is a claim: there is nothing to run.")
    entry = str(folder / model.entry) if needs_trust(submission) else model.entry
    if submission.submission.kind == "checkpoint":
        return entry, str(folder / model.weights)
    return entry, model.weights or "random"


def expected_model(submission: Submission) -> str:
    """Return the name that the records of the isolated process give the model."""
    return public_id(submission.model.entry) if submission.model else submission.submission.name


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all plain files of a folder; links are not followed."""
    total = hashlib.sha256()
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if not path.is_symlink() and path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
                total.update(path.relative_to(folder).as_posix().encode() + b"\0" + digest)
    return total.hexdigest()
