"""Images in one folder a class, named by the class."""

from __future__ import annotations

from pathlib import Path

from harness.errors import DataError
from tasks.data.labelled import EXTENSIONS, LabelledImages, from_files, images_below, images_in


def read_class_folders(folder: Path, classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read `<folder>/<class>/**/<image>`; the label is the class's place in `classes`, so a subset of folders is right.

    Raises:
        DataError: a folder is no class, an image is in none, or there are no images.
    """
    index = {label: position for position, label in enumerate(classes)}
    names: list[str] = []
    targets: list[int] = []
    for label in folders_in(folder):
        found = images_below(folder / label)
        if found and label not in index:
            raise DataError(
                f"{str(folder / label)!r} is no class of {name}: expected folders such as {classes[0]!r} "
                f"(one of {len(classes)} class ids). Rename it or move it away."
            )
        names += [f"{label}/{image}" for image in found]
        targets += [index[label]] * len(found) if found else []
    if stray := images_in(folder):
        raise DataError(
            f"{str(folder)!r} holds {len(stray)} images beside its class folders, such as {stray[0]!r}: "
            "move each into the folder of its class."
        )
    if not names:
        raise no_images(folder, classes)
    return from_files(folder, names, targets, classes, name, split)


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def no_images(folder: Path, classes: tuple[str, ...]) -> DataError:
    """Return the error for a folder that should hold images and holds none."""
    endings = ", ".join(sorted(EXTENSIONS))
    return DataError(
        f"{str(folder)!r} holds no images ({endings}): expected {classes[0]}/*.JPEG and so on, a folder a class, or "
        "all images in one folder with a list of labels. Put them there, or pass another --data."
    )
