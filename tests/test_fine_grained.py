"""Every fine-grained set in its official layout: files, labels and class order equal to what was written, and to
torchvision's readers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets as published
from fine_grained_sets import WRITERS, Truth, cars_in_one_list

from harness.api import run
from harness.errors import DataError
from harness.leaderboard import why_unranked
from harness.registry import PROTOCOLS, TASKS
from harness.task import build_task
from tasks.fine_grained import SETS, FineGrained

NAMES = sorted(SETS)
Make = Callable[..., tuple[Path, Truth]]
HERE: dict[str, Any] = {"device": "cpu", "executor": "inline", "workers": 0}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes a data set in miniature, and returns the data root and what is true of it."""

    def write(name: str, train: int = 2, test: int = 1, folder: str = "") -> tuple[Path, Truth]:
        usual, writer = WRITERS[name]
        return tmp_path / "data", writer(tmp_path / "data" / (folder or usual), train, test)

    return write


def task(name: str, data: Path) -> FineGrained:
    found = build_task(name, data)
    assert isinstance(found, FineGrained)
    return found


def labelled(task: FineGrained, split: str) -> dict[bytes, str]:
    """The class of each image by its content."""
    images = task.split(split)
    return {images.read(index): images.classes[images.targets[index]] for index in range(len(images))}


def home(data: Path, name: str) -> Path:
    return data / WRITERS[name][0]


def test_every_set_has_a_miniature() -> None:
    assert set(WRITERS) == set(SETS)
    assert set(SETS) <= set(TASKS)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", NAMES)
def test_images_and_classes_are_those_of_the_lists(name: str, split: str, make: Make) -> None:
    data, truth = make(name)
    written = {(home(data, name) / file).read_bytes(): label for file, label in truth[split].items()}
    assert len(written) == len(truth[split])
    assert labelled(task(name, data), split) == written
    assert not task(name, data).split(split).absent


