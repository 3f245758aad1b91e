"""Layouts with plain lists of file names, a list a split: FGVC-Aircraft, Oxford-IIIT Pets and Food-101."""

from __future__ import annotations

from pathlib import Path

from harness.errors import DataError
from tasks.data.listing import Listing, classes_by_id, first_of, indices, read_lines, read_pairs

AIRCRAFT = "images/, variants.txt and images_variant_trainval.txt, images_variant_test.txt, all below data/"
PETS = "images/ and annotations/trainval.txt, annotations/test.txt"
FOOD = "images/<class>/<number>.jpg and meta/classes.txt, meta/train.txt, meta/test.txt"


def read_aircraft(home: Path, split: str) -> Listing:
    """Read a split of FGVC-Aircraft by variant; the class order is that of `variants.txt`."""
    data = first_of(home, ("data", "."), AIRCRAFT)
    classes = tuple(read_lines(first_of(data, ("variants.txt",), AIRCRAFT)))
    listing = first_of(data, (f"images_variant_{split}.txt",), AIRCRAFT)
    images = read_pairs(listing)
    targets = indices(images.values(), {label: place for place, label in enumerate(classes)}, listing.name)
    folder = first_of(data, ("images",), AIRCRAFT)
    return Listing(folder, [f"{image}.jpg" for image in images], targets, classes, "variants.txt")


def read_pets(home: Path, split: str) -> Listing:
    """Read a split of the Pets; each line numbers its class from 1, and the class's name is a part of the file's."""
    lists = {part: first_of(home, (f"annotations/{part}.txt",), PETS) for part in ("trainval", "test")}
    rows = {part: [_pet(line, path) for line in read_lines(path)] for part, path in lists.items()}
    pairs = [(number, image.rpartition("_")[0]) for part in rows.values() for image, number in part]
    return Listing(
        folder=first_of(home, ("images",), PETS),
        names=[f"{image}.jpg" for image, _ in rows[split]],
        targets=[number - 1 for _, number in rows[split]],
        classes=classes_by_id(pairs, "annotations/trainval.txt with test.txt"),
        order="annotations/trainval.txt",
    )


def _pet(line: str, path: Path) -> tuple[str, int]:
    """File name without its ending, and class number, of a line such as `Abyssinian_100 1 1 1`."""
    words = line.split()
    if len(words) < 2 or not words[1].isdecimal():
        raise DataError(
            f"{str(path)!r} has the line {line!r}: expected an image and the number of its class. Restore it."
        )
    return words[0], int(words[1])


def read_food(home: Path, split: str) -> Listing:
    """Read a split of Food-101; the class order is that of `meta/classes.txt`."""
    classes = tuple(read_lines(first_of(home, ("meta/classes.txt",), FOOD)))
    listing = first_of(home, (f"meta/{split}.txt",), FOOD)
    images = read_lines(listing)
    labels = (image.rpartition("/")[0] for image in images)
    targets = indices(labels, {label: place for place, label in enumerate(classes)}, listing.name)
    folder = first_of(home, ("images",), FOOD)
    return Listing(folder, [f"{image}.jpg" for image in images], targets, classes, "meta/classes.txt")
