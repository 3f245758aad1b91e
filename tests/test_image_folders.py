"""Class folders give the right image with the right label, whatever lies beside them, and say what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from imagenet_layouts import (
    CLASS_MAP,
    OFFICIAL,
    WNIDS,
    by_pixels,
    expected,
    labelled,
    picture,
    pictures,
    read,
    refused,
    timms,
    write,
    write_tar,
)

from harness.errors import DataError
from tasks.imagenet import ImageNet


@pytest.mark.parametrize(
    "home", ["", "imagenet", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"], ids=lambda home: home or "itself"
)
@pytest.mark.parametrize("split", ["val", "validation"])
def test_class_folders_are_labelled_by_wnid(tmp_path: Path, home: str, split: str) -> None:
    files = pictures()
    write(tmp_path / home / split, files)
    images = read(tmp_path)
    assert labelled(images) == expected(files)
    assert set(images.names) == set(files)
    assert (images.stamp.name, images.stamp.split, images.stamp.classes) == ("imagenet", "val", 1000)


def test_class_folders_equal_timm(tmp_path: Path) -> None:
    write(tmp_path / "val", pictures())
    assert by_pixels(read(tmp_path)) == timms("", tmp_path, "val", CLASS_MAP)


@pytest.mark.parametrize("flat", [False, True])
def test_the_validation_images_may_lie_in_the_root_itself(tmp_path: Path, flat: bool) -> None:
    files = pictures()
    write(tmp_path, {Path(name).name: content for name, content in files.items()} if flat else files)
    if flat:
        write(tmp_path, {"val.txt": "".join(f"{Path(name).name} {name[:9]}\n" for name in files)})
    assert labelled(read(tmp_path)) == expected(files)


def test_nested_folders_and_endings_of_either_case(tmp_path: Path) -> None:
    names = ("a.jpg", "deep/b.JPG", "deep/er/c.JPEG", "d.jpeg", "e.png", "f.PNG")
    files = {
        f"{WNIDS[0]}/{name}": picture(seed, "PNG" if "png" in name.lower() else "JPEG")
        for seed, name in enumerate(names)
    }
    write(tmp_path / "val", files)
    write(tmp_path / "val" / WNIDS[0], {"notes.txt": "no image", "picture.webp": "not read by timm either"})
    assert labelled(read(tmp_path)) == expected(files)
    assert set(read(tmp_path).names) == set(files)


def test_hidden_files_and_empty_folders_are_passed_over(tmp_path: Path) -> None:
    files = pictures()
    write(tmp_path / "val", files)
    hidden = {
        f"{WNIDS[0]}/._ILSVRC2012_val_00000001.JPEG": "what macOS leaves", f"{WNIDS[0]}/.cache/a.jpg": "a thumbnail",
        ".DS_Store": "", ".trash/old.JPEG": "gone", "._stray.JPEG": "hidden",
    }  # fmt: skip
    write(tmp_path / "val", hidden)
    (tmp_path / "val" / OFFICIAL[5]).mkdir()
    (tmp_path / "val" / "no class, and empty").mkdir()
    (tmp_path / "val" / WNIDS[0] / "folder.jpg").mkdir()
    assert labelled(read(tmp_path)) == expected(files)


def test_linked_class_folders_and_files(tmp_path: Path) -> None:
    files = pictures()
    write(tmp_path / "elsewhere", files)
    (tmp_path / "root" / "val").mkdir(parents=True)
    for wnid in WNIDS[1:]:
        (tmp_path / "root" / "val" / wnid).symlink_to(tmp_path / "elsewhere" / wnid)
    (tmp_path / "root" / "val" / WNIDS[0]).mkdir()
    for path in (tmp_path / "elsewhere" / WNIDS[0]).iterdir():
        (tmp_path / "root" / "val" / WNIDS[0] / path.name).symlink_to(path)
    assert labelled(read(tmp_path / "root")) == expected(files)


def test_an_unpacked_folder_goes_before_the_archive_it_came_from(tmp_path: Path) -> None:
    files = pictures()
    write(tmp_path / "val", files)
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000001.JPEG": picture(99)})
    assert labelled(read(tmp_path)) == expected(files)


def test_a_folder_that_is_no_class(tmp_path: Path) -> None:
    write(tmp_path / "val", {**pictures(), "tench/a.JPEG": picture(50)})
    refused(tmp_path, "tench' is no class of imagenet", "'n01440764'", "Rename it or move it away")


def test_folders_of_which_none_is_a_class(tmp_path: Path) -> None:
    write(tmp_path / "val", {f"{label}/a.JPEG": picture(label) for label in range(10)})
    refused(tmp_path, "val/0' is no class of imagenet")


def test_images_beside_the_class_folders(tmp_path: Path) -> None:
    write(tmp_path / "val", {**pictures(), "stray.JPEG": picture(50)})
    refused(tmp_path, "1 images beside its class folders", "'stray.JPEG'")


@pytest.mark.parametrize("inside", ["", "n01440764", "anything"])
def test_a_folder_without_images(tmp_path: Path, inside: str) -> None:
    (tmp_path / "val" / inside).mkdir(parents=True)
    refused(tmp_path, "val' holds no images (.jpeg, .jpg, .png)", "expected n01440764/*.JPEG", "--data")


def test_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(tmp_path / "absent", "There is no data root", "absent'", "BENCH_DATA", "--data", "data mini")
    assert message.count("'") == 2
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "imagenet not found in", "empty/imagenet'", "expected val/<wnid>/*.JPEG", "--data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_DATA", "from/the/environment")
    with pytest.raises(DataError, match="no data root 'from/the/environment'"):
        ImageNet().split("val")


def test_no_such_split(tmp_path: Path) -> None:
    write(tmp_path / "train", pictures())
    refused(tmp_path, "imagenet has no split 'val'", "expected val/<wnid>/*.JPEG")
    shutil.move(tmp_path / "train", tmp_path / "val")
    refused(tmp_path, "imagenet has no split 'train'", "expected train/<wnid>/*.JPEG", split="train")


def test_what_the_system_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "val", pictures())
    broken = tmp_path / "val" / WNIDS[0] / "broken.JPEG"
    broken.symlink_to(tmp_path / "nowhere.JPEG")
    refused(tmp_path, f"{WNIDS[0]}/broken.JPEG cannot be read (No such file or directory)", "Restore it")
    broken.unlink()

    real = os.scandir

    def scandir(path: str = ".") -> object:
        if str(path).endswith(WNIDS[1]):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(tmp_path, f"{WNIDS[1]} cannot be read (Permission denied)")


# The order of the classes


@pytest.mark.parametrize("line", ["{}\n", "{} tench, Tinca tinca\n", "\n{}   \r\n"], ids=["bare", "named", "untidy"])
def test_an_own_list_defines_the_classes(tmp_path: Path, line: str) -> None:
    own = WNIDS[::-1]
    files = pictures()
    write(tmp_path / "val", files)
    write(tmp_path, {"synsets.txt": "".join(map(line.format, own))})
    assert labelled(read(tmp_path)) == expected(files, own)
    assert ImageNet(tmp_path).num_classes == len(own)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"n01440764\nn01440764\n", b"\xff\xfe\x00n"])
def test_a_list_of_classes_that_cannot_be(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "val", pictures())
    write(tmp_path, {"synsets.txt": content})
    refused(tmp_path, "synsets.txt'", "WordNet id a line")


def test_a_data_set_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "val", pictures())
    write(tmp_path, {"dataset.json": json.dumps({"name": "imagenet-mine"})})
    assert read(tmp_path).stamp.name == "imagenet-mine"
    for content in ("no json", "[]", "{}"):
        write(tmp_path, {"dataset.json": content})
        refused(tmp_path, "dataset.json'", "Mend it, or remove it")
