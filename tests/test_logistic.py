"""Logistic regression reaches the optimum that scikit-learn finds, on easy and on awkward features."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from harness.features import Features
from harness.record import Setup
from tasks.heads.logistic import CHOOSING, PENALTIES, fit, fit_path
from tasks.heads.scaling import scaled, scaling_of
from tasks.protocols.linear import Linear

Array = NDArray[Any]


def clusters(rows: int, width: int, classes: int, seed: int = 0, signal: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return features with the falling spectrum of a network's, and their classes."""
    generator = np.random.default_rng(seed)
    axes = np.linalg.qr(generator.normal(size=(width, width)))[0] * np.arange(1, width + 1)[:, None] ** -0.5
    targets = generator.integers(classes, size=rows)
    values = (
        2 * signal * generator.normal(size=(classes, width))[targets] + generator.normal(size=(rows, width))
    ) @ axes
    return torch.tensor(values, dtype=torch.float32), torch.tensor(targets)


def change(values: Tensor, how: str) -> Tensor:
    wide = values.repeat(1, 2) if how == "collinear" else values.clone()
    if how == "constant":
        wide[:, ::3] = 7.5
    if how == "rounding":
        wide[:, 0] = 1000 + 1e-4 * values[:, 0]
    if how == "huge":
        wide *= 10 ** torch.linspace(-28, 28, wide.shape[1])
    return wide


def loss(scores: Array, targets: Array) -> float:
    scores = scores - scores.max(axis=1, keepdims=True)
    return float((np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), targets]).mean())


SHAPES = {
    "more images": (3000, 20, 5, "plain"),
    "more features": (150, 300, 4, "plain"),
    "many classes": (1500, 30, 100, "plain"),
    "two classes": (500, 10, 2, "plain"),
    "imbalanced": (3000, 20, 5, "imbalanced"),
    "doubled images": (1000, 20, 5, "doubled"),
    "collinear": (1500, 20, 5, "collinear"),
    "constant": (1500, 20, 5, "constant"),
    "rounding": (1500, 20, 5, "rounding"),
    "huge and tiny": (1500, 20, 5, "huge"),
}


@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_optimum_equals_scikit_learns(shape: str, C: float) -> None:  # noqa: N803
    rows, width, classes, how = SHAPES[shape]
    values, targets = clusters(2 * rows, width, classes)
    values = change(values, how)
    chosen = torch.arange(rows)
    if how == "imbalanced":
        chosen = (
            torch.rand(rows, generator=torch.Generator().manual_seed(0)) < 0.6 ** (2.0 * targets[:rows])
        ).nonzero()[:, 0]
    if how == "doubled":
        chosen = chosen[: rows // 2].repeat(2)
    train = Features(values[chosen], targets[chosen], [str(index) for index in range(len(chosen))])
    protocol = Linear(C=C)
    predict = protocol.fit(train, classes, Setup())
    scaling = scaling_of(train.values, "cpu")
    ours, theirs = (scaled(each, scaling).double().numpy() for each in (train.values, values[rows:]))
    judge = LogisticRegression(C=C, tol=1e-8, max_iter=20_000).fit(ours, train.targets.numpy())
    expected = judge.predict_log_proba(ours)
    found = predict(train.values).double().numpy()[:, judge.classes_]
    places = np.searchsorted(judge.classes_, train.targets.numpy())
    assert protocol.details["converged"]
    assert abs(loss(found, places) - loss(expected, places)) < 1e-3
    penalty = np.square(judge.coef_).sum() / (2 * C * len(train))
    assert protocol.details["objective"] == pytest.approx(loss(expected, places) + penalty, abs=1e-5)
    unseen = targets[rows:].numpy()
    right = (predict(values[rows:]).argmax(dim=1).numpy() == unseen).sum()
    assert abs(right - (judge.predict(theirs) == unseen).sum()) <= max(1, 0.001 * rows)


def test_the_path_is_within_a_thousandth_of_the_optimum_and_quicker_than_fits_apart() -> None:
    values, targets = clusters(4000, 64, 20)
    features = scaled(values, scaling_of(values, "cpu"))
    path = fit_path(features, targets, 20, PENALTIES)
    apart = [fit_path(features, targets, 20, [penalty])[0] for penalty in PENALTIES]
    for head, penalty in zip(path, PENALTIES, strict=True):
        assert head.converged
        assert -1e-5 < head.objective - fit(features.double(), targets, 20, penalty).objective < 1e-3
    assert 2 * sum(head.passes for head in path) < sum(head.passes for head in apart)


def test_a_path_is_the_same_twice() -> None:
    values, targets = clusters(500, 16, 5)
    first, second = (fit_path(values, targets, 5, PENALTIES) for _ in range(2))
    assert all(torch.equal(one.weights, other.weights) for one, other in zip(first, second, strict=True))


def test_what_is_not_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.heads.logistic.MOST_PASSES", 2)
    values, targets = clusters(500, 16, 5)
    protocol = Linear(C=100.0)
    protocol.fit(Features(values, targets, [""] * 500), 5, Setup())
    assert protocol.details["converged"] is False


def seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# On classes that never overlap scikit-learn's default stops after a few steps, farther from its optimum than our path.
@pytest.mark.slow
@pytest.mark.parametrize(("signal", "tol"), [(0.05, 1e-4), (0.5, 1e-5)], ids=["noisy", "apart"])
def test_a_grid_takes_less_than_one_fit_of_scikit_learn(signal: float, tol: float) -> None:
    values, targets = clusters(20_000, 384, 100, signal=signal)
    features = scaled(values, scaling_of(values, "cpu"))
    array = features.double().numpy()
    ours, theirs = [], []
    for _ in range(3):
        ours.append(seconds(lambda: fit_path(features, targets, 100, PENALTIES, CHOOSING)))
        theirs.append(seconds(lambda: LogisticRegression(max_iter=5000, tol=tol).fit(array, targets.numpy())))
    assert min(ours) < min(theirs), f"16 settings in {ours} s, one fit of scikit-learn in {theirs} s"


@pytest.mark.gpu
def test_a_grid_of_imagenets_size_on_a_gpu() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    targets = torch.randint(1000, (1_281_167,), generator=generator, device="cuda")
    means = 0.3 * torch.randn(1000, 384, generator=generator, device="cuda")
    features = means[targets] + torch.randn(len(targets), 384, generator=generator, device="cuda")
    features /= features.std(dim=0)
    taken = seconds(lambda: [head.objective for head in fit_path(features, targets, 1000, PENALTIES)])
    assert taken < 90


@pytest.mark.gpu
def test_a_gpu_finds_the_same_optimum() -> None:
    values, targets = clusters(3000, 64, 20)
    train = Features(values, targets, [str(index) for index in range(3000)])
    objectives = []
    for device in ("cpu", "cuda"):
        protocol = Linear(C=0.1)
        protocol.fit(train, 20, Setup(device=device))
        objectives.append(protocol.details["objective"])
    assert objectives[0] == pytest.approx(objectives[1], abs=1e-5)
