"""One cost over image sizes: an ordinary record for each point, a power law through them, and what failed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from harness.api import EXECUTORS, Records, build_setup, run_jobs
from harness.errors import BenchError, SetupError
from harness.models import public_id
from harness.record import Record
from harness.runner import Job
from harness.scaling import PowerLaw, fit_power_law
from harness.statistics import median_interval

if TYPE_CHECKING:
    from pathlib import Path

    from harness.store import Store

# The names that each cost gives its headline; the first that a record holds is taken.
METRICS: Mapping[str, tuple[str, ...]] = {
    "latency": ("latency_b{batch}",),
    "macs": ("gmacs",),
    "memory": ("memory_b{batch}", "resident_b{batch}"),
}
MULTIPLE = 32


@dataclass(frozen=True)
class Point:
    """One cost of one model at one image size.

    Args:
        side: of the square image in pixels.
        value: None where `reason` says why there is none.
        interval: of the value with 95 %; None where it has none, as a count of MACs.
        record: the name of the record that holds it.
    """

    model: str
    metric: str
    unit: str
    side: int
    value: float | None
    interval: tuple[float, float] | None = None
    reason: str = ""
    record: str = ""

    @property
    def pixels(self) -> int:
        """Pixels of the image, to which the tokens of a model with fixed patches are proportional."""
        return self.side**2


@dataclass(frozen=True)
class Curve:
    """The points of one model and metric in the order of their size; `law` is None where `reason` says why."""

    model: str
    metric: str
    unit: str
    points: tuple[Point, ...]
    law: PowerLaw | None
    reason: str = ""


def parse_sides(text: str) -> list[int]:
    """Read `128:1024:128` (all steps), or `128:1024`: multiples of 32, each about sqrt(2) times the one before.

    Raises:
        SetupError: it is neither, or holds fewer than two sizes.
    """
    try:
        first, last, *steps = (int(part) for part in text.split(":"))
        step = steps[0] if steps else 0
        usable = 8 <= first < last <= 4096 and len(steps) <= 1 and (step > 0 or not steps)
    except ValueError:
        usable = False
    if not usable:
        raise SetupError(
            f"--image-size is {text!r}; expected FIRST:LAST or FIRST:LAST:STEP in pixels, such as 128:1024:128, "
            "between 8 and 4096."
        )
    return [*range(first, last + 1, step)] if steps else _geometric(first, last)


def _geometric(first: int, last: int) -> list[int]:
    """About equal steps on a log axis, so that no size outweighs the others in the fit."""
    count = max(round(2 * math.log2(last / first)), 1)
    ideal = (first * (last / first) ** (index / count) for index in range(1, count))
    inner = {MULTIPLE * round(side / MULTIPLE) for side in ideal}
    return sorted({first, last} | {side for side in inner if first < side < last})


def sweep(
    models: Sequence[str],
    metrics: Sequence[str],
    sides: Sequence[int],
    store: Store,
    *,
    weights: str | Path = "random",
    threads: int | None = None,
    executor: str = "process",
    rerun: bool = False,
    **options: Any,
) -> list[Curve]:
    """Measure metrics of models at image sizes, and fit each curve; what has a record is not measured again.

    Args:
        metrics: of `latency`, `macs` and `memory`.
        sides: of square images in pixels.
        options: fields of `Setup`, such as `batch_size=1`.

    Raises:
        BenchError: a request that cannot run; nothing has been measured then.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise SetupError(f"--metric is {unknown[0]!r}; expected any of {', '.join(METRICS)}.")
    models, metrics = list(dict.fromkeys(models)), list(dict.fromkeys(metrics))
    setup, file = build_setup(weights, **options)
    jobs = [
        Job(
            model=model, task=f"cost:{metric}", weights_file=file, threads=threads,
            setup=replace(setup, preprocessing=replace(setup.preprocessing, image_size=(side, side))),
        )
        for model in models for metric in metrics for side in sides
    ]  # fmt: skip
    records = run_jobs(jobs, store, EXECUTORS[executor], rerun)
    return [curve(points) for points in _grouped(jobs, records)]


def _grouped(jobs: Sequence[Job], records: Records) -> Iterator[list[Point]]:
    groups: dict[tuple[str, str], list[Point]] = {}
    for job, record in zip(jobs, records, strict=True):
        size = job.setup.preprocessing.image_size
        assert size is not None
        point = point_of(record, job.task.partition(":")[2], size[0])
        groups.setdefault((public_id(job.model), job.task), []).append(point)
    yield from groups.values()


def point_of(record: Record, metric: str, side: int) -> Point:
    """Return the headline of a record as a point of a curve."""
    names = [name.format(batch=record.setup.batch_size) for name in METRICS[metric]]
    found = next((m for name in names for m in record.measurements if m.metric.name == name), None)
    if found is None:
        reason = record.error or f"the record holds no {' or '.join(names)}"
        return Point(record.model, metric, "", side, None, None, reason, record.name)
    interval = median_interval(found.samples) if found.samples else None
    return Point(
        record.model, found.metric.name, found.metric.unit, side, found.value, interval, found.reason, record.name
    )


def curve(points: Sequence[Point]) -> Curve:
    """Fit the points that have a value above 0."""
    usable = [(point.pixels, point.value) for point in points if point.value]
    # A point that failed does not know what its metric is called in full.
    named = max(points, key=lambda point: len(point.unit))
    try:
        law, reason = fit_power_law([x for x, _ in usable], [y for _, y in usable]), ""
    except BenchError as error:
        law, reason = None, str(error)
    return Curve(named.model, named.metric, named.unit, tuple(points), law, reason)


def points_table(curves: Sequence[Curve]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the head and one row a point."""
    head = ("model", "metric", "unit", "side", "pixels", "value", "low", "high", "record", "reason")
    return head, [
        (point.model, curve.metric, curve.unit, point.side, point.pixels, point.value,
         *(point.interval or (None, None)), point.record, point.reason)
        for curve in curves for point in curve.points
    ]  # fmt: skip


def slopes_table(curves: Sequence[Curve]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the head and one row a curve: the exponent of the growth with the pixels, and its interval."""
    head = ("model", "metric", "unit", "points", "slope", "low", "high", "reason")
    rows = []
    for item in curves:
        law = item.law
        measured = sum(point.value is not None for point in item.points)
        exponent = (law.slope, law.low, law.high) if law else (None, None, None)
        rows.append((item.model, item.metric, item.unit, measured, *exponent, item.reason))
    return head, rows
