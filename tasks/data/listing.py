"""What the lists of a data set say, and the images of it that are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError, reason
from tasks.data.labelled import Files, LabelledImages, stamp


@dataclass(frozen=True)
class Listing:
    """One split as the data set's own lists give it.

    Args:
        folder: that `names` are relative to.
        names: of the image files.
        targets: class indices.
        classes: the names of the classes, in index order.
        order: the name of the file that gives this order.
    """

    folder: Path
    names: Sequence[str]
    targets: Sequence[int]
    classes: tuple[str, ...]
    order: str


def load(listing: Listing, name: str, split: str) -> LabelledImages:
    """Return the listed images that are there; the others are named as absent.

    Raises:
        DataError: nothing is listed, none of it is there, or an image is listed twice.
    """
    sizes = [_size(listing.folder / image) for image in listing.names]
    here = [position for position, size in enumerate(sizes) if size is not None]
    if not here:
        first = f", such as {listing.names[0]!r}," if listing.names else ""
        raise DataError(
            f"{name} has no {split} images: of the {len(sizes):,} that are listed{first} none is in "
            f"{str(listing.folder)!r}. Unpack them there, or pass another --data."
        )
    names = [listing.names[position] for position in here]
    targets = [listing.targets[position] for position in here]
    found = [size for size in sizes if size is not None]
    absent = [image for image, size in zip(listing.names, sizes, strict=True) if size is None]
    stamped = stamp(name, split, names, targets, found, len(listing.classes))
    return LabelledImages(
        names, targets, Files(listing.folder, names), listing.classes, stamped, found, listing.order, absent
    )


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def first_of(home: Path, places: Sequence[str], layout: str) -> Path:
    """Return the first place in a data set's folder that exists.

    Args:
        layout: what the whole should look like, for the message.

    Raises:
        DataError: there is none.
    """
    for place in places:
        if (home / place).exists():
            return home / place
    others = f" (or {', '.join(map(repr, places[1:]))})" if places[1:] else ""
    raise DataError(
        f"{str(home)!r} lacks {places[0]!r}{others}: expected {layout}. Restore it, or pass another --data."
    )


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list that hold anything, without comments.

    Raises:
        DataError: it is absent, no text, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} is not a readable text file ({reason(error)}). Restore it.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise DataError(f"{str(path)!r} is empty: expected a line an image or class. Restore it.")
    return lines


def read_pairs(path: Path) -> dict[str, str]:
    """Return the rest of every line by its first word, in the order of the lines.

    Raises:
        DataError: a line has one word, or a first word comes twice.
    """
    found: dict[str, str] = {}
    for line in read_lines(path):
        key, _, value = line.partition(" ")
        if not value.strip() or key in found:
            raise DataError(f"{str(path)!r} has the line {line!r}: expected each id once, with its value. Restore it.")
        found[key] = value.strip()
    return found


def read_matlab(path: Path, *variables: str) -> list[Any]:
    """Return variables of a MATLAB file as arrays, with at least one dimension.

    Raises:
        DataError: it is absent or holds something else.
    """
    import numpy
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True)
        return [numpy.atleast_1d(content[variable]) for variable in variables]
    except Exception as error:
        wanted = ", ".join(map(repr, variables))
        raise DataError(
            f"{str(path)!r} is not the official file with {wanted} ({reason(error)}). Restore it."
        ) from error


def classes_by_id(pairs: Iterable[tuple[int, str]], origin: str) -> tuple[str, ...]:
    """Return class names in the order of their ids, which count from 1.

    Raises:
        DataError: an id has two names, a name two ids, or an id is left out.
    """
    names: dict[int, str] = {}
    for number, label in pairs:
        if names.setdefault(number, label) != label:
            raise DataError(
                f"{origin} gives class {number} two names, {names[number]!r} and {label!r}. Restore the official file."
            )
    if sorted(names) != list(range(1, len(names) + 1)) or len(set(names.values())) < len(names):
        raise DataError(
            f"{origin} must number its classes from 1 on, one name a number; found {len(names)} of them up to "
            f"{max(names, default=0)}. Restore the official file."
        )
    return tuple(names[number] for number in sorted(names))


def indices(labels: Iterable[str], classes: Mapping[str, int], origin: str) -> list[int]:
    """Return the class index of each label.

    Raises:
        DataError: a label is no class.
    """
    found = []
    for label in labels:
        if label not in classes:
            raise DataError(
                f"{origin} has the class {label!r}, which is not among the {len(classes)} that the data set names. "
                "Use lists of one release."
            )
        found.append(classes[label])
    return found
