"""ImageNet-1k (ILSVRC 2012), in any of the layouts that people have."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import DataError
from harness.registry import TASKS
from tasks.classification import Classification
from tasks.data.ground_truth import read_flat_folder, read_list
from tasks.data.image_folder import folders_in, read_class_folders
from tasks.data.labelled import LabelledImages, images_in
from tasks.data.roots import data_name, data_root, find
from tasks.data.timm_reader import SPLITS, parquets_of, read_hugging_face, read_tars, tars_of

if TYPE_CHECKING:
    from tasks.data.train_loader import Source

FOLDERS = ("imagenet", "imagenet-1k", "imagenet1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
WNID = "n" + "[0-9]" * 8
# The last two are the validation images themselves.
MARKS = ("val", "validation", "train", "*val*.tar", "*.parquet", "data/*.parquet", WNID, "ILSVRC2012_val_*")
EXPECTED = "val/<wnid>/*.JPEG"
HUB = "hfds/"


@TASKS.register("imagenet")
class ImageNet(Classification):
    """Top-1 and top-5 on the validation images, labelled by WordNet id.

    Source: Russakovsky et al. 2015 (arXiv:1409.0575). With `real.json` in the data set's folder also ReaL labels
    (Beyer et al. 2020, arXiv:2006.07159).
    """

    def read(self, split: str) -> LabelledImages:
        """Read a split: class folders, a flat folder with a list, tar files, WebDataset shards, or parquet.

        An unpacked folder goes before the tar file that it came from.
        """
        if self.annotations:
            return read_list(self.annotations, class_ids(self.annotations.parent), "imagenet", split)
        if hub := self._on_hub():
            return read_hugging_face(hub, class_ids(Path()), "imagenet", split)
        home = self._home()
        classes, name = class_ids(home), data_name(home, "imagenet")
        folder = next((home / word for word in (split, *SPLITS[split]) if (home / word).is_dir()), None)
        if folder and (found := _unpacked(folder, home, classes, name, split)):
            return found
        if found := _packed(home, classes, name, split):
            return found
        if folder:  # It is empty, or its folders are no classes: the reader says which.
            return read_class_folders(folder, classes, name, split)
        if split == "val" and (found := _unpacked(home, home, classes, name, split)):
            return found
        raise DataError(f"imagenet has no split {split!r} in {str(home)!r}: expected {split}/<wnid>/*.JPEG. Add it.")

    def stream(self, seed: int) -> Source:
        """Return pictures of the embedded data set that neither of its splits has.

        Raises:
            SetupError: the data set is another.
        """
        if self._on_hub() or data_name(self._home(), "imagenet") != "imagenet-mini":
            return super().stream(seed)
        from tasks.data.endless import Endless

        return Endless.of(self._home(), seed)

    def reassessed(self) -> Mapping[str, Sequence[int]]:
        """Return ReaL labels by item where `real.json` is present; they count classes in the order of ImageNet-1k.

        Raises:
            DataError: the file is something else.
        """
        path = Path() if self._on_hub() or self.annotations else self._home() / "real.json"
        if not path.is_file():
            return {}
        labels = _real_labels(path)
        images = self.split(self.evaluated_on)
        index = {label: position for position, label in enumerate(images.classes)}
        own = [index.get(label) for label in class_ids(Path())]
        found: dict[str, Sequence[int]] = {}
        for item in images.names:
            number = re.search(r"ILSVRC2012_val_(\d{8})", item)
            if number and 0 < int(number[1]) <= len(labels):
                here = [own[label] for label in labels[int(number[1]) - 1]]
                found[item] = [label for label in here if label is not None]
        return found

    def _on_hub(self) -> str:
        """The name of the data set on the Hugging Face hub, where `--data hfds/NAME` asks for one."""
        root = data_root(self.root).as_posix()
        return root.removeprefix(HUB) if root.startswith(HUB) else ""

    def _home(self) -> Path:
        return find(FOLDERS, self.root, EXPECTED, MARKS)


def _unpacked(folder: Path, home: Path, classes: tuple[str, ...], name: str, split: str) -> LabelledImages | None:
    """The images that lie in a folder, by class or flat; None where there are neither."""
    if not set(folders_in(folder)).isdisjoint(classes):
        return read_class_folders(folder, classes, name, split)
    return read_flat_folder(folder, home, classes, name, split) if images_in(folder) else None


def _packed(home: Path, classes: tuple[str, ...], name: str, split: str) -> LabelledImages | None:
    """The images in tar or parquet files; None where there are neither."""
    if tars := tars_of(home, split):
        return read_tars(tars, home, classes, name, split)
    if parquets := parquets_of(home, split):
        place = parquets[0].parent
        return read_hugging_face(str(place if place.name == "data" else home), classes, name, split)
    return None


def class_ids(home: Path) -> tuple[str, ...]:
    """Return the WordNet ids in class order: the data set's own `synsets.txt`, else the 1,000 of ImageNet-1k.

    Raises:
        DataError: the list is empty or repeats an id.
    """
    own = home / "synsets.txt"
    path = own if own.is_file() else _official_list()
    try:
        ids = tuple(line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} is not a readable text file ({error}). Write one WordNet id a line.") from error
    if not ids or len(set(ids)) < len(ids):
        raise DataError(f"{str(path)!r} must name every class once: one WordNet id a line, in class order.")
    return ids


def _official_list() -> Path:
    """timm's list of the 1,000 ids, found without importing timm, which takes seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("timm is not installed, so the class order of ImageNet-1k is unknown: pip install timm")
    return Path(spec.submodule_search_locations[0]) / "data" / "_info" / "imagenet_synsets.txt"


def _real_labels(path: Path) -> list[list[int]]:
    """The classes of each validation image, in the order of their numbers."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} is not JSON ({error}). Download it again, or remove it.") from error
    if not isinstance(labels, list) or not all(map(_are_classes, labels)):
        raise DataError(
            f"{path.name} does not hold ReaL labels: expected for each image a list of class indices up to 999. "
            "Download it again, or remove it."
        )
    return labels


def _are_classes(found: object) -> bool:
    return isinstance(found, list) and all(type(label) is int and 0 <= label < 1000 for label in found)
