"""ImageNet-1k (ILSVRC 2012), in any of the layouts that people have."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import DataError
from harness.registry import TASKS
from tasks.classification import Classification
from tasks.data.ground_truth import read_flat_folder
from tasks.data.image_folder import read_class_folders
from tasks.data.labelled import LabelledImages
from tasks.data.roots import find
from tasks.data.timm_reader import parquets_of, read_hugging_face, read_tars, tars_of

FOLDERS = ("imagenet", "imagenet-1k", "imagenet1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
MARKS = ("val", "validation", "train", "val.tar", "*val*.tar", "*.parquet", "data/*.parquet")
EXPECTED = "val/<wnid>/*.JPEG"


@TASKS.register("imagenet")
class ImageNet(Classification):
    """Top-1 and top-5 on the validation images, labelled by WordNet id.

    Source: Russakovsky et al. 2015 (arXiv:1409.0575). With `real.json` in the data set's folder also ReaL labels
    (Beyer et al. 2020, arXiv:2006.07159).
    """

    def read(self, split: str) -> LabelledImages:
        """Read a split: class folders, a flat folder with a list, tar files, WebDataset shards, or parquet."""
        if str(self.root or "").startswith("hfds/"):
            return read_hugging_face(str(self.root).removeprefix("hfds/"), class_ids(Path()), "imagenet", split)
        home = self._home()
        classes, name = class_ids(home), _name(home)
        folder = next((home / word for word in (split, "validation") if (home / word).is_dir()), None)
        if tars := tars_of(home, split):
            return read_tars(tars, classes, name, split)
        if parquets_of(home, split):
            return read_hugging_face(str(home), classes, name, split)
        if folder is None:
            raise DataError(f"imagenet has no split {split!r} in {str(home)!r}: expected {split}/<wnid>/*.JPEG.")
        if any(path.is_dir() for path in folder.iterdir()):
            return read_class_folders(folder, classes, name, split)
        return read_flat_folder(folder, home, classes, name, split)

    def reassessed(self) -> Mapping[str, Sequence[int]]:
        """Return ReaL labels by file name where `real.json` is present."""
        if str(self.root or "").startswith("hfds/"):
            return {}
        path = self._home() / "real.json"
        if not path.is_file():
            return {}
        try:
            labels = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{str(path)!r} is not JSON ({error}). Download real.json again, or remove it.") from error
        return {f"ILSVRC2012_val_{number:08d}.JPEG": found for number, found in enumerate(labels, start=1)}

    def _home(self) -> Path:
        return find(FOLDERS, self.root, EXPECTED, MARKS)


def class_ids(home: Path) -> tuple[str, ...]:
    """Return the WordNet ids in class order: the data set's own `synsets.txt`, else the 1,000 of ImageNet-1k.

    Raises:
        DataError: the list is empty or repeats an id.
    """
    own = home / "synsets.txt"
    path = own if own.is_file() else _official_list()
    ids = tuple(line.split()[0] for line in path.read_text().splitlines() if line.strip())
    if not ids or len(set(ids)) < len(ids):
        raise DataError(f"{str(path)!r} must name every class once: one WordNet id a line, in class order.")
    return ids


def _official_list() -> Path:
    """timm's list of the 1,000 ids, found without importing timm, which takes seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("timm is not installed, so the class order of ImageNet-1k is unknown: pip install timm")
    return Path(spec.submodule_search_locations[0]) / "data" / "_info" / "imagenet_synsets.txt"


def _name(home: Path) -> str:
    """`imagenet`, unless the folder's dataset.json gives the data another name."""
    path = home / "dataset.json"
    return str(json.loads(path.read_text())["name"]) if path.is_file() else "imagenet"
