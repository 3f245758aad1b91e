"""Images that two splits share, found by their content and not by their names."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

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
    from harness.costs import peaks

    words = f"{VERSION} {test.stamp.fingerprint} {train.stamp.fingerprint}"
    path = peaks.cache_folder() / f"shared-images-{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
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
    keys: tuple[tuple[str, Key], ...] = (("sizes", _size), ("pieces", _piece), ("contents", _content))
    for what, key in keys:
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


def _size(images: LabelledImages, index: int) -> Hashable:
    return images.sizes[index] if images.sizes else 0


def _piece(images: LabelledImages, index: int) -> Hashable:
    """The middle of a plain file, which for other sources would cost as much as the whole."""
    if not isinstance(images.read, Files):
        return b""
    try:
        with open(images.read.folder / images.read.names[index], "rb") as file:
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
