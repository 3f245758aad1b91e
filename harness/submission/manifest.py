"""What a `submission.toml` may say; its published schema is made from these classes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

FILE = "submission.toml"

Kind = Literal["model", "checkpoint", "predictions", "claim"]


@dataclass(frozen=True, kw_only=True)
class About:
    """The table `[submission]`.

    Args:
        name: as boards show it: letters, digits, `.`, `_` and `-`, at most 80; of a claim the model's name on boards.
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
        weights: of a checkpoint: a `.safetensors` file of the folder, or one that torch reads with `weights_only`; of a
            model file `random` (seeded, the default) or `own` (as the file itself builds them).
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


PARTS: dict[str, type[Any]] = {"submission": About, "model": ModelPart, "predictions": PredictionsPart}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a `submission.toml`, as published in `docs/submission.schema.json`."""
    # Through JSON, so that the result is what a reader of the file gets: lists, not tuples.
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(Submission)))
    for definition in found["$defs"].values():
        # Python 3.13 began to strip the indentation of docstrings.
        definition["description"] = inspect.cleandoc(definition["description"])
        definition["additionalProperties"] = False
    return found
