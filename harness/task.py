"""Tasks: what is evaluated, on which data, and the one loop that evaluates in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from harness import distributed
from harness.album import Album
from harness.cache import Cache
from harness.checkpoint import Checkpoint
from harness.device import evaluating, to_device
from harness.errors import SetupError
from harness.factory import call, parameters_of
from harness.journal import Journal
from harness.metric import Evaluation, Meter, Outcomes, ResumableMeter
from harness.progress import track
from harness.record import DataStamp, Setup
from harness.registry import Registry
from harness.task_id import resolve_task

if TYPE_CHECKING:
    from torch import Tensor, nn


@runtime_checkable
class FeaturePyramid(Protocol):
    """What dense tasks need of a model."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def features(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, channels[i], H / strides[i], W / strides[i])."""


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W), targets (B,), and the name of each item."""

    images: Tensor
    targets: Tensor
    items: tuple[str, ...]


class Task(ABC):
    """A data set, a protocol and a meter.

    Class attributes:
        version: raised whenever the same request would give other numbers; part of every record's key.
        untrained: how boards treat random weights, see `Record`.
        machine_bound: whether values depend on the machine.
        variants: the registry of what may follow the task's name and a colon; None for nothing.
        default_variant: the one that is meant where none is named; empty for none.
        preprocessing: what the task itself asks of its images, unless the user overrides it, such as no crop.
        any_size: whether images have many sizes: models are then built for the size that they have by themselves,
            unless the user gives one, and so that they take others.

    Attributes:
        training_batch: images a step of a training that several ranks can share; None without one.
        model_id: of the model that is evaluated, for a task that builds it at other sizes, or another to set beside it.
        journal: where an evaluation that can be interrupted keeps what it found; None for nowhere.
        checkpoint: where a task that trains keeps the state of an unfinished training; None for nowhere.
        album: where pictures of a few items go, of a task that draws; None for nowhere.
        rebuild: from a seed to the model that is evaluated, built and placed anew; set while a job runs.

    Parameters with a default, of a task and of its variants, are options that may follow in a task id.
    """

    version: ClassVar[int] = 1
    machine_bound: ClassVar[bool] = False
    variants: ClassVar[Registry[Any] | None] = None
    default_variant: ClassVar[str] = ""
    preprocessing: Mapping[str, Any] = MappingProxyType({})
    any_size: ClassVar[bool] = False
    untrained: Literal["rank", "apart", "never"] = "never"
    training_batch: int | None = None
    model_id: str = ""
    journal: Journal | None = None
    checkpoint: Checkpoint | None = None
    album: Album | None = None
    rebuild: Callable[[int], nn.Module] | None = None

    @property
    def num_classes(self) -> int | None:
        """Columns that a model's output must have; None where the task does not look at them."""
        return None

    @property
    def uses_classifier(self) -> bool:
        """Whether the model's own classifier plays a part; where not, a weights file may hold that of other classes."""
        return True

    def data(self) -> DataStamp | None:
        """Return the stamp of the data; None for a task without any.

        Raises:
            DataError: the data is absent or incomplete.
        """
        return None

    def check(self, setup: Setup) -> None:  # noqa: B027 - most tasks refuse nothing
        """Refuse what the task cannot be run with, before anything is built.

        Raises:
            SetupError: a choice that does not go with the task.
        """

    def draw(self, setup: Setup, outcomes: Outcomes | None) -> None:
        """Fill the album without a model.

        Args:
            outcomes: those of a record, for pictures of what was predicted; None for the truth alone.

        Raises:
            SetupError: the task draws nothing, or its outcomes do not tell what was predicted.
        """
        raise SetupError("There is nothing to show of this task: it has no images with a truth.")

    @abstractmethod
    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Measure a model that is placed on its device, in eval mode."""


class BatchTask(Task):
    """A task that is evaluated in batches: most tasks fill three short methods.

    Attributes:
        cache: where decoded images and features are kept for other runs; None for nowhere.
    """

    cache: Cache | None = None

    @abstractmethod
    def adapt(self, model: nn.Module, setup: Setup) -> Callable[[Tensor], Any]:
        """Return the function from images to outputs: the protocol."""

    @abstractmethod
    def batches(self, setup: Setup, start: int = 0) -> Iterable[Batch]:
        """Yield the evaluation data from item `start` in a fixed order. It has a length: the number of batches."""

    @abstractmethod
    def meter(self) -> Meter:
        """Return a fresh meter."""

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Evaluate what the protocol makes of a model."""
        return self.score(self.adapt(model, setup), setup, self.journal)

    def score(self, predict: Callable[[Tensor], Any], setup: Setup, journal: Journal | None = None) -> Evaluation:
        """Run the only evaluation loop of the harness; of several ranks the first one does.

        Args:
            predict: from images on the setup's device to what the meter takes.
            journal: where outcomes are kept until the record is saved; None for nowhere.
        """
        return distributed.by_first(lambda: self._score(predict, setup, journal))

    def _score(self, predict: Callable[[Tensor], Any], setup: Setup, journal: Journal | None) -> Evaluation:
        meter = self.meter()
        rows = meter.rows if isinstance(meter, ResumableMeter) else []
        journal = journal if isinstance(meter, ResumableMeter) else None
        if journal:
            rows += journal.read()
        with evaluating(setup):
            for batch in track(self.batches(setup, start=len(rows)), "evaluate"):
                meter.update(predict(to_device(batch.images, setup)), batch)
                if journal:
                    journal.append(rows[-len(batch.items) :])
        return meter.compute()


@runtime_checkable
class ReadsPredictions(Protocol):
    """What a task needs so that predictions made elsewhere can be measured."""

    version: ClassVar[int]
    album: Album | None

    def data(self) -> DataStamp | None:
        """Return the stamp of the data, as `Task` does."""

    def belongs_to(self, file: Path) -> str | None:
        """Return the id of another task that a file or folder of predictions is for; None where it is for this one."""

    def evaluate_predictions(self, file: Path) -> Evaluation:
        """Measure a file or folder of predictions.

        Raises:
            DataError: it is incomplete, or cannot be measured.
        """


def build_task(task_id: str, data: Path | None = None, workers: int = 0, annotations: Path | None = None) -> Task:
    """Build the task that an id names: `cost`, `imagenet`, `imagenet:knn`, `imagenet:knn,k=10`.

    Args:
        data: root of the data sets.
        workers: processes that load data; they change no number.
        annotations: the truth in place of the data root's, where a task takes it.

    Raises:
        UnknownName: with the nearest names.
        SetupError: an option that the task and its variant do not have, or annotations for a task that takes none.
    """
    factory, variant = resolve_task(task_id)
    options: dict[str, Any] = {"data": data, "workers": workers}
    if variant:
        options["variant"] = variant
    if annotations is not None:
        if "annotations" not in parameters_of(factory):
            raise SetupError(f"The task {task_id!r} takes no --annotations: its truth comes with the data root.")
        options["annotations"] = annotations
    task: Task = call(factory, task_id, **options)
    return task
