"""Every layout that people have ImageNet in gives the right image with the right label, and says what is wrong."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from timm.data import RealLabelsImagenet, create_dataset

from harness.errors import DataError
from harness.preprocessing import DEFAULT
from harness.record import Setup
from tasks.data.labelled import LabelledImages
from tasks.data.loader import Batches
from tasks.imagenet import ImageNet, class_ids

OFFICIAL = class_ids(Path())
# Every hundredth class: neither the folders' positions nor their names tell the labels.
WNIDS = OFFICIAL[37::300]
Pictures = dict[str, bytes]


def picture(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24 + seed, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pictures(wnids: tuple[str, ...] = WNIDS, each: int = 2) -> Pictures:
    """Return images by `<wnid>/<file>`, numbered across the classes so that file order is not class order."""
    places = [(wnid, number) for number in range(each) for wnid in wnids]
    return {
        f"{wnid}/ILSVRC2012_val_{position:08d}.JPEG": picture(position)
        for position, (wnid, _) in enumerate(places, start=1)
    }


def write(folder: Path, files: Mapping[str, bytes | str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_tar(path: Path, files: Mapping[str, bytes | str]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.read_bytes()


def read(root: Path, split: str = "val") -> LabelledImages:
    return ImageNet(root).split(split)


def labelled(images: LabelledImages) -> dict[str, int]:
    """Return targets by the digest of the image, which no layout can change."""
    found = {digest(images.read(index)): images.targets[index] for index in range(len(images))}
    assert len(found) == len(images) == images.stamp.size
    return found


def expected(files: Pictures, classes: tuple[str, ...] = OFFICIAL) -> dict[str, int]:
    return {digest(content): classes.index(name.split("/")[0]) for name, content in files.items()}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def timms(name: str, root: Path, split: str, class_map: dict[str, int] | None = None) -> dict[str, int]:
    """Return what timm's own data set holds: targets by the digest of the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # timm leaves files to the garbage collector.
        dataset = create_dataset(name, root=str(root), split=split, class_map=class_map)
        found = {digest(image.tobytes()): int(target) for image, target in dataset}
        del dataset
        gc.collect()
    return found


def by_pixels(images: LabelledImages) -> dict[str, int]:
    return {
        digest(Image.open(io.BytesIO(images.read(index))).convert("RGB").tobytes()): images.targets[index]
        for index in range(len(images))
    }


def refused(root: Path, *parts: str, split: str = "val") -> str:
    """Return the message with which a split is refused; it is one line and holds every part."""
    with pytest.raises(DataError) as caught:
        read(root, split)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


CLASS_MAP = {wnid: position for position, wnid in enumerate(OFFICIAL)}


# Class folders


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


# A flat folder with a list


def wnid_of(files: Pictures) -> dict[str, str]:
    return {Path(name).name: name.split("/")[0] for name in files}


def lines(form: str) -> Callable[[dict[str, str]], str]:
    """Return the function that writes a list in a form, backwards, so that only names can match."""

    def make(labels: dict[str, str]) -> str:
        return "".join(
            form.format(file=file, stem=Path(file).stem, wnid=wnid, index=OFFICIAL.index(wnid))
            for file, wnid in reversed(labels.items())
        )

    return make


def in_order(form: str) -> Callable[[dict[str, str]], str]:
    def make(labels: dict[str, str]) -> str:
        return "".join(form.format(wnid=wnid, index=OFFICIAL.index(wnid)) for _, wnid in sorted(labels.items()))

    return make


KAGGLE = "{stem},{wnid} 111 108 407 346 {wnid} 1 2 3 4 \n"
LISTS: dict[str, tuple[str, Callable[[dict[str, str]], str]]] = {
    "file and wnid": ("val.txt", lines("{file} {wnid}\n")),
    "file in a folder and wnid": ("val.txt", lines("val/{file}\t{wnid}\r\n")),
    "file and index": ("val.txt", lines("{file} {index}\n")),
    "caffe's name": ("ground_truth_val.txt", lines("{file} {index}\n")),
    "another ending": ("val_list.txt", lines("./{stem}.jpg  {wnid}\n\n")),
    "wnids": ("val.txt", in_order("{wnid}\n")),
    "indices": ("labels.txt", in_order("{index}\n")),
    "wnids with a header": ("val.csv", lambda labels: "wnid\n" + in_order("{wnid}\n")(labels)),
    "CSV": ("val.csv", lines("{file},{wnid}\n")),
    "CSV with a byte order mark": ("val.csv", lambda labels: "\ufeff" + lines("{file},{wnid}\n")(labels)),
    "CSV with a header": ("val.csv", lambda labels: "Filename,Label\n" + lines("{file},{index}\n")(labels)),
    "CSV with more columns": ("labels.csv", lambda labels: ",wnid,file\n" + lines('7,{wnid},"{file}"\n')(labels)),
    "semicolons": ("my_val.csv", lines("{file}; {wnid}\n")),
    "Kaggle": ("LOC_val_solution.csv", lambda labels: "ImageId,PredictionString\n" + lines(KAGGLE)(labels)),
}


