"""Writers of every fine-grained data set in miniature, in its official layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from conftest import noise_jpeg
from scipy.io import savemat

Truth = dict[str, dict[str, str]]  # split -> image file, below the data set's folder -> class name


class Writer:
    """Writes images, each with other pixels, and keeps what is true of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.truth: Truth = {"train": {}, "test": {}}
        home.mkdir(parents=True)

    def image(self, split: str, file: str, label: str) -> None:
        path = self.home / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise_jpeg(len(self.truth["train"]) + 1000 * len(self.truth["test"])))
        self.truth[split][file] = label

    def text(self, file: str, lines: list[str]) -> None:
        path = self.home / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))

    def matlab(self, file: str, **content: Any) -> None:
        path = self.home / file
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, content)


def cells(values: list[str]) -> np.ndarray:
    """A MATLAB column of strings."""
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column


def rows(**columns: list[Any]) -> np.ndarray:
    """A MATLAB structure array."""
    count = len(next(iter(columns.values())))
    table = np.empty((1, count), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        for place, value in enumerate(values):
            table[name][0, place] = value
    return table


def counts(train: int, test: int) -> list[tuple[str, int]]:
    return [("train", number) for number in range(train)] + [("test", number) for number in range(test)]


def cub(home: Path, train: int, test: int) -> Truth:
    # The order of the ids is not the alphabetical one.
    return birds(home, {1: "001.Wren", 2: "002.Auk", 3: "003.Tern"}, {1: 1, 2: 2, 3: 3}, train, test)


def nabirds(home: Path, train: int, test: int) -> Truth:
    names = {0: "Birds", 1: "Ducks, Geese, and Swans", 295: "Wood Duck (Female)", 300: "Auk", 1010: "Blue Jay"}
    truth = birds(home, names, {1: 300, 2: 1010, 3: 295}, train, test)
    (home / "hierarchy.txt").write_text("1 0\n295 1\n300 0\n1010 0\n")
    return truth


def birds(home: Path, names: dict[int, str], labels: dict[int, int], train: int, test: int) -> Truth:
    writer = Writer(home)
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for folder, label in labels.items():
        for split, number in counts(train, test):
            image = f"{folder:02d}-{split}-{number}"
            writer.image(split, f"images/{folder:04d}/{image}.jpg", names[label])
            lists["images"].append(f"{image} {folder:04d}/{image}.jpg")
            lists["image_class_labels"].append(f"{image} {label}")
            lists["train_test_split"].append(f"{image} {int(split == 'train')}")
    for name, lines in lists.items():
        writer.text(f"{name}.txt", lines)
    writer.text("classes.txt", [f"{number} {name}" for number, name in names.items()])
    return writer.truth


CARS = ["Volvo 240 Sedan 1993", "AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]


def cars(home: Path, train: int, test: int) -> Truth:
    writer = Writer(home)
    for split in ("train", "test"):
        files, labels = [], []
        for label in range(3):
            for number in range(train if split == "train" else test):
                files.append(f"{label * 100 + number + 1:05d}.jpg")
                labels.append(np.uint8(label + 1))
                writer.image(split, f"cars_{split}/{files[-1]}", CARS[label])
        columns = {"bbox_x1": [1] * len(files), "class": labels, "fname": files}
        ending = "_withlabels" if split == "test" else ""
        place = "" if split == "test" else "devkit/"
        writer.matlab(f"{place}cars_{split}_annos{ending}.mat", annotations=rows(**columns))
        del columns["class"]
        if split == "test":
            writer.matlab("devkit/cars_test_annos.mat", annotations=rows(**columns))
    writer.matlab("devkit/cars_meta.mat", class_names=cells(CARS).T)
    return writer.truth


def cars_in_one_list(home: Path, train: int, test: int) -> Truth:
    writer = Writer(home)
    columns: dict[str, list[Any]] = {"relative_im_path": [], "class": [], "test": []}
    for label in range(3):
        for split, number in counts(train, test):
            file = f"car_ims/{label}{int(split == 'test')}{number:04d}.jpg"
            writer.image(split, file, CARS[label])
            for name, value in zip(columns, (file, label + 1, int(split == "test")), strict=True):
                columns[name].append(value)
    writer.matlab("cars_annos.mat", annotations=rows(**columns), class_names=cells(CARS).T)
    return writer.truth


def dogs(home: Path, train: int, test: int) -> Truth:
    writer = Writer(home)
    folders = ["n02085620-Chihuahua", "n02097474-Tibetan_terrier", "n02085782-Japanese_spaniel"]
    for split in ("train", "test"):
        files, labels = [], []
        for label, folder in enumerate(folders):
            for number in range(train if split == "train" else test):
                files.append(f"{folder}/{folder[:9]}_{number}{split}.jpg")
                labels.append([label + 1])
                writer.image(split, f"Images/{files[-1]}", folder)
        writer.matlab(f"{split}_list.mat", file_list=cells(files), labels=np.array(labels, dtype=np.float64))
    return writer.truth


def flowers(home: Path, train: int, test: int) -> Truth:
    writer = Writer(home)
    labels: list[int] = []
    ids: dict[str, list[int]] = {"trnid": [], "valid": [], "tstid": []}
    for label in (2, 1, 3):
        for split, number in counts(train, test):
            labels.append(label)
            part = "tstid" if split == "test" else ("valid" if number % 2 else "trnid")
            ids[part].append(len(labels))
            writer.image(split, f"jpg/image_{len(labels):05d}.jpg", str(label))
    writer.matlab("imagelabels.mat", labels=np.array([labels], dtype=np.uint8))
    writer.matlab("setid.mat", **{name: np.array([found], dtype=np.uint16) for name, found in ids.items()})
    return writer.truth


def aircraft(home: Path, train: int, test: int) -> Truth:
    writer = Writer(home)
    variants = ["707-320", "Boeing 717", "A300B4", "F/A-18"]
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, variant in enumerate(variants):
        for split, number in counts(train, test):
            image = f"{label}{int(split == 'test')}{number:05d}"
            writer.image(split, f"data/images/{image}.jpg", variant)
            lists[split].append(f"{image} {variant}")
    writer.text("data/variants.txt", variants)
    writer.text("data/images_variant_trainval.txt", lists["train"])
    writer.text("data/images_variant_test.txt", lists["test"])
    return writer.truth


def pets(home: Path, train: int, test: int) -> Truth:
    writer = Writer(home)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, breed in enumerate(["Abyssinian", "american_bulldog", "Bengal"], start=1):
        for split, number in counts(train, test):
            image = f"{breed}_{number + (100 if split == 'test' else 0)}"
            writer.image(split, f"images/{image}.jpg", breed)
            lists[split].append(f"{image} {label} 1 {label}")
    writer.text("annotations/trainval.txt", lists["train"])
    writer.text("annotations/test.txt", lists["test"])
    writer.text("annotations/list.txt", ["#Image CLASS-ID SPECIES BREED ID", *lists["train"], *lists["test"]])
    return writer.truth


def food101(home: Path, train: int, test: int) -> Truth:
    writer = Writer(home)
    dishes = ["apple_pie", "baby_back_ribs", "waffles"]
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, dish in enumerate(dishes):
        for split, number in counts(train, test):
            image = f"{dish}/{label}{int(split == 'test')}{number}"
            writer.image(split, f"images/{image}.jpg", dish)
            lists[split].append(image)
    for split, lines in lists.items():
        writer.text(f"meta/{split}.txt", lines)
        content = {dish: [line for line in lines if line.startswith(f"{dish}/")] for dish in dishes}
        (home / f"meta/{split}.json").write_text(json.dumps(content))
    writer.text("meta/classes.txt", dishes)
    return writer.truth


def inat21_mini(home: Path, train: int, test: int) -> Truth:
    return inat(home, "train_mini", train, test)


def inat21(home: Path, train: int, test: int) -> Truth:
    return inat(home, "train", train, test)


def inat(home: Path, training: str, train: int, test: int) -> Truth:
    writer = Writer(home)
    names = {0: "Lumbricus terrestris", 1: "Aix sponsa", 2: "Quercus robur"}
    for split, official in (("train", training), ("test", "val")):
        images, labels = [], []
        for label, name in names.items():
            for number in range(train if split == "train" else test):
                folder = f"{label:05d}_Animalia_Phylum_Class_Order_Family_{name.replace(' ', '_')}"
                file = f"{official}/{folder}/{split}{number}.jpg"
                writer.image(split, file, name)
                images.append({"id": len(images) + 7, "width": 40, "height": 36, "file_name": file, "license": 0})
                labels.append({"id": len(images), "image_id": images[-1]["id"], "category_id": label})
        # Neither the categories nor the labels come in the order of the ids.
        categories = [{"id": label, "name": names[label], "kingdom": "Animalia"} for label in (2, 0, 1)]
        content = {"info": {}, "images": images, "annotations": labels[::-1], "categories": categories}
        (home / f"{official}.json").write_text(json.dumps(content))
    return writer.truth


WRITERS: dict[str, tuple[str, Callable[[Path, int, int], Truth]]] = {
    "cub": ("CUB_200_2011", cub), "nabirds": ("nabirds", nabirds), "cars": ("stanford_cars", cars),
    "dogs": ("stanford_dogs", dogs), "flowers": ("flowers-102", flowers),
    "aircraft": ("fgvc-aircraft-2013b", aircraft), "pets": ("oxford-iiit-pet", pets),
    "food101": ("food-101", food101), "inat21_mini": ("inat21", inat21_mini), "inat21": ("inat21", inat21),
}  # fmt: skip
