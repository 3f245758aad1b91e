"""Boards: which records may be compared, and how they rank."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

import msgspec

from harness.metric import Measurement, Metric
from harness.record import Record, Setup

Interval = tuple[float, float]
Identity = tuple[str, str, tuple[int, int] | None]
# Costs that do not depend on the machine stand beside accuracy too.
JOINED = (Metric("parameters", "M", higher_is_better=False), Metric("gmacs", "G", higher_is_better=False))


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record in a board; equal headline values share a rank.

    Args:
        label: model, weights and image size, unique in the board: rows that would look alike end in their record's key.
        tied: whether a neighbour has the same value, or does not differ beyond chance.
        ranks: the best and the worst rank that the data allow, jointly at 95 %; None where nothing tells.
        metrics: those of the board, then the minor ones.
        values: by these; None where there is none.
        intervals: the 95 % interval of each value; None where the record has none.
        note: what a reader must know of the row; empty for nothing.
    """

    label: tuple[str, str, str]
    rank: int
    tied: bool
    record: Record
    metrics: tuple[Metric, ...]
    values: tuple[float | None, ...]
    intervals: tuple[Interval | None, ...]
    ranks: tuple[int, int] | None = None
    note: str = ""

    def value(self, metric: Metric) -> float | None:
        """Return the value of a metric."""
        return self.values[self.metrics.index(metric)]

    def interval(self, metric: Metric) -> Interval | None:
        """Return its 95 % interval."""
        return self.intervals[self.metrics.index(metric)]

    def every_value(self) -> dict[str, float | None]:
        """Return values by name, minor ones too."""
        return {metric.name: value for metric, value in zip(self.metrics, self.values, strict=True)}


@dataclass
class MachineFree:
    """Parameters and MACs of a model at an image size, and what a reader must know of them."""

    values: dict[str, float | None] = field(default_factory=dict)
    note: str = ""


NOTHING = MachineFree()


@dataclass(frozen=True)
class Board:
    """Records that may be compared, best first by the first metric.

    Args:
        conditions: what all rows share, as label and value; boards of one task differ in at least one of them.
        metrics: the columns of its table.
        minor: further metrics, which records keep and tables leave out.
        about_ranks: what a reader must know of the ranks, such as why they are not tested; empty for nothing.
    """

    task: str
    conditions: tuple[tuple[str, str], ...]
    metrics: tuple[Metric, ...]
    minor: tuple[Metric, ...]
    rows: tuple[Row, ...]
    about_ranks: str = ""

    @property
    def title(self) -> str:
        """The task and the data."""
        shared = dict(self.conditions)
        return f"{self.task} on {shared['data']}" if "data" in shared else self.task

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the head of a board says beside its title, as label and value."""
        about = [("ranks", self.about_ranks)] if self.about_ranks else []
        return [(label, value) for label, value in self.conditions if label != "data"] + about

    @cached_property
    def shown(self) -> list[list[str]]:
        """The values of each metric as tables print them, by the board's rows."""
        values = zip(*[row.values for row in self.rows], strict=True)
        intervals = zip(*[row.intervals for row in self.rows], strict=True)
        # Minor metrics, which come last, are not shown.
        return [
            _shown(metric.decimals, *columns) for metric, *columns in zip(self.metrics, values, intervals, strict=False)
        ]

    @cached_property
    def best(self) -> list[str]:
        """The best value of each metric as it is printed; empty where there is none."""
        columns = zip(*[row.values for row in self.rows], strict=True)
        return [_best_shown(metric, column) for metric, column in zip(self.metrics, columns, strict=False)]


