"""Few-shot draws are the same for every model, and the number is the mean of fits that scikit-learn makes too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from harness.errors import DataError, SetupError
from harness.features import Features
from harness.metric import Evaluation
from harness.record import Setup
from tasks.heads.scaling import scaled, scaling_of
from tasks.metrics.accuracy import Accuracy
from tasks.protocols.few_shot import FewShot, draw


def mixture(rows: int, classes: int = 4, width: int = 12, seed: int = 0, prefix: str = "a") -> Features:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % classes
    means = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    values: Tensor = means[targets] + torch.randn(rows, width, generator=generator)
    return Features(values, targets, [f"{prefix}{index}" for index in range(rows)])


TRAIN, TEST = mixture(80), mixture(200, seed=1, prefix="b")


def measure(protocol: FewShot, train: Features = TRAIN, classes: int = 4) -> Evaluation:
    task: Any = SimpleNamespace(num_classes=classes, meter=lambda: Accuracy(classes))
    return protocol.measure(train, TEST, task, Setup())


def test_every_number_is_the_mean_of_scikit_learns() -> None:
    protocol = FewShot(seeds=3)
    found = {each.metric.name: each for each in measure(protocol).measurements}
    assert list(found) == ["shot10", "shot5", "shot1"]
    for shots in (1, 5, 10):
        expected = []
        for seed in range(3):
            drawn = draw(TRAIN, shots, seed)
            scaling = scaling_of(TRAIN.values[drawn], "cpu")
            judge = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(
                scaled(TRAIN.values[drawn], scaling).double().numpy(), TRAIN.targets[drawn].numpy()
            )
            expected.append(100 * judge.score(scaled(TEST.values, scaling).double().numpy(), TEST.targets.numpy()))
        measured = found[f"shot{shots}"]
        assert measured.samples == pytest.approx(expected, abs=0.51)
        assert measured.value == pytest.approx(np.mean(measured.samples))
        low, high = stats.t.interval(0.95, 2, np.mean(measured.samples), stats.sem(measured.samples))
        assert measured.interval == pytest.approx((low, high))


def test_draws_depend_on_names_and_not_on_features_or_order() -> None:
    drawn = draw(TRAIN, 5, seed=0)
    assert TRAIN.targets[drawn].bincount().tolist() == [5, 5, 5, 5]
    assert drawn == draw(Features(TRAIN.values * 3 + 1, TRAIN.targets, TRAIN.names), 5, seed=0)
    assert drawn != draw(TRAIN, 5, seed=1)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    mixed = Features(TRAIN.values[order], TRAIN.targets[order], [TRAIN.names[index] for index in order.tolist()])
    names = {mixed.names[index] for index in draw(mixed, 5, seed=0)}
    assert names == {TRAIN.names[index] for index in drawn}


def test_fewer_shots_are_among_more() -> None:
    assert set(draw(TRAIN, 1, 0)) < set(draw(TRAIN, 5, 0)) < set(draw(TRAIN, 10, 0))


def test_one_number_of_shots() -> None:
    evaluation = measure(FewShot(shots=3, seeds=2))
    assert [each.metric.name for each in evaluation.measurements] == ["shot3"]
    assert len(evaluation.measurements[0].samples) == 2


def test_a_class_with_too_few_images() -> None:
    short = Features(TRAIN.values[:38], TRAIN.targets[:38], TRAIN.names[:38])
    with pytest.raises(
        DataError, match=r"2 of 4 classes have fewer than 10 .* class 2 with 9: .* Try few_shot,shots=9\."
    ):
        measure(FewShot(), short)


def test_a_class_without_images_is_never_predicted() -> None:
    predict = FewShot().fit(TRAIN, 6, Setup())
    assert (predict(TEST.values)[:, 4:] == -torch.inf).all()


@pytest.mark.parametrize("options", [{"shots": -1}, {"seeds": 1}, {"seeds": 11}, {"C": 0.0}])
def test_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="cannot be used: expected no negative number of shots"):
        FewShot(**options)
