"""ImageNet in the layouts that people have it in, made of small pictures, and what must be read from them."""

from __future__ import annotations

import gc
import hashlib
import io
import tarfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

from harness.errors import DataError
from tasks.data.labelled import LabelledImages
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
