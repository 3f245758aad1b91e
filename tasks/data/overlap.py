"""Images that two splits share, found by their content and not by their names."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import cast

import msgspec

from harness.progress import say, track
from tasks.data.labelled import Files, LabelledImages, unreadable

# Raised whenever the same two splits would give another answer.
VERSION = 1
PIECE = 1024

Key = Callable[[LabelledImages, int], Hashable]
Shared = list[tuple[str, str]]


def shared_images(test: LabelledImages, train: LabelledImages) -> Shared:
    """Return the images of `test` whose file has the same bytes as one of `train`, each with the first such one.

    Only files whose size occurs in both splits, and of these those whose middle does, are read whole. The answer is
    kept in the user's cache under the fingerprints of the two splits, so that it is found once.
    """
    from harness.cache import cache_folder

    words = f"{VERSION} {test.stamp.fingerprint} {train.stamp.fingerprint}"
    path = cache_folder() / f"shared-images-{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
    found = _kept(path)
    if found is None:
        found = find_shared(test, train)
        _keep(path, found)
    return found


def find_shared(test: LabelledImages, train: LabelledImages) -> Shared:
    """Return what `shared_images` does, without the cache."""
    left: Sequence[int] = range(len(test))
    right: Sequence[int] = range(len(train))
    pairs: list[tuple[int, int]] = []
    for what, key in _keys(test, train):
        first: dict[Hashable, int] = {}
        values = [key(train, index) for index in track(right, f"compare {what} of training images")]
        for index, value in zip(right, values, strict=True):
            first.setdefault(value, index)
        found = [(index, key(test, index)) for index in track(left, f"compare {what} of test images")]
        both = {value for _, value in found if value in first}
        pairs = [(index, first[value]) for index, value in found if value in both]
        left = [index for index, _ in pairs]
        right = [index for index, value in zip(right, values, strict=True) if value in both]
    return [(test.names[index], train.names[twin]) for index, twin in pairs]


def _keys(*splits: LabelledImages) -> Iterator[tuple[str, Key]]:
    """What to compare the images by, the cheapest first; each can be had of all the splits."""
    if all(images.sizes for images in splits):
        yield "sizes", lambda images, index: images.sizes[index]
        if all(isinstance(images.read, Files) for images in splits):
            yield "pieces", _piece
    yield "contents", _content


def _piece(images: LabelledImages, index: int) -> Hashable:
    """The middle of a file; for other sources than files it would cost as much as the whole."""
    files = cast(Files, images.read)
    try:
        with open(files.folder / files.names[index], "rb") as file:
            file.seek(max(0, images.sizes[index] // 2 - PIECE // 2))
            return file.read(PIECE)
    except OSError as error:
        raise unreadable(images.names[index], error) from error


def _content(images: LabelledImages, index: int) -> Hashable:
    return hashlib.sha256(images.read(index)).digest()


def _kept(path: Path) -> Shared | None:
    """What the cache holds; None where that is nothing or damaged, so that it is found anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Shared)
    except (OSError, msgspec.MsgspecError):
        return None


def _keep(path: Path, found: Shared) -> None:
    """Write a file of the cache whole or not at all; where it cannot be written, the next run looks again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(msgspec.json.encode(found))
        os.replace(file.name, path)
    except OSError as error:
        say(f"What the splits share cannot be kept in {str(path.parent)!r} ({error.strerror}): it is found anew.")
