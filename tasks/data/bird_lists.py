"""The layout of CUB-200-2011, which NABirds shares: ids with one list for each property of an image."""

from __future__ import annotations

from pathlib import Path

from harness.errors import DataError
from tasks.data.listing import Listing, first_of, indices, read_pairs

LAYOUT = "images/, images.txt, image_class_labels.txt, classes.txt and train_test_split.txt"
FLAGS = {"train": "1", "test": "0"}


def read_bird_lists(home: Path, split: str) -> Listing:
    """Read a split; the class order is that of `classes.txt`."""
    return _read(home, split, named_only=False)


def read_nabirds(home: Path, split: str) -> Listing:
    """Read a split of NABirds, whose `classes.txt` also has the groups of its hierarchy, which no image is labelled."""
    return _read(home, split, named_only=True)


def _read(home: Path, split: str, named_only: bool) -> Listing:
    paths = {
        name: first_of(home, (f"{name}.txt",), LAYOUT)
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    }
    files, labels, flags, names = (read_pairs(path) for path in paths.values())
    for table, path in ((labels, paths["image_class_labels"]), (flags, paths["train_test_split"])):
        if lacking := [image for image in files if image not in table]:
            raise DataError(
                f"{str(path)!r} has no line for {len(lacking)} of {len(files)} images, the first id {lacking[0]!r}. "
                "Restore it."
            )
    if strange := set(flags.values()) - set(FLAGS.values()):
        raise DataError(
            f"{str(paths['train_test_split'])!r} has the flag {min(strange)!r}: expected 1 or 0. Restore it."
        )
    used = set(labels.values()) if named_only else set(names)
    index = {number: position for position, number in enumerate(number for number in names if number in used)}
    chosen = [image for image in files if flags[image] == FLAGS[split]]
    return Listing(
        folder=first_of(home, ("images",), LAYOUT),
        names=[files[image] for image in chosen],
        targets=indices((labels[image] for image in chosen), index, "image_class_labels.txt"),
        classes=tuple(names[number] for number in index),
        order="classes.txt",
    )
