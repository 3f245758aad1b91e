"""A submission: a folder with a `submission.toml`; every fault of it at once, without running a line of its code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from harness.errors import BenchError, SetupError
from harness.inspection import Problem, inside, inspect_checkpoint, inspect_code, inspect_predictions

FILE = "submission.toml"
LARGEST_FILE = 64 * 1024
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
CITATION = re.compile(r"(arXiv:\d{4}\.\d{4,5}(v\d+)?|doi:10\.\S+|https?://\S+)\b.*", re.DOTALL)
LONGEST_TEXT = 2000

Kind = Literal["model", "checkpoint", "predictions", "claim"]


@dataclass(frozen=True, kw_only=True)
class About:
    """The table `[submission]`.

    Args:
        name: as boards show it: letters, digits, `.`, `_` and `-`, at most 80.
        kind: `model` (a Python file), `checkpoint` (a model id or a Python file, with weights), `predictions`, `claim`.
        tasks: task ids to evaluate, such as `imagenet:knn`; one for predictions, none for a claim.
        authors: who made the model.
        paper: `arXiv:2103.14030`, `doi:10....` or an address.
        license: of the code or the weights, as SPDX writes it.
        notes: anything a reader should know.
    """

    name: str
    kind: Kind
    tasks: list[str] = field(default_factory=list)
    authors: list[str] = field(default_factory=list)
    paper: str = ""
    license: str = ""
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """The table `[model]`, of the kinds `model` and `checkpoint`.

    Args:
        entry: `nets.py:my_net`, with a file of the folder; for a checkpoint also a model id, such as `timm:resnet18`.
        weights: of a checkpoint: a `.safetensors` file of the folder, or one that torch reads with `weights_only`.
        image_size: side in pixels; 0 for the model's own.
        batch_size: images per forward pass.
        precision: fp32, tf32, bf16 or fp16.
    """

    entry: str
    weights: str = ""
    image_size: int = 0
    batch_size: int = 32
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


@dataclass(frozen=True, kw_only=True)
class PredictionsPart:
    """The table `[predictions]`.

    Args:
        file: a file or a folder of the submission, in the form that `run --predictions` takes.
    """

    file: str


@dataclass(frozen=True, kw_only=True)
class ClaimPart:
    """A table `[[claim]]`: one number that somebody published.

    Args:
        task: the task id that it is meant to compare with.
        metric: as the task names it, such as `top1`.
        value: in the metric's unit.
        unit: such as `%`; empty for a bare number.
        higher_is_better: the direction of better.
        source: the citation: `arXiv:...`, `doi:...` or an address, then the table or page.
    """

    task: str
    metric: str
    value: float
    source: str
    unit: str = "%"
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a `submission.toml` says.

    Args:
        model: of the kinds `model` and `checkpoint`.
        predictions: of the kind `predictions`.
        claim: of the kind `claim`: at least one.
    """

    submission: About
    model: ModelPart | None = None
    predictions: PredictionsPart | None = None
    claim: list[ClaimPart] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """One thing to mend.

    Args:
        code: stable, for machines.
        place: `file:line`, or the file alone.
        message: what is wrong, with the value.
        fix: the next step.
    """

    code: str
    place: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message} {self.fix} [{self.code}]"


def read(folder: Path) -> tuple[Submission | None, list[Fault]]:
    """Read a submission and name all its faults; None where the file cannot be understood.

    Nothing of the folder is imported, unpickled or decoded beyond its headers, and nothing outside it is read.

    Raises:
        SetupError: the folder is not there.
    """
    if not folder.is_dir():
        raise SetupError(f"There is no folder {str(folder)!r}: `run_bench.py submit init {folder}` makes one.")
    text, faults = _text(folder)
    if text is None:
        return None, faults
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{FILE}:{line[1]}" if line else FILE
        return None, [Fault("toml", place, f"The file is not TOML ({error}).", "Mend this line.")]
    lines = Lines(text)
    submission, faults = _build(found, lines)
    if submission is not None:
        faults += _check_content(submission, folder, lines)
    return (None if faults else submission), faults


def _text(folder: Path) -> tuple[str | None, list[Fault]]:
    """The content of the file, or why it is not read."""
    if problem := inside(folder, FILE, LARGEST_FILE):
        fix = "`run_bench.py submit init` writes one with comments." if problem.code == "absent" else problem.fix
        return None, [Fault(problem.code, FILE, problem.message, fix)]
    try:
        return (folder / FILE).read_text(encoding="utf-8"), []
    except UnicodeDecodeError as error:
        return None, [Fault("encoding", FILE, f"The file is not UTF-8 ({error.reason}).", "Save it as UTF-8.")]


