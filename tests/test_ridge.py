"""Ridge regression equals scikit-learn's, and its leave-one-out accuracy equals as many fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier as Judge
from torch import Tensor

from harness.errors import SetupError
from harness.features import Features
from harness.record import Setup
from tasks.heads.ridge import fit_ridge
from tasks.heads.scaling import scaled, scaling_of
from tasks.protocols.ridge import RidgeClassifier


def mixture(rows: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=generator)
    means = 0.4 * torch.randn(classes, width, generator=generator)
    return means[targets] + torch.randn(rows, width, generator=generator), targets


def features(values: Tensor, targets: Tensor) -> Features:
    return Features(values, targets, [str(index) for index in range(len(values))])


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("rows", "width", "classes"), [(300, 20, 5), (60, 200, 4), (50, 50, 3), (300, 10, 2)])
def test_scores_equal_scikit_learns(rows: int, width: int, classes: int, alpha: float) -> None:
    values, targets = mixture(rows + 100, width, classes)
    train = features(values[:rows], targets[:rows])
    found = RidgeClassifier(alpha=alpha).fit(train, classes, Setup())(values[rows:])
    scaling = scaling_of(train.values, "cpu")
    judge = Judge(alpha=alpha).fit(scaled(train.values, scaling).double().numpy(), train.targets.numpy())
    expected = judge.decision_function(scaled(values[rows:], scaling).double().numpy())
    ours = found.numpy() if classes > 2 else found[:, 1].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert found.argmax(dim=1).tolist() == judge.predict(scaled(values[rows:], scaling).double().numpy()).tolist()


@pytest.mark.parametrize(("rows", "width"), [(40, 6), (24, 40)])
def test_accuracy_left_out_equals_as_many_fits(rows: int, width: int) -> None:
    values, targets = mixture(rows, width, 3, seed=2)
    alphas = [100.0, 1.0, 0.1]
    found = fit_ridge(values, targets, 3, alphas).left_out_accuracy
    for alpha, accuracy in zip(alphas, found, strict=True):
        right = 0
        for index in range(rows):
            others = torch.arange(rows) != index
            judge = Judge(alpha=alpha).fit(values[others].double().numpy(), targets[others].numpy())
            right += int(judge.predict(values[index : index + 1].double().numpy())[0] == targets[index])
        assert accuracy == pytest.approx(100 * right / rows)


def test_the_best_left_out_is_chosen_and_told() -> None:
    values, targets = mixture(120, 60, 4)
    protocol = RidgeClassifier()
    protocol.fit(features(values, targets), 4, Setup())
    details = protocol.details
    curve = details["left_out_accuracy"]
    assert len(curve) == len(details["grid"]) == 16
    assert details["alpha"] == details["grid"][curve.index(max(curve))]
    assert len(set(curve)) > 3


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_a_regulariser_that_is_none(alpha: Any) -> None:
    with pytest.raises(SetupError, match="expected a positive number"):
        RidgeClassifier(alpha=alpha)
