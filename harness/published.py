"""Figures that somebody published: records of their own kind, shown beside measured values and never ranked."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.errors import DataError
from harness.leaderboard import Board, LeftOut
from harness.metric import Measurement, Metric
from harness.record import Environment, Preprocessing, Record, Setup, Weights, digest
from harness.registry import MODELS

NOWHERE = Environment(
    device="", cpu="", cores=0, threads=0, memory_gib=0.0, system="", python="", versions={}, commit="", dirty=False
)
PARAMETERS, GMACS = Metric("parameters", "M", False), Metric("gmacs", "G", False)
TOP1, TOP5, REAL = Metric("top1", "%", True), Metric("top5", "%", True), Metric("real_top1", "%", True)
# Directions are listed, never guessed: a figure that is not here is passed over, and said so.
CARD: Mapping[str, tuple[str, Metric]] = {
    "parameters": ("cost", PARAMETERS), "gmacs": ("cost", GMACS), "top1": ("imagenet", TOP1), "top5": ("imagenet", TOP5)
}  # fmt: skip
TIMM: Mapping[str, tuple[str, Metric]] = {
    "params_m": ("cost", PARAMETERS), "gmacs": ("cost", GMACS), "top1": ("imagenet", TOP1), "top5": ("imagenet", TOP5),
    "real_top1": ("imagenet", REAL),
}  # fmt: skip
SYSTEM: Mapping[str, tuple[str, Metric]] = {
    "params_m": ("cost", PARAMETERS), "flops_g": ("cost", GMACS), "imagenet_top1": ("imagenet", TOP1),
    "imagenet_top5": ("imagenet", TOP5), "imagenet_real": ("imagenet", REAL),
}  # fmt: skip


def published_record(
    model: str,
    task: str,
    figures: Mapping[Metric, float],
    source: str,
    image_size: int | None = None,
    **details: Any,
) -> Record:
    """Return the record of figures that a source gives for a model; equal figures give equal records.

    Args:
        image_size: side of the input in pixels, where the source tells.
        details: what else the record says beside its source.
    """
    size = (image_size, image_size) if image_size else None
    return Record(
        model=model, task=task, task_version=0, source_sha256="", untrained="never", machine_bound=False,
        key=digest(model, task, [(metric.name, value) for metric, value in figures.items()], source, image_size),
        measurements=tuple(Measurement(metric, value) for metric, value in figures.items()),
        setup=Setup(weights=Weights(source="own"), preprocessing=Preprocessing(image_size=size)), data=None,
        environment=NOWHERE, provenance="published", command="", started_at="", seconds=0.0,
        details={"source": source, **details},
    )  # fmt: skip


def read_published(path: Path) -> tuple[list[Record], list[str]]:
    """Read a CSV in the form of timm's results, or the JSON of a system, and return records and what was passed over.

    Raises:
        DataError: the file is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read ({error}). Give a .csv or a .json file.") from error
    if path.suffix == ".json":
        return _read_system(text, path.name)
    return _read_table(text, path.name)


def _read_table(text: str, origin: str) -> tuple[list[Record], list[str]]:
    """timm's tables: columns `model`, `img`, and figures."""
    rows = list(csv.DictReader(text.splitlines()))
    known = [name for name in TIMM if rows and name in rows[0]]
    if not rows or not {"model", "img"} <= rows[0].keys() or not known:
        raise DataError(
            f"{origin} is no table of published figures: expected the columns model, img, and {list(TIMM)}."
        )
    passed_over = [name for name in rows[0] if name not in (*TIMM, "model", "img")]
    records = []
    try:
        for row in rows:
            values = {name: float(row[name]) for name in known if row[name]}
            records += _by_task(f"timm:{row['model']}", values, TIMM, f"timm, {origin}", int(row["img"]))
    except (TypeError, ValueError) as error:
        raise DataError(f"{origin} has a figure that is no number ({error}). Restore the table.") from error
    return records, passed_over


class _Variant(msgspec.Struct):
    name: str
    source: str
    params_m: Any = None
    flops_g: Any = None
    input: Any = None
    metrics: dict[str, Any] = {}


class _System(msgspec.Struct):
    title: str
    variants: list[_Variant]


