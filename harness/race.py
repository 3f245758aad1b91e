"""Timing several models in turns in one process: the only way to tell small differences from drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy

from harness.device import check_device, evaluating, noise, place
from harness.models import public_id
from harness.observe import Observation, observing
from harness.runner import Job, prepare
from harness.statistics import LEVEL, Difference, compare_rounds
from harness.task import build_task
from harness.timing import Call, interleave


@dataclass(frozen=True)
class Standing:
    """How a model did in a race.

    Args:
        milliseconds: median over rounds of the median of a round.
        behind: its difference from the quickest; None for that one.
    """

    model: str
    milliseconds: float
    behind: Difference | None


def race(jobs: Sequence[Job], rounds: int = 40) -> tuple[list[Standing], Observation]:
    """Time the forward passes of models, each at its own image size, in turns; the quickest comes first.

    Each model is compared with the quickest; the level is shared among the comparisons (Bonferroni).

    Args:
        jobs: one a model, with equal setups; their task does not matter.
        rounds: turns of each model; at least 15, or no difference can be found.

    Raises:
        BenchError: a model cannot be built, or there is no such device.
    """
    import torch

    setup, threads = jobs[0].setup, jobs[0].threads
    check_device(setup.device)
    torch.set_num_threads(threads or torch.get_num_threads())
    calls = [_forward(job) for job in jobs]
    with evaluating(setup), observing(setup.device) as watch:
        timed = interleave(calls, setup.device, rounds, seed=setup.seed)
        watch.look()
        observation = watch.report()
    return list(_standings([public_id(job.model) for job in jobs], timed)), observation


def _forward(job: Job) -> Call:
    """The forward pass of a job's model on noise."""
    module, setup = prepare(job, build_task(job.task))
    return partial(place(module, setup), noise(setup))


def _standings(models: Sequence[str], timed: Sequence[Sequence[Sequence[float]]]) -> Iterator[Standing]:
    medians = [float(numpy.median([numpy.median(one) for one in rounds])) for rounds in timed]
    order = sorted(range(len(models)), key=medians.__getitem__)
    level = LEVEL / max(1, len(models) - 1)
    for index in order:
        behind = None if index == order[0] else replace(compare_rounds(timed[order[0]], timed[index]), level=level)
        yield Standing(models[index], medians[index], behind)