def _best_shown(metric: Metric, values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{max(known) if metric.higher_is_better else min(known):.{metric.decimals}f}"


def value_shown(value: float | None, interval: Interval | None, decimals: int) -> str:
    """Return a value as tables print it, with half the width of its interval where it has one."""
    return _shown(decimals, [value], [interval])[0]


def _shown(decimals: int, values: Iterable[float | None], intervals: Iterable[Interval | None]) -> list[str]:
    # By the operator, which takes half the time of the other ways.
    plain, between = f"%.{decimals}f", f"%.{decimals}f ±%.{decimals}f"
    return [
        "–" if value is None else plain % value if ends is None else between % (value, (ends[1] - ends[0]) / 2)
        for value, ends in zip(values, intervals, strict=True)
    ]


@dataclass(frozen=True)
class LeftOut:
    """A record that does not rank, with the reason."""

    record: Record
    reason: str


def make_boards(records: Iterable[Record]) -> tuple[list[Board], list[LeftOut]]:
    """Return the boards of some records in a fixed order, and the records that rank nowhere."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...], str], list[Record]] = defaultdict(list)
    left_out: list[LeftOut] = []
    costs = _machine_free_costs(records := sorted(records, key=lambda record: record.name))
    for record in records:
        if reason := why_unranked(record):
            left_out.append(LeftOut(record, reason))
        else:
            groups[record.task, conditions(record), _headline(record)].append(record)
    alike = Counter((task, shared) for task, shared, _ in groups)
    return [
        _board(task, shared if alike[task, shared] == 1 else (*shared, ("ranked by", headline)), group, costs)
        for (task, shared, headline), group in sorted(groups.items(), key=lambda one: one[0])
    ], left_out


def _headline(record: Record) -> str:
    """What a record ranks by, in words; of one task it is another only where a record was written by hand."""
    metric = record.measurements[0].metric
    return f"{metric.name} ({metric.unit}), {'higher' if metric.higher_is_better else 'lower'} is better"


def why_unranked(record: Record) -> str:
    """Return why a record does not rank; empty where it does."""
    if record.error:
        return record.error
    if record.provenance == "published":
        return f"published, not measured: {record.details.get('source', 'no source')}"
    if record.setup.limit is not None:
        return f"--limit {record.setup.limit}: only a part of the data was evaluated"
    if record.untrained == "never" and record.setup.weights.source == "random":
        return "random weights: the classifier was never trained"
    if not record.measurements or record.measurements[0].value is None:
        return record.measurements[0].reason if record.measurements else "no measurements"
    if reasons := record.details.get("unranked"):
        return f"{'; '.join(reasons)}. {_measured(record.measurements[0])}"
    if reasons := record.details.get("disturbed"):
        again = "race again" if "race" in record.details else "--rerun measures again"
        return f"disturbed: {'; '.join(reasons)}. {_measured(record.measurements[0])}; {again}"
    return ""


def _measured(headline: Measurement) -> str:
    metric = headline.metric
    return f"Measured {metric.name} {headline.value:.{metric.decimals}f} {metric.unit}"


def conditions(record: Record) -> tuple[tuple[str, str], ...]:
    """Return what must be equal for two records of a task to rank together."""
    setup, data = record.setup, record.data
    found = [("version", str(record.task_version)), ("precision", setup.precision)]
    if data is not None:
        count = f"{data.size:,} images of {data.classes:,} classes"
        found.insert(0, ("data", f"{data.name} {data.split}, {count} ({data.fingerprint[:8]})"))
    if record.untrained == "apart":
        found.append(("weights", "random" if setup.weights.source == "random" else "trained"))
    if record.machine_bound:
        found += _machine(record)
        found += [
            ("batch", str(setup.batch_size)),
            ("image", _size(setup)),
            ("layout", "channels last" if setup.channels_last else "contiguous"),
            ("mode", _mode(setup)),
        ]
    if equal := record.details.get("equal"):
        seeds = record.details["seeds"]
        found += [("recipe", equal["recipe"]), ("order of images", equal["order"]), ("seeds", f"{len(seeds)}")]
    if race := record.details.get("race"):
        found.append(("race", f"{race['id']}, {len(race['models'])} models in turns, {race['rounds']} rounds"))
    return tuple(found)


def _machine(record: Record) -> list[tuple[str, str]]:
    """What decides a cost beside the setup: the hardware, what limits it, and the software that drives it."""
    place, versions = record.environment, record.environment.versions
    found = [("device", place.device), ("torch", versions.get("torch", "?"))]
    if record.setup.device == "cpu":
        quota = "none" if place.cpu_quota is None else f"{place.cpu_quota:g} cores"
        return [*found, ("threads", str(place.threads)), ("CPU quota", quota)]
    limit = "?" if place.power_limit is None else f"{place.power_limit:g} W"
    return [
        *found,
        ("CUDA", versions.get("cuda", "?")),
        ("driver", versions.get("driver", "?")),
        ("power limit", limit),
    ]


def _size(setup: Setup) -> str:
    """Height and width of the input, or the side of a square one."""
    height, width = setup.preprocessing.image_size or (0, 0)
    return str(height) if height == width else f"{height}x{width}"


def _mode(setup: Setup) -> str:
    return ("compiled" if setup.compile else "eager") + (", CUDA graphs" if setup.cuda_graphs else "")


def who(record: Record) -> tuple[str, str, str]:
    """Return model, weights and image size of a record, with what the user overrode or let pass."""
    weights, preprocessing = record.setup.weights, record.setup.preprocessing
    source = weights.file or weights.source
    if weights.missing or weights.unexpected:
        source += f" (partial: {len(weights.missing)} missing, {len(weights.unexpected)} unexpected)"
    image = _size(record.setup)
    if record.provenance == "predictions":
        source, image = f"predictions: {weights.file}", "any"
    if preprocessing.overridden:
        image += f" (set: {', '.join(preprocessing.overridden)})"
    return record.model, source, image


def by_seed(record: Record, metric: str) -> tuple[float, ...]:
    """Return the value of a metric under each seed of a record that trained with several; empty for any other."""
    if "equal" not in record.details:
        return ()
    samples = next((m.samples for m in record.measurements if m.metric.name == metric), ())
    return samples if len(samples) == len(record.details["seeds"]) > 1 else ()


def differences(boards: Sequence[Board]) -> dict[str, list[str]]:
    """Return, for each task with several boards, the conditions in which they differ."""
    by_task: dict[str, list[Board]] = defaultdict(list)
    for board in boards:
        by_task[board.task].append(board)
    return {task: _differing(group) for task, group in by_task.items() if len(group) > 1}


def _differing(group: Sequence[Board]) -> list[str]:
    """The labels of the conditions that not all boards of a group share."""
    all_conditions = [dict(board.conditions) for board in group]
    labels = {label for conditions in all_conditions for label in conditions}
    return sorted(label for label in labels if len({conditions.get(label) for conditions in all_conditions}) > 1)


def _board(
    task: str,
    shared: tuple[tuple[str, str], ...],
    group: list[Record],
    costs: Mapping[Identity, MachineFree],
) -> Board:
    """Rank comparable records."""
    shapes = [tuple([one.metric.name for one in record.measurements]) for record in group]
    metrics, minor = _metrics(list(dict(zip(shapes, group, strict=True)).values()))
    every, sign = metrics + minor, -1 if group[0].measurements[0].metric.higher_is_better else 1
    places = {shape: [(m.name, shape.index(m.name) if m.name in shape else None) for m in every] for shape in {*shapes}}
    beside = {} if group[0].machine_bound else costs
    # In the order in which records lie in memory, since there may be very many, and then by score.
    found = [_scored(record, sign, beside, places[shape]) for record, shape in zip(group, shapes, strict=True)]
    found.sort(key=itemgetter(0))
    alike, equal = Counter([one.label for one in found]), Counter([one.score for one in found])
    ranks = {one.score: 1 + index for index, one in reversed(list(enumerate(found)))}
    rows = [
        Row(
            label=one.label if alike[one.label] == 1 else (f"{one.label[0]} [{one.record.key}]", *one.label[1:]),
            rank=ranks[one.score],
            tied=equal[one.score] > 1,
            record=one.record,
            metrics=every,
            values=one.values,
            intervals=one.intervals,
            note=one.note,
        )
        for one in found
    ]
    return Board(task, shared, metrics, minor, tuple(rows))


class _Scored(NamedTuple):
    """What a row is made of; a lower score is better."""

    score: float
    label: tuple[str, str, str]
    values: tuple[float | None, ...]
    intervals: tuple[Interval | None, ...]
    note: str
    record: Record


def _scored(
    record: Record, sign: int, costs: Mapping[Identity, MachineFree], places: Sequence[tuple[str, int | None]]
) -> _Scored:
    """A record's row, with the name of each metric and its place among the record's measurements."""
    own, free = record.measurements, costs.get(identity(record), NOTHING) if costs else NOTHING
    values = tuple([free.values.get(name) if place is None else own[place].value for name, place in places])
    intervals = tuple([None if place is None else own[place].interval for _, place in places])
    note = record.details.get("nominal") or free.note
    return _Scored(sign * float(own[0].value or 0), who(record), values, intervals, note, record)


def _metrics(group: Sequence[Record]) -> tuple[tuple[Metric, ...], tuple[Metric, ...]]:
    """What records measured, and what stands beside accuracy; and the minor metrics."""
    shown = {m.metric.name: m.metric for record in group for m in record.measurements if not m.metric.minor}
    minor = {m.metric.name: m.metric for record in group for m in record.measurements if m.metric.minor}
    if not group[0].machine_bound:
        shown |= {metric.name: metric for metric in JOINED}
    return tuple(shown.values()), tuple(metric for name, metric in minor.items() if name not in shown)


def _machine_free_costs(records: Iterable[Record]) -> dict[Identity, MachineFree]:
    """What does not depend on the machine, of each model at each image size, from whichever machine counted it."""
    found: dict[Identity, MachineFree] = defaultdict(MachineFree)
    for record in records:
        if record.machine_bound and not record.error:
            values, cost = record.values(), found[identity(record)]
            cost.values |= {metric.name: values[metric.name] for metric in JOINED if metric.name in values}
            cost.note = record.details.get("nominal") or cost.note
    return dict(found)


def identity(record: Record) -> Identity:
    """Return what decides a model's parameters and MACs: its name, its source and the image size."""
    return record.model, record.source_sha256, record.setup.preprocessing.image_size
