"""The record: an immutable file with every measured value and everything needed to say what it means."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from harness.details import Details
from harness.errors import BenchError, RecordError
from harness.metric import Measurement

SCHEMA = 2

# What no run writes could break the boards of everyone: bounds on what is read.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**31)]
Key = Annotated[str, Meta(pattern="^[0-9a-f]{8}$")]
Sha256 = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
Name = Annotated[str, Meta(min_length=1, max_length=500)]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Provenance = Literal["measured", "predictions", "published"]


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How an image file becomes a model's input.

    In a request None means: as the model declares; in a record all is set.

    Args:
        image_size: height and width in pixels of the model's input.
        crop_pct: side of the centre crop over the side that the image is resized to.
        crop_mode: `center`, `squash` or `border`, as timm defines them.
        interpolation: `bilinear`, `bicubic`, `nearest` or `lanczos`.
        antialias: whether downscaling is filtered; Pillow's resize always is.
        decoder: `pil` or `torchvision`, which reads the file and resizes what it read.
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
        source: who declared what was not overridden: `model`, or `default` where the model declares nothing.
        overridden: the names of the fields that the user set.
        fingerprint: SHA-256 of the tensor made from the bundled images; differs where any library decodes differently.
    """

    image_size: tuple[Positive, Positive] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    antialias: bool | None = None
    decoder: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str = ""
    overridden: tuple[str, ...] = ()
    fingerprint: str = ""


class Weights(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which weights ran.

    Args:
        source: `random` (seeded), `pretrained` (timm's hub), `own` (as the user's callable built them), `file`, or
            `predictions`: no model ran, and the file holds what one predicted.
        file: the file's name, without its folder.
        file_sha256: of the file.
        allow_partial: whether missing and unexpected keys were let pass.
        container: the key of the checkpoint that held the state dict; empty for a bare one.
        missing: parameters that the file does not hold (or holds in another shape), left as initialised.
        unexpected: entries of the file that the model has no place for.
        sha256: of names, types, shapes and bytes of the state that ran.
    """

    source: Literal["random", "pretrained", "own", "file", "predictions"] = "random"
    file: str = ""
    file_sha256: str = ""
    allow_partial: bool = False
    container: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    sha256: str = ""


class Setup(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Everything that a user chooses about a run, and what the choices came to.

    Args:
        batch_size: images per forward pass; for cost the larger of the two batches.
        cuda_graphs: whether passes that are measured are replayed from a CUDA graph.
        limit: evaluate only so many items, spread evenly over the data set; such a run never ranks.
    """

    weights: Weights = Weights()
    preprocessing: Preprocessing = Preprocessing()
    batch_size: Positive = 32
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    device: str = "cpu"
    seed: int = 0
    limit: Positive | None = None


class DataStamp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which data was evaluated; the fingerprint covers the names and sizes of all files."""

    name: str
    split: str
    size: Count
    classes: Count
    fingerprint: str

    def joined(self, others: Sequence[DataStamp]) -> DataStamp:
        """Return the stamp with a fingerprint that covers other splits too."""
        if not others:
            return self
        joined = "".join([self.fingerprint, *(other.fingerprint for other in others)])
        return replace(self, fingerprint=hashlib.sha256(joined.encode()).hexdigest()[:16])


class Environment(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a record was made. Nothing here tells a path, a host or a user.

    Args:
        versions: of packages; on a GPU also of CUDA, cuDNN and, where NVML tells, the driver.
        power_limit: of the GPU in W; None on the CPU, or where NVML does not tell.
        cpu_quota: cores' worth of time that a container or scheduler allows; None for no quota.
    """

    device: str
    cpu: str
    cores: Count
    threads: Count
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]
    commit: str
    dirty: bool
    power_limit: float | None = None
    cpu_quota: float | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One task run on one model under one setup.

    Args:
        key: hash of the request; names the file, and an equal request finds it again.
        source_sha256: of the user's file that built the model; empty for models that the harness or timm names.
        untrained: how boards treat random weights: `rank` (they do not matter), `apart` (only with their like),
            `never`.
        machine_bound: whether values depend on the machine, so that only equal machines compare.
        details: what the protocol chose and saw.
        outcomes_sha256: of the file of per-item outcomes beside the record; empty where there is none.
        command: the command line that makes this record again.
        started_at: UTC, ISO 8601.
        error: why there are no measurements.
        content_sha256: of the record's own text with this field empty, so that an edit shows; it is no signature.
    """

    model: Name
    task: Name
    task_version: Count
    key: Key
    source_sha256: str
    untrained: Literal["rank", "apart", "never"]
    machine_bound: bool
    measurements: tuple[Measurement, ...]
    setup: Setup
    data: DataStamp | None
    environment: Environment
    provenance: Provenance
    command: str
    started_at: str
    seconds: float
    details: dict[str, Any] = {}
    outcomes_sha256: Sha256 = ""
    error: str | None = None
    content_sha256: str = ""
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        """The stem of the record's files."""
        return record_name(self.task, self.model, self.key)

    def values(self) -> dict[str, float | None]:
        """Return the value of every metric by its name."""
        return {measurement.metric.name: measurement.value for measurement in self.measurements}


