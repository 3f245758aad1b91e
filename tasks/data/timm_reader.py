"""Images that timm's own readers read: tar files, WebDataset shards, Hugging Face data sets and parquet."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError, MissingPackage, reason
from tasks.data.ground_truth import find_list, targets_of
from tasks.data.labelled import LabelledImages, stamp, to_targets, unreadable

SPLITS = {"val": ("validation", "val", "valid"), "train": ("train",)}


def tars_of(home: Path, split: str) -> list[Path]:
    """Return the tar files of a split: those in `<split>/`, `<split>.tar`, or shards with the split in their names."""
    for word in SPLITS[split]:
        if found := sorted((home / word).glob("*.tar")):
            return found
        if (home / f"{word}.tar").is_file():
            return [home / f"{word}.tar"]
    return sorted(path for path in home.glob("*.tar") if any(word in path.stem.lower() for word in SPLITS[split]))


def parquets_of(home: Path, split: str) -> list[Path]:
    """Return the parquet files of a split, in `home`, in `home/data`, or in a folder of the split."""
    for word in SPLITS[split]:
        for pattern in (f"{word}*.parquet", f"data/{word}*.parquet", f"{word}/*.parquet"):
            if found := sorted(home.glob(pattern)):
                return found
    return []


@dataclass(frozen=True)
class Member:
    """An image inside a tar file: its name, the label of its place or its `.cls`, and where its bytes are."""

    name: str
    label: str
    tar: Path
    offset: int
    size: int


@dataclass(frozen=True)
class TarBytes:
    """Reads members of tar files by index. It keeps no file open, so that worker processes share no file position."""

    members: Sequence[Member]

    def __call__(self, index: int) -> bytes:
        """Return the content of an image file.

        Raises:
            DataError: it cannot be read.
        """
        member = self.members[index]
        try:
            with member.tar.open("rb") as file:
                file.seek(member.offset)
                content = file.read(member.size)
        except OSError as error:
            raise unreadable(member.tar.name, error) from error
        if len(content) < member.size:
            raise DataError(f"{member.tar.name} ends within {member.name}. Download it again.")
        return content


@dataclass(frozen=True)
class ReaderBytes:
    """Reads the items of one of timm's readers by index."""

    reader: Any
    names: Sequence[str]

    def __call__(self, index: int) -> bytes:
        """Return the content of an image file.

        Raises:
            DataError: the item holds none.
        """
        try:
            file, _ = self.reader[index]
            with file:
                content: bytes = file.read()
        except (OSError, TypeError, AssertionError) as error:
            raise DataError(f"{self.names[index]} holds no image ({reason(error)}). Restore the data set.") from error
        return content


def read_tars(tars: Sequence[Path], home: Path, classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read tar files: of class folders, one a class, nested, flat with a list in `home`, or WebDataset shards.

    Raises:
        DataError: a file is no tar, or its images have no labels or labels that are no classes.
    """
    members = sorted((member for path in tars for member in _members(path)), key=lambda member: member.name)
    names = [member.name for member in members]
    if all(member.label in ("", member.tar.stem) and member.label not in classes for member in members):
        listing = find_list(tars[0], home, split)
        targets = targets_of(names, listing, classes)
    else:
        targets = to_targets([member.label for member in members], classes, tars[0].name)
    sizes = [member.size for member in members]
    stamped = stamp(name, split, names, targets, sizes, len(classes))
    return LabelledImages(names, targets, TarBytes(members), classes, stamped, sizes)


def _members(path: Path) -> list[Member]:
    """The images of a tar file, as timm's reader finds them."""
    from timm.data.readers import create_reader

    marked = _webdataset_labels(path)
    try:
        # timm's cache of the listing would lie beside the data and go stale when the tar changes.
        reader = create_reader("", root=str(path), cache_tarinfo=False)
    except ValueError as error:
        raise DataError(f"{path.name} holds no images that timm reads: expected <class>/<image>.JPEG.") from error
    except (OSError, EOFError, tarfile.TarError) as error:
        raise _corrupt(path, error) from error
    members = []
    for (image, _, inner), target in zip(reader.samples, reader.targets, strict=True):
        inside, start = (f"{os.path.splitext(inner.name)[0]}/", inner.offset_data) if inner else ("", 0)
        label = marked.get(_key(image.name), "") if marked else reader.class_idx_to_name[target] or path.stem
        place = f"{path.stem}/{inside}{image.name}"
        members.append(Member(place, str(label), path, start + image.offset_data, image.size))
    if marked:
        _check_pairs(marked, [image.name for image, _, _ in reader.samples], path)
    return members


def _webdataset_labels(path: Path) -> dict[str, str]:
    """The `.cls` members of a WebDataset shard by key; empty for another tar."""
    labels = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".cls"):
                    file = tar.extractfile(member)
                    labels[_key(member.name)] = file.read().decode().strip() if file else ""
    except (OSError, EOFError, UnicodeDecodeError, tarfile.TarError) as error:
        raise _corrupt(path, error) from error
    return labels


