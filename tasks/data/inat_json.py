"""The layout of iNaturalist 2021: images in folders by species, labelled by a JSON file a split."""

from __future__ import annotations

from pathlib import Path

import msgspec

from harness.errors import DataError
from tasks.data.listing import Listing, first_of

LAYOUT = "<split>.json and <split>/<species>/<image>.jpg, for the splits train_mini or train, and val"
# torchvision gives the unpacked folders names of its own.
FOLDERS = {"train_mini": "2021_train_mini", "train": "2021_train", "val": "2021_valid"}


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Label(msgspec.Struct):
    image_id: int
    category_id: int


class _Category(msgspec.Struct):
    id: int
    name: str


class _Content(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Label]
    categories: list[_Category]


def read_inat(home: Path, split: str) -> Listing:
    """Read a split, `train`, `train_mini` or `val`; the class order is that of the ids of the JSON's categories.

    Raises:
        DataError: a file is missing, or the categories differ from those of `val.json`.
    """
    images, labels, names = _parse(first_of(home, (f"{split}.json",), LAYOUT))
    if split != "val":
        *_, others = _parse(first_of(home, ("val.json",), LAYOUT))
        if names != others:
            number = min(number for number in names | others if names.get(number) != others.get(number))
            raise DataError(
                f"{split}.json and val.json disagree on category {number}: {names.get(number)!r} and "
                f"{others.get(number)!r}. Use both of one release."
            )
    index = {number: position for position, number in enumerate(sorted(names))}
    if lacking := [name for number, name in images if labels.get(number) not in index]:
        raise DataError(
            f"{split}.json has no category for {len(lacking)} of {len(images)} images, the first {lacking[0]!r}. "
            "Restore the official file."
        )
    folder = first_of(home, (split, FOLDERS[split]), LAYOUT)
    return Listing(
        folder=folder,
        names=[name.removeprefix(f"{split}/") for _, name in images],
        targets=[index[labels[number]] for number, _ in images],
        classes=tuple(names[number] for number in index),
        order=f"{split}.json",
    )


def _parse(path: Path) -> tuple[list[tuple[int, str]], dict[int, int], dict[int, str]]:
    """Id and file of each image, the category of each image's id, and the name of each category."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Content)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{str(path)!r} is not iNaturalist's JSON ({error}). Restore the official file.") from error
    images = [(image.id, image.file_name) for image in found.images]
    labels = {label.image_id: label.category_id for label in found.annotations}
    return images, labels, {category.id: category.name for category in found.categories}
