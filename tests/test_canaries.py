"""What carries no signal scores chance, under every protocol on frozen features; what is broken is named."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import DataError, ModelError
from harness.features import Features
from harness.metric import Evaluation
from harness.record import Setup
from tasks.frozen import FrozenProtocol, check_finite
from tasks.heads.held_out import hold_out
from tasks.metrics.accuracy import Accuracy
from tasks.protocols.few_shot import FewShot
from tasks.protocols.knn import NearestNeighbours
from tasks.protocols.linear import Linear
from tasks.protocols.ridge import RidgeClassifier

CLASSES, WIDTH, TESTED = 5, 10, 1000
PROTOCOLS = {
    "knn": NearestNeighbours,
    "linear": Linear,
    "linear,preset=dseq": lambda: Linear(preset="dseq"),
    "linear,preset=vissl": lambda: Linear(preset="vissl"),
    "ridge": RidgeClassifier,
    "few_shot": lambda: FewShot(seeds=2),
}
every = pytest.mark.parametrize("name", PROTOCOLS)


def images(rows: int, seed: int, prefix: str, signal: float = 2.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    targets = torch.arange(rows)[torch.randperm(rows, generator=generator)] % CLASSES
    values = signal * means[targets] + torch.randn(rows, WIDTH, generator=generator)
    return Features(values, targets, [f"{prefix}{index}" for index in range(rows)])


TRAIN, TEST = images(400, 0, "a"), images(TESTED, 1, "b")


def changed(features: Features, values: Tensor | None = None, targets: Tensor | None = None) -> Features:
    return Features(
        features.values if values is None else values,
        features.targets if targets is None else targets,
        features.names,
    )


def measure(name: str, train: Features, test: Features = TEST, classes: int = CLASSES) -> Evaluation:
    task: Any = SimpleNamespace(num_classes=classes, evaluated_on="val", meter=lambda: Accuracy(classes))
    protocol: FrozenProtocol = PROTOCOLS[name]()  # type: ignore[operator]
    found = protocol.measure(train, test, task, Setup())
    assert all(value == value for each in found.measurements for value in [each.value])
    return Evaluation(found.measurements, {**found.details, **protocol.details})


def top1(name: str, train: Features, test: Features = TEST, classes: int = CLASSES) -> float:
    value = measure(name, train, test, classes).measurements[0].value
    assert value is not None
    return value


@every
def test_signal_is_found(name: str) -> None:
    assert top1(name, TRAIN) > (30 if name == "linear,preset=vissl" else 80)


@every
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_labels_score_chance(name: str, seed: int) -> None:
    # Of training and of test images, each apart, so that no two images share a label by their likeness.
    generator = torch.Generator().manual_seed(seed)
    train, test = (
        changed(each, targets=torch.randint(CLASSES, (len(each),), generator=generator)) for each in (TRAIN, TEST)
    )
    # Five standard deviations of a binomial: 36 draws in all, one in a million each.
    assert abs(top1(name, train, test) - 20) < 500 * math.sqrt(0.2 * 0.8 / TESTED)


@every
@pytest.mark.parametrize("value", [0.0, 1.0, -3e30, 1e-30])
def test_constant_features_score_chance(name: str, value: float) -> None:
    train, test = (changed(each, torch.full_like(each.values, value)) for each in (TRAIN, TEST))
    # The classes are equally frequent in the test, and a constant picks one.
    assert top1(name, train, test) == pytest.approx(20)


@every
def test_rounding_of_constant_features_is_no_signal(name: str) -> None:
    # A batch's place decides the last bit, and classes come in order: one bit would tell them apart.
    told = torch.where(TRAIN.targets == 0, 1.0, 1 + 2**-23), torch.where(TEST.targets == 0, 1.0, 1 + 2**-23)
    train, test = (
        changed(each, bits[:, None].repeat(1, WIDTH)) for each, bits in zip((TRAIN, TEST), told, strict=True)
    )
    assert top1(name, train, test) == pytest.approx(20)


@every
def test_features_of_test_images_that_are_not_finite_are_errors(name: str) -> None:
    values = TEST.values.clone()
    values[:100] = torch.nan
    values[100:150, 0] = torch.inf
    whole, evaluation = measure(name, TRAIN), measure(name, TRAIN, changed(TEST, values))
    assert evaluation.details["not_finite"] == 150
    before, after = (each.measurements[0].value for each in (whole, evaluation))
    assert before is not None
    assert after is not None
    assert before - 15.01 <= after <= min(before, 85)


def test_features_of_training_images_that_are_not_finite_are_named() -> None:
    values = TRAIN.values.clone()
    values[7, 3] = torch.nan
    with pytest.raises(ModelError, match="1 of 400 training images hold NaN or infinity, the first of 'a7'"):
        check_finite(changed(TRAIN, values))


@every
def test_a_class_without_training_images_is_never_right(name: str) -> None:
    kept = TRAIN.targets != 2
    train = Features(
        TRAIN.values[kept], TRAIN.targets[kept], [name for name, keep in zip(TRAIN.names, kept, strict=True) if keep]
    )
    found = top1(name, train)
    assert found <= 80
    assert found > (20 if name == "linear,preset=vissl" else 60)


@every
def test_a_single_class(name: str) -> None:
    train, test = (changed(each, targets=torch.full_like(each.targets, 3)) for each in (TRAIN, TEST))
    assert top1(name, train, test) == 100
    only = (
        changed(TRAIN, targets=torch.zeros_like(TRAIN.targets)),
        changed(TEST, targets=torch.zeros_like(TEST.targets)),
    )
    assert top1(name, *only, classes=1) == 100


@every
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_the_scale_of_features_does_not_matter(name: str, scale: float) -> None:
    if name.startswith("linear,"):
        scale = max(scale, 1)  # the recipes' batch normalisation adds 1e-5 to the variance, as published
    train, test = (changed(each, each.values * scale) for each in (TRAIN, TEST))
    assert top1(name, train, test) == pytest.approx(top1(name, TRAIN), abs=0.3)


@every
def test_the_same_twice(name: str) -> None:
    first, second = measure(name, TRAIN), measure(name, TRAIN)
    assert first.measurements == second.measurements
    assert first.details == second.details


# The held-out part


def test_held_out_images_are_a_fifth_of_each_class_and_none_is_fitted() -> None:
    targets = torch.arange(400) % CLASSES
    some, rest = hold_out(targets, seed=0)
    assert sorted([*some.tolist(), *rest.tolist()]) == list(range(400))
    assert targets[rest].bincount().tolist() == [16] * 5
    assert not torch.equal(rest, hold_out(targets, seed=1)[1])


def test_at_most_ten_thousand_are_held_out() -> None:
    assert len(hold_out(torch.arange(200_000) % 1000, seed=0)[1]) == 10_000


def test_one_image_of_each_class_is_always_fitted() -> None:
    targets = torch.tensor([0] * 50 + list(range(1, 30)))
    some, rest = hold_out(targets, seed=0)
    assert targets[some].unique().tolist() == list(range(30))
    assert targets[rest].unique().tolist() == [0]


def test_nothing_can_be_held_out() -> None:
    with pytest.raises(DataError, match=r"5 training images of 5 classes: .* linear,C=0.01"):
        hold_out(torch.arange(5), seed=0)
