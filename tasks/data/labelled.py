"""Labelled images from any source: names, targets, and bytes by index."""

from __future__ import annotations

import hashlib
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
    """

    names: Sequence[str]
    targets: Sequence[int]
    read: Callable[[int], bytes]
    classes: tuple[str, ...]
    stamp: DataStamp

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Files:
    """Reads plain files by index. Like every reader it is a class, so that worker processes can be given it."""

    paths: Sequence[Path]

    def __call__(self, index: int) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            name = self.paths[index].name
            raise DataError(f"{name} cannot be read ({error.strerror}). Restore the file.") from error


def stamp(name: str, split: str, names: Sequence[str], targets: Sequence[int], sizes: Iterable[int], classes: int) -> DataStamp:
    """Return the stamp of a split; its fingerprint covers the name, the size in bytes and the target of every item."""
    total = hashlib.sha256()
    for item, target, size in zip(names, targets, sizes, strict=True):
        total.update(f"{item}\t{target}\t{size}\n".encode())
    return DataStamp(name=name, split=split, size=len(names), classes=classes, fingerprint=total.hexdigest()[:16])


def from_files(
    folder: Path, paths: Sequence[Path], targets: Sequence[int], classes: tuple[str, ...], name: str, split: str
) -> LabelledImages:
    """Return images that are plain files, named relative to `folder`."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    sizes = (path.stat().st_size for path in paths)
    stamped = stamp(name, split, names, targets, sizes, len(classes))
    return LabelledImages(names, targets, Files(paths), classes, stamped)


def images_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))
