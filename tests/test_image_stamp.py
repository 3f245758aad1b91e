"""The stamp tells data apart wherever they lie; ReaL labels go by name."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from imagenet_layouts import (
    CLASS_MAP,
    OFFICIAL,
    WNIDS,
    Pictures,
    flat,
    in_order,
    picture,
    pictures,
    read,
    wnid_of,
    write,
)
from timm.data import RealLabelsImagenet

from harness.errors import DataError
from harness.preprocessing import DEFAULT
from harness.record import Setup
from tasks.imagenet import ImageNet


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