class Lines:
    """Where in a TOML file a key stands, found by its text: tables and `key = value` at the start of lines."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        table = ""
        for number, line in enumerate(text.splitlines(), 1):
            if head := re.match(r"\s*\[+\s*([A-Za-z0-9_.-]+)\s*\]+", line):
                table = head[1]
                self._lines.setdefault(table, number)
            elif key := re.match(r"\s*([A-Za-z0-9_-]+)\s*=", line):
                self._lines.setdefault(f"{table}.{key[1]}" if table else key[1], number)

    def place(self, *keys: str) -> str:
        """Return `file:line` of a table or of a key in it, or of the nearest that is there."""
        for end in range(len(keys), 0, -1):
            if number := self._lines.get(".".join(keys[:end])):
                return f"{FILE}:{number}"
        return FILE


PARTS: Mapping[str, type[Any]] = {"submission": About, "model": ModelPart, "predictions": PredictionsPart}


def _build(found: Mapping[str, Any], lines: Lines) -> tuple[Submission | None, list[Fault]]:
    """Turn tables into a submission, naming every key that is missing, unknown or of another type."""
    faults = [
        Fault(
            "unknown-table", lines.place(name), f"There is no table {name!r}.", f"Use {', '.join((*PARTS, 'claim'))}."
        )
        for name in found
        if name not in (*PARTS, "claim")
    ]
    parts: dict[str, Any] = {}
    for name, kind in PARTS.items():
        if name in found:
            parts[name], more = _part(kind, found[name], name, lines)
            faults += more
    claims = found.get("claim", [])
    if not isinstance(claims, list):
        faults.append(
            Fault("type", lines.place("claim"), "`claim` is one table.", "Write [[claim]], with two brackets.")
        )
        claims = []
    built = [_part(ClaimPart, claim, "claim", lines) for claim in claims]
    faults += [fault for _, more in built for fault in more]
    if "submission" not in found:
        faults.append(Fault("missing", FILE, "The table [submission] is missing.", "Add it, with name and kind."))
    whole = parts.get("submission") is not None
    return (Submission(**parts, claim=[claim for claim, _ in built if claim]) if whole else None), faults


def _part(kind: type[Any], table: Any, name: str, lines: Lines) -> tuple[Any, list[Fault]]:
    """Turn one table into its dataclass, with what can be used of it; None where something necessary cannot."""
    if not isinstance(table, Mapping):
        return None, [Fault("type", lines.place(name), f"{name!r} is not a table.", f"Write [{name}].")]
    types, known, faults, values = get_type_hints(kind), {f.name: f for f in fields(kind)}, [], {}
    for key in table.keys() - known.keys():
        offer = f"It may hold {', '.join(known)}."
        faults.append(Fault("unknown-key", lines.place(name, key), f"There is no key {key!r} in [{name}].", offer))
    for key, entry in known.items():
        if key not in table:
            if entry.default is MISSING and entry.default_factory is MISSING:
                faults.append(Fault("missing", lines.place(name), f"[{name}] lacks the key {key!r}.", "Add it."))
            continue
        try:
            values[key] = msgspec.convert(table[key], types[key])
        except msgspec.ValidationError as error:
            faults.append(Fault("type", lines.place(name, key), f"{key!r} cannot be used: {error}.", "Mend the value."))
    needed = [key for key, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING]
    return (kind(**values) if all(key in values for key in needed) else None), sorted(faults, key=str)


def _check_content(submission: Submission, folder: Path, lines: Lines) -> list[Fault]:
    """Name what is wrong with a submission whose tables are well formed."""
    return [
        *_check_about(submission.submission, lines),
        *_check_parts(submission, lines),
        *_check_tasks(submission, lines),
        *_check_files(submission, folder, lines),
    ]


def _check_about(about: About, lines: Lines) -> Iterator[Fault]:
    if not NAME.fullmatch(about.name):
        yield Fault(
            "name", lines.place("submission", "name"), f"The name {about.name[:90]!r} cannot be shown on boards.",
            "Use letters, digits, '.', '_' and '-', at most 80, a letter or digit first.",
        )  # fmt: skip
    if about.paper and not CITATION.fullmatch(about.paper):
        yield Fault(
            "citation", lines.place("submission", "paper"), f"{about.paper[:90]!r} is no citation.",
            "Write arXiv:2103.14030, doi:10.... or an address.",
        )  # fmt: skip
    for key, text in (("license", about.license), ("notes", about.notes), *(("authors", one) for one in about.authors)):
        if len(text) > LONGEST_TEXT or re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text):
            yield Fault(
                "text", lines.place("submission", key), f"The text of {key!r} is too long or holds control characters.",
                f"Use plain text of at most {LONGEST_TEXT:,} characters.",
            )  # fmt: skip


NEEDS = {"model": "model", "checkpoint": "model", "predictions": "predictions", "claim": "claim"}


def _check_parts(submission: Submission, lines: Lines) -> Iterator[Fault]:
    """A kind has its own table, and no other's."""
    kind = submission.submission.kind
    for name in ("model", "predictions", "claim"):
        there = bool(getattr(submission, name))
        table = f"[[{name}]]" if name == "claim" else f"[{name}]"
        if NEEDS[kind] == name and not there:
            place = lines.place("submission", "kind")
            yield Fault("missing", place, f"A submission of the kind {kind!r} needs the table {table}.", "Add it.")
        if NEEDS[kind] != name and there:
            message = f"A submission of the kind {kind!r} has no table {table}."
            yield Fault("unknown-table", lines.place(name), message, "Remove it, or change the kind.")
    model = submission.model
    if model and bool(model.weights) != (kind == "checkpoint"):
        message = "A checkpoint needs `weights`." if kind == "checkpoint" else "A model file has no `weights`."
        yield Fault("weights", lines.place("model", "weights"), message, "The kind `checkpoint` has them.")
    if model and (not 0 <= model.image_size <= 4096 or not 1 <= model.batch_size <= 4096):
        message = f"image_size is {model.image_size} and batch_size {model.batch_size}."
        yield Fault("range", lines.place("model"), message, "Use sizes up to 4096, and at least 1 image.")


