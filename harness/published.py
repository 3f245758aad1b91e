"""Figures that somebody published: records of their own kind, shown beside measured values and never ranked."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.errors import DataError
from harness.figures import CARD, FAVOR, SYSTEM, TIMM, VTAB, Figure
from harness.leaderboard import Board, LeftOut
from harness.metric import Measurement, Metric
from harness.record import Environment, Preprocessing, Record, Setup, Weights, digest
from harness.registry import MODELS

NOWHERE = Environment(
    device="", cpu="", cores=0, threads=0, memory_gib=0.0, system="", python="", versions={}, commit="", dirty=False
)
# The size that a source tells is that of classification, and of what it costs.
SIZED = ("cost", "imagenet")


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
    protocol = [details["protocol"]] if "protocol" in details else []
    return Record(
        model=model, task=task, task_version=0, source_sha256="", untrained="never", machine_bound=False,
        key=digest(model, task, [(one.name, value) for one, value in figures.items()], source, image_size, *protocol),
        measurements=tuple(Measurement(metric, value) for metric, value in figures.items()),
        setup=Setup(weights=Weights(source="own"), preprocessing=Preprocessing(image_size=size)), data=None,
        environment=NOWHERE, provenance="published", command="", started_at="", seconds=0.0,
        details={"source": source, **details},
    )  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A published table that is known by its columns.

    Args:
        model: from a row to the model's name.
        source: where the figures are from; fields of the row stand in braces.
        figures: by column.
        size: the column of the image's side; empty for none.
        passed_over: columns that name no figure.
    """

    model: Callable[[Mapping[str, str]], str]
    source: str
    figures: Mapping[str, Figure]
    size: str = ""
    passed_over: tuple[str, ...] = ()

    def reads(self, columns: Iterable[str]) -> bool:
        """Whether a table has this layout: its names, and a figure at least."""
        there = set(columns)
        return {*self.passed_over, *filter(None, [self.size])} <= there and bool(there & self.figures.keys())


LAYOUTS = (
    Layout(lambda row: f"timm:{row['model']}", "timm, {file}", TIMM, "img", ("model",)),
    Layout(
        lambda row: row["model"],
        "Which Transformer to Favor (WACV 2025), its table of July 2023, run {run name!r}, {file}",
        FAVOR, "image resolution (finetuning)", ("model", "run name"),
    ),
    Layout(
        lambda row: f"{row['method']} ({row['arch']})", "VTAB (arXiv:1910.04867), {file}", VTAB, "", ("method", "arch")
    ),
)  # fmt: skip


def read_published(path: Path) -> tuple[list[Record], list[str]]:
    """Read a CSV of a known layout or the JSON of a system, and return records and what was passed over.

    The layouts are timm's results, the runs of "Which Transformer to Favor", and VTAB's results on Clevr.

    Raises:
        DataError: the file is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read ({error}). Give a .csv or a .json file.") from error
    if path.suffix == ".json":
        return _read_system(text, path.name)
    return _read_table(text, path.name)


def _read_table(text: str, origin: str) -> tuple[list[Record], list[str]]:
    """A table of one of the layouts."""
    rows = list(csv.DictReader(text.splitlines()))
    layout = next((one for one in LAYOUTS if rows and one.reads(rows[0])), None)
    if layout is None:
        known = "; or ".join(", ".join([*one.passed_over, *filter(None, [one.size]), *one.figures]) for one in LAYOUTS)
        raise DataError(f"{origin} is no table of published figures: expected columns as in {known}.")
    passed_over = [name for name in rows[0] if name not in (*layout.figures, *layout.passed_over, layout.size)]
    records = []
    try:
        for row in rows:
            values = {name: float(row[name]) for name in layout.figures if row.get(name)}
            size = int(row[layout.size]) if layout.size else None
            source = layout.source.format(file=origin, **row)
            records += _by_task(layout.model(row), values, layout.figures, source, size)
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
        size = one.input if isinstance(one.input, int) else None
        for name, figures in _figures(one):
            values = {key: value for key, value in figures.items() if _is_known(key, value, name)}
            passed_over |= {key for key, value in figures.items() if value is not None and key not in values}
            records += _by_task(name, values, SYSTEM, f"{system.title}: {one.source}", size)
    return records, sorted(passed_over)


def _figures(one: _Variant) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The model's name with its figures; figures of one of its states, in a table of their own, name the state."""
    plain = {key: value for key, value in one.metrics.items() if not isinstance(value, dict)}
    yield one.name, {**plain, "params_m": one.params_m, "flops_g": one.flops_g}
    for state, figures in one.metrics.items():
        if isinstance(figures, dict):
            yield f"{one.name} ({state})", figures


def _is_known(key: str, value: Any, name: str) -> bool:
    return type(value) in (int, float) and key in SYSTEM and SYSTEM[key].only in name


def _by_task(
    model: str, values: Mapping[str, float], known: Mapping[str, Figure], source: str, size: int | None
) -> list[Record]:
    """One record a task and protocol, of the figures whose meaning is listed."""
    found: dict[tuple[str, str], dict[Metric, float]] = defaultdict(dict)
    for name, one in known.items():
        if name in values and math.isfinite(values[name]):
            value = values[name] * one.scale
            found[one.task, one.protocol][one.metric] = float(f"{value:.12g}")
    return [
        published_record(
            model, task, figures, source, size if task in SIZED else None, **({"protocol": how} if how else {})
        )
        for (task, how), figures in found.items()
    ]


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
    def kind(self) -> str:
        """Whether it was claimed in a submission, or published."""
        return "claimed" if "submission" in self.record.details else "published"

    @property
    def image(self) -> str:
        """Side of the input that the source tells; a dash where it tells none."""
        size = self.record.setup.preprocessing.image_size
        return str(size[0]) if size else "–"

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Metric, value, measured, difference and source, as tables show them."""
        decimals = self.metric.decimals
        measured, difference = "–", "–"
        if self.measured is not None:
            measured = f"{self.measured:.{decimals}f}"
            difference = f"{self.measured - self.value:+.{decimals}f}"
        unit = f" ({self.metric.unit})" if self.metric.unit else ""
        details = self.record.details
        source = "; ".join(str(details[key]) for key in ("source", "protocol") if key in details)
        return self.metric.name + unit, f"{self.value:.{decimals}f}", measured, difference, source


def beside(boards: Sequence[Board], left_out: Iterable[LeftOut]) -> list[Beside]:
    """Return every published value with the measured one of the same model, task, metric, and image size if told.

    A value whose source has a protocol of its own stands beside none.
    """
    published = [item.record for item in left_out if item.record.provenance == "published" and not item.record.error]
    found = _measured(boards) if published else {}
    result = []
    for record in sorted(published, key=lambda record: (record.task, record.model, record.key)):
        size = record.setup.preprocessing.image_size
        for one in record.measurements:
            if one.value is not None:
                rest = (record.task, one.metric.name, one.metric.unit)
                values = (
                    {}
                    if "protocol" in record.details
                    else found.get((record.model, *rest)) or found.get((_untagged(record), *rest), {})
                )
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
    return [one for one in found if one.measured is not None or one.kind == "claimed"]
