"""Labelled images from any source: names, targets, and bytes by index."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError
from harness.record import DataStamp

# timm's readers take the same.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class LabelledImages:
    """One split of a classification data set.

    Args:
        names: of the items, unique, in the order of evaluation.
        targets: class indices.
        read: from an index to the content of the image file.
        classes: the names of the classes, in index order.
        stamp: what the record says of the data.
        sizes: of the image files in bytes; empty where they are not known.
        order: the name of the file that gives the class order; empty where none does.
        absent: the images that the data set lists and that are not there.
    """

    names: Sequence[str]
    targets: Sequence[int]
    read: Callable[[int], bytes]
    classes: tuple[str, ...]
    stamp: DataStamp
    sizes: Sequence[int] = ()
    order: str = ""
    absent: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Files:
    """Reads plain files by index. Like every reader it is a class, so that worker processes can be given it."""

    folder: Path
    names: Sequence[str]

    def __call__(self, index: int) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return (self.folder / self.names[index]).read_bytes()
        except OSError as error:
            raise unreadable(self.names[index], error) from error


def unreadable(name: str, error: OSError) -> DataError:
    """Return the error for a file or folder that the system does not give."""
    return DataError(f"{name} cannot be read ({error.strerror}). Restore it, or its permissions.")


def stamp(
    name: str, split: str, names: Sequence[str], targets: Sequence[int], sizes: Iterable[int], classes: int
) -> DataStamp:
    """Return the stamp of a split; its fingerprint covers the name, the size in bytes and the target of every item.

    Raises:
        DataError: two items have one name.
    """
    total = hashlib.sha256()
    for item, target, size in zip(names, targets, sizes, strict=True):
        total.update(f"{item}\t{target}\t{size}\n".encode())
    if len(set(names)) < len(names):
        ((twice, count),) = Counter(names).most_common(1)
        raise DataError(f"{name} ({split}) holds {twice!r} {count} times: remove the copies, or rename them.")
    return DataStamp(name=name, split=split, size=len(names), classes=classes, fingerprint=total.hexdigest()[:16])


def from_files(
    folder: Path, names: Sequence[str], targets: Sequence[int], classes: tuple[str, ...], name: str, split: str
) -> LabelledImages:
    """Return images that are plain files, named relative to `folder`.

    Raises:
        DataError: a file cannot be read.
    """
    sizes = [_size(folder, image) for image in names]
    stamped = stamp(name, split, names, targets, sizes, len(classes))
    return LabelledImages(names, targets, Files(folder, names), classes, stamped, sizes)


def _size(folder: Path, name: str) -> int:
    try:
        return os.stat(folder / name).st_size
    except OSError as error:
        raise unreadable(name, error) from error


def images_in(folder: Path) -> list[str]:
    """Return the names of the image files directly in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_image(entry.name) and not entry.is_dir())


def images_below(folder: Path) -> list[str]:
    """Return the image files anywhere below a folder, relative to it and sorted; links are followed.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(os.path.relpath(error.filename, folder.parent), error) from error

    found: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = "" if place == str(folder) else Path(place).relative_to(folder).as_posix() + "/"
        found += [inside + name for name in files if is_image(name)]
    return sorted(found)


def is_image(name: str) -> bool:
    """Whether a file name is that of an image; a hidden one, such as macOS makes beside each file, is none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def to_targets(labels: Sequence[str], classes: tuple[str, ...], origin: str) -> list[int]:
    """Return class indices from class ids, or from indices that start at 0; one source never mixes the two.

    Args:
        origin: the name of the file that holds the labels, for messages.

    Raises:
        DataError: a label is neither.
    """
    index = {label: position for position, label in enumerate(classes)}
    if all(label in index for label in labels):
        return [index[label] for label in labels]
    if all(label.isdecimal() for label in labels):
        numbers = [int(label) for label in labels]
        if max(numbers) < len(classes):
            return numbers
        raise DataError(
            f"{origin} has labels up to {max(numbers)} for {len(classes)} classes: expected indices from 0 to "
            f"{len(classes) - 1} in class order. Write class ids instead."
        )
    wrong = next(label for label in labels if label not in index)
    raise DataError(
        f"{origin} has the label {wrong!r}: expected class ids such as {classes[0]!r} throughout, or indices from 0 to "
        f"{len(classes) - 1} in class order. Correct the label, or list the class in synsets.txt."
    )
