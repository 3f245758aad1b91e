"""Running one task on one model: a job is identified, then run, and becomes a record."""

from __future__ import annotations

import dataclasses
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from harness import distributed
from harness.album import Album
from harness.cache import LIMIT_GIB, Cache
from harness.checkpoint import Checkpoint
from harness.device import place
from harness.environment import environment, machine, versions
from harness.errors import BenchError, SetupError, WeightsError, reason
from harness.journal import Journal
from harness.metric import Evaluation, Outcomes
from harness.models import build_model, public_id, source_sha256
from harness.preprocessing import resolve
from harness.record import DataStamp, Provenance, Record, Setup, Weights, digest, record_name
from harness.resampling import with_intervals
from harness.task import BatchTask, Task, build_task
from harness.weights import load_weights, state_sha256

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Job:
    """One (model, task, setup) with what only this machine knows: where files lie and how many processes load them.

    Args:
        model: the model id as the user gave it.
        data: root of the data sets; None for the default.
        weights_file: where `setup.weights.source == "file"` is read from.
        annotations: the truth in place of the data root's, for predictions.
        workers: processes that load data.
        threads: of torch; None leaves torch's choice.
        cache: folder of features and decoded images; None for none.
        cache_limit: of that folder, in GiB.
        panels: of how many images pictures are kept.
    """

    model: str
    task: str
    setup: Setup
    data: Path | None = None
    weights_file: Path | None = None
    annotations: Path | None = None
    workers: int = 0
    threads: int | None = None
    cache: Path | None = None
    cache_limit: float = LIMIT_GIB
    panels: int = 0

    def __post_init__(self) -> None:
        if self.panels < 0:
            raise SetupError(f"The number of panels is {self.panels}; expected 1 or more.")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A job with what identifies it before it runs: an equal request finds its record again.

    Args:
        journal: the file that keeps what an unfinished evaluation has found, with checkpoints of its trainings beside
            it; None for no such files.
        panels: the folder of pictures, where the job wants any.
    """

    job: Job
    key: str
    data: DataStamp | None
    source_sha256: str
    journal: Path | None = None
    panels: Path | None = None

    @property
    def name(self) -> str:
        """The stem of the record's files."""
        return record_name(self.job.task, public_id(self.job.model), self.key)

    def checkpoint(self, state: str = "") -> Checkpoint | None:
        """Where a training of this job keeps its state; None for nowhere."""
        return Checkpoint(self.journal.with_suffix(".pt"), state) if self.journal else None

    def album(self) -> Album | None:
        """Where pictures of this job go; None for nowhere."""
        return Album(self.panels, self.job.panels) if self.panels and self.job.panels else None


def identify(job: Job, task: Task) -> Request:
    """Hash everything that decides a job's numbers; the model is not looked up.

    Raises:
        BenchError: the data or the model's file is absent, or the task cannot be run with the setup.
    """
    task.check(job.setup)
    data = task.data()
    source = source_sha256(job.model)
    hardware = machine(job.setup.device, job.threads or 0) if task.machine_bound else ()
    key = digest(public_id(job.model), source, job.task, task.version, job.setup, data, hardware)
    return Request(job=job, key=key, data=data, source_sha256=source)


def run_request(request: Request) -> tuple[Record, Outcomes | None]:
    """Run a job in this process. An error of the model or of its data becomes a record with that error."""
    import torch

    job = request.job
    # Setting even torch's own choice keeps its libraries from changing it on the way.
    torch.set_num_threads(job.threads or torch.get_num_threads())
    started, clock = datetime.now(UTC), time.perf_counter()
    setup, evaluation, error = job.setup, Evaluation(()), None
    cache = Cache(job.cache, job.cache_limit, public_id(job.model), request.source_sha256) if job.cache else None
    try:
        task = build_task(job.task, job.data, job.workers)
        module, setup = prepare(job, task)
        state = _state(setup)
        task.model_id = job.model
        task.checkpoint = request.checkpoint(state)
        task.rebuild = lambda seed: place(
            prepare(dataclasses.replace(job, setup=replace(job.setup, seed=seed)), task)[0], setup
        )
        if request.journal:
            task.journal = Journal(request.journal, state)
        task.album = request.album() if distributed.first() else None
        if isinstance(task, BatchTask):
            task.cache = cache
        evaluation = with_panels(with_intervals(task.evaluate(place(module, setup), setup)), task.album)
    except BenchError as failure:
        error = str(failure)
    except Exception as failure:
        error = f"{reason(failure)}. Run the model by itself on a batch of images to mend it."
    finally:
        if cache:
            cache.close()
    seconds = time.perf_counter() - clock
    return describe(request, setup, evaluation, error, started, seconds), evaluation.outcomes


