"""The fingerprint that a record keeps of what a training was fed with: it changes with anything that a batch holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.record import Preprocessing, Setup
from harness.task import build_task
from tasks.data.augmentation import Augmentation
from tasks.data.train_loader import Shuffled
from tasks.imagenet import ImageNet
from tasks.trained import Recipe, training_batches

TASK = "imagenet:scratch,size=32"


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 5}, {"batch": 5}, {"size": 24}, {"least_area": 0.5}])
def test_the_fingerprint_of_batches_changes_with_what_they_hold(coloured: Path, change: dict[str, Any]) -> None:
    def found(
        seed: int = 0, steps: int = 4, batch: int = 4, size: int = 32, least_area: float = 0.3, **more: Any
    ) -> str:
        task = build_task(TASK, coloured)
        assert isinstance(task, ImageNet)
        asked = Preprocessing(**{**task.preprocessing, "image_size": (size, size)})
        recipe = Recipe(steps=steps, batch=batch, lr=1.0, augmentation=Augmentation(least_area=least_area))
        source = Shuffled(task.split("train"), seed)
        return training_batches(source, recipe, Setup(preprocessing=asked), seed=seed, **more).fingerprint()

    assert found() == found(workers=2)
    assert found(**change) != found()


def test_the_fingerprint_covers_what_comes_after_the_first_batch(coloured: Path) -> None:
    task = build_task(TASK, coloured)
    assert isinstance(task, ImageNet)
    images, recipe = task.split("train"), Recipe(steps=4, batch=4, lr=1.0)
    setup = Setup(preprocessing=Preprocessing(**task.preprocessing))
    changed = replace(images, targets=[*images.targets])
    place = Shuffled(images, 0).index(15)
    changed.targets[place] = (changed.targets[place] + 1) % 8
    first, second = (training_batches(Shuffled(each, 0), recipe, setup, seed=0) for each in (images, changed))
    assert torch.equal(next(iter(first)).targets, next(iter(second)).targets)
    assert first.fingerprint() != second.fingerprint()
