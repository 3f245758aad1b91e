"""Images that train and test share are found by content, cheaply and once; what it means for the rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WNIDS

from harness.api import run
from harness.leaderboard import why_unranked
from tasks.data import overlap
from tasks.data.labelled import LabelledImages, from_files
from tasks.data.overlap import find_shared, shared_images

Make = Callable[..., Path]
HERE: dict[str, Any] = {"device": "cpu", "executor": "inline", "workers": 0}


def split(folder: Path, contents: Sequence[bytes], prefix: str = "image") -> LabelledImages:
    folder.mkdir(parents=True)
    names = [f"{prefix}_{number:03d}.jpg" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    return from_files(folder, names, [0] * len(names), ("one",), "some", folder.name)


def contents(seed: int, count: int, size: int = 5000) -> list[bytes]:
    return [np.random.default_rng([seed, number]).bytes(size) for number in range(count)]


def in_memory(images: LabelledImages) -> LabelledImages:
    """The same images from a source other than plain files, whose sizes are not known."""
    held = [images.read(index) for index in range(len(images))]
    return LabelledImages(images.names, images.targets, held.__getitem__, images.classes, images.stamp)


def test_shared_images_are_found_by_content_whatever_their_names(tmp_path: Path) -> None:
    test, train = contents(0, 30), contents(1, 50)
    train[7], train[40], train[41] = test[3], test[29], test[29]
    left, right = split(tmp_path / "test", test, "t"), split(tmp_path / "train", train)
    expected = [("t_003.jpg", "image_007.jpg"), ("t_029.jpg", "image_040.jpg")]
    assert find_shared(left, right) == expected
    assert find_shared(in_memory(left), in_memory(right)) == expected
    assert find_shared(left, in_memory(right)) == expected


def test_one_byte_makes_another_image(tmp_path: Path) -> None:
    test = contents(0, 3)
    first, last = bytearray(test[0]), bytearray(test[1])
    first[0] ^= 1
    last[-1] ^= 1
    left, right = split(tmp_path / "test", test), split(tmp_path / "train", [bytes(first), bytes(last), test[2][:-1]])
    assert find_shared(left, right) == []
    assert find_shared(in_memory(left), in_memory(right)) == []


def test_equal_names_are_not_equal_images(tmp_path: Path) -> None:
    assert find_shared(split(tmp_path / "a", contents(0, 5)), split(tmp_path / "b", contents(1, 5))) == []


def test_only_likely_files_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, train = contents(0, 40), contents(1, 60)
    test += contents(2, 20, size=6001)
    train[5] = test[5]
    left, right = split(tmp_path / "test", test), split(tmp_path / "train", train)
    read: list[str] = []
    original = overlap._content

    def content(images: LabelledImages, index: int) -> object:
        read.append(images.names[index])
        return original(images, index)

    monkeypatch.setattr(overlap, "_content", content)
    assert len(find_shared(left, right)) == 1
    assert read == ["image_005.jpg"] * 2


def test_the_answer_is_kept_and_belongs_to_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    test, train = contents(0, 5), contents(0, 3)
    left, right = split(tmp_path / "test", test), split(tmp_path / "train", train)
    found = shared_images(left, right)
    assert len(found) == 3
    with monkeypatch.context() as patch:
        patch.setattr(overlap, "find_shared", None)
        assert shared_images(left, right) == found
    other = split(tmp_path / "other", contents(3, 4))
    assert shared_images(left, other) == []
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"[[")
    assert shared_images(left, right) == found
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "test" / "image_000.jpg"))
    assert shared_images(left, right) == found
    assert "cannot be kept" in capsys.readouterr().err


def copied(data: Path, count: int) -> None:
    """Give training images the content of validation images."""
    for wnid in WNIDS[:count]:
        val = next((data / "imagenet" / "val" / wnid).iterdir())
        (data / "imagenet" / "train" / wnid / "copy.JPEG").write_bytes(val.read_bytes())


def test_a_record_of_shared_images_does_not_rank(
    make_imagenet: Make, nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_imagenet(val=3, train=3)
    copied(data, 2)
    (record,) = run(f"{nets}:tiny", "imagenet:knn", data=data, results=tmp_path / "results", **HERE)
    shared = record.details["shared_images"]["train"]
    assert shared["count"] == 2
    assert shared["first"][0] == [f"{WNIDS[0]}/{WNIDS[0]}_0.JPEG", f"{WNIDS[0]}/copy.JPEG"]
    assert why_unranked(record).startswith(f"2 of 24 val images are train images too, such as {WNIDS[0]}/")
    assert "Measured top1" in why_unranked(record)
    assert "2 of 24 val images are train images too" in capsys.readouterr().err


def test_a_few_doubles_are_said_and_rank(
    make_imagenet: Make, nets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_imagenet(val=3, train=3)
    copied(data, 1)
    monkeypatch.setattr("tasks.data.canaries.TOLERATED", 0.05)
    (record,) = run(f"{nets}:tiny", "imagenet:knn", data=data, results=tmp_path / "results", **HERE)
    assert record.details["shared_images"]["train"]["count"] == 1
    assert why_unranked(record) == ""
    assert "1 of 24 val images are train images too" in capsys.readouterr().err


def test_protocols_that_do_not_train_are_not_checked(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet(val=3, train=3)
    copied(data, 2)
    (record,) = run(f"{nets}:tiny", "imagenet", data=data, results=tmp_path / "results", **HERE)
    assert "shared_images" not in record.details


def test_clean_splits_say_nothing(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet(val=2, train=3)
    (record,) = run(f"{nets}:tiny", "imagenet:knn", data=data, results=tmp_path / "results", **HERE)
    assert not {"shared_images", "unranked", "absent_images"} & set(record.details)
