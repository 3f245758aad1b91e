"""What COCO and ADE20K share: a head's protocol on a backbone, evaluated on annotations of every pixel or box."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness import distributed
from harness.errors import SetupError
from harness.journal import Kept
from harness.metric import Evaluation, Outcomes
from harness.progress import track
from harness.record import DataStamp, Setup
from harness.registry import Entry
from harness.task import Task

if TYPE_CHECKING:
    from torch import nn


class DenseTask(Task):
    """A dense data set under a head's protocol.

    Args:
        data: root of the data sets; None for the default.
        workers: processes that load data, for heads that use them.
        variant: the entry of the head's protocol.
        annotations: what replaces the data root's annotations.
    """

    any_size = True
    uses_classifier = False
    evaluated_on: ClassVar[str] = "val"
    name: ClassVar[str]

    def __init__(
        self,
        data: Path | None = None,
        workers: int = 0,
        variant: Entry[Any] | None = None,
        annotations: Path | None = None,
    ) -> None:
        self.root = data
        self.workers = workers
        self.protocol = variant.build() if variant else None
        self.untrained = getattr(self.protocol, "untrained", "never")
        self.preprocessing = getattr(self.protocol, "preprocessing", {})
        self.training_batch = getattr(self.protocol, "training_batch", None)
        self._annotations = annotations

    @abstractmethod
    def stamp(self, training: bool) -> DataStamp:
        """Return the stamp of the annotations that are evaluated, or trained on."""

    @abstractmethod
    def measure(self, predict: Callable[[Sequence[Any]], Sequence[Any]], setup: Setup) -> Evaluation:
        """Measure a function from images to what the task says, on all of them or so many as the setup allows."""

    def data(self) -> DataStamp:
        """Return the stamp of the annotations; its fingerprint covers those that the protocol trains on."""
        trains = "train" in getattr(self.protocol, "trains_on", ())
        return self.stamp(training=False).joined([self.stamp(training=True)] if trains else [])

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Measure what the protocol makes of a model."""
        if self.protocol is None:
            raise SetupError(
                f"{self.name} needs a head on the model: name one, {self.name}:NAME, or give --predictions."
            )
        predict = self.protocol.adapt(model, self, setup)
        if self.journal:
            # A training that was repeated may have ended in other weights.
            self.journal = self.journal.under(self.protocol.details.get("trained_sha256", ""))
        evaluation = distributed.by_first(lambda: self.measure(predict, setup))
        return replace(evaluation, details={**evaluation.details, **self.protocol.details})

    def entries(
        self, count: int, setup: Setup, look: Callable[[Sequence[int]], Sequence[Kept]], description: str
    ) -> Iterator[Kept]:
        """Yield what is found on each of so many images: first what an interrupted evaluation kept, then by batches.

        Args:
            look: from the places of a batch's images to an entry each, of numbers, texts and lists of these.
        """
        kept = self.journal.read() if self.journal else []
        yield from kept
        for start in track(range(len(kept), count, setup.batch_size), description):
            batch = look(range(start, min(start + setup.batch_size, count)))
            if self.journal:
                self.journal.append(batch)
            yield from batch

    def draw(self, setup: Setup, outcomes: Outcomes | None) -> None:
        """Draw the truth of the images that the album takes."""
        if outcomes is not None:
            raise SetupError(f"What was predicted for {self.name} is not kept with a record, only what came of it.")
        self.draw_truth()

    @abstractmethod
    def draw_truth(self) -> None:
        """Draw the truth of the images that the album takes."""
