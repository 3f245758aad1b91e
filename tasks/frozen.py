"""Protocols on frozen features: one pass through the backbone, then a head that is cheap to fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.device import evaluating, to_device
from harness.errors import ModelError
from harness.features import Features, Pooling, embedder
from harness.metric import Evaluation
from harness.progress import track
from harness.record import Setup
from harness.task import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.classification import Classification

Predict = Callable[["Tensor"], "Tensor"]


@dataclass(kw_only=True)
class FrozenProtocol(ABC):
    """A head that is fitted to the features of the training images and scores those of the evaluated ones.

    Most protocols fill `fit` alone. The backbone is in eval mode, and none of its parameters is changed. A protocol is
    a dataclass: its own options are fields with a default, beside those that it inherits.

    Args:
        layer: whose output: `last`, `last4` (the last four, concatenated), an index, or the name of a module.
        pooling: `default` (the model's own embedding), `class`, `mean` or `attention`.
        layout: how to read that output where its shape does not tell: `NCHW`, `NHWC`, `NLC`, or `1+NLC` for one token
            before those of the map.
    """

    layer: str = "last"
    pooling: Pooling = "default"
    layout: str = "auto"

    untrained: ClassVar[Literal["rank", "apart", "never"]] = "apart"
    trains_on: ClassVar[tuple[str, ...]] = ("train",)
    block: ClassVar[int] = 1024

    @property
    @abstractmethod
    def details(self) -> Mapping[str, Any]:
        """What records say of the protocol, and of what it chose when it was fitted."""

    @abstractmethod
    def fit(self, train: Features, classes: int, setup: Setup) -> Predict:
        """Return the function from features (B, D) to scores (B, classes) on `setup.device`.

        Args:
            train: of all training images, all finite. What is chosen is chosen on a held-out part of them.
        """

    def measure(self, train: Features, test: Features, task: Classification, setup: Setup) -> Evaluation:
        """Fit on the one, and evaluate on the other, which is touched once."""
        predict, meter = self.fit(train, task.num_classes, setup), task.meter()
        for start in range(0, len(test), self.block):
            end = start + self.block
            features = test.values[start:end].to(setup.device)
            batch = Batch(features, test.targets[start:end], tuple(test.names[start:end]))
            meter.update(predict(features), batch)
        return meter.compute()

    def evaluate(self, model: nn.Module, task: Classification, setup: Setup) -> Evaluation:
        """Extract the features of both splits, then measure."""
        train = extract(model, task, "train", replace(setup, limit=None))
        check_finite(train)
        return self.measure(train, extract(model, task, task.evaluated_on, setup), task, setup)


def extract(model: nn.Module, task: Classification, split: str, setup: Setup) -> Features:
    """Return the features of a split, or of so much of it as the setup's limit allows."""
    import torch

    embed = embedder(model)
    values: list[Tensor] = []
    targets: list[Tensor] = []
    names: list[str] = []
    with evaluating(setup):
        for batch in track(task.split_batches(split, setup), f"embed the {split} images"):
            values.append(embed(to_device(batch.images, setup)).float().cpu())
            targets.append(batch.targets)
            names += batch.items
    return Features(torch.cat(values), torch.cat(targets), names)


def check_finite(features: Features) -> None:
    """Raise ModelError where a training image has no usable features."""
    broken = (~features.values.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise ModelError(
            f"The embeddings of {len(broken)} of {len(features)} training images hold NaN or infinity, the first of "
            f"{features.names[broken[0]]!r}: expected finite. Try --precision fp32."
        )
