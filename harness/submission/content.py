"""What a submission with well-formed tables may still have wrong: names, texts, tasks, numbers and files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from harness.errors import BenchError
from harness.inspection.checkpoints import inspect_checkpoint
from harness.inspection.code import inspect_code
from harness.inspection.files import UNPRINTABLE, Problem
from harness.inspection.predictions import inspect_predictions
from harness.submission.lines import Fault, Lines
from harness.submission.manifest import About, ClaimPart, ModelPart, Submission

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
# A claim is about a model that may be on the boards, under the name that it has there.
CLAIMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:-]{0,119}")
CITATION = re.compile(r"(arXiv:\d{4}\.\d{4,5}(v\d+)?|doi:10\.\S+|https?://\S+)(?!\w).*")
MODEL_ID = re.compile(r"(timm:)?[A-Za-z0-9][A-Za-z0-9_.-]*(\+[A-Za-z0-9_.-]+)*")
METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,60}")
UNIT = re.compile(r"[A-Za-z%/ ]{0,12}")
LONGEST_TEXT = 2000
MOST_TASKS, LONGEST_TASK = 100, 200
# Texts go to tables of one line each; only notes may have several.
SEVERAL_LINES = re.compile(r"[\n\t]")
NEEDS = {"model": "model", "checkpoint": "model", "predictions": "predictions", "claim": "claim"}
MODEL_WEIGHTS = ("", "random", "own")


def check_content(submission: Submission, folder: Path, lines: Lines, links: bool) -> list[Fault]:
    """Name what is wrong with a submission whose tables are well formed.

    Args:
        links: whether the folder holds links or special files, so that its folders are not walked through.
    """
    return [
        *_check_about(submission.submission, lines),
        *_check_parts(submission, lines),
        *_check_tasks(submission, lines),
        *_check_files(submission, folder, lines, links),
    ]


def _check_about(about: About, lines: Lines) -> Iterator[Fault]:
    if not (CLAIMED if about.kind == "claim" else NAME).fullmatch(about.name):
        yield Fault(
            "name", lines.place("submission", "name"), f"The name {about.name[:90]!r} cannot be shown on boards.",
            "Use letters, digits, '.', '_' and '-', at most 80, a letter or digit first.",
        )  # fmt: skip
    if about.paper and not _is_citation(about.paper):
        yield Fault(
            "citation", lines.place("submission", "paper"), f"{about.paper[:90]!r} is no citation.",
            "Write arXiv:2103.14030, doi:10.... or an address.",
        )  # fmt: skip
    for key, text in (("license", about.license), ("notes", about.notes), *(("authors", one) for one in about.authors)):
        plain = SEVERAL_LINES.sub("", text) if key == "notes" else text
        if len(text) > LONGEST_TEXT or UNPRINTABLE.search(plain):
            yield Fault(
                "text", lines.place("submission", key), f"The text of {key!r} is too long or holds control characters.",
                f"Use plain text of at most {LONGEST_TEXT:,} characters.",
            )  # fmt: skip


def _is_citation(text: str) -> bool:
    return bool(len(text) <= LONGEST_TEXT and not UNPRINTABLE.search(text) and CITATION.fullmatch(text))


def _check_parts(submission: Submission, lines: Lines) -> Iterator[Fault]:
    """A kind has its own table, and no other's."""
    kind = submission.submission.kind
    if kind not in NEEDS:
        return
    for name in ("model", "predictions", "claim"):
        there = bool(getattr(submission, name))
        table = f"[[{name}]]" if name == "claim" else f"[{name}]"
        if NEEDS[kind] == name and not there:
            place = lines.place("submission", "kind")
            yield Fault("missing", place, f"A submission of the kind {kind!r} needs the table {table}.", "Add it.")
        if NEEDS[kind] != name and there:
            place = lines.place(name, "0") if name == "claim" else lines.place(name)
            message = f"A submission of the kind {kind!r} has no table {table}."
            yield Fault("unknown-table", place, message, "Remove it, or change the kind.")
    if submission.model and NEEDS[kind] == "model":
        yield from _check_model(submission.model, kind, lines)


def _check_model(model: ModelPart, kind: str, lines: Lines) -> Iterator[Fault]:
    if kind == "checkpoint" and not model.weights:
        yield Fault("weights", lines.place("model", "weights"), "A checkpoint needs `weights`.", "Name its file.")
    if kind == "model" and model.weights not in MODEL_WEIGHTS:
        message = f"A model file has the weights 'random' or 'own', not {model.weights[:80]!r}."
        yield Fault("weights", lines.place("model", "weights"), message, "The kind `checkpoint` has a file.")
    for key, value, least in (("image_size", model.image_size, 0), ("batch_size", model.batch_size, 1)):
        if not least <= value <= 4096:
            shown = str(value) if abs(value) < 10**12 else "a number of many digits"
            yield Fault("range", lines.place("model", key), f"{key} is {shown}.", f"Use {least} to 4096.")