def _check_pairs(labels: dict[str, str], images: Sequence[str], path: Path) -> None:
    """Raise DataError unless each image of a WebDataset shard has a label and each label an image."""
    keys = {_key(image) for image in images}
    if missing := sorted(keys - labels.keys()):
        raise DataError(
            f"{path.name} has no label for {len(missing)} images, the first {missing[0]!r}: expected {missing[0]}.cls. "
            "Write the shard again."
        )
    if missing := sorted(labels.keys() - keys):
        raise DataError(
            f"{path.name} has no image for {len(missing)} labels, the first {missing[0]!r}: expected {missing[0]}.jpg "
            "(or .jpeg, .png). Convert the images."
        )


def _key(member: str) -> str:
    """The name that the files of one WebDataset sample share."""
    folder, slash, name = member.rpartition("/")
    return folder + slash + name.split(".")[0]


def _corrupt(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path.name} is not a whole, uncompressed tar file ({reason(error)}). Download it again, or unpack it."
    )


def read_hugging_face(location: str, classes: tuple[str, ...], name: str, split: str) -> LabelledImages:
    """Read a data set of the Hugging Face hub, or a local folder of parquet files, with columns `image` and `label`.

    Raises:
        DataError: it cannot be had, or its labels are no classes.
    """
    reader = _hugging_face_reader(location, split)
    origin = Path(location).name
    ids = _class_names(reader.class_to_idx, classes, origin)
    try:
        labels = [ids.get(target, str(target)) for target in reader.iter_targets()]
        names, sizes = _names_and_sizes(reader.dataset.data.column("image"))
    except (KeyError, ValueError, TypeError) as error:
        raise _unlike(origin, split, error) from error
    if not labels:
        raise DataError(f"{origin} holds no images in its split {split!r}. Download it again.")
    targets = to_targets(labels, classes, origin)
    stamped = stamp(name, split, names, targets, sizes, len(classes))
    return LabelledImages(names, targets, ReaderBytes(reader, names), classes, stamped, sizes)


def _hugging_face_reader(location: str, split: str) -> Any:
    """timm's reader of the first of the split's usual names that the data set has."""
    try:
        import datasets
    except ImportError as error:
        raise MissingPackage("datasets", "Reading Hugging Face data sets and parquet") from error
    from timm.data.readers import create_reader

    datasets.disable_progress_bars()
    failures: list[Exception] = []
    for word in SPLITS[split]:
        try:
            return create_reader(f"hfds/{location}", split=word)
        except Exception as error:
            failures.append(error)
    raise _unlike(Path(location).name, split, failures[0])


def _unlike(origin: str, split: str, error: Exception) -> DataError:
    return DataError(
        f"{origin} cannot be read as a Hugging Face data set with a split {split!r} and columns 'image' and 'label' "
        f"({reason(error)}). Rename the columns, or unpack the images into {split}/<class id>/."
    )


def _class_names(indices: dict[str, int], classes: tuple[str, ...], origin: str) -> dict[int, str]:
    """The class id of each of the data set's own label indices; empty where those are in class order already.

    Raises:
        DataError: the order of the labels cannot be known.
    """
    known = [label for label in indices if label in set(classes)]
    if len(known) == len(indices):
        return {position: label for label, position in indices.items()}
    if known or len(indices) != len(classes):
        strange = next(label for label in indices if label not in known)
        raise DataError(
            f"{origin} has {len(indices)} classes, one of them {strange!r}: expected class ids such as {classes[0]!r}, "
            f"or all {len(classes)} in class order. Name its classes by their ids, or list them in synsets.txt."
        )
    return {}


def _names_and_sizes(images: Any) -> tuple[list[str], list[int]]:
    """The stored file names (numbers where they are not unique) and sizes in bytes of an arrow column of images.

    Raises:
        ValueError: a row is empty, as all are where the data set has no such column.
    """
    import pyarrow.compute

    sizes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(images, "bytes")).to_pylist()
    paths = [path or "" for path in pyarrow.compute.struct_field(images, "path").to_pylist()]
    on_disk = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in paths]
    sizes = [size or other for size, other in zip(sizes, on_disk, strict=True)]
    if 0 in sizes:
        raise ValueError(f"row {sizes.index(0)} holds no image")
    names = [Path(path).name for path in paths]
    if "" in names or len(set(names)) < len(names):
        names = [f"{position:08d}" for position in range(len(sizes))]
    return names, sizes
