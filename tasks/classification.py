"""What every classification data set shares: splits, a protocol, and accuracy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import SetupError
from harness.features import Pooling
from harness.metric import Evaluation, Outcomes
from harness.progress import say
from harness.record import DataStamp, Setup
from harness.registry import PROTOCOLS, Entry
from harness.task import BatchTask
from tasks.data.augmentation import Geometry
from tasks.data.canaries import examine
from tasks.data.labelled import LabelledImages

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.data.loader import Batches
    from tasks.data.train_loader import Source
    from tasks.frozen import Scale
    from tasks.metrics.accuracy import Accuracy
    from tasks.panels.decisions import Decisions


class Classification(BatchTask):
    """A classification data set under a protocol.

    Args:
        data: root of the data sets; None for the default.
        workers: processes that decode images.
        variant: the entry of the protocol, which makes a classifier of a model; the model's own head by default.
        annotations: a list of files and labels in place of the data root, for predictions made elsewhere.

    Class attributes:
        evaluated_on: the split that is evaluated.
        augmentation: the most that protocols which train may do to an image without making its label untrue.
    """

    variants = PROTOCOLS
    default_variant = "native_head"
    evaluated_on: ClassVar[str] = "val"
    augmentation: ClassVar[Geometry] = "crop"

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
        # What the labels need goes before what a protocol would like.
        self.preprocessing = {**getattr(self.protocol, "preprocessing", {}), **type(self).preprocessing}
        self.training_batch = getattr(self.protocol, "training_batch", None)
        self._splits: dict[str, LabelledImages] = {}
        self._panels: Decisions | None = None

    @abstractmethod
    def read(self, split: str) -> LabelledImages:
        """Return a split of the data set.

        Raises:
            DataError: it is absent or incomplete.
        """

    def stream(self, seed: int) -> Source:
        """Return training images that are drawn without end.

        Raises:
            SetupError: the data set is made of files.
        """
        raise SetupError(f"{self.split(self.evaluated_on).stamp.name} cannot draw new images: leave out fresh=true.")

    def split(self, name: str) -> LabelledImages:
        """Return a split, read once."""
        if name not in self._splits:
            self._splits[name] = self.read(name)
        return self._splits[name]

    @property
    def num_classes(self) -> int:
        """The number of classes that the data set defines, present or not."""
        return len(self.split(self.evaluated_on).classes)

    @property
    def uses_classifier(self) -> bool:
        """Whether the protocol uses the model's own classifier."""
        return bool(getattr(self.protocol, "uses_classifier", True))

    def default_pooling(self, model: nn.Module) -> Pooling:
        """Return how protocols on frozen features pool where nothing was asked for: as the model itself does."""
        return "default"

    def data(self) -> DataStamp:
        """Return the stamp of the evaluated split; its fingerprint covers the splits that the protocol trains on."""
        return self.split(self.evaluated_on).stamp.joined([self.split(name).stamp for name in self.protocol.trains_on])

    def check(self, setup: Setup) -> None:
        """Let the protocol refuse what it cannot be run with."""
        if refuse := getattr(self.protocol, "check", None):
            refuse(setup)

    def adapt(self, model: nn.Module, setup: Setup) -> Callable[[Tensor], Any]:
        """Let the protocol turn the model into a classifier."""
        predict: Callable[[Tensor], Any] = self.protocol.adapt(model, self, setup)
        return predict

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Evaluate, and say in the record what the protocol chose and what the data is like."""
        whole = getattr(self.protocol, "evaluate", None)
        self._panels = self._decisions(setup)
        evaluation = whole(model, self, setup) if whole else super().evaluate(model, setup)
        self._panels.draw_rest(evaluation.outcomes)
        found, doubts = examine(self.split(self.evaluated_on), [self.split(name) for name in self.protocol.trains_on])
        details = {**evaluation.details, **self.protocol.details, **found}
        if unranked := [*evaluation.details.get("unranked", ()), *doubts]:
            details["unranked"] = unranked
            say(f"{self.split(self.evaluated_on).stamp.name}: {'; '.join(unranked)}. The result does not rank.")
        return replace(evaluation, details=details)

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
        evaluation = meter.compute()
        self._decisions(None).draw_rest(evaluation.outcomes)
        return evaluation

    def draw(self, setup: Setup, outcomes: Outcomes | None) -> None:
        """Draw images with their classes, and where there are outcomes of a record with what was predicted."""
        resolved = setup.preprocessing.mean is not None
        self._decisions(setup if resolved else None).draw_rest(outcomes)

    def _decisions(self, setup: Setup | None) -> Decisions:
        """The panels of the evaluated images; without a setup of these as they are."""
        from tasks.panels.decisions import Decisions

        scale: Scale = getattr(self.protocol, "scale", "logits")
        return Decisions(self.album, self.split(self.evaluated_on), setup, scale)

    def split_batches(self, name: str, setup: Setup, indices: Sequence[int] | None = None) -> Batches:
        """Return the batches of some images of a split; by default of so many as the setup's limit allows."""
        from tasks.data.decoded import decoded
        from tasks.data.loader import Batches, spread

        images = self.split(name)
        chosen = spread(len(images), setup.limit) if indices is None else indices
        shared = decoded(self.cache, images, setup.preprocessing) if self.cache else None
        return Batches(images, chosen, setup, self.workers, shared)

    def batches(self, setup: Setup, start: int = 0) -> Batches:
        """Return the batches of the evaluated split from item `start`, or of so much of it as the setup allows."""
        from tasks.data.loader import spread

        chosen = spread(len(self.split(self.evaluated_on)), setup.limit)
        return self.split_batches(self.evaluated_on, setup, chosen[start:])

    def meter(self) -> Accuracy:
        """Return accuracy, with second opinions on the labels where the data set has them."""
        from tasks.metrics.accuracy import Accuracy

        look = self._panels.look if self._panels else None
        return Accuracy(self.num_classes, self.reassessed(), self.per_class, look)

    @property
    def per_class(self) -> bool:
        """Whether the headline is the mean of the classes' accuracies."""
        return False

    def reassessed(self) -> Mapping[str, Sequence[int]]:
        """Return reassessed labels by image name; none unless a data set has them."""
        return {}
