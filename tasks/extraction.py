"""Features of a split: from the cache where they are, else from one pass through the backbone that fills it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cache import Cache, Rows, key_of
from harness.device import evaluating, to_device
from harness.environment import machine, versions
from harness.features import Features, Pooling, embedder
from harness.progress import say, track
from harness.record import Setup
from harness.sources import code_sha256, files_sha256, own_sha256
from tasks.data import loader
from tasks.data.labelled import LabelledImages
from tasks.data.loader import spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.classification import Classification

SAMPLED = 16


def extract(
    model: nn.Module,
    task: Classification,
    split: str,
    setup: Setup,
    *,
    layer: str = "last",
    pooling: Pooling = "default",
    layout: str = "auto",
) -> Features:
    """Return the features of a split, or of so much of it as the setup's limit allows.

    Args:
        layer: with `pooling` and `layout` as in `harness.features.embedder`.
    """
    import torch

    images = task.split(split)
    chosen = spread(len(images), setup.limit)
    work = _Extraction(model, task, split, setup, chosen, layer, pooling, layout)
    with evaluating(setup):
        values = None
        # Without the hash of its weights nothing tells one model from another.
        if task.cache is not None and setup.weights.sha256:
            values = _kept(work, task.cache)
        if values is None:
            values = torch.cat([part for _, part in work.run(work.batches)])
    targets = torch.tensor([images.targets[index] for index in chosen])
    return Features(values, targets, [images.names[index] for index in chosen])


@dataclass(frozen=True)
class _Extraction:
    """One pass over the chosen images of a split, or over some of its batches."""

    model: nn.Module
    task: Classification
    split: str
    setup: Setup
    chosen: Sequence[int]
    layer: str
    pooling: Pooling
    layout: str

    @property
    def batches(self) -> list[range]:
        """The places, among the chosen images, of those of each batch."""
        size, total = self.setup.batch_size, len(self.chosen)
        return [range(start, min(start + size, total)) for start in range(0, total, size)]

    def run(self, batches: Sequence[range]) -> Iterator[tuple[range, Tensor]]:
        """Yield the places of each batch with its features (B, D); a batch is the same whichever others run."""
        embed = embedder(self.model, self.layer, self.pooling, self.layout)
        indices = [self.chosen[place] for places in batches for place in places]
        loaded = self.task.split_batches(self.split, self.setup, indices)
        for places, batch in zip(batches, track(loaded, f"embed the {self.split} images"), strict=True):
            yield places, embed(to_device(batch.images, self.setup)).float().cpu()

    def key(self, cache: Cache) -> str:
        """Return what stands for all that the features depend on."""
        setup, images = self.setup, self.task.split(self.split)
        return key_of(
            kind="features",
            model=(cache.model, cache.source_sha256, setup.weights.sha256),
            code=(code_sha256(self.model), own_sha256(), files_sha256(Path(__file__), Path(loader.__file__))),
            run=(setup.precision, setup.channels_last, setup.compile, setup.batch_size, machine(setup.device, 0)[0]),
            versions=versions(),
            preprocessing=setup.preprocessing.fingerprint,
            data=(images.stamp.fingerprint, _sample(images), self.chosen),
            features=(self.layer, self.pooling, self.layout),
        )

    def about(self, cache: Cache) -> dict[str, str]:
        """Return what people are told of the features."""
        stamp = self.task.split(self.split).stamp
        what = f"layer={self.layer} pooling={self.pooling} {self.setup.precision}"
        part = "" if len(self.chosen) == stamp.size else f" ({len(self.chosen)} of {stamp.size})"
        return {"kind": "features", "data": f"{stamp.name} {stamp.split}{part}", "model": cache.model, "what": what}


def _sample(images: LabelledImages) -> str:
    """The hash of some files, since a split's fingerprint knows their names and sizes alone."""
    total = hashlib.sha256()
    for index in spread(len(images), SAMPLED):
        total.update(hashlib.sha256(images.read(index)).digest())
    return total.hexdigest()


def _kept(work: _Extraction, cache: Cache) -> Tensor | None:
    """The features from the cache, which first gets what it lacks; None where it cannot keep them."""
    import torch

    try:
        key = work.key(cache)
        lease = cache.hold(key)
        rows = cache.find(key)
        if rows is None or rows.absent().any():
            lease.take()
            rows = _filled(work, cache, key)
            lease.share()
    except OSError as error:
        say(f"The features cannot be kept in {str(cache.folder)!r} ({error.strerror or error}): made without a cache.")
        return None
    return None if rows is None else torch.from_numpy(rows.values)


def _filled(work: _Extraction, cache: Cache, key: str) -> Rows | None:
    """Write what is absent, batch by batch; what others wrote in the meantime is there."""
    rows = cache.find(key)
    batches = work.batches
    if rows is not None:
        if damaged := rows.damaged():
            say(f"{damaged} of {len(work.chosen)} cached features of {work.split} are damaged and are made again.")
        absent = rows.absent()
        batches = [places for places in batches if absent[places.start : places.stop].any()]
    if not batches:
        return rows
    made = work.run(batches)
    first = next(made)
    shape = (len(work.chosen), first[1].shape[1])
    rows = rows or cache.create(key, work.about(cache), shape, "float32")
    if rows is None:
        return None
    for places, values in chain([first], made):
        for place, row in zip(places, values.numpy(), strict=True):
            rows.put(place, row)
    return rows