def _read_system(text: str, origin: str) -> tuple[list[Record], list[str]]:
    """The JSON of a system: `title`, and `variants` with name, figures and the source of each."""
    try:
        system = msgspec.json.decode(text, type=_System)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{origin} does not describe a system ({error}): expected `title` and `variants`.") from error
    records, passed_over = [], set()
    for one in system.variants:
        figures = {**one.metrics, "params_m": one.params_m, "flops_g": one.flops_g}
        values = {name: value for name, value in figures.items() if type(value) in (int, float) and name in SYSTEM}
        passed_over |= {name for name, value in figures.items() if value is not None and name not in values}
        size = one.input if isinstance(one.input, int) else None
        records += _by_task(one.name, values, SYSTEM, f"{system.title}: {one.source}", size)
    return records, sorted(passed_over)


def _by_task(
    model: str, values: Mapping[str, float], known: Mapping[str, tuple[str, Metric]], source: str, size: int | None
) -> list[Record]:
    """One record a task, of the figures whose meaning is listed."""
    figures: dict[str, dict[Metric, float]] = defaultdict(dict)
    for name, (task, metric) in known.items():
        if name in values and math.isfinite(values[name]):
            figures[task][metric] = float(values[name])
    return [published_record(model, task, found, source, size) for task, found in figures.items()]


def card_records() -> list[Record]:
    """Return what the authors of the registered models published, as their cards tell it."""
    records = []
    for entry in MODELS.entries():
        card = entry.card
        if card is not None and card.published:
            source = ", ".join(filter(None, (card.paper, card.source))) or card.title
            records += _by_task(entry.name, card.published, CARD, source, None)
    return records


# Beside what was measured


@dataclass(frozen=True)
class Beside:
    """A published value, and what was measured of the same model; None where nothing comparable was."""

    record: Record
    metric: Metric
    value: float
    measured: float | None

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Metric, value, measured, difference and source, as tables show them."""
        decimals = self.metric.decimals
        measured, difference = "–", "–"
        if self.measured is not None:
            measured = f"{self.measured:.{decimals}f}"
            difference = f"{self.measured - self.value:+.{decimals}f}"
        unit = f" ({self.metric.unit})" if self.metric.unit else ""
        source = str(self.record.details.get("source", ""))
        return self.metric.name + unit, f"{self.value:.{decimals}f}", measured, difference, source


def beside(boards: Sequence[Board], left_out: Iterable[LeftOut]) -> list[Beside]:
    """Return every published value with the measured one of the same model, task, metric, and image size if told."""
    published = [item.record for item in left_out if item.record.provenance == "published" and not item.record.error]
    found = _measured(boards) if published else {}
    result = []
    for record in sorted(published, key=lambda record: (record.task, record.model, record.key)):
        size = record.setup.preprocessing.image_size
        for one in record.measurements:
            if one.value is not None:
                rest = (record.task, one.metric.name, one.metric.unit)
                values = found.get((record.model, *rest)) or found.get((_untagged(record), *rest), {})
                value = values.get(size) if size else next(iter(values.values()), None)
                result.append(Beside(record, one.metric, one.value, value))
    return result


def _untagged(record: Record) -> str:
    """The model that costs as much: timm's name without the tag of its weights; for other tasks none."""
    return record.model.partition(".")[0] if record.task == "cost" and record.model.startswith("timm:") else ""


def _measured(boards: Sequence[Board]) -> dict[tuple[str, str, str, str], dict[Any, float]]:
    """Measured values by model, task, metric and unit, then by image size; the best of several, first on its board."""
    found: dict[tuple[str, str, str, str], dict[Any, float]] = defaultdict(dict)
    for board in boards:
        for row in board.rows:
            size = row.record.setup.preprocessing.image_size
            for one in row.record.measurements:
                if one.value is not None and row.record.provenance != "published":
                    place = (row.record.model, board.task, one.metric.name, one.metric.unit)
                    found[place].setdefault(size, one.value)
    return found


def shown(found: Sequence[Beside]) -> list[Beside]:
    """Return what a page without filters shows: values beside measured ones, and the claims of submissions."""
    return [one for one in found if one.measured is not None or "submission" in one.record.details]
