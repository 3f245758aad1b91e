"""Batches of preprocessed images in a fixed order."""

from __future__ import annotations

import gc
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.cache import Rows
from harness.errors import DataError, reason
from harness.images import decode
from harness.preprocessing import crop, normalize
from harness.progress import say
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
        shared: images of the same geometry that were decoded before, and those that come to it; None for none.
    """

    def __init__(
        self,
        images: LabelledImages,
        indices: Sequence[int],
        setup: Setup,
        workers: int = 0,
        shared: Rows | None = None,
    ) -> None:
        self._images = images
        self._indices = indices
        self._setup = setup
        decoded: Any = _Decoded(images, indices, setup, shared)
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
    positions: Iterable[int] | None = None,
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

    def __init__(self, images: LabelledImages, indices: Sequence[int], setup: Setup, shared: Rows | None) -> None:
        self._images = images
        self._indices = indices
        self._decoder = setup.preprocessing.decoder or "pil"
        self._crop = crop(setup.preprocessing)
        self._shared = shared

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        import torch

        index = self._indices[position]
        try:
            content = self._images.read(index)
            # What was decoded before counts only for the same bytes.
            tag = zlib.crc32(content)
            known = self._shared.get(index, tag) if self._shared else None
            return (self._made(content, index, tag) if known is None else torch.from_numpy(known)), position
        except DataError as error:
            return error, position

    def _made(self, content: bytes, index: int, tag: int) -> Any:
        """Decode, resize and crop an image, and share it."""
        name = self._images.names[index]
        image = decode(content, self._decoder, name)
        try:
            pixels = self._crop(image)
        except Exception as error:
            raise DataError(
                f"{name} cannot be preprocessed ({reason(error)}). Restore the file, or remove it."
            ) from error
        if self._shared:
            try:
                self._shared.put(index, pixels.numpy(), tag)
            except OSError as error:
                say(f"Decoded images cannot be kept any more ({error.strerror or error}).")
                self._shared = None
        return pixels


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
