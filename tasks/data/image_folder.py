"""Images in one folder a class, named by the class."""

from __future__ import annotations

from pathlib import Path

from harness.errors import DataError
from tasks.data.labelled import EXTENSIONS, LabelledImages, from_files


def read_class_folders(folder: Path, classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read `<folder>/<class>/**/<image>`; the label is the class's place in `classes`, so a subset of folders is right.

    Raises:
        DataError: a folder is no class, or there are no images.
    """
    index = {label: position for position, label in enumerate(classes)}
    paths: list[Path] = []
    targets: list[int] = []
    for label in sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = sorted(path for path in (folder / label).rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not found:
            continue
        if label not in index:
            raise DataError(
                f"{str(folder / label)} is no class of {name}: expected folders such as {classes[0]!r} "
                f"(one of {len(classes)} class ids). Rename it or move it away."
            )
        paths += found
        targets += [index[label]] * len(found)
    if not paths:
        endings = ", ".join(sorted(EXTENSIONS))
        raise DataError(f"{str(folder)} holds no images: expected {classes[0]}/*.JPEG and so on ({endings}).")
    return from_files(folder, paths, targets, classes, name, split)