def record_name(task: str, model: str, key: str) -> str:
    """Return the stem of the files of a task's record on a model, as records name the model."""
    return "__".join((slug(task), slug(model), key))


@lru_cache(maxsize=2**16)
def slug(identifier: str) -> str:
    """Return a model or task id as a part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "._+-" else "-" for letter in identifier)


def digest(*parts: Any) -> str:
    """Return eight hex digits that stand for some dataclasses and plain values, the same on every machine."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:8]


def to_json(record: Record) -> bytes:
    """Return the canonical text of a record: the same bytes for equal records."""
    return _canonical(msgspec.json.encode(record, order="deterministic"))


def _canonical(text: bytes) -> bytes:
    """JSON as records' files have it."""
    return msgspec.json.format(text, indent=1) + b"\n"


def sealed(record: Record) -> Record:
    """Return a record as it is read again from its text, such as with 49.0 for 49, and the hash of its content."""
    record = from_json(to_json(record), record.name)
    return replace(record, content_sha256=content_sha256(to_json(record)))


def content_sha256(text: bytes) -> str:
    """Return the hash of a record's text with the field for it empty; of the text, so that later fields change none."""
    content = msgspec.json.decode(text) | {"content_sha256": ""}
    return hashlib.sha256(_canonical(msgspec.json.encode(content))).hexdigest()


def from_json(text: bytes, origin: str) -> Record:
    """Read a record of any past schema.

    Args:
        origin: where the text came from, for messages.

    Raises:
        RecordError: the text is no record, or was written by a newer harness.
    """
    try:
        record = _DECODER.decode(text)
        if record.schema <= SCHEMA:
            _check_details(record)
            return record
        version = record.schema
    except (msgspec.MsgspecError, BenchError, RecursionError) as error:
        if (version := _schema(text)) <= SCHEMA:
            raise RecordError(f"{origin} is not a record ({error}). Restore it, or delete it and run again.") from error
    raise RecordError(f"{origin} has schema {version}; this harness reads up to {SCHEMA}. Update the harness.")


_TYPED = frozenset(Details.__struct_fields__)


def _check_details(record: Record) -> None:
    """Refuse details that the harness could not read."""
    if _TYPED.isdisjoint(record.details):
        return
    try:
        msgspec.convert(record.details, Details)
    except msgspec.ValidationError as error:
        raise RecordError(f"details: {error}") from error


def _schema(text: bytes) -> int:
    """The schema that a text names; 0 where it names none."""
    try:
        return msgspec.json.decode(text, type=_Version).schema
    except (msgspec.MsgspecError, RecursionError):
        return 0


class _Version(msgspec.Struct):
    schema: int


_DECODER = msgspec.json.Decoder(Record)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a record, as published in `docs/record.schema.json`."""
    # Through JSON, so that the result is what a reader of the file gets: lists, not tuples.
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(Record)))
    for definition in found["$defs"].values():
        # Python 3.13 began to strip the indentation of docstrings.
        definition["description"] = inspect.cleandoc(definition["description"])
    return found