def flat(folder: Path, files: Pictures) -> None:
    write(folder, {Path(name).name: content for name, content in files.items()})


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


# Tar files


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


# Parquet, as the Hugging Face hub lays it out


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` caches out of the home folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_parquet(path: Path, files: Pictures, names: tuple[str, ...] | None, named: bool = True) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, Value

    path.parent.mkdir(parents=True, exist_ok=True)
    order = names or OFFICIAL
    index = {name: position for position, name in enumerate(order if set(order) >= set(WNIDS) else OFFICIAL)}
    rows = {
        "image": [{"bytes": content, "path": Path(name).name if named else None} for name, content in files.items()],
        "label": [index[name.split("/")[0]] for name in files],
    }
    label = ClassLabel(names=list(names)) if names else Value("int64")
    Dataset.from_dict(rows, features=Features({"image": Image(), "label": label})).to_parquet(path)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "place",
    ["data/validation-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "val/0000.parquet"],
)
def test_parquet_equals_timm(tmp_path: Path, place: str) -> None:
    files = pictures()
    names = tuple(f"name {wnid}" for wnid in OFFICIAL)  # In class order, as the hub's own has them.
    write_parquet(tmp_path / "imagenet" / place, files, names)
    write_parquet(tmp_path / "imagenet" / place.replace("val/", "train/").replace("validation", "train"), files, names)
    images = read(tmp_path)
    assert labelled(images) == expected(files)
    assert images.names == [Path(name).name for name in files]
    name = f"hfds/{tmp_path / 'imagenet' / ('data' if 'data' in place else '')}"
    assert by_pixels(images) == timms(name, tmp_path / "cache", "validation")


@pytest.mark.usefixtures("hub")
def test_parquet_labels_go_by_wnid(tmp_path: Path) -> None:
    files = pictures()
    write_parquet(tmp_path / "data" / "validation-0.parquet", files, WNIDS[::-1], named=False)
    write(tmp_path, {"README.md": "# A data set\n"})
    images = read(tmp_path)
    assert labelled(images) == expected(files)
    assert images.names[:2] == ["00000000", "00000001"]


@pytest.mark.usefixtures("hub")
def test_parquet_with_bare_indices_and_an_own_list(tmp_path: Path) -> None:
    files = pictures()
    write_parquet(tmp_path / "data" / "validation-0.parquet", files, None)
    assert labelled(read(tmp_path)) == expected(files)
    write(tmp_path, {"synsets.txt": "\n".join(WNIDS)})
    refused(tmp_path, "labels up to 937 for 4 classes")


@pytest.mark.usefixtures("hub")
def test_parquet_that_cannot_be_labelled(tmp_path: Path) -> None:
    files = pictures()
    path = tmp_path / "data" / "validation-0.parquet"
    write_parquet(path, files, (*WNIDS, "cassette player"))
    refused(tmp_path, "5 classes, one of them 'cassette player'", "Name its classes by their ids")
    path.write_bytes(b"PAR1 no more")
    refused(tmp_path, "cannot be read as a Hugging Face data set", "'val'")


@pytest.mark.usefixtures("hub")
def test_parquet_with_other_columns(tmp_path: Path) -> None:
    from datasets import Dataset

    path = tmp_path / "data" / "validation-0.parquet"
    path.parent.mkdir()
    Dataset.from_dict({"picture": [b""], "label": [1]}).to_parquet(path)
    refused(tmp_path, "columns 'image' and 'label'", "Rename the columns")
    Dataset.from_dict({"image": [{"bytes": picture(1), "path": None}], "class": [1]}).to_parquet(path)
    refused(tmp_path, "columns 'image' and 'label'", "Rename the columns")


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", "hfds/nobody/nothing-of-this-name")
    with pytest.raises(DataError, match="nothing-of-this-name cannot be read as a Hugging Face data set"):
        ImageNet().split("val")


@pytest.mark.usefixtures("hub")
def test_workers_read_parquet(tmp_path: Path) -> None:
    files = pictures(each=4)
    write_parquet(tmp_path / "data" / "validation-0.parquet", files, WNIDS)
    images = read(tmp_path)
    images.read(3)
    setup = Setup(preprocessing=DEFAULT, batch_size=3)
    alone, shared = ([*Batches(images, range(len(images)), setup, workers)] for workers in (0, 2))
    assert all((one.images == other.images).all() for one, other in zip(alone, shared, strict=True))


# The stamp


def test_the_fingerprint_covers_names_sizes_and_labels(tmp_path: Path) -> None:
    files = pictures()
    seen = set()
    name = next(iter(files))
    changes: dict[str, Pictures] = {
        "as it is": files,
        "another size": files | {name: files[name] + b"\0"},
        "another name": {f"{key}x.JPEG" if key == name else key: content for key, content in files.items()},
        "another label": {key.replace(WNIDS[0], OFFICIAL[1]): content for key, content in files.items()},
        "one fewer": {key: content for key, content in files.items() if key != name},
    }
    for change, changed in changes.items():
        write(tmp_path / change / "val", changed)
        seen.add(read(tmp_path / change).stamp.fingerprint)
    assert len(seen) == len(changes)


def test_the_fingerprint_covers_labels_from_a_list(tmp_path: Path) -> None:
    files = pictures()
    flat(tmp_path / "val", files)
    seen = []
    for label in ("7\n", "8\n"):
        write(tmp_path, {"val.txt": in_order(label)(wnid_of(files))})
        seen.append(read(tmp_path).stamp.fingerprint)
    assert seen[0] != seen[1]


def test_the_stamp_does_not_depend_on_place_or_listing_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pictures()
    write(tmp_path / "one" / "val", files)
    write(tmp_path / "two" / "deeper" / "imagenet" / "val", dict(reversed(files.items())))
    first = read(tmp_path / "one")
    real_walk, real_list = os.walk, os.listdir

    def walk(*args: object, **options: object) -> object:
        for place, folders, names in real_walk(*args, **options):
            yield place, folders, names[::-1]

    monkeypatch.setattr(os, "walk", walk)
    monkeypatch.setattr(os, "listdir", lambda path=".": sorted(real_list(path), reverse=True))
    second = read(tmp_path / "two" / "deeper")
    assert first.stamp == second.stamp
    assert (first.names, first.targets) == (second.names, second.targets)


def test_the_stamp_of_a_protocol_that_trains_covers_the_training_images(tmp_path: Path) -> None:
    from harness.registry import PROTOCOLS

    files = pictures()
    write(tmp_path / "val", files)
    write(tmp_path / "train", files)
    plain = ImageNet(tmp_path).data()
    before = ImageNet(tmp_path, variant=PROTOCOLS.get("knn")).data()
    (tmp_path / "train" / next(iter(files))).unlink()
    after = ImageNet(tmp_path, variant=PROTOCOLS.get("knn")).data()
    assert len({stamp.fingerprint for stamp in (plain, before, after)}) == 3
    assert plain.size == before.size == after.size == len(files)


def test_fifty_thousand_files_are_listed_and_stamped_in_three_seconds(tmp_path: Path) -> None:
    for position, wnid in enumerate(OFFICIAL):
        folder = tmp_path / "val" / wnid
        folder.mkdir(parents=True)
        for number in range(50):
            os.close(os.open(folder / f"ILSVRC2012_val_{50 * position + number + 1:08d}.JPEG", os.O_CREAT))
    started = time.process_time()
    assert ImageNet(tmp_path).data().size == 50_000
    assert time.process_time() - started < 3


# ReaL labels


def test_real_labels_equal_timm(tmp_path: Path) -> None:
    import torch

    files = pictures(OFFICIAL[::125], each=1)
    write(tmp_path / "val", files)
    right = [OFFICIAL.index(name[:9]) for name in files]
    # Right, several of which one is right, wrong, and none at all.
    labels = [[right[0]], [5, right[1]], [6], [], [7, 8], [right[5]], [], [right[7]]]
    write(tmp_path, {"real.json": json.dumps(labels)})
    task = ImageNet(tmp_path)
    images, meter = task.split("val"), task.meter()
    logits = torch.zeros(len(images), 1000)
    logits[range(len(images)), images.targets] = 1
    logits[4, 8] = 2
    judge = RealLabelsImagenet([name.rpartition("/")[2] for name in images.names], str(tmp_path / "real.json"))
    judge.add_result(logits)
    setup = Setup(preprocessing=DEFAULT, batch_size=3)
    for batch in task.batches(setup):
        rows = [images.names.index(item) for item in batch.items]
        meter.update(logits[rows], batch)
    evaluation = meter.compute()
    values = {one.metric.name: one.value for one in evaluation.measurements}
    assert values["real_top1"] == pytest.approx(judge.get_accuracy(1)) == pytest.approx(100 * 5 / 6)
    assert evaluation.details["real_images"] == 6


def test_real_labels_follow_the_order_and_names_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "val" / WNIDS[2] / f"ILSVRC2012_val_00000002_{WNIDS[2]}.JPEG"  # as the hub names it
    write(path.parent, {path.name: picture(1), "another.JPEG": picture(2)})
    write(tmp_path, {"synsets.txt": "\n".join(WNIDS[::-1])})
    write(tmp_path, {"real.json": json.dumps([[1], [CLASS_MAP[WNIDS[2]], CLASS_MAP[WNIDS[0]], 1]])})
    assert ImageNet(tmp_path).reassessed() == {f"{WNIDS[2]}/{path.name}": [1, 3]}


@pytest.mark.parametrize("content", ["no json", "{}", "[1, 2]", '[["a"]]', "[[1000]]", "[[[1]]]"])
def test_real_labels_that_are_none(tmp_path: Path, content: str) -> None:
    write(tmp_path / "val", pictures())
    write(tmp_path, {"real.json": content})
    with pytest.raises(DataError, match=r"^real.json .*Download it again, or remove it") as caught:
        ImageNet(tmp_path).meter()
    assert str(tmp_path) not in str(caught.value)