def _check_tasks(submission: Submission, lines: Lines) -> Iterator[Fault]:
    from harness.task_id import canonical

    about, kind = submission.submission, submission.submission.kind
    place = lines.place("submission", "tasks")
    if kind in ("model", "checkpoint") and not about.tasks:
        yield Fault("tasks", place, "There is nothing to evaluate.", "Add tasks = ['imagenet', 'cost'].")
    if kind == "predictions" and len(about.tasks) != 1:
        yield Fault("tasks", place, f"There are {len(about.tasks)} tasks.", "Predictions are of one task.")
    if kind == "claim" and about.tasks:
        yield Fault("tasks", place, "A claim is not evaluated.", "Remove `tasks`; each claim names its own.")
    for task in about.tasks:
        try:
            canonical(task)
        except BenchError as error:
            yield Fault("task", place, str(error), "`run_bench.py list tasks` shows them.")
    for claim in submission.claim:
        yield from _check_claim(claim, lines)


def _check_claim(claim: ClaimPart, lines: Lines) -> Iterator[Fault]:
    if not CITATION.fullmatch(claim.source):
        yield Fault(
            "citation", lines.place("claim", "source"), f"The claim cites {claim.source[:90]!r}.",
            "Write arXiv:..., doi:... or an address, then the table or page.",
        )  # fmt: skip
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,60}", claim.metric) or not re.fullmatch(
        r"[\w:,=.]{1,120}", claim.task
    ):
        message = f"{claim.metric[:60]!r} of {claim.task[:60]!r} names no metric of a task."
        yield Fault("name", lines.place("claim", "metric"), message, "Use the names that the boards show.")
    percent = claim.unit == "%"
    if claim.value != claim.value or abs(claim.value) == float("inf") or (percent and not 0 <= claim.value <= 100):
        message = f"The claim's value {claim.value} cannot be{' a percentage' if percent else ''}."
        yield Fault("range", lines.place("claim", "value"), message, "Give a finite number in the metric's unit.")


def _check_files(submission: Submission, folder: Path, lines: Lines) -> list[Fault]:
    """Look at every file that the submission names, without running, unpickling or decoding it."""
    found: list[tuple[str, Sequence[Problem]]] = []
    if model := submission.model:
        file, _, name = model.entry.rpartition(":")
        if file.endswith(".py"):
            found.append((lines.place("model", "entry"), inspect_code(folder, file, name)))
        elif submission.submission.kind == "model" or not _is_model_id(model.entry):
            problem = Problem(
                "entry", f"{model.entry[:90]!r} is no entry.", "Write FILE.py:NAME, with a file of the folder."
            )
            found.append((lines.place("model", "entry"), [problem]))
        if model.weights:
            found.append((lines.place("model", "weights"), inspect_checkpoint(folder, model.weights)))
    if predictions := submission.predictions:
        found.append((lines.place("predictions", "file"), inspect_predictions(folder, predictions.file)))
    return [
        Fault(problem.code, problem.place or place, problem.message, problem.fix)
        for place, problems in found
        for problem in problems
    ]


def _is_model_id(entry: str) -> bool:
    """Whether an entry has the form of a registered or timm model's id; `module:callable` would import anything."""
    return bool(re.fullmatch(r"(timm:)?[A-Za-z0-9_.-]+(\+[A-Za-z0-9_.-]+)*", entry))