ORDERS = {
    "cub": ("001.Wren", "002.Auk", "003.Tern"),
    "nabirds": ("Wood Duck (Female)", "Auk", "Blue Jay"),
    "cars": ("Volvo 240 Sedan 1993", "AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"),
    "dogs": ("n02085620-Chihuahua", "n02097474-Tibetan_terrier", "n02085782-Japanese_spaniel"),
    "flowers": ("1", "2", "3"),
    "aircraft": ("707-320", "Boeing 717", "A300B4", "F/A-18"),
    "pets": ("Abyssinian", "american_bulldog", "Bengal"),
    "food101": ("apple_pie", "baby_back_ribs", "waffles"),
    "inat21": ("Lumbricus terrestris", "Aix sponsa", "Quercus robur"),
    "inat21_mini": ("Lumbricus terrestris", "Aix sponsa", "Quercus robur"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_class_order_is_that_of_the_annotations(name: str, make: Make) -> None:
    data, _ = make(name)
    found = task(name, data)
    assert found.split("test").classes == found.split("train").classes == ORDERS[name]
    assert (home(data, name) / found.split("test").order).is_file() or name in ("cars", "aircraft")


def test_torchvision_reads_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    readers = {
        "cars": (published.StanfordCars, {"train": ("train",), "test": ("test",)}, "_samples"),
        "flowers": (published.Flowers102, {"train": ("train", "val"), "test": ("test",)}, "_image_files"),
        "aircraft": (published.FGVCAircraft, {"train": ("trainval",), "test": ("test",)}, "_image_files"),
        "pets": (published.OxfordIIITPet, {"train": ("trainval",), "test": ("test",)}, "_images"),
        "food101": (published.Food101, {"train": ("train",), "test": ("test",)}, "_image_files"),
    }
    for name, (reader, splits, files) in readers.items():
        data, _ = make(name, train=4, test=2)
        for split, parts in splits.items():
            expected = {}
            for part in parts:
                theirs = reader(data, split=part)
                labels = [theirs._samples[i][1] for i in range(len(theirs))] if name == "cars" else theirs._labels
                paths = [found[0] if name == "cars" else found for found in getattr(theirs, files)]
                expected |= {Path(path).read_bytes(): int(label) for path, label in zip(paths, labels, strict=True)}
            images = task(name, data).split(split)
            assert {images.read(i): images.targets[i] for i in range(len(images))} == expected
            assert len(expected) == len(images)


def test_torchvision_numbers_the_species_alike(make: Make) -> None:
    data, truth = make("inat21_mini")
    folder = home(data, "inat21_mini")
    (folder / "val").rename(folder / "2021_valid")  # as torchvision names what it unpacks
    theirs = published.INaturalist(folder, version="2021_valid")
    expected = {theirs.all_categories[label] + "/" + file: label for label, file in theirs.index}
    images = task("inat21_mini", data).split("test")
    assert dict(zip(images.names, images.targets, strict=True)) == expected
    assert len(expected) == len(truth["test"])


def test_cars_in_one_list(tmp_path: Path) -> None:
    truth = cars_in_one_list(tmp_path / "cars", 3, 2)
    for split in ("train", "test"):
        written = {(tmp_path / "cars" / file).read_bytes(): label for file, label in truth[split].items()}
        assert labelled(task("cars", tmp_path), split) == written


@pytest.mark.parametrize("name", NAMES)
def test_other_folder_names_and_the_folder_itself(name: str, make: Make) -> None:
    folder = SETS[name].folders[1]
    data, truth = make(name, folder=folder)
    assert len(task(name, data).split("test")) == len(truth["test"])
    assert len(task(name, data / folder).split("train")) == len(truth["train"])


@pytest.mark.parametrize("name", NAMES)
def test_every_missing_list_is_named(name: str, make: Make) -> None:
    data, _ = make(name)
    unread = ["list.txt", "hierarchy.txt", "meta/train.json", "meta/test.json", "devkit/cars_test_annos.mat"]
    lists = [path for path in home(data, name).rglob("*") if path.is_file() and path.suffix != ".jpg"]
    needed = [path for path in lists if not path.as_posix().endswith(tuple(unread))]
    assert len(needed) >= 2
    for path in needed:
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(DataError, match=f"(lacks|expected).*{path.name}"):
            [task(name, data).split(split) for split in ("train", "test")]
        path.write_bytes(b"\0\xff{")  # neither text nor JSON nor MATLAB
        with pytest.raises(DataError, match=path.name):
            [task(name, data).split(split) for split in ("train", "test")]
        path.write_bytes(kept)
    assert task(name, data).split("train")


@pytest.mark.parametrize("name", NAMES)
def test_absent_data_say_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found in .*: expected"):
        task(name, tmp_path).split("test")


@pytest.mark.parametrize("name", NAMES)
def test_images_that_are_absent_are_counted_and_named(name: str, make: Make) -> None:
    data, truth = make(name, train=2, test=3)
    gone = sorted(truth["test"])[:2]
    for file in gone:
        (home(data, name) / file).unlink()
    images = task(name, data).split("test")
    assert len(images) == len(truth["test"]) - 2
    assert [file.endswith(name) for file, name in zip(gone, sorted(images.absent), strict=True)] == [True, True]
    for file in set(truth["test"]) - set(gone):
        (home(data, name) / file).unlink()
    with pytest.raises(DataError, match=r"images: of the \d+ that are listed, such as .*, none is in"):
        task(name, data).split("test")


def test_lists_of_different_releases_are_refused(make: Make) -> None:
    data, _ = make("inat21_mini")
    path = home(data, "inat21_mini") / "val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"], content["categories"][1]["name"] = "Aix sponsa", "Quercus robur"
    path.write_text(json.dumps(content))
    assert len(task("inat21_mini", data).split("test")) == 3
    with pytest.raises(DataError, match=r"train_mini\.json and val\.json disagree on category 0: 'Lumbricus"):
        task("inat21_mini", data).split("train")


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("cub", "image_class_labels.txt", " 3\n", " 9\n", "has the class '9', which is not among the 3"),
        ("cub", "train_test_split.txt", " 1\n", " 2\n", "has the flag '2': expected 1 or 0"),
        (
            "cub",
            "train_test_split.txt",
            "01-train-0 1\n",
            "",
            "has no line for 1 of 9 images, the first id '01-train-0'",
        ),
        ("cub", "images.txt", "01-train-1 ", "01-train-0 ", "expected each id once"),
        ("aircraft", "data/images_variant_test.txt", "F/A-18", "F-14", "has the class 'F-14'"),
        ("food101", "meta/test.txt", "waffles/", "falafel/", "has the class 'falafel'"),
        ("pets", "annotations/test.txt", "Bengal_100 3", "Bengal_100 2", "class 2 two names"),
        ("pets", "annotations/test.txt", "Bengal_100 3 1 3", "Bengal_100", "expected an image and the number"),
    ],
)
def test_lists_that_contradict_are_refused(name: str, file: str, old: str, new: str, message: str, make: Make) -> None:
    data, _ = make(name)
    path = home(data, name) / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        [task(name, data).split(split) for split in ("train", "test")]


