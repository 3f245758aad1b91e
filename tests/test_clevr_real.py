"""A trained network knows more of counts and distances than the same one untrained, on real and on made-up scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.preprocessing import resolve
from harness.record import Preprocessing, Setup
from harness.statistics import proportion_interval
from harness.task import build_task
from tasks.clevr import Clevr
from tasks.data.mini_clevr import generate

pytestmark = [pytest.mark.data, pytest.mark.slow]


@dataclass(frozen=True)
class Outcome:
    """How many of the validation images a probe on trained features, on untrained ones, and guessing get right."""

    trained: int
    random: int
    guess: int
    images: int


def features(root: Path, weights: Path | None) -> list[NDArray[np.float32]]:
    """Return the mean of the last block's tokens (N, 192) of both splits."""
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224").eval()
    if weights:
        net.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    task = build_task("clevr_count:knn", root)
    assert isinstance(task, Clevr)
    setup = Setup(preprocessing=resolve(Preprocessing(), net, task.preprocessing))
    found: list[torch.Tensor] = []
    net.blocks[-1].register_forward_hook(lambda module, given, tokens: found.append(tokens.mean(dim=1)))
    splits = []
    with torch.no_grad():
        for split in ("train", "val"):
            found.clear()
            for batch in task.split_batches(split, setup):
                net(batch.images)
            splits.append(torch.cat(found).numpy())
    return splits


def measure(root: Path, weights: Path) -> dict[str, Outcome]:
    """Return the outcome of each task."""
    nets = [features(root, file) for file in (weights, None)]
    outcomes = {}
    for name in ("clevr_count", "clevr_dist"):
        task = build_task(f"{name}:knn", root)
        assert isinstance(task, Clevr)
        y, y_test = (np.array(task.split(split).targets) for split in ("train", "val"))
        right = []
        for x, x_test in nets:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000)).fit(x, y)
            right.append(int((probe.predict(x_test) == y_test).sum()))
        outcomes[name] = Outcome(right[0], right[1], int(np.bincount(y_test).max()), len(y_test))
    return outcomes


@pytest.fixture(scope="module", params=["real", "made up"])
def outcomes(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """The outcomes on the real scenes, and on those that the project draws."""
    root = shared_data if request.param == "real" else generate(tmp_path_factory.mktemp("made")).parent
    return measure(root, shared_data / "weights" / "vit_tiny_patch16_224.fp16.safetensors")


def test_trained_features_count_better(outcomes: dict[str, Outcome]) -> None:
    found = outcomes["clevr_count"]
    assert found.trained - found.random > 0.05 * found.images
    assert proportion_interval(found.trained, found.images)[0] > found.guess / found.images


def test_trained_features_see_distances(outcomes: dict[str, Outcome]) -> None:
    found = outcomes["clevr_dist"]
    assert found.trained > found.random
    assert found.trained - found.guess > 0.05 * found.images
