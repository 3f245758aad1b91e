"""Images that timm's own readers read: tar files, WebDataset shards, Hugging Face data sets and parquet."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError, MissingPackage
from tasks.data.labelled import LabelledImages, stamp

SPLITS = {"val": ("validation", "val", "valid", "test"), "train": ("train",)}


def tars_of(home: Path, split: str) -> list[Path]:
    """Return the tar files of a split: `<split>.tar`, those in `<split>/`, or shards with the split in their names."""
    if (home / f"{split}.tar").is_file():
        return [home / f"{split}.tar"]
    if found := sorted((home / split).glob("*.tar")):
        return found
    for word in SPLITS[split]:
        if found := sorted(path for path in home.glob("*.tar") if word in path.stem.lower()):
            return found
    return []


def parquets_of(home: Path, split: str) -> list[Path]:
    """Return the parquet files of a split, in `home` or in `home/data`, as the hub lays them out."""
    for place in (home, home / "data", home / split):
        for word in SPLITS[split]:
            if found := sorted(place.glob(f"{word}*.parquet")):
                return found
    return []


@dataclass(frozen=True)
class ReaderBytes:
    """Reads the items of timm's readers by index."""

    places: Sequence[tuple[Any, int]]

    def __call__(self, index: int) -> bytes:
        """Return the content of an image file."""
        reader, position = self.places[index]
        file, _ = reader[position]
        with file:
            content: bytes = file.read()
        return content


def read_tars(tars: Sequence[Path], classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read tar files: of class folders, one a class, or WebDataset shards with a `.cls` beside each image.

    Raises:
        DataError: a file is no tar, or its images have no labels or labels that are no classes.
    """
    from timm.data.readers import create_reader

    names: list[str] = []
    labels: list[str] = []
    sizes: list[int] = []
    places: list[tuple[Any, int]] = []
    for path in tars:
        marked = _webdataset_labels(path)
        try:
            reader = create_reader("", root=str(path))
        except (ValueError, AssertionError, tarfile.TarError) as error:
            raise DataError(f"{path.name} holds no images that timm reads: expected <class>/<image>.JPEG.") from error
        for position, (member, _, _) in enumerate(reader.samples):
            folder = reader.class_idx_to_name[reader.targets[position]]
            names.append(f"{path.stem}/{member.name}")
            labels.append(marked.get(_key(member.name)) or folder or path.stem)
            sizes.append(member.size)
            places.append((reader, position))
    targets = to_targets(labels, classes, tars[0].name)
    return LabelledImages(names, targets, ReaderBytes(places), classes, stamp(name, split, names, targets, sizes, len(classes)))


def read_hugging_face(location: str, classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read a data set of the Hugging Face hub, or a local folder of parquet files, with columns `image` and `label`.

    Raises:
        DataError: it cannot be had, or its labels are no classes.
    """
    reader = _hugging_face_reader(location, split)
    class_ids = {position: label for label, position in reader.class_to_idx.items() if label in classes}
    labels = [class_ids.get(target, str(target)) for target in reader.iter_targets()]
    targets = to_targets(labels, classes, location)
    names, sizes = _names_and_sizes(reader.dataset.data.column("image"))
    places = [(reader, position) for position in range(len(targets))]
    stamped = stamp(name, split, names, targets, sizes, len(classes))
    return LabelledImages(names, targets, ReaderBytes(places), classes, stamped)


def _hugging_face_reader(location: str, split: str) -> Any:
    """timm's reader of the first of the split's usual names that the data set has."""
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage("datasets", "Reading Hugging Face data sets and parquet") from error
    from timm.data.readers import create_reader

    datasets.disable_progress_bars()
    failures = []
    for word in SPLITS[split]:
        try:
            return create_reader(f"hfds/{location}", split=word)
        except Exception as error:
            failures.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    raise DataError(
        f"{Path(location).name} cannot be read as a Hugging Face data set with a split {split!r} and the columns image "
        f"and label ({failures[0]})."
    )


def _names_and_sizes(images: Any) -> tuple[list[str], list[int]]:
    """The stored file names (numbers where they are not unique) and sizes in bytes of an arrow column of images."""
    import pyarrow.compute

    sizes = [size or 0 for size in pyarrow.compute.binary_length(pyarrow.compute.struct_field(images, "bytes")).to_pylist()]
    names = [path or "" for path in pyarrow.compute.struct_field(images, "path").to_pylist()]
    if len(set(names)) < len(names):
        names = [f"{position:08d}" for position in range(len(sizes))]
    return names, sizes


def to_targets(labels: Sequence[str], classes: tuple[str, ...], origin: str) -> list[int]:
    """Return class indices from class ids, or from numbers in class order.

    Raises:
        DataError: a label is neither.
    """
    index = {label: position for position, label in enumerate(classes)}
    targets = [index.get(label, int(label) if label.isdigit() else -1) for label in labels]
    for label, target in zip(labels, targets, strict=True):
        if not 0 <= target < len(classes):
            raise DataError(
                f"{origin} has the label {label!r}: expected a class id such as {classes[0]!r}, or an index from 0 to "
                f"{len(classes) - 1} in class order."
            )
    return targets


def _webdataset_labels(path: Path) -> dict[str, str]:
    """The `.cls` members of a WebDataset shard by key; empty for another tar."""
    try:
        with tarfile.open(path) as tar:
            labels = {}
            for member in tar:
                if member.isfile() and member.name.endswith(".cls"):
                    file = tar.extractfile(member)
                    labels[_key(member.name)] = file.read().decode().strip() if file else ""
            return labels
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path.name} is not a readable tar file ({error}). Download it again.") from error


def _key(member: str) -> str:
    """The name that the files of one WebDataset sample share."""
    folder, slash, name = member.rpartition("/")
    return folder + slash + name.split(".")[0]
