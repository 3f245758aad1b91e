"""Batches of preprocessed images in a fixed order."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, reason
from harness.images import decode
from harness.preprocessing import crop, normalize
from harness.record import Setup
from harness.task import Batch
from tasks.data.labelled import LabelledImages

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class Batches:
    """An iterable of `Batch` with a length.

    Args:
        indices: which images, in which order.
        workers: processes that decode; the batches are the same for any number.
    """

    def __init__(self, images: LabelledImages, indices: Sequence[int], setup: Setup, workers: int = 0) -> None:
        self._images = images
        self._indices = indices
        self._setup = setup
        decoded: Any = _Decoded(images, indices, setup)
        self._loader = data_loader(decoded, setup.batch_size, partial(_collate, setup=setup), setup, workers)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        import torch

        loaded = start(self._loader)
        try:
            for pixels, positions in loaded:
                if isinstance(pixels, DataError):
                    raise pixels
                chosen = [self._indices[position] for position in positions]
                images = pixels.to(self._setup.device, non_blocking=True)
                if not images.is_floating_point():
                    images = normalize(images, self._setup.preprocessing)
                yield Batch(
                    images,
                    torch.tensor([self._images.targets[index] for index in chosen]),
                    tuple(self._images.names[index] for index in chosen),
                )
        finally:
            del loaded  # An error's traceback would keep the worker processes.


def data_loader(
    items: Any,
    batch_size: int,
    collate: Callable[[list[Any]], Any],
    setup: Setup,
    workers: int,
    positions: Sequence[int] | None = None,
) -> DataLoader[Any]:
    """Return torch's loader of items by position: all of them in order, or those of `positions`."""
    from torch.utils.data import DataLoader

    with _without_advice():
        return DataLoader(
            items,
            batch_size=batch_size,
            sampler=positions,
            num_workers=workers,
            # A fork starts in milliseconds; a worker only decodes, so it needs nothing that a fork breaks.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            collate_fn=collate,
            pin_memory=setup.device.startswith("cuda"),
        )


def start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the worker processes, if any."""
    # A worker that inherits the remains of an earlier loader must not collect them: it would wait for its workers.
    gc.freeze()
    try:
        with _without_advice():
            return iter(loader)
    finally:
        gc.unfreeze()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence two warnings: the number of workers is the user's choice, and why a fork will do is said above."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        yield


def spread(total: int, limit: int | None) -> list[int]:
    """Return all indices, or `limit` of them spread evenly, so that a part of class-sorted data holds all classes."""
    if limit is None or limit >= total:
        return list(range(total))
    return [position * total // limit for position in range(limit)]


class _Decoded:
    """Decoded, resized and cropped images; an unreadable one is its error, which worker processes keep whole."""

    def __init__(self, images: LabelledImages, indices: Sequence[int], setup: Setup) -> None:
        self._images = images
        self._indices = indices
        self._decoder = setup.preprocessing.decoder or "pil"
        self._crop = crop(setup.preprocessing)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        index = self._indices[position]
        try:
            image = decode(self._images.read(index), self._decoder, self._images.names[index])
        except DataError as error:
            return error, position
        try:
            return self._crop(image), position
        except Exception as error:
            name = self._images.names[index]
            return DataError(
                f"{name} cannot be preprocessed ({reason(error)}). Restore the file, or remove it."
            ), position


def _collate(samples: list[tuple[Any, int]], setup: Setup) -> tuple[Any, list[int]]:
    """Stack the images of a batch, or pass on the first error.

    A GPU is handed bytes, a quarter of the floats, and makes floats of them; on the CPU that is the workers' share,
    since the process that runs the model is the one that all wait for.
    """
    import torch

    pixels, positions = zip(*samples, strict=True)
    failure = next((found for found in pixels if isinstance(found, DataError)), None)
    if failure:
        return failure, list(positions)
    images = torch.stack(pixels)
    return normalize(images, setup.preprocessing) if setup.device == "cpu" else images, list(positions)
