"""What every classification data set shares: splits, a protocol, and accuracy."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.metric import Evaluation
from harness.record import DataStamp, Setup
from harness.registry import PROTOCOLS, Entry
from harness.task import BatchTask
from tasks.data.labelled import LabelledImages
from tasks.frozen import FrozenProtocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.data.loader import Batches
    from tasks.metrics.accuracy import Accuracy


class Classification(BatchTask):
    """A classification data set under a protocol.

    Args:
        data: root of the data sets; None for the default.
        workers: processes that decode images.
        variant: the entry of the protocol, which makes a classifier of a model; the model's own head by default.
        annotations: a list of files and labels in place of the data root, for predictions made elsewhere.
    """

    variants = PROTOCOLS
    default_variant = "native_head"
    evaluated_on: ClassVar[str] = "val"

    def __init__(
        self,
        data: Path | None = None,
        workers: int = 0,
        variant: Entry[Any] | None = None,
        annotations: Path | None = None,
    ) -> None:
        self.root = data
        self.annotations = annotations
        self.workers = workers
        self.protocol = (variant or PROTOCOLS.get(self.default_variant)).build()
        self.untrained = self.protocol.untrained
        self._splits: dict[str, LabelledImages] = {}

    @abstractmethod
    def read(self, split: str) -> LabelledImages:
        """Return a split of the data set.

        Raises:
            DataError: it is absent or incomplete.
        """

    def split(self, name: str) -> LabelledImages:
        """Return a split, read once."""
        if name not in self._splits:
            self._splits[name] = self.read(name)
        return self._splits[name]

    @property
    def num_classes(self) -> int:
        """The number of classes that the data set defines, present or not."""
        return len(self.split(self.evaluated_on).classes)

    def data(self) -> DataStamp:
        """Return the stamp of the evaluated split; its fingerprint covers the splits that the protocol trains on."""
        stamp = self.split(self.evaluated_on).stamp
        others = [self.split(name).stamp.fingerprint for name in self.protocol.trains_on]
        if not others:
            return stamp
        joined = hashlib.sha256("".join([stamp.fingerprint, *others]).encode()).hexdigest()[:16]
        return replace(stamp, fingerprint=joined)

    def adapt(self, model: nn.Module, setup: Setup) -> Callable[[Tensor], Any]:
        """Let the protocol turn the model into a classifier."""
        predict: Callable[[Tensor], Any] = self.protocol.adapt(model, self, setup)
        return predict

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Evaluate, and say in the record what the protocol chose."""
        frozen = isinstance(self.protocol, FrozenProtocol)
        evaluation = self.protocol.evaluate(model, self, setup) if frozen else super().evaluate(model, setup)
        return replace(evaluation, details={**evaluation.details, **self.protocol.details})

    def belongs_to(self, file: Path) -> str | None:
        """Return None: a table of classes fits every classification task."""
        return None

    def evaluate_predictions(self, file: Path) -> Evaluation:
        """Measure a table of the best classes of each image.

        Raises:
            DataError: images that are missing, unknown or repeated, or classes that are none.
        """
        from tasks.data.top_classes import read_top_classes

        meter = self.meter()
        meter.rows = read_top_classes(file, self.split(self.evaluated_on))
        return meter.compute()

    def split_batches(self, name: str, setup: Setup) -> Batches:
        """Return the batches of a split, or of so much of it as the setup's limit allows."""
        from tasks.data.loader import Batches, spread

        images = self.split(name)
        return Batches(images, spread(len(images), setup.limit), setup, self.workers)

    def batches(self, setup: Setup, start: int = 0) -> Batches:
        """Return the batches of the evaluated split from item `start`, or of so much of it as the setup allows."""
        from tasks.data.loader import Batches, spread

        images = self.split(self.evaluated_on)
        return Batches(images, spread(len(images), setup.limit)[start:], setup, self.workers)

    def meter(self) -> Accuracy:
        """Return accuracy, with second opinions on the labels where the data set has them."""
        from tasks.metrics.accuracy import Accuracy

        return Accuracy(self.num_classes, self.reassessed())

    def reassessed(self) -> Mapping[str, Sequence[int]]:
        """Return reassessed labels by image name; none unless a data set has them."""
        return {}
