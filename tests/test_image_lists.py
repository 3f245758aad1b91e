"""A flat folder of images with a list, in every form that lists have, gives the right label or says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from imagenet_layouts import (
    CLASS_MAP,
    LISTS,
    OFFICIAL,
    WNIDS,
    by_pixels,
    digest,
    expected,
    flat,
    in_order,
    labelled,
    lines,
    picture,
    pictures,
    read,
    refused,
    timms,
    wnid_of,
    write,
)
from scipy.io import savemat


@pytest.mark.parametrize("beside", [False, True], ids=["inside", "beside"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_flat_folder_with_a_list(tmp_path: Path, kind: str, beside: bool) -> None:
    files = pictures()
    flat(tmp_path / "imagenet" / "val", files)
    name, make = LISTS[kind]
    write(tmp_path / "imagenet" / ("" if beside else "val"), {name: make(wnid_of(files))})
    (tmp_path / "imagenet" / "val" / "an empty folder").mkdir()
    assert labelled(read(tmp_path)) == expected(files)


def test_a_flat_folder_equals_class_folders(tmp_path: Path) -> None:
    files = pictures()
    write(tmp_path / "folders" / "val", files)
    flat(tmp_path / "flat" / "val", files)
    write(tmp_path / "flat", {"val.txt": LISTS["file and index"][1](wnid_of(files))})
    assert by_pixels(read(tmp_path / "flat")) == timms("", tmp_path / "folders", "val", CLASS_MAP)


def test_kaggles_archive(tmp_path: Path) -> None:
    files = pictures()
    flat(tmp_path / "ILSVRC/Data/CLS-LOC/val", files)
    name, make = LISTS["Kaggle"]
    write(tmp_path, {name: make(wnid_of(files))})
    assert labelled(read(tmp_path)) == expected(files)
    assert labelled(read(tmp_path / "ILSVRC/Data/CLS-LOC")) == expected(files)


def test_file_names_with_spaces(tmp_path: Path) -> None:
    write(tmp_path / "val", {"my dog.JPEG": picture(1), "my cat.JPEG": picture(2)})
    write(tmp_path, {"val.txt": f"my dog.JPEG {OFFICIAL[7]}\nmy cat.JPEG {OFFICIAL[3]}\n"})
    assert labelled(read(tmp_path)) == {digest(picture(1)): 7, digest(picture(2)): 3}


def test_each_split_has_its_own_list(tmp_path: Path) -> None:
    files = pictures()
    for split in ("val", "train"):
        flat(tmp_path / split, files)
    write(tmp_path, {"val.txt": lines("{file} {wnid}\n")(wnid_of(files)), "train.txt": in_order("7\n")(wnid_of(files))})
    assert labelled(read(tmp_path)) == expected(files)
    assert set(labelled(read(tmp_path, "train")).values()) == {7}


# The devkit numbers classes by a list of its own, where 1,000 leaves come before the nodes above them.
DEVKIT_IDS = {wnid: 990 - 300 * place for place, wnid in enumerate(WNIDS[:3])} | {WNIDS[3]: 3}
DEVKIT_LIST = "ILSVRC2012_validation_ground_truth.txt"


def write_meta(path: Path, ids: Mapping[str, int]) -> None:
    """Write meta.mat as the devkit has it: a (n, 1) struct array of eight fields."""
    fields = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    rows = [
        (float(number), wnid, "tench, Tinca tinca", "a fish", 0.0, np.zeros((1, 0)), 0.0, 1300.0)
        for wnid, number in sorted(ids.items(), key=lambda item: item[1])
    ]
    synsets = np.array([rows], dtype=[(field, object) for field in fields]).reshape(-1, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"synsets": synsets})


@pytest.mark.parametrize("place", ["ILSVRC2012_devkit_t12/data", "devkit/data", "", "val"])
@pytest.mark.parametrize("several", [True, False], ids=["classes", "one class"])
def test_the_devkits_list(tmp_path: Path, place: str, several: bool) -> None:
    wnids = WNIDS if several else WNIDS[:1]
    files = pictures(wnids)
    flat(tmp_path / "val", files)
    numbers = [DEVKIT_IDS[wnid] for _, wnid in sorted(wnid_of(files).items())]
    write(tmp_path / place, {DEVKIT_LIST: "".join(f"{number}\n" for number in numbers)})
    refused(tmp_path, DEVKIT_LIST, "put the devkit's meta.mat beside it")
    above = {"n00001740": 1001} if several else {}
    write_meta(tmp_path / place / "meta.mat", {wnid: DEVKIT_IDS[wnid] for wnid in wnids} | above)
    assert labelled(read(tmp_path)) == expected(files)


def test_a_devkit_that_does_not_fit(tmp_path: Path) -> None:
    files = pictures()
    flat(tmp_path / "val", files)
    write(tmp_path, {DEVKIT_LIST: "5\n" * len(files), "meta.mat": "no matrix"})
    refused(tmp_path, "meta.mat is not the devkit's")
    write_meta(tmp_path / "meta.mat", DEVKIT_IDS)
    refused(tmp_path, "the label '5', which meta.mat does not know")


BAD_LISTS: dict[str, tuple[Callable[[dict[str, str]], str | bytes], str]] = {
    "1-based": (lambda labels: "".join(f"{file} 1000\n" for file in labels), "labels up to 1000 for 1000 classes"),
    "too few": (lambda labels: "7\n" * (len(labels) - 1), "7 labels for 8 images"),
    "an image without": (lambda labels: lines("{file} 7\n")(dict(list(labels.items())[1:])), "no label for 1 of 8"),
    "a line without": (lambda labels: lines("{file} {wnid}\n")(labels) + "extra.JPEG\n", "no label in line 9"),
    "an empty label": (lambda labels: lines("{file},{wnid}\n")(labels) + "extra.JPEG,\n", "no label in line 9"),
    "no class": (lambda labels: lines("{file} {wnid}\n")(labels).replace(WNIDS[0], "tench"), "the label 'tench'"),
    "negative": (lambda labels: in_order("-1\n")(labels), "the label '-1'"),
    "not decimal": (lambda labels: in_order("²\n")(labels), "the label '²'"),
    "mixed": (lambda labels: lines("{file} {wnid}\n")(labels).replace(WNIDS[0], "3"), "the label '3'"),
    "two labels": (lambda labels: lines("{file} 1\n{file} 2\n")(labels), "two labels, '1' and '2'"),
    "empty": (lambda labels: "\n", "val.txt is empty"),
    "only a header": (lambda labels: "file,label\n", "val.txt is empty"),
    "no text": (lambda labels: b"\xff\xd8\xff", "val.txt is not a readable text file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_LISTS)
def test_a_list_that_does_not_fit(tmp_path: Path, kind: str) -> None:
    files = pictures()
    flat(tmp_path / "val", files)
    make, part = BAD_LISTS[kind]
    write(tmp_path, {"val.txt": make(wnid_of(files))})
    refused(tmp_path, "val.txt", part)


def test_images_without_a_list(tmp_path: Path) -> None:
    flat(tmp_path / "val", pictures())
    refused(tmp_path, "val' holds images without labels", "val.txt (a line an image", "LOC_val_solution.csv")
