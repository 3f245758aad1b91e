"""The fine-grained data sets: rows of one table, each in its official layout with its official split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.registry import TASKS
from tasks.classification import Classification
from tasks.data import bird_lists, inat_json, matlab_lists, name_lists
from tasks.data.labelled import LabelledImages
from tasks.data.listing import Listing, load
from tasks.data.roots import data_name, find


@dataclass(frozen=True)
class DataSet:
    """What tells one fine-grained data set from another.

    Args:
        title: with the number of classes, and of training and test images.
        source: the paper.
        read: from the folder and the split's official name to what its lists say.
        layout: what the folder holds, for messages.
        folders: its usual names.
        marks: patterns of files of which one says that a folder is this data set.
        train: the official name of what trains.
        test: the official name of what is evaluated.
        per_class: whether the field reports the mean of the classes' accuracies: Kornblith et al. 2019
            (arXiv:1805.08974, table 1) and, after them, CLIP (arXiv:2103.00020, table 9).
    """

    title: str
    source: str
    read: Callable[[Path, str], Listing]
    layout: str
    folders: tuple[str, ...]
    marks: tuple[str, ...]
    train: str = "train"
    test: str = "test"
    per_class: bool = False


INAT = ("inat21", "inat2021", "inaturalist", "iNaturalist2021", "inat")
SETS = {
    "cub": DataSet(
        title="CUB-200-2011: 200 birds, 5,994 / 5,794",
        source="Wah et al. 2011 (Caltech CNS-TR-2011-001)",
        read=bird_lists.read_bird_lists,
        layout=bird_lists.LAYOUT,
        folders=("CUB_200_2011", "cub", "cub200", "CUB_200_2011/CUB_200_2011", "CUB-200-2011"),
        marks=("image_class_labels.txt",),
    ),
    "nabirds": DataSet(
        title="NABirds: 555 birds, 23,929 / 24,633",
        source="Van Horn et al. 2015 (CVPR)",
        read=bird_lists.read_nabirds,
        layout=bird_lists.LAYOUT,
        folders=("nabirds", "NABirds"),
        marks=("hierarchy.txt",),
    ),
    "cars": DataSet(
        title="Stanford Cars: 196 models, 8,144 / 8,041",
        source="Krause et al. 2013 (3dRR)",
        read=matlab_lists.read_cars,
        layout=matlab_lists.CARS,
        folders=("stanford_cars", "cars", "stanford-cars", "StanfordCars"),
        marks=("cars_train", "cars_annos.mat", "devkit/cars_meta.mat"),
    ),
    "dogs": DataSet(
        title="Stanford Dogs: 120 breeds, 12,000 / 8,580",
        source="Khosla et al. 2011 (FGVC workshop)",
        read=matlab_lists.read_dogs,
        layout=matlab_lists.DOGS,
        folders=("stanford_dogs", "dogs", "stanford-dogs", "StanfordDogs"),
        marks=("train_list.mat", "lists/train_list.mat"),
    ),
    "flowers": DataSet(
        title="Oxford Flowers-102: 102 flowers, 2,040 / 6,149",
        source="Nilsback and Zisserman 2008 (ICVGIP)",
        read=matlab_lists.read_flowers,
        layout=matlab_lists.FLOWERS,
        folders=("flowers-102", "flowers", "flowers102", "oxford-flowers", "oxford_flowers102"),
        marks=("setid.mat",),
        train="trainval",
        per_class=True,
    ),
    "aircraft": DataSet(
        title="FGVC-Aircraft: 100 variants, 6,667 / 3,333",
        source="Maji et al. 2013 (arXiv:1306.5151)",
        read=name_lists.read_aircraft,
        layout=name_lists.AIRCRAFT,
        folders=("fgvc-aircraft-2013b", "aircraft", "fgvc-aircraft", "fgvc_aircraft"),
        marks=("data/variants.txt", "variants.txt"),
        train="trainval",
        per_class=True,
    ),
    "pets": DataSet(
        title="Oxford-IIIT Pets: 37 breeds, 3,680 / 3,669",
        source="Parkhi et al. 2012 (CVPR)",
        read=name_lists.read_pets,
        layout=name_lists.PETS,
        folders=("oxford-iiit-pet", "pets", "oxford_pets", "oxford-pets", "OxfordIIITPet"),
        marks=("annotations/trainval.txt",),
        train="trainval",
        per_class=True,
    ),
    "food101": DataSet(
        title="Food-101: 101 dishes, 75,750 / 25,250",
        source="Bossard et al. 2014 (ECCV)",
        read=name_lists.read_food,
        layout=name_lists.FOOD,
        folders=("food-101", "food101", "Food-101"),
        marks=("meta/classes.txt",),
    ),
    "inat21_mini": DataSet(
        title="iNaturalist 2021, small training set: 10,000 species, 500,000 / 100,000",
        source="Van Horn et al. 2021 (arXiv:2103.16483)",
        read=inat_json.read_inat,
        layout=inat_json.LAYOUT,
        folders=INAT,
        marks=("train_mini.json", "val.json"),
        train="train_mini",
        test="val",
    ),
    "inat21": DataSet(
        title="iNaturalist 2021: 10,000 species, 2,686,843 / 100,000",
        source="Van Horn et al. 2021 (arXiv:2103.16483)",
        read=inat_json.read_inat,
        layout=inat_json.LAYOUT,
        folders=INAT,
        marks=("train.json", "val.json"),
        test="val",
    ),
}


class FineGrained(Classification):
    """A row of the table: its official training images train, and its official test images are evaluated."""

    evaluated_on = "test"
    name: ClassVar[str]
    row: ClassVar[DataSet]

    def read(self, split: str) -> LabelledImages:
        """Read the images that the split's list names and that are there."""
        row = self.row
        home = find(row.folders, self.root, row.layout, row.marks)
        official = row.train if split == "train" else row.test
        return load(row.read(home, official), data_name(home, self.name), official)

    @property
    def per_class(self) -> bool:
        """Whether the headline is the mean of the classes' accuracies."""
        return self.row.per_class


for _name, _row in SETS.items():
    _doc = f"{_row.title} images.\n\nSource: {_row.source}."
    TASKS.register(_name)(
        type(_name, (FineGrained,), {"name": _name, "row": _row, "__doc__": _doc, "__module__": __name__})
    )
