"""Images in one flat folder, with their labels in a list beside them."""

from __future__ import annotations

import csv
from pathlib import Path

from harness.errors import DataError, MissingPackage
from tasks.data.labelled import LabelledImages, from_files, images_in

DEVKIT_LIST = "ILSVRC2012_validation_ground_truth.txt"
LISTS = ("LOC_val_solution.csv", DEVKIT_LIST, "*ground*truth*", "val*.txt", "val*.csv", "*val.txt", "*val.csv", "labels.*")
HEADERS = {"imageid", "image", "filename", "file", "name", "id", "label", "labels", "class", "wnid", "target", "path"}


def read_flat_folder(folder: Path, home: Path, classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read images directly in `folder` with the ground-truth list found in it, in `home`, or in a devkit below `home`.

    Understood, a line an image: `file label`, or `label` alone in the order of the sorted file names, separated by
    white space, comma or semicolon; the label is a class id, or an index from 0 in class order. Also Kaggle's
    `LOC_val_solution.csv`, and the devkit's own list with its `meta.mat`.

    Raises:
        DataError: there is no list, or it does not fit the images.
    """
    paths = images_in(folder)
    if not paths:
        raise DataError(f"{str(folder)} holds no images: expected {classes[0]}/*.JPEG and so on, or a flat folder.")
    listing = find_list(folder, home)
    rows = _rows(listing)
    if listing.name == DEVKIT_LIST:
        rows = _from_devkit(rows, listing)
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(paths):
            raise DataError(f"{listing.name} has {len(rows)} labels for {len(paths)} images in {str(folder)}.")
        rows = [[path.name, row[0]] for path, row in zip(paths, rows, strict=True)]
    labels = {Path(row[0]).stem: row[1] for row in rows}
    if unlabelled := [path.name for path in paths if path.stem not in labels]:
        raise DataError(f"{listing.name} has no label for {len(unlabelled)} images of {str(folder)}: {unlabelled[0]}, ...")
    targets = _targets([labels[path.stem] for path in paths], classes, listing)
    return from_files(folder, paths, targets, classes, name, split)


def find_list(folder: Path, home: Path) -> Path:
    """Return the ground-truth list of a flat folder.

    Raises:
        DataError: there is none.
    """
    for pattern in LISTS:
        for place in (folder, home, home / "devkit" / "data", home / "ILSVRC2012_devkit_t12" / "data"):
            if found := sorted(path for path in place.glob(pattern) if path.is_file()):
                return found[0]
    raise DataError(
        f"{str(folder)} is a flat folder of images without labels: put them into folders by class, or add a list "
        f"such as val.txt (a line an image: file name and class id) or LOC_val_solution.csv."
    )


def _rows(listing: Path) -> list[list[str]]:
    """The fields of every line, at most the first two, without a header."""
    lines = [line for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    rows = [next(csv.reader([line.strip().replace("\t", " ").replace(";", ",")])) for line in lines]
    rows = [row if len(row) > 1 else row[0].split() for row in rows]
    if rows and {field.strip().lower() for field in rows[0]} <= HEADERS | {"predictionstring"}:
        rows = rows[1:]
    if not rows or any(len(row) < 1 for row in rows):
        raise DataError(f"{listing.name} is empty: expected a line an image.")
    return [[row[0].strip(), row[1].split()[0]] if len(row) > 1 and row[1].split() else [row[0].strip()] for row in rows]


def _from_devkit(rows: list[list[str]], listing: Path) -> list[list[str]]:
    """Turn the devkit's own ids, whose order is not that of the class ids, into class ids by its meta.mat."""
    meta = listing.parent / "meta.mat"
    if not meta.is_file():
        raise DataError(
            f"{listing.name} numbers the classes in an order of its own: put the devkit's meta.mat beside it, "
            "or use LOC_val_solution.csv."
        )
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingPackage("scipy", "Reading the devkit's meta.mat") from error
    synsets = loadmat(meta, squeeze_me=True, struct_as_record=False)["synsets"]
    ids = {str(int(synset.ILSVRC2012_ID)): str(synset.WNID) for synset in synsets}
    return [[ids[row[0]]] for row in rows]


def _targets(labels: list[str], classes: tuple[str, ...], listing: Path) -> list[int]:
    """Class indices from class ids, or from indices that start at 0."""
    index = {label: position for position, label in enumerate(classes)}
    if all(label in index for label in labels):
        return [index[label] for label in labels]
    wrong = next(label for label in labels if label not in index)
    if not all(label.isdigit() for label in labels):
        raise DataError(f"{listing.name} has the label {wrong!r}: expected a class id such as {classes[0]!r}.")
    numbers = [int(label) for label in labels]
    if max(numbers) >= len(classes):
        raise DataError(
            f"{listing.name} has labels up to {max(numbers)} for {len(classes)} classes: expected indices from 0 in class "
            "order. Write class ids instead."
        )
    return numbers
