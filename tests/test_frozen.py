"""Frozen protocols know what they were given: noise and constants score chance, and what is broken is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import run
from harness.errors import ModelError
from harness.features import Features
from tasks import frozen
from tasks.frozen import check_finite, is_constant

Make = Callable[..., Path]

EXTRA = """

class Constant(Tiny):
    def embed(self, images):
        return torch.ones(len(images), 6) / 3

class Blind(Tiny):
    def embed(self, images):
        return torch.ones(len(images), 6) + 1e-9 * images.mean()

class Partly(Tiny):
    def embed(self, images):
        found = images.mean((2, 3))
        return torch.where(found[:, :1] > found[:, :1].median(), found, torch.nan)

def constant(num_classes=1000):
    return Constant(num_classes)

def blind(num_classes=1000):
    return Blind(num_classes)

def partly(num_classes=1000):
    return Partly(num_classes)
"""


@pytest.fixture
def go(make_imagenet: Make, nets: str, tmp_path: Path) -> Callable[[str], Any]:
    Path(nets).write_text(Path(nets).read_text() + EXTRA)
    data = make_imagenet(val=2, train=2)

    def one(name: str, task: str = "imagenet:knn") -> Any:
        options: dict[str, Any] = {"executor": "inline", "workers": 0, "results": tmp_path / "r"}
        return run(f"{nets}:{name}", task, data=data, **options)[0]

    return one


@pytest.mark.parametrize("name", ["constant", "blind"])
def test_constant_features_give_chance_and_are_said(
    go: Callable[..., Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = go(name)
    assert record.values()["top1"] == 12.5  # of eight classes of equal size
    assert record.details["features"]["constant"] is True
    assert "All training images have the same features" in capsys.readouterr().err
    assert "constant" not in go("tiny").details["features"]


def test_training_images_without_finite_features_are_named(go: Callable[..., Any]) -> None:
    error = go("partly").error
    assert "of 16 training images hold NaN or infinity, the first of 'n0" in error


def test_the_record_says_which_features(go: Callable[..., Any]) -> None:
    record = go("tiny", "imagenet:knn,pooling=mean,layer=stem")
    assert record.task == "imagenet:knn,layer=stem,pooling=mean"
    assert record.details["features"] == {"layer": "stem", "pooling": "mean", "layout": "auto", "dim": 8}
    assert "Which modules of Tiny are its blocks is not known" in go("tiny", "imagenet:knn,layer=7").error


def features(values: Tensor) -> Features:
    return Features(values, torch.zeros(len(values), dtype=torch.long), [str(row) for row in range(len(values))])


@pytest.mark.parametrize("block", [1, 3, 100])
def test_rows_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(frozen, "BLOCK", block)
    rows = torch.full((10, 4), 7.0)
    assert is_constant(features(rows))
    check_finite(features(rows))
    rows[9, 2] = 7.1
    assert not is_constant(features(rows))
    rows[[4, 8], 0] = torch.inf
    with pytest.raises(ModelError, match=r"embeddings of 2 of 10 training images .* first of '4'"):
        check_finite(features(rows))


def test_zeros_are_constant_and_small_features_are_not() -> None:
    assert is_constant(features(torch.zeros(5, 3)))
    assert not is_constant(features(torch.randn(5, 3) * 1e-20))


def test_random_labels_give_chance() -> None:
    from harness.record import Setup
    from tasks.metrics.accuracy import rank
    from tasks.protocols.knn import NearestNeighbours

    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(1000) % 10
    values = torch.nn.functional.one_hot(truth, 10) + 0.3 * torch.randn(1000, 10, generator=generator)
    noise = torch.randint(10, (1000,), generator=generator)
    for labels, low, high in ((truth, 90, 100), (noise, 6, 14)):  # chance is 10, and 4 points are four deviations
        train = Features(values[:500], labels[:500], [""] * 500)
        scores = NearestNeighbours().fit(train, 10, Setup())(values[500:])
        assert low <= 100 * (rank(scores, 1)[:, 0] == labels[500:]).float().mean() <= high
