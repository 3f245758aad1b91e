"""The main job from Python: which pairs to run, which to skip, and what came of them."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness import distributed
from harness.album import announce, clear
from harness.cache import LIMIT_GIB, LIMIT_VARIABLE, cache_folder
from harness.device import PRECISIONS, check_device, default_device
from harness.environment import cores
from harness.errors import DuplicateName, SetupError
from harness.executors import inline, process, ranks
from harness.graphs import check_graphs
from harness.journal import Journal
from harness.metric import Outcomes
from harness.models import callable_id, public_id
from harness.predictions import measure_predictions
from harness.preprocessing import OVERRIDES
from harness.progress import say, waiting
from harness.record import Preprocessing, Record, Setup, Weights
from harness.runner import Job, Request, identify
from harness.store import Store
from harness.task import build_task
from harness.task_id import canonical
from harness.weights import file_sha256

if TYPE_CHECKING:
    import pandas


class Executor(Protocol):
    """A way to run jobs."""

    def execute(self, request: Request) -> tuple[Record, Outcomes | None]:
        """Run a job; an error of the model or of its data becomes a record."""

    def check(self, model_ids: Sequence[str]) -> None:
        """Raise BenchError where a model id names nothing."""


EXECUTORS: dict[str, Executor] = {"inline": inline, "process": process}


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """The records of one call, in its order."""

    records: tuple[Record, ...]
    skipped: int = 0

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def failed(self) -> tuple[Record, ...]:
        """Those with an error."""
        return tuple(record for record in self.records if record.error)

    def frame(self) -> pandas.DataFrame:
        """Return one row a record: model, task, weights, the metrics of ranked tables with units, and errors if any."""
        import pandas

        return pandas.DataFrame([_row(record) for record in self.records])

    def __repr__(self) -> str:
        return str(self.frame().to_string(index=False)) if self.records else "no records"

    def _repr_html_(self) -> str:
        return str(self.frame().to_html(index=False))


def run(
    model: str | Callable[..., Any] | Sequence[str] | None,
    task: str | Sequence[str],
    *,
    predictions: str | Path | None = None,
    annotations: str | Path | None = None,
    weights: str | Path = "random",
    allow_partial: bool = False,
    data: str | Path | None = None,
    results: str | Path = "results",
    rerun: bool = False,
    save_panels: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    cache: str | Path | None = None,
    cache_limit: float | None = None,
    executor: Literal["process", "inline"] = "process",
    **options: Any,
) -> Records:
    """Evaluate models on tasks, and return the records; those that exist already are not measured again.

    Args:
        model: ids, or a callable that returns an `nn.Module`, which runs in this process; with predictions their name.
        predictions: a file or folder of these to measure in place of a model.
        annotations: the truth for predictions, where it is not in the data root.
        weights: `random`, `pretrained`, `own`, or a file.
        data: root of the data sets; `BENCH_DATA` or `data` by default.
        rerun: measure again what exists.
        save_panels: keep pictures of image, truth and prediction of so many images.
        workers: processes that load data; by default one a core, at most 8; of several ranks each has its part.
        cache: folder of features and decoded images; `BENCH_CACHE` or the user's cache folder by default.
        cache_limit: of that folder, in GiB; `BENCH_CACHE_LIMIT` or 20 by default, 0 for no cache.
        executor: `process` runs each pair in a process of its own, `inline` in this one.
        options: fields of `Setup` and of `Preprocessing`, such as `batch_size=64` or `crop_pct=0.9`.

    Raises:
        BenchError: a request that cannot run; nothing has been measured then.
    """
    store = Store(results)
    if predictions is not None or annotations is not None or not model:
        _check_predictions(model, predictions, annotations, weights, options)
        return _measure_predictions(str(predictions), task, model, annotations, data, store, rerun, save_panels)
    setup, file = build_setup(weights, allow_partial, **options)
    model, executor = (callable_id(model), "inline") if callable(model) else (model, executor)
    here: dict[str, Any] = {
        "data": Path(data) if data else None, "weights_file": file, "threads": threads, "panels": save_panels or 0,
        "workers": _share(workers), **chosen_cache(cache, cache_limit),
    }  # fmt: skip
    jobs = [Job(model=m, task=t, setup=setup, **here) for m, t in _pairs(model, task)]
    return run_jobs(jobs, store, ranks if distributed.active() else EXECUTORS[executor], rerun)


def _share(workers: int | None) -> int:
    """How many processes load data: as asked, else one a core, of which each rank has its part."""
    return min(8, cores() // distributed.count()) if workers is None else workers


def _pairs(model: str | Sequence[str], task: str | Sequence[str]) -> list[tuple[str, str]]:
    """Every model with every task, each once."""
    models, tasks = ([value] if isinstance(value, str) else list(value) for value in (model, task))
    return list(itertools.product(dict.fromkeys(models), dict.fromkeys(map(canonical, tasks))))


def _measure_predictions(
    file: str,
    task: str | Sequence[str],
    name: Any,
    annotations: str | Path | None,
    data: str | Path | None,
    store: Store,
    rerun: bool,
    panels: int | None,
) -> Records:
    """Measure predictions, and say what came of them."""
    tasks = [task] if isinstance(task, str) else list(task)
    model = name if name is None or isinstance(name, str) else name[0]
    truth, root = (Path(path) if path else None for path in (annotations, data))
    measured, skipped = measure_predictions(
        Path(file), tasks, store, model=model, annotations=truth, data=root, rerun=rerun, panels=panels or 0
    )
    for record in measured:
        say(summary(record))
        if panels:
            announce(record, store.panels / record.name)
    return Records(tuple(measured), skipped)


def _check_predictions(
    model: object, predictions: object, annotations: object, weights: object, options: Mapping[str, Any]
) -> None:
    """Refuse what only a model that runs can use."""
    distributed.check("Predictions", None, "cpu")
    if predictions is None and annotations is None:
        raise SetupError("There is nothing to evaluate: give --model, or --predictions.")
    if predictions is None:
        raise SetupError("--annotations replaces the truth for --predictions: give these too.")
    if model is not None and not isinstance(model, str) and (callable(model) or len(model) != 1):  # type: ignore[arg-type]
        raise SetupError("With --predictions, --model is one name for the record.")
    defaults = Setup()
    used = [name for name, value in options.items() if value not in (None, getattr(defaults, name, None))]
    if weights != "random":
        used.insert(0, "weights")
    if used:
        raise SetupError(f"--{used[0].replace('_', '-')} has no meaning with --predictions: no model runs. Drop it.")


def build_setup(weights: str | Path, allow_partial: bool = False, **options: Any) -> tuple[Setup, Path | None]:
    """Return the setup that some options come to, and the weights file that they name.

    Raises:
        BenchError: an option that does not exist or cannot be used.
    """
    unknown = sorted(options.keys() - set(Setup.__struct_fields__) - set(OVERRIDES))
    if unknown:
        raise SetupError(f"There is no option {unknown[0]!r}.")
    file = None
    if str(weights) in ("random", "pretrained", "own"):
        stamp = Weights(source=str(weights), allow_partial=allow_partial)  # type: ignore[arg-type]
    else:
        file = Path(weights)
        stamp = Weights(source="file", file=file.name, file_sha256=file_sha256(file), allow_partial=allow_partial)
    chosen = {name: options.pop(name) for name in OVERRIDES if options.get(name) is not None}
    if isinstance(chosen.get("image_size"), int):
        chosen["image_size"] = (chosen["image_size"], chosen["image_size"])
    given = {name: value for name, value in options.items() if value is not None and name not in OVERRIDES}
    given.setdefault("device", default_device())
    setup = Setup(weights=stamp, preprocessing=Preprocessing(**chosen), **given)
    _check(setup)
    return setup, file


def chosen_cache(folder: str | Path | None, limit: float | None) -> dict[str, Any]:
    """Return the fields of a `Job` that say where it keeps features and images, or nowhere.

    Raises:
        SetupError: the limit is no number of GiB.
    """
    text = os.environ.get(LIMIT_VARIABLE, LIMIT_GIB) if limit is None else limit
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not size >= 0:
        raise SetupError(f"The limit of the cache is {text!r}; expected a number of GiB, or 0 for no cache.")
    # Processes share the cache by locks that only these systems have.
    if not size or os.name != "posix":
        return {}
    return {"cache": cache_folder(folder).absolute(), "cache_limit": size}


def run_jobs(jobs: Sequence[Job], store: Store, executor: Executor, rerun: bool = False) -> Records:
    """Run those jobs that have no record yet; each record is on disk before the next job starts.

    Raises:
        BenchError: a job whose names or data are wrong; nothing has been measured then.
    """
    _check_names(jobs)
    with waiting("looking up models, data and records"):
        requests = identify_all(jobs)
        found = [None if rerun else _finished(request, store) for request in requests]
        pending = [request for request, record in zip(requests, found, strict=True) if record is None]
        executor.check(list(dict.fromkeys(request.job.model for request in pending)))
    records = [
        record or _measure(request, pending, store, executor) for request, record in zip(requests, found, strict=True)
    ]
    skipped = len(jobs) - len(pending)
    if skipped:
        say(f"{skipped} of {len(jobs)} were measured before and are skipped; --rerun measures them again.")
    bare = [record for record in found if record and "panels" not in record.details]
    if bare and any(request.job.panels for request in requests):
        say(f"{len(bare)} of these have no panels; --rerun draws them, where there are images.")
    return Records(tuple(records), skipped)


def identify_all(jobs: Sequence[Job]) -> list[Request]:
    """Identify jobs; each task's data is read once.

    Raises:
        BenchError: a task, its data, a model's file or a device is absent.
    """
    tasks = {job.task: build_task(job.task, job.data) for job in jobs}
    for device in {job.setup.device for job in jobs}:
        check_device(device)
    for job in jobs:
        check_graphs(job.setup, tasks[job.task].machine_bound)
        distributed.check(job.task, tasks[job.task].training_batch, job.setup.device)
    return [identify(job, tasks[job.task]) for job in jobs]


def _finished(request: Request, store: Store) -> Record | None:
    """The record of an equal request. One of an error is no reason to skip."""
    record = store.find(request.name)
    return None if record is None or record.error else record


def _measure(request: Request, pending: Sequence[Request], store: Store, executor: Executor) -> Record:
    """Run one of the pending jobs, save its record, and say so."""
    count = f"[{pending.index(request) + 1}/{len(pending)}]"
    say(f"{count} {public_id(request.job.model)} on {request.job.task} ...")
    journal = store.unfinished / f"{request.name}.jsonl"
    panels = store.panels / request.name
    if not journal.is_file() and distributed.first():
        clear(panels)  # Pictures of an earlier run are none of this one.
    request_here = replace(request, journal=journal, panels=panels)
    record, outcomes = executor.execute(request_here)
    if not distributed.first():
        return record
    record = store.save(record, outcomes)
    checkpoint = request_here.checkpoint()
    # A training may take hours, and what stopped it may pass, such as a GPU without memory.
    if checkpoint and not record.error:
        checkpoint.remove()
    Journal.remove(journal)
    say(f"{count} {summary(record)}")
    if request.job.panels:
        announce(record, panels)
    return record


def summary(record: Record) -> str:
    """Return one line on a record: its first values, or its error, or why its headline has no value."""
    if record.error:
        return f"{record.model} on {record.task}: failed. {record.error}"
    values = [
        f"{m.metric.name} {m.value:.{m.metric.decimals}f} {m.metric.unit}".rstrip()
        for m in [m for m in record.measurements if not m.metric.minor][:4]
        if m.value is not None
    ]
    if not values and record.measurements:
        values = [f"no {record.measurements[0].metric.name}: {record.measurements[0].reason}"]
    disturbed = "; disturbed, does not rank" if record.details.get("disturbed") else ""
    return f"{record.model} on {record.task}: {', '.join(values)} ({record.seconds:.1f} s{disturbed})"


def _check_names(jobs: Sequence[Job]) -> None:
    """Refuse two models that records and boards would show under one name."""
    known: dict[str, str] = {}
    for job in jobs:
        other = known.setdefault(public_id(job.model), job.model)
        if other != job.model:
            raise DuplicateName(
                f"{other!r} and {job.model!r} are both shown as {public_id(job.model)!r}: rename a file or a callable."
            )


def _check(setup: Setup) -> None:
    """Refuse values that no run can use."""
    if setup.precision not in PRECISIONS:
        raise SetupError(f"precision is {setup.precision!r}; expected one of {', '.join(PRECISIONS)}.")
    if setup.batch_size < 1:
        raise SetupError(f"batch_size is {setup.batch_size}; expected 1 or more.")
    if setup.limit is not None and setup.limit < 1:
        raise SetupError(f"limit is {setup.limit}; expected 1 or more.")


def _row(record: Record) -> dict[str, Any]:
    """One row of a data frame."""
    row: dict[str, Any] = {
        "model": record.model,
        "task": record.task,
        "weights": record.setup.weights.file or record.setup.weights.source,
    }
    for measurement in (found for found in record.measurements if not found.metric.minor):
        unit = f" ({measurement.metric.unit})" if measurement.metric.unit else ""
        row[measurement.metric.name + unit] = measurement.value
    if record.error:
        row["error"] = record.error
    return row