def with_panels(evaluation: Evaluation, album: Album | None) -> Evaluation:
    """Return an evaluation whose details say of which items there are pictures."""
    return dataclasses.replace(evaluation, details={**evaluation.details, **album.details}) if album else evaluation


def _state(setup: Setup) -> str:
    """What outcomes depend on beside the request: the weights and the pixels that came of it, machine, ranks."""
    parts = [setup, versions(), machine(setup.device, 0)]
    return digest(*parts, distributed.count()) if distributed.active() else digest(*parts)


def prepare(job: Job, task: Task) -> tuple[nn.Module, Setup]:
    """Build the model with its weights, and complete the setup with what was found.

    Raises:
        BenchError: the model, its weights or its preprocessing cannot be used.
    """
    module, weights = _loaded(job, task)
    weights = replace(weights, sha256=state_sha256(module))
    preprocessing = resolve(job.setup.preprocessing, module, task.preprocessing)
    return module, replace(job.setup, weights=weights, preprocessing=preprocessing)


def _loaded(job: Job, task: Task) -> tuple[nn.Module, Weights]:
    """Build the model and load its weights; a classifier that is not used may be the model's own or the task's."""
    weights, file = job.setup.weights, job.weights_file
    columns = task.num_classes if weights.source in ("random", "file") else None
    if file is not None and not task.uses_classifier:
        for size in (None, columns):
            with suppress(WeightsError):
                module = _built(job, task, size)
                return module, load_weights(module, file, replace(weights, allow_partial=False))
    module = _built(job, task, columns)
    return module, weights if file is None else load_weights(module, file, weights)


def _built(job: Job, task: Task, num_classes: int | None) -> nn.Module:
    """Build the model from the seed."""
    import numpy
    import torch

    random.seed(job.setup.seed)
    numpy.random.seed(job.setup.seed)
    torch.manual_seed(job.setup.seed)
    by_task = None if task.any_size else task.preprocessing.get("image_size")
    return build_model(
        job.model,
        num_classes=num_classes,
        image_size=job.setup.preprocessing.image_size or by_task,
        pretrained=job.setup.weights.source == "pretrained",
        any_size=task.any_size,
    )


def describe(
    request: Request,
    setup: Setup,
    evaluation: Evaluation,
    error: str | None,
    started: datetime,
    seconds: float,
    provenance: Provenance = "measured",
) -> Record:
    """Put together the record of a job that ran."""
    job = request.job
    task = build_task(job.task, job.data)
    return Record(
        model=public_id(job.model),
        task=job.task,
        task_version=task.version,
        key=request.key,
        source_sha256=request.source_sha256,
        untrained=task.untrained,
        machine_bound=task.machine_bound,
        measurements=tuple(evaluation.measurements),
        setup=setup,
        data=request.data,
        environment=environment(setup.device),
        provenance=provenance,
        command=_predictions_command(job) if provenance == "predictions" else command(job),
        started_at=started.isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        details=dict(evaluation.details),
        error=error,
    )


def command(job: Job) -> str:
    """Return the command line that makes a job's record again, with files named without their folders."""
    return " ".join(["run_bench.py", "run", "--model", public_id(job.model), "--task", job.task, *choices(job)])


def choices(job: Job) -> list[str]:
    """Return the words of a command line that say what differs from the defaults."""
    setup, default = job.setup, Setup()
    words: list[str] = []
    source = setup.weights.file or setup.weights.source
    if source != "random":
        words += ["--weights", source]
    if setup.weights.allow_partial:
        words.append("--allow-partial")
    chosen = {name: getattr(setup, name) for name in ("batch_size", "precision", "device", "seed", "limit")}
    for name, value in {**chosen, "threads": job.threads}.items():
        if value != getattr(default, name, None):
            words += [f"--{name.replace('_', '-')}", str(value)]
    for name in ("channels_last", "compile", "cuda_graphs"):
        if getattr(setup, name):
            words.append(f"--{name.replace('_', '-')}")
    for name in ("image_size", "crop_pct", "crop_mode", "interpolation", "decoder", "mean", "std"):
        value = getattr(setup.preprocessing, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", _text(value)]
    if setup.preprocessing.antialias is not None:
        words.append("--antialias" if setup.preprocessing.antialias else "--no-antialias")
    return words


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _predictions_command(job: Job) -> str:
    """The command line that measures the same predictions, with files named without their folders."""
    words = ["run_bench.py", "run", "--model", job.model, "--task", job.task, "--predictions", job.setup.weights.file]
    return " ".join([*words, "--annotations", job.annotations.name] if job.annotations else words)