def _check_tasks(submission: Submission, lines: Lines) -> Iterator[Fault]:
    about, kind = submission.submission, submission.submission.kind
    place = lines.place("submission", "tasks")
    if kind in ("model", "checkpoint") and not about.tasks:
        yield Fault("tasks", place, "There is nothing to evaluate.", "Add tasks = ['imagenet', 'cost'].")
    if kind == "predictions" and len(about.tasks) != 1:
        yield Fault("tasks", place, f"There are {len(about.tasks)} tasks.", "Predictions are of one task.")
    if kind == "claim" and about.tasks:
        yield Fault("tasks", place, "A claim is not evaluated.", "Remove `tasks`; each claim names its own.")
    if len(about.tasks) > MOST_TASKS:
        yield Fault("size", place, f"There are {len(about.tasks):,} tasks.", f"Name at most {MOST_TASKS}.")
    for task in dict.fromkeys(about.tasks[:MOST_TASKS]):
        yield from _check_task(task, place, predictions=kind == "predictions")
    for number, claim in enumerate(submission.claim):
        if claim is not None:
            yield from _check_claim(claim, ("claim", str(number)), lines)


def _check_task(task: str, place: str, predictions: bool = False) -> Iterator[Fault]:
    """A task id names a task of the harness; what that takes is code of the harness, never the submission's."""
    from harness.registry import TASKS
    from harness.task_id import canonical

    if len(task) > LONGEST_TASK or UNPRINTABLE.search(task):
        message = f"The task {task[:90]!r} is too long or holds control characters."
        yield Fault("task", place, message, "`run_bench.py list tasks` shows them.")
        return
    try:
        canonical(task)
    except BenchError as error:
        yield Fault("task", place, str(error), "Correct the task.")
        return
    name, _, adapted = task.partition(":")
    if predictions and (adapted or not hasattr(TASKS.get(name.partition(",")[0]).build, "evaluate_predictions")):
        message = f"The task {task!r} measures a model, and predictions have none."
        yield Fault("task", place, message, "Name a task that reads predictions, such as imagenet, coco or ade20k.")


def _check_claim(claim: ClaimPart, where: tuple[str, str], lines: Lines) -> Iterator[Fault]:
    if not _is_citation(claim.source):
        yield Fault(
            "citation", lines.place(*where, "source"), f"The claim cites {claim.source[:90]!r}.",
            "Write arXiv:..., doi:... or an address, then the table or page.",
        )  # fmt: skip
    yield from _check_task(claim.task, lines.place(*where, "task"))
    if not METRIC.fullmatch(claim.metric):
        message = f"{claim.metric[:60]!r} names no metric of a task."
        yield Fault("name", lines.place(*where, "metric"), message, "Use the names that the boards show.")
    if not UNIT.fullmatch(claim.unit):
        yield Fault("name", lines.place(*where, "unit"), f"{claim.unit[:60]!r} is no unit.", "Write such as % or ms.")
    percent = "%" in claim.unit
    if not math.isfinite(claim.value) or (percent and not 0 <= claim.value <= 100):
        message = f"The claim's value {claim.value} cannot be{' a percentage' if percent else ''}."
        yield Fault("range", lines.place(*where, "value"), message, "Give a finite number in the metric's unit.")


def _check_files(submission: Submission, folder: Path, lines: Lines, links: bool) -> Iterator[Fault]:
    """Look at every file that the submission names, without running, unpickling or decoding it."""
    kind = submission.submission.kind
    if model := submission.model:
        place = lines.place("model", "entry")
        yield from (Fault.of(problem, place) for problem in _inspect_entry(model, kind, folder))
        if kind == "checkpoint" and model.weights:
            place = lines.place("model", "weights")
            yield from (Fault.of(problem, place) for problem in inspect_checkpoint(folder, model.weights))
    if submission.predictions and not links:
        file = submission.predictions.file
        place = lines.place("predictions", "file")
        yield from (Fault.of(problem, place) for problem in inspect_predictions(folder, file))


def _inspect_entry(model: ModelPart, kind: str, folder: Path) -> list[Problem]:
    """`FILE.py:NAME` with a file of the folder; for a checkpoint also the id of a registered or timm model.

    Never `module:callable`, which would import anything that is installed.
    """
    file, _, name = model.entry.rpartition(":")
    if file.endswith(".py") and name.isidentifier() and name.isascii():
        given = frozenset() if model.weights == "own" else frozenset({"num_classes"})
        return inspect_code(folder, file, name, given | ({"image_size"} if model.image_size else frozenset()))
    if kind == "checkpoint" and MODEL_ID.fullmatch(model.entry):
        return []
    fix = "Write FILE.py:NAME, with a file of the folder."
    if kind == "checkpoint":
        fix = f"{fix[:-1]}, or a model id such as timm:resnet18."
    elif MODEL_ID.fullmatch(model.entry) and not file.endswith(".py"):
        fix += " A model id is for the kind `checkpoint`."
    return [Problem("entry", f"{model.entry[:90]!r} is no entry.", fix)]
