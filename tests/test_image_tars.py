"""Tar files and WebDataset shards are read as timm reads them, also by several processes, or refused."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from imagenet_layouts import (
    CLASS_MAP,
    LISTS,
    OFFICIAL,
    WNIDS,
    Pictures,
    by_pixels,
    expected,
    in_order,
    labelled,
    picture,
    pictures,
    read,
    refused,
    timms,
    wnid_of,
    write,
    write_tar,
)

from harness.errors import DataError
from harness.preprocessing import DEFAULT
from harness.record import Setup
from tasks.data.loader import Batches


def split_by_class(files: Pictures) -> dict[str, Pictures]:
    found: dict[str, Pictures] = {}
    for name, content in files.items():
        wnid, _, file = name.partition("/")
        found.setdefault(wnid, {})[file] = content
    return found


def tar_of_folders(root: Path, files: Pictures) -> Path:
    write_tar(root / "val.tar", {f"val/{name}": content for name, content in files.items()})
    return root / "val.tar"


def tar_a_class(root: Path, files: Pictures) -> Path:
    for wnid, inside in split_by_class(files).items():
        write_tar(root / "val" / f"{wnid}.tar", inside)
    return root / "val"


def tar_of_tars(root: Path, files: Pictures) -> Path:
    # The same file names in every class, as only the path through the inner tar tells them apart.
    inner = {
        f"{wnid}.tar": write_tar(root / "made" / f"{wnid}.tar", {f"{n}.JPEG": c for n, c in enumerate(inside.values())})
        for wnid, inside in split_by_class(files).items()
    }
    shutil.rmtree(root / "made")
    write_tar(root / "val.tar", inner)
    return root / "val.tar"


TARS = {"folders": tar_of_folders, "one a class": tar_a_class, "nested": tar_of_tars}


@pytest.mark.parametrize("layout", TARS)
def test_tars_equal_timm(tmp_path: Path, layout: str) -> None:
    files = pictures(each=3)
    TARS[layout](tmp_path, files)
    images = read(tmp_path)
    assert labelled(images) == expected(files)
    assert len(set(images.names)) == len(files)
    if layout == "one a class":
        parts = [timms("", path, "", {path.stem: CLASS_MAP[path.stem], "": CLASS_MAP[path.stem]})
                 for path in (tmp_path / "val").glob("*.tar")]  # fmt: skip
        assert by_pixels(images) == {key: target for part in parts for key, target in part.items()}
    else:
        assert by_pixels(images) == timms("", tmp_path / "val.tar", "", CLASS_MAP)


def test_timm_leaves_no_listing_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would from 10 GB on, and would believe it after the tar has changed."""
    tar_of_folders(tmp_path, pictures())
    monkeypatch.setattr(os.path, "getsize", lambda path: 11 * 1024**3)
    read(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["val.tar"]


@pytest.mark.parametrize("name", ["ILSVRC2012_img_val.tar", "val.tar", "val/all.tar"])
def test_the_official_flat_tar_with_a_list(tmp_path: Path, name: str) -> None:
    files = pictures()
    write_tar(tmp_path / name, {Path(file).name: content for file, content in files.items()})
    refused(tmp_path, "holds images without labels")
    write(tmp_path, {"LOC_val_solution.csv": LISTS["Kaggle"][1](wnid_of(files))})
    assert labelled(read(tmp_path)) == expected(files)
    (tmp_path / "LOC_val_solution.csv").unlink()
    write(tmp_path, {"val.txt": in_order("{index}\n")(wnid_of(files))})
    assert labelled(read(tmp_path)) == expected(files)


@pytest.mark.parametrize("label", ["{index}", "{wnid}\n"])
def test_webdataset_shards_equal_timm(tmp_path: Path, label: str) -> None:
    files = pictures(each=3)
    names = sorted(files)
    for shard in range(3):
        inside: dict[str, bytes | str] = {}
        for name in names[shard::3]:
            key = Path(name).stem
            inside[f"{key}.cls"] = label.format(index=OFFICIAL.index(name[:9]), wnid=name[:9])
            inside[f"{key}.jpg"] = files[name]
            inside[f"{key}.json"] = "{}"
        write_tar(tmp_path / f"imagenet1k-validation-{shard:02d}.tar", inside)
    write_tar(tmp_path / "imagenet1k-train-00.tar", {"a.jpg": picture(70), "a.cls": "3"})
    images = read(tmp_path)
    assert labelled(images) == expected(files)
    if "index" in label:
        shards = "imagenet1k-validation-{00..02}.tar|12"
        assert by_pixels(images) == timms("wds/", tmp_path, shards)
    assert list(labelled(read(tmp_path, "train")).values()) == [3]


def test_webdataset_samples_that_are_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "val-00.tar"
    write_tar(path, {"a.jpg": picture(1), "a.cls": "3", "b.jpg": picture(2)})
    refused(tmp_path, "val-00.tar has no label for 1 images, the first 'b': expected b.cls")
    write_tar(path, {"a.jpg": picture(1), "a.cls": "3", "b.webp": picture(2), "b.cls": "4"})
    refused(tmp_path, "val-00.tar has no image for 1 labels, the first 'b': expected b.jpg")
    write_tar(path, {"a.jpg": picture(1), "a.cls": "1000"})
    refused(tmp_path, "val-00.tar has labels up to 1000 for 1000 classes")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is not a whole, uncompressed tar file"),
        (b"this is not a tar file\n" * 100, "is not a whole, uncompressed tar file"),
        ("cut", "is not a whole, uncompressed tar file"),
        ("compressed", "is not a whole, uncompressed tar file"),
        ("no images", "holds no images that timm reads"),
        ("no class", "the label 'tench'"),
        ("twice", "holds 'val/n01440764/a.JPEG' 2 times"),
    ],
)
def test_a_tar_that_is_none(tmp_path: Path, content: bytes | str, part: str) -> None:
    path = tmp_path / "val.tar"
    if content == "twice":
        with tarfile.open(path, "w") as tar:
            for seed in range(2):
                member = tarfile.TarInfo("n01440764/a.JPEG")
                member.size = len(picture(seed))
                tar.addfile(member, io.BytesIO(picture(seed)))
    elif isinstance(content, str):
        folder = "tench" if content == "no class" else WNIDS[0]
        whole = write_tar(path, {f"{folder}/{'a.txt' if content == 'no images' else 'a.JPEG'}": picture(1)})
        if content == "cut":
            path.write_bytes(whole[:1500])
        if content == "compressed":
            path.write_bytes(gzip.compress(whole))
    else:
        path.write_bytes(content)
    refused(tmp_path, "val.tar" if content != "twice" else "val", part)


def test_a_tar_that_shrinks_meanwhile(tmp_path: Path) -> None:
    path = tar_of_folders(tmp_path, pictures())
    images = read(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"val.tar ends within val/val/n.*\.JPEG. Download it again"):
        images.read(len(images) - 1)
    path.unlink()
    with pytest.raises(DataError, match=r"val.tar cannot be read \(No such file"):
        images.read(0)


@pytest.mark.parametrize("layout", TARS)
def test_workers_read_tars_rightly_after_this_process_has(tmp_path: Path, layout: str) -> None:
    files = pictures(each=6)
    TARS[layout](tmp_path, files)
    images = read(tmp_path)
    images.read(3)  # A handle kept open here would share its position with forked workers.
    setup = Setup(preprocessing=DEFAULT, batch_size=2)
    alone, shared = ([*Batches(images, range(len(images)), setup, workers)] for workers in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        assert one.items == other.items
        assert one.targets.tolist() == other.targets.tolist()
        assert (one.images == other.images).all()
