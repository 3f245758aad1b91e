"""Batches of augmented training images, whose order and augmentation depend on the seed and the step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import distributed
from harness.errors import DataError, reason
from harness.images import decode
from harness.record import Setup
from harness.task import Batch
from harness.training import seed_generators
from tasks.data.labelled import LabelledImages
from tasks.data.loader import data_loader, start

if TYPE_CHECKING:
    from torch import Tensor

# From a position in the endless sequence of training items to the content of an image file, its class and its name.
Source = Callable[[int], tuple[bytes, int, str]]


class Order:
    """An endless sequence of indices: one random order of all after another.

    Args:
        count: indices from 0 up to it.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._order: tuple[int, Any] = (-1, None)

    def __call__(self, position: int) -> int:
        """Return the index at a position."""
        epoch, place = divmod(position, self.count)
        if self._order[0] != epoch:
            import numpy

            self._order = epoch, numpy.random.default_rng([self.seed, epoch]).permutation(self.count)
        return int(self._order[1][place])


@dataclass
class Shuffled:
    """A data set as an endless sequence: one random order after another, each with every item once.

    Args:
        among: the indices of the items that are used; None for all.
    """

    images: LabelledImages
    seed: int
    among: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self._order = Order(len(self), self.seed)

    def __call__(self, position: int) -> tuple[bytes, int, str]:
        """Return file content, class and name of the item at a position."""
        index = self.index(position)
        return self.images.read(index), self.images.targets[index], self.images.names[index]

    def __len__(self) -> int:
        return len(self.images) if self.among is None else len(self.among)

    def index(self, position: int) -> int:
        """Return which image stands at a position."""
        chosen = self._order(position)
        return chosen if self.among is None else self.among[chosen]

    def label(self, position: int) -> tuple[str, int]:
        """Return name and class of the item at a position, without reading it."""
        index = self.index(position)
        return self.images.names[index], self.images.targets[index]


class TrainingBatches:
    """An iterable of the batches from step `first` to before step `steps`, all of one size, with a length.

    Args:
        transform: from a decoded image to a normalised (3, H, W) tensor; what it draws from the global generators
            depends on the seed and the item's position.
        workers: processes that decode; the batches are the same for any number.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Any], Tensor],
        setup: Setup,
        *,
        seed: int,
        batch: int,
        steps: int,
        first: int = 0,
        workers: int = 0,
    ) -> None:
        self._items = _Items(source, transform, seed)
        self._setup = setup
        self._batch = batch
        self._workers = workers
        self._steps = range(first, steps)

    def __len__(self) -> int:
        return len(self._steps)

    def fingerprint(self) -> str:
        """Return a hash of what all steps are fed with: equal for two trainings only if their batches are.

        It covers names and classes of all items in their order, where the source tells these without reading, and of
        the first batch every augmented pixel. No model and no number of workers changes it.
        """
        hashed = hashlib.sha256(f"{len(self._steps)} x {self._batch}".encode())
        positions = range(self._steps.start * self._batch, self._steps.stop * self._batch)
        if isinstance(self._items.source, Shuffled):
            hashed.update(repr([self._items.source.label(position) for position in positions]).encode())
        for position in positions[: self._batch]:
            sample = self._items[position]
            if isinstance(sample, DataError):
                raise sample
            image, target, name = sample
            hashed.update(f"{name} {target}".encode() + image.numpy().tobytes())
        return hashed.hexdigest()[:16]

    def __iter__(self) -> Iterator[Batch]:
        import torch

        steps = SampledSteps(self._items, self._setup, self._batch, self._steps, self._workers)
        for samples in steps:
            images, targets, names = zip(*samples, strict=True)
            yield Batch(torch.stack(images), torch.tensor(targets), names)


@dataclass(frozen=True)
class SampledSteps:
    """An iterable of the lists of samples of some steps, with a length; of several ranks each has its share.

    Args:
        items: the endless sequence of samples, by position; one that cannot be had is its error.
        batch: samples a step, of all ranks together.
        workers: processes that make samples; these are the same for any number.
    """

    items: Any
    setup: Setup
    batch: int
    steps: range
    workers: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Any]]:
        share = distributed.share(self.batch)
        loaded = start(data_loader(self.items, share, list, self.setup, self.workers, self._positions(share)))
        try:
            for samples in loaded:
                if failure := next((sample for sample in samples if isinstance(sample, DataError)), None):
                    raise failure
                yield samples
        finally:
            del loaded  # An error's traceback would keep the worker processes.

    def _positions(self, share: int) -> Iterator[int]:
        """The positions of this rank's samples: its share of each step's batch."""
        for step in self.steps:
            first = step * self.batch + distributed.rank() * share
            yield from range(first, first + share)


@dataclass
class _Items:
    """The training items by position; an unreadable one is its error, which worker processes keep whole."""

    source: Source
    transform: Callable[[Any], Any]
    seed: int

    def __getitem__(self, position: int) -> Any:
        seed_generators(self.seed, "item", position)
        try:
            content, target, name = self.source(position)
            image = decode(content, "pil", name)
        except DataError as error:
            return error
        try:
            return self.transform(image), target, name
        except Exception as error:
            return DataError(f"{name} cannot be augmented ({reason(error)}). Restore the file, or remove it.")
