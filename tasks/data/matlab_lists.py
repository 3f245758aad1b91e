"""Layouts whose lists are MATLAB files: Stanford Cars, Stanford Dogs and Oxford Flowers-102."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError
from tasks.data.listing import Listing, classes_by_id, first_of, read_matlab

CARS = (
    "cars_train/, cars_test/ and devkit/ with cars_meta.mat, cars_train_annos.mat, cars_test_annos_withlabels.mat, "
    "or car_ims/ with cars_annos.mat"
)
DEVKITS = ("devkit/", "car_devkit/devkit/", "")
DOGS = "Images/<class>/<image>.jpg and train_list.mat, test_list.mat, here or in lists/"
FLOWERS = "jpg/, imagelabels.mat and setid.mat"


def read_cars(home: Path, split: str) -> Listing:
    """Read a split of Stanford Cars: the devkit of 2013 with a folder a split, or the later single list."""
    if (home / "cars_annos.mat").is_file():
        return _cars_in_one_list(home, split)
    meta = first_of(home, [f"{devkit}cars_meta.mat" for devkit in DEVKITS], CARS)
    (labels,) = read_matlab(meta, "class_names")
    ending = "_withlabels" if split == "test" else ""
    listing = first_of(home, _cars_lists(f"cars_{split}_annos{ending}.mat"), CARS)
    (rows,) = read_matlab(listing, "annotations")
    classes = tuple(map(str, labels))
    folder = first_of(home, (f"cars_{split}/cars_{split}", f"cars_{split}"), CARS)
    names = [str(name) for name in _column(rows, "fname", listing)]
    return Listing(folder, names, _from_one(_column(rows, "class", listing), classes, listing), classes, meta.name)


def _cars_lists(name: str) -> list[str]:
    """Where a list of the devkit lies; the test labels were published apart from it."""
    return [f"{devkit}{name}" for devkit in DEVKITS]


def _cars_in_one_list(home: Path, split: str) -> Listing:
    listing = home / "cars_annos.mat"
    rows, labels = read_matlab(listing, "annotations", "class_names")
    chosen = rows[_column(rows, "test", listing).astype(bool) == (split == "test")]
    classes = tuple(map(str, labels))
    names = [str(name) for name in _column(chosen, "relative_im_path", listing)]
    return Listing(home, names, _from_one(chosen["class"], classes, listing), classes, listing.name)


def read_dogs(home: Path, split: str) -> Listing:
    """Read a split of Stanford Dogs; the lists number the classes from 1 and name them by their folders."""
    paths = {part: first_of(home, (f"lists/{part}_list.mat", f"{part}_list.mat"), DOGS) for part in ("train", "test")}
    rows = {part: read_matlab(path, "file_list", "labels") for part, path in paths.items()}
    pairs = [
        (int(number), str(name).partition("/")[0])
        for names, numbers in rows.values()
        for name, number in zip(names, numbers, strict=True)
    ]
    classes = classes_by_id(pairs, "train_list.mat with test_list.mat")
    names, numbers = rows[split]
    folder = first_of(home, ("Images", "images"), DOGS)
    return Listing(
        folder, [str(name) for name in names], _from_one(numbers, classes, paths[split]), classes, "train_list.mat"
    )


def read_flowers(home: Path, split: str) -> Listing:
    """Read a split of Flowers-102, `trainval` or `test`; the files number the classes 1 to 102 and do not name them."""
    paths = [first_of(home, (name,), FLOWERS) for name in ("imagelabels.mat", "setid.mat")]
    (labels,) = read_matlab(paths[0], "labels")
    train, val, test = read_matlab(paths[1], "trnid", "valid", "tstid")
    numbers = [int(number) for part in ((test,) if split == "test" else (train, val)) for number in part]
    if max(numbers) > len(labels):
        raise DataError(
            f"{str(paths[1])!r} lists image {max(numbers)}, and imagelabels.mat has labels for {len(labels)}. "
            "Use both of one release."
        )
    classes = tuple(str(number) for number in range(1, int(labels.max()) + 1))
    targets = _from_one([labels[number - 1] for number in numbers], classes, paths[0])
    folder = first_of(home, ("jpg",), FLOWERS)
    return Listing(folder, [f"image_{number:05d}.jpg" for number in numbers], targets, classes, "imagelabels.mat")


def _column(rows: Any, name: str, path: Path) -> Any:
    """A column of a structure array."""
    if name not in (rows.dtype.names or ()):
        raise DataError(f"{str(path)!r} has no column {name!r}: expected the official list with labels. Restore it.")
    return rows[name]


def _from_one(numbers: Sequence[Any], classes: tuple[str, ...], path: Path) -> list[int]:
    """Class indices from the numbers of a list that counts from 1."""
    targets = [int(number) - 1 for number in numbers]
    if wrong := [target + 1 for target in targets if not 0 <= target < len(classes)]:
        raise DataError(
            f"{str(path)!r} has the class {wrong[0]}: expected 1 to {len(classes)}. Use files of one release."
        )
    return targets
