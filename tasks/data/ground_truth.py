"""Images in one flat folder, with their labels in a list beside them."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError, reason
from tasks.data.image_folder import no_images
from tasks.data.labelled import EXTENSIONS, Files, LabelledImages, from_files, images_in, stamp, to_targets

DEVKIT_LIST = "ILSVRC2012_validation_ground_truth.txt"
LISTS = (
    "LOC_{split}_solution.csv", "{split}*.txt", "{split}*.csv", "*{split}.txt", "*{split}.csv", "*ground*truth*.txt",
    "*ground*truth*.csv", "labels.txt", "labels.csv",
)  # fmt: skip
DEVKITS = (Path("devkit", "data"), Path("ILSVRC2012_devkit_t12", "data"))
KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
FILE_HEADS = frozenset({"imageid", "image_id", "image", "filename", "file_name", "file", "name", "id", "path"})
LABEL_HEADS = frozenset({"label", "labels", "class", "class_id", "wnid", "synset", "target", "predictionstring"})


def read_flat_folder(folder: Path, home: Path, classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read images directly in `folder`, with the ground-truth list found near it.

    Raises:
        DataError: there is no list, or it does not fit the images.
    """
    names = images_in(folder)
    if not names:
        raise no_images(folder, classes)
    targets = targets_of(names, find_list(folder, home, split), classes)
    return from_files(folder, names, targets, classes, name, split)


def read_list(listing: Path, classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read files and labels from a list alone; the images are not there, and cannot be read.

    Raises:
        DataError: it is no such list.
    """
    rows = _rows(listing)
    if len(rows[0]) < 2:
        raise DataError(f"{listing.name} has one column: expected a file name and a class id in every line.")
    names = [file for file, _ in rows]
    targets = to_targets([label for _, label in rows], classes, listing.name)
    stamped = stamp(name, split, names, targets, [0] * len(names), len(classes))
    return LabelledImages(names, targets, Files(listing.parent, names), classes, stamped)


def find_list(folder: Path, home: Path, split: str) -> Path:
    """Return the ground-truth list in `folder`, in `home`, in a devkit below it, or where Kaggle's archive has it.

    Raises:
        DataError: there is none.
    """
    places = [folder, home, *(home / devkit for devkit in DEVKITS)]
    if home.resolve().parts[-len(KAGGLE) :] == KAGGLE:
        places.append(home.resolve().parents[len(KAGGLE) - 1])
    devkit = (DEVKIT_LIST,) if split == "val" else ()
    for pattern in (LISTS[0], *devkit, *LISTS[1:]):
        for place in places:
            if found := sorted(path for path in place.glob(pattern.format(split=split)) if path.is_file()):
                return found[0]
    raise DataError(
        f"{str(folder)!r} holds images without labels: put them into folders by class, or add a list "
        f"such as {split}.txt (a line an image: file name and class id) or LOC_{split}_solution.csv."
    )


def targets_of(names: Sequence[str], listing: Path, classes: tuple[str, ...]) -> list[int]:
    """Return the class indices that a list gives to image files.

    Understood, a line an image: `file label`, or `label` alone in the order of the sorted file names, separated by
    white space, comma, semicolon or tab; the label is a class id, or an index from 0 in class order. A header may
    name the columns. Also Kaggle's `LOC_val_solution.csv`, and the devkit's own list with its `meta.mat`.

    Args:
        names: of the files, sorted.

    Raises:
        DataError: the list does not fit the images.
    """
    rows = _rows(listing)
    if len(rows[0]) > 1:
        return to_targets(_matched(names, rows, listing), classes, listing.name)
    if len(rows) != len(names):
        raise DataError(
            f"{listing.name} has {len(rows)} labels for {len(names)} images: expected one a line for each image in the "
            "order of the file names. Restore what is missing, or list file names with the labels."
        )
    labels = [row[0] for row in rows]
    return to_targets(_from_devkit(labels, listing) if listing.name == DEVKIT_LIST else labels, classes, listing.name)


def _rows(listing: Path) -> list[tuple[str, ...]]:
    """File and label, or label alone, of every line."""
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{listing.name} is not a readable text file ({error}). Write a line an image: file, class id."
        ) from error
    lines = [(number, _fields(line)) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    columns = _columns(lines[0][1]) if lines else None
    lines = lines[1:] if columns else lines
    if not lines:
        raise DataError(f"{listing.name} is empty: expected a line an image, file name and class id.")
    columns = columns or tuple(range(min(2, len(lines[0][1]))))
    rows = []
    for number, fields in lines:
        row = tuple(fields[column] for column in columns if column < len(fields) and fields[column])
        if len(row) < len(columns):
            raise DataError(
                f"{listing.name} has no label in line {number}: expected a file name and a class id. Add it."
            )
        rows.append((*row[:-1], row[-1].split()[0]))  # Kaggle's label goes on with boxes.
    return rows


def _fields(line: str) -> list[str]:
    separator = next((mark for mark in ",;\t" if mark in line), None)
    if separator is None:
        return line.strip().rsplit(maxsplit=1)
    return [field.strip() for field in next(csv.reader([line], delimiter=separator))]


def _columns(header: list[str]) -> tuple[int, ...] | None:
    """The columns of file and label, or of the label alone; None where the line is no header."""
    words = [field.lower() for field in header]
    labels = [column for column, word in enumerate(words) if word in LABEL_HEADS]
    files = [column for column, word in enumerate(words) if word in FILE_HEADS]
    return (*files[:1], labels[0]) if labels else None


def _matched(names: Sequence[str], rows: Sequence[tuple[str, ...]], listing: Path) -> list[str]:
    """The label of each image by its file name, whatever its folder and ending."""
    labels: dict[str, str] = {}
    for file, label in rows:
        if labels.setdefault(_stem(file), label) != label:
            raise DataError(
                f"{listing.name} gives {file!r} two labels, {labels[_stem(file)]!r} and {label!r}. Remove one."
            )
    if missing := [name for name in names if _stem(name) not in labels]:
        raise DataError(
            f"{listing.name} has no label for {len(missing)} of {len(names)} images, the first {missing[0]!r}: "
            "add them to the list, or remove the images."
        )
    return [labels[_stem(name)] for name in names]


def _stem(file: str) -> str:
    name = file.replace("\\", "/").rpartition("/")[2]
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in EXTENSIONS else name


def _from_devkit(labels: list[str], listing: Path) -> list[str]:
    """Turn the devkit's own ids, whose order is not that of the class ids, into class ids by its meta.mat."""
    meta = listing.parent / "meta.mat"
    if not meta.is_file():
        raise DataError(
            f"{listing.name} numbers the classes in an order of its own: put the devkit's meta.mat beside it, "
            "or use LOC_val_solution.csv."
        )
    ids = _devkit_ids(meta)
    if unknown := [label for label in labels if label not in ids]:
        raise DataError(
            f"{listing.name} has the label {unknown[0]!r}, which meta.mat does not know. Use both of one devkit."
        )
    return [ids[label] for label in labels]


def _devkit_ids(meta: Path) -> dict[str, str]:
    """The class ids by the devkit's own."""
    import numpy
    from scipy.io import loadmat

    try:
        synsets: Any = numpy.atleast_1d(loadmat(meta, squeeze_me=True, struct_as_record=False)["synsets"])
        return {str(int(synset.ILSVRC2012_ID)): str(synset.WNID) for synset in synsets}
    except Exception as error:
        raise DataError(f"meta.mat is not the devkit's ({reason(error)}). Restore it.") from error
