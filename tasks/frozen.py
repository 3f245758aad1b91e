"""Protocols on frozen features: one pass through the backbone, then a head that is cheap to fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from harness.errors import ModelError
from harness.features import Features, Pooling
from harness.metric import Evaluation
from harness.progress import say
from harness.record import Setup
from harness.task import Batch
from tasks.extraction import extract

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.classification import Classification

Predict = Callable[["Tensor"], "Tensor"]
Scale = Literal["logits", "votes", "scores"]  # what scores of classes are; of the last no shares can be told
BLOCK = 65536  # rows that are looked at together
CONSTANT = 1e-6


@dataclass(kw_only=True)
class FrozenProtocol(ABC):
    """A head that is fitted to the features of the training images and scores those of the evaluated ones.

    Most protocols fill `fit` alone. The backbone is in eval mode, and none of its parameters is changed. A protocol is
    a dataclass: its own options are fields with a default, beside those that it inherits.

    Args:
        layer: whose output: `last`, `last4` (the last four, concatenated), an index, or the name of a module.
        pooling: `default` (the model's own embedding, unless the task says otherwise), `class`, `mean` or `attention`.
        layout: how to read that output where its shape does not tell: `NCHW`, `NHWC`, `NLC`, or `1+NLC` for one token
            before those of the map.
    """

    layer: str = "last"
    pooling: Pooling = "default"
    layout: str = "auto"

    untrained: ClassVar[Literal["rank", "apart", "never"]] = "apart"
    uses_classifier: ClassVar[bool] = False
    trains_on: ClassVar[tuple[str, ...]] = ("train",)
    block: ClassVar[int] = 1024
    scale: ClassVar[Scale] = "logits"

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

    def source(self, model: nn.Module, task: Classification) -> tuple[str, Pooling]:
        """Return the layer and the pooling that were asked for; where none was, pooling is the task's default."""
        own = self.pooling == "default" and self.layer == "last"
        return self.layer, task.default_pooling(model) if own else self.pooling

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
        """Extract the features of both splits, measure, and say in the record what the features were."""
        layer, pooling = self.source(model, task)
        chosen: dict[str, Any] = {"layer": layer, "pooling": pooling, "layout": self.layout}
        train = extract(model, task, "train", msgspec.structs.replace(setup, limit=None), **chosen)
        check_finite(train)
        test = extract(model, task, task.evaluated_on, setup, **chosen)
        evaluation = self.measure(train, test, task, setup)
        found = {**chosen, "dim": train.values.shape[1]}
        if is_constant(train):
            found["constant"] = True
            say("All training images have the same features: whatever is fitted to them knows nothing of the images.")
        return replace(evaluation, details={**evaluation.details, "features": found})


def check_finite(features: Features) -> None:
    """Raise ModelError where a training image has no usable features."""
    finite = [whole for rows in _blocks(features) for whole in rows.isfinite().all(dim=1).tolist()]
    broken = [index for index, whole in enumerate(finite) if not whole]
    if broken:
        raise ModelError(
            f"The embeddings of {len(broken)} of {len(features)} training images hold NaN or infinity, the first of "
            f"{features.names[broken[0]]!r}: expected finite. Try --precision fp32."
        )


def is_constant(features: Features) -> bool:
    """Whether all images have the same features, to a millionth of the largest."""
    first = features.values[:1].double()
    spread = max(float((rows - first).abs().max()) for rows in _blocks(features))
    return spread <= CONSTANT * float(first.abs().max())


def _blocks(features: Features) -> Iterator[Tensor]:
    """The features, so many at a time as fit in memory however many there are."""
    return (features.values[start : start + BLOCK] for start in range(0, len(features), BLOCK))
