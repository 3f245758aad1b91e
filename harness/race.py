"""Timing several models in turns in one process: the only way to tell small differences from drift."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial

import msgspec
import numpy

from harness.device import check_device, evaluating, noise, place
from harness.errors import SetupError
from harness.graphs import check_graphs, graphed
from harness.metric import Evaluation, Measurement, Metric
from harness.models import public_id
from harness.observe import Observation, observing
from harness.record import Record, Setup, digest
from harness.runner import Job, choices, describe, identify, prepare
from harness.statistics import LEVEL, Difference, compare_rounds, least_rounds
from harness.task import build_task
from harness.timing import interleave

PASSES = 3  # of each turn that count


@dataclass(frozen=True)
class Standing:
    """How a model did in a race.

    Args:
        job: the model, and what was asked.
        setup: what that came to.
        rounds: of each turn the ms of its passes.
        behind: its difference from the quickest; None for that one.
    """

    job: Job
    setup: Setup
    rounds: Sequence[Sequence[float]]
    behind: Difference | None = None

    @property
    def model(self) -> str:
        """The model id as records show it."""
        return public_id(self.job.model)

    @property
    def milliseconds(self) -> float:
        """The median over rounds of the median of a round."""
        return float(numpy.median([numpy.median(one) for one in self.rounds]))


@dataclass(frozen=True)
class Race:
    """What came of a race; the quickest comes first."""

    standings: tuple[Standing, ...]
    observation: Observation
    started: datetime
    seconds: float

    def records(self) -> list[Record]:
        """Return one record a model. They rank with each other, and with those of no other race."""
        return [self._record(place, standing) for place, standing in enumerate(self.standings)]

    def _record(self, place: int, standing: Standing) -> Record:
        job, models = standing.job, [one.model for one in self.standings]
        request = identify(job, build_task(job.task))
        race = {"id": self._id(), "models": models, "rounds": len(standing.rounds), "passes": PASSES}
        if standing.behind is not None:
            race |= {"slower_than": models[0], **asdict(standing.behind), "differs": standing.behind.differs}
        details = {"race": race, "observed": self.observation.seen, "disturbed": list(self.observation.disturbed)}
        evaluation = Evaluation(tuple(_measurements(standing, models[0])), details)
        record = describe(request, standing.setup, evaluation, None, self.started, self.seconds)
        words = ("run_bench.py", "race", "--model", *models, "--rounds", str(race["rounds"]), "--results", "results")
        # The same model may run against itself, so that its place is a part of the key.
        key = digest(race["id"], request.key, place)
        return msgspec.structs.replace(record, task="race", key=key, command=" ".join((*words, *choices(job))))

    def _id(self) -> str:
        """What tells this race from others, also from the same one at another time."""
        jobs = [(one.model, one.job.setup, one.job.threads) for one in self.standings]
        return digest(jobs, self.started.isoformat(), self.seconds)


def _measurements(standing: Standing, quickest: str) -> Iterator[Measurement]:
    """Yield the time with all passes, round after round, and by how much it is behind."""
    batch, behind = standing.setup.batch_size, standing.behind
    samples = tuple(sample for one in standing.rounds for sample in one)
    yield Measurement(Metric(f"race_b{batch}", "ms", higher_is_better=False), standing.milliseconds, samples)
    metric = Metric(f"race_behind_b{batch}", "%", higher_is_better=False, decimals=1)
    if behind is None or behind.differs:
        yield Measurement(metric, 100 * (behind.ratio - 1) if behind else 0.0)
    else:
        yield Measurement(metric, None, reason=f"no difference from {quickest} was found (p = {behind.p:.1g})")


def race(jobs: Sequence[Job], rounds: int = 40) -> Race:
    """Time the forward passes of models, each at its own image size, in turns.

    Each model is compared with the quickest; the level is shared among the comparisons (Bonferroni).

    Args:
        jobs: one a model, with equal setups; their task is `cost`.
        rounds: turns of each model.

    Raises:
        SetupError: in so few rounds no difference could be found.
        BenchError: a model cannot be built, or there is no such device.
    """
    import torch

    setup, threads = jobs[0].setup, jobs[0].threads
    if rounds < (least := least_rounds(len(jobs) - 1)):
        raise SetupError(
            f"--rounds is {rounds}; with {len(jobs)} models no difference can be found in fewer than {least} rounds."
        )
    check_graphs(setup, on_machine=True)
    check_device(setup.device)
    torch.set_num_threads(threads or torch.get_num_threads())
    started, clock = datetime.now(UTC), time.perf_counter()
    built = [prepare(job, build_task(job.task)) for job in jobs]
    passes = [partial(place(*one), noise(one[1])) for one in built]
    with evaluating(setup), observing(setup.device) as watch:
        calls = [graphed(call, setup) for call in passes]
        timed = interleave(calls, setup.device, rounds, PASSES, setup.seed, watch.look)
        observation = watch.report()
    found = [Standing(job, one[1], turns) for job, one, turns in zip(jobs, built, timed, strict=True)]
    return Race(tuple(_compared(found)), observation, started, time.perf_counter() - clock)


def _compared(standings: Sequence[Standing]) -> Iterator[Standing]:
    """Yield the quickest, and then the others with their difference from it."""
    first, *others = sorted(standings, key=lambda one: one.milliseconds)
    level = LEVEL / max(1, len(others))
    yield first
    for one in others:
        yield replace(one, behind=replace(compare_rounds(first.rounds, one.rounds), level=level))