def test_cars_whose_test_labels_were_not_published_say_so(make: Make) -> None:
    data, _ = make("cars")
    (home(data, "cars") / "cars_test_annos_withlabels.mat").unlink()
    assert len(task("cars", data).split("train")) == 6
    with pytest.raises(DataError, match=r"lacks .*cars_test_annos_withlabels\.mat"):
        task("cars", data).data()


def test_a_download_that_was_cut_off_does_not_rank(make: Make, nets: str) -> None:
    data, truth = make("pets", train=5, test=4)
    for file in sorted(truth["test"])[:3]:
        (home(data, "pets") / file).unlink()
    (record,) = run(f"{nets}:tiny", "pets:knn", data=data, results=data.parent / "results", **HERE)
    assert record.error is None
    assert record.details["absent_images"]["test"]["absent"] == 3
    assert why_unranked(record).startswith(
        "3 of 12 listed test images are absent, such as Abyssinian_100.jpg. Measured mean"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_users_model_is_evaluated_on_every_set(name: str, make: Make, nets: str) -> None:
    data, _ = make(name, train=3, test=2)
    (record,) = run(f"{nets}:tiny", f"{name}:knn", data=data, results=data.parent / "results", **HERE)
    assert record.error is None
    assert why_unranked(record) == ""
    headline = "mean_per_class" if name in ("flowers", "aircraft", "pets") else "top1"
    assert record.measurements[0].metric.name == headline
    assert record.details["classes"] == list(ORDERS[name])
    assert record.details["classes_from"].endswith((".txt", ".mat", ".json"))
    assert len(record.details["classes_sha256"]) == 64
    assert record.data is not None
    official = {"inat21": "val", "inat21_mini": "val"}.get(name, "test")
    assert (record.data.name, record.data.split) == (name, official)


def test_every_protocol_has_every_set(make: Make) -> None:
    data, _ = make("cub")
    for protocol in PROTOCOLS:
        assert build_task(f"cub:{protocol}", data).data() is not None


# The small real data


def test_the_real_birds(shared_data: Path) -> None:
    found = task("cub", shared_data)
    folders = {name.partition("/")[0] for split in ("train", "test") for name in found.split(split).names}
    for split in ("train", "test"):
        images = found.split(split)
        named = [name.partition("/")[0] for name in images.names]
        assert [images.classes[target] for target in images.targets] == named
    # Class 1 is the albatross, 14 the bunting, and so on: the number in the folder's name.
    assert {int(name[:3]) - 1 for name in folders} == set(found.split("test").targets)


def test_the_real_flowers(shared_data: Path) -> None:
    found = task("flowers", shared_data)
    train, test = found.split("train"), found.split("test")
    assert (len(train.absent) + len(train), len(test.absent) + len(test)) == (2040, 6149)
    assert len(train.classes) == 102
    assert set(test.targets) <= set(train.targets)
    present = {path.name for path in (shared_data / "flowers-102" / "jpg").glob("*.jpg")}
    assert {*train.names, *test.names} == present


def test_the_real_cars(shared_data: Path) -> None:
    train = task("cars", shared_data).split("train")
    assert (len(train.absent) + len(train), len(train.classes)) == (8144, 196)
    assert train.classes[:2] == ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
    assert set(train.names) == {path.name for path in (shared_data / "stanford_cars" / "cars_train").glob("*.jpg")}


def test_real_lists_without_any_image_are_refused(shared_data: Path, tmp_path: Path) -> None:
    for file in ("imagelabels.mat", "setid.mat"):
        (tmp_path / "flowers-102" / "jpg").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared_data / "flowers-102" / file, tmp_path / "flowers-102" / file)
    with pytest.raises(DataError, match=r"of the 6,149 that are listed, such as 'image_06734\.jpg', none"):
        task("flowers", tmp_path).data()
