"""A linear classifier on the frozen features of a few training images a class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, SetupError
from harness.features import Features
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import PROTOCOLS
from harness.statistics import PERCENT, mean_interval
from tasks.frozen import FrozenProtocol, Predict
from tasks.heads.classes import present
from tasks.heads.logistic import fit
from tasks.heads.scaling import scaled, scaling_of

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.classification import Classification

ALL = (1, 5, 10)


@PROTOCOLS.register("few_shot")
@dataclass(kw_only=True)
class FewShot(FrozenProtocol):
    """Logistic regression with C = 1 on so many training images of each class, standardised by these alone.

    The images are drawn by seed and name, so that every model sees the same. No regulariser is chosen: there is nothing
    to choose it on.

    Source: Tian et al. 2020 (arXiv:2003.11539), whose features are of unit length instead.

    Args:
        shots: images a class; 0 for 1, 5 and 10 in turn.
        seeds: how many draws, from 2 to 10.
    """

    shots: int = 0
    seeds: int = 5
    C: float = 1.0
    _details: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.shots < 0 or not 2 <= self.seeds <= 10 or not 0 < self.C < float("inf"):
            raise SetupError(
                f"shots={self.shots}, seeds={self.seeds}, C={self.C:g} cannot be used: expected no negative number of "
                "shots, 2 to 10 seeds, and a positive C."
            )

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the protocol."""
        return {"protocol": "few-shot logistic regression", "C": self.C, "seeds": self.seeds, **self._details}

    def fit(self, train: Features, classes: int, setup: Setup) -> Predict:
        """Fit all of some training images."""
        scaling, known = scaling_of(train.values, setup.device), present(train.targets, classes, setup.device)
        head = fit(scaled(train.values, scaling), known.targets, len(known), 1 / (self.C * len(train)))
        return lambda rows: known.spread(head(scaling(rows)))

    def measure(self, train: Features, test: Features, task: Classification, setup: Setup) -> Evaluation:
        """Fit and evaluate each draw; the largest number of shots is the headline."""
        shots = (self.shots,) if self.shots else ALL
        _check(train.targets, shots)
        measurements: list[Measurement] = []
        for count in sorted(shots, reverse=True):
            draws = [draw(train, count, setup.seed + seed) for seed in range(self.seeds)]
            runs = [super(FewShot, self).measure(_part(train, drawn), test, task, setup) for drawn in draws]
            samples = [run.measurements[0].value for run in runs]
            values = tuple(value for value in samples if value is not None)
            metric = Metric(f"shot{count}", "%", higher_is_better=True)
            interval = mean_interval(values, within=PERCENT)
            measurements.append(Measurement(metric, fmean(values), values, interval=interval))
        self._details = {
            "interval": "of the mean over draws, Student's t",
            "sample": runs[0].measurements[0].metric.name,
            "not_finite": runs[0].details.get("not_finite", 0),
        }
        return Evaluation(tuple(measurements), {"images": len(test)})


def draw(train: Features, shots: int, seed: int) -> list[int]:
    """Return the indices of so many images of each class, in order; by names, targets and the seed alone."""
    marks = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in train.names]
    by_class: dict[int, list[int]] = {}
    for index, target in enumerate(train.targets.tolist()):
        by_class.setdefault(target, []).append(index)
    drawn = [sorted(members, key=lambda index: marks[index])[:shots] for members in by_class.values()]
    return sorted(index for members in drawn for index in members)


def _part(train: Features, indices: list[int]) -> Features:
    return Features(train.values[indices], train.targets[indices], [train.names[index] for index in indices])


def _check(targets: Tensor, shots: Sequence[int]) -> None:
    """Refuse classes that have fewer images than shots; a class without any is never predicted."""
    import torch

    classes, counts = torch.unique(targets, return_counts=True)
    short = classes[counts < max(shots)].tolist()
    if short:
        raise DataError(
            f"{len(short)} of {len(classes)} classes have fewer than {max(shots)} training images, the first is class "
            f"{short[0]} with {int(counts[classes == short[0]])}: every class needs as many as shots. "
            f"Try few_shot,shots={int(counts.min())}."
        )
