"""CLEVR's two questions: classes at their boundaries, scenes of any origin, presets, and what a record says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import noise_jpeg
from torch import nn

from harness import run
from harness.errors import DataError, SetupError
from harness.leaderboard import make_boards
from harness.task import build_task
from tasks.classification import Classification
from tasks.clevr import PRESETS, Clevr
from tasks.data.clevr_scenes import Scene, count_class, distance_class

Make = Callable[..., Path]


def scene(name: str, depths: Sequence[float], **more: Any) -> dict[str, Any]:
    return {"image_filename": name, "objects": [{"pixel_coords": [3, 4, depth]} for depth in depths], **more}


def clevr(task: str, root: Path, workers: int = 0) -> Clevr:
    built = build_task(task, root, workers)
    assert isinstance(built, Clevr)
    return built


@pytest.fixture
def make_clevr(tmp_path: Path) -> Make:
    """Return a function that writes a CLEVR of noise below a data root, and returns the root."""

    def make(images: bool = True, **splits: list[dict[str, Any]]) -> Path:
        home = tmp_path / "data" / "CLEVR_v1.0"
        (home / "scenes").mkdir(parents=True, exist_ok=True)
        for place, (split, scenes) in enumerate(splits.items()):
            (home / "images" / split).mkdir(parents=True, exist_ok=True)
            content = {"info": {"split": split}, "scenes": scenes}
            (home / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps(content))
            for number, each in enumerate(scenes if images else []):
                (home / "images" / split / each["image_filename"]).write_bytes(noise_jpeg(1000 * place + number))
        return tmp_path / "data"

    return make


# Classes


@pytest.mark.parametrize(
    ("nearest", "expected"),
    [(0.1, 0), (7.9999, 0), (8.0, 0), (8.0001, 1), (8.5, 1), (8.5001, 2), (9.0, 2), (9.25, 3), (9.5, 3), (9.5001, 4),
     (10.0, 4), (10.01, 5), (150.0, 5), (8, 0), (9, 2), (11, 5)],
)  # fmt: skip
def test_the_class_of_a_distance(nearest: float, expected: int, make_clevr: Make) -> None:
    assert distance_class(Scene("a.png", (14.0, 11.0 + nearest, nearest))) == expected
    root = make_clevr(val=[scene("a.png", [14, 11 + nearest, nearest])])
    assert list(clevr("clevr_dist", root).split("val").targets) == [expected]


@pytest.mark.parametrize("count", range(3, 11))
def test_the_class_of_a_count(count: int, make_clevr: Make) -> None:
    assert count_class(Scene("a.png", (9.0,) * count)) == count - 3
    root = make_clevr(val=[scene("a.png", [9.0] * count)])
    assert list(clevr("clevr_count", root).split("val").targets) == [count - 3]


@pytest.mark.parametrize("count", [0, 1, 2, 11, 40])
def test_other_counts_have_no_class(count: int, make_clevr: Make) -> None:
    root = make_clevr(val=[scene("a.png", [9.0] * 3), scene("b.png", [9.0] * count)])
    with pytest.raises(DataError, match=rf"scene of 'b.png' has {count} objects: expected 3 to 10"):
        clevr("clevr_count", root).split("val")
    if count:
        assert list(clevr("clevr_dist", root).split("val").targets) == [2, 2]
    else:
        with pytest.raises(DataError, match=r"scene of 'b.png' has no objects"):
            clevr("clevr_dist", root).split("val")


def test_classes_are_named() -> None:
    assert clevr("clevr_count", Path()).labels == ("3", "4", "5", "6", "7", "8", "9", "10")
    assert clevr("clevr_dist", Path()).labels == (
        "(0, 8]", "(8, 8.5]", "(8.5, 9]", "(9, 9.5]", "(9.5, 10]", "(10, inf]",
    )  # fmt: skip


def test_classes_that_no_image_shows_are_there(make_clevr: Make) -> None:
    root = make_clevr(val=[scene("a.png", [9.0] * 4)])
    assert (clevr("clevr_count", root).num_classes, clevr("clevr_dist", root).num_classes) == (8, 6)


# Scenes of any origin


def test_scenes_go_by_image_and_not_by_place(make_clevr: Make) -> None:
    root = make_clevr(val=[scene(f"{name}.png", [9.0] * n) for name, n in (("c", 5), ("a", 3), ("b", 9))])
    images = clevr("clevr_count", root).split("val")
    assert (list(images.names), list(images.targets)) == (["val/a.png", "val/b.png", "val/c.png"], [0, 6, 2])


def test_unused_fields_and_the_resolution_do_not_matter(make_clevr: Make) -> None:
    objects = [{"pixel_coords": [4000, 3000, 8.75], "colour": "puce", "shape": None}, {"pixel_coords": [0.5, -7.5, 9]}]
    root = make_clevr(val=[{"image_filename": "a.jpg", "objects": objects, "image_index": "?"}])
    assert list(clevr("clevr_dist", root).split("val").targets) == [2]


@pytest.mark.parametrize("folder", ["clevr", "CLEVR", "."])
def test_the_folder_has_several_names(make_clevr: Make, folder: str) -> None:
    root = make_clevr(val=[scene("a.png", [9.0] * 4)])
    if folder == ".":
        root /= "CLEVR_v1.0"
    else:
        (root / "CLEVR_v1.0").rename(root / folder)
    assert len(clevr("clevr_count", root).split("val")) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"objects": []}, r"Scene 1 of CLEVR_val_scenes.json cannot be read \(.*image_filename"),
        ({"image_filename": "b.png"}, r"Scene 1 .* \('b.png'\) cannot be read \(.*objects"),
        ({"image_filename": "b.png", "objects": [{"3d_coords": [1, 2, 3]}]}, r"\('b.png'\) .*pixel_coords"),
        ({"image_filename": "b.png", "objects": [{"pixel_coords": [1, 2]}]}, r"\('b.png'\) .*length"),
        ({"image_filename": "b.png", "objects": [{"pixel_coords": [1, 2, "9"]}]}, r"\('b.png'\) .*float"),
        ({"image_filename": "b.png", "objects": [{"pixel_coords": [1, 2, True]}]}, r"\('b.png'\) .*float"),
        ({"image_filename": "b.png", "objects": [{"pixel_coords": [1, 2, None]}]}, r"\('b.png'\) .*float"),
        (scene("b.png", [9.0, -1.0]), r"'b.png'\) has an object at depth -1.0: expected more than 0"),
        (scene("b.png", [0]), r"at depth 0.0"),
        (scene("b.png", [9.0], split="train"), r"'b.png'\) is of the split 'train': expected 'val'"),
        (scene("b.png", [9.0], split="new"), r"is of the split 'new'"),
        ("nonsense", r"Scene 1 of CLEVR_val_scenes.json cannot be read"),
    ],
)  # fmt: skip
def test_a_broken_scene_is_named(make_clevr: Make, broken: Any, message: str) -> None:
    root = make_clevr(val=[scene("a.png", [9.0] * 3)])
    path = root / "CLEVR_v1.0" / "scenes" / "CLEVR_val_scenes.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "scenes": [*content["scenes"], broken]}))
    with pytest.raises(DataError, match=message):
        clevr("clevr_dist", root).split("val")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scenes": {}}', '{"scenes": [', '{"scenes": []}'])
def test_a_file_without_scenes(make_clevr: Make, text: str) -> None:
    root = make_clevr(val=[scene("a.png", [9.0] * 3)])
    (root / "CLEVR_v1.0" / "scenes" / "CLEVR_val_scenes.json").write_text(text)
    with pytest.raises(DataError, match=r"CLEVR_val_scenes.json holds no scenes.*Download it again"):
        clevr("clevr_dist", root).split("val")


def test_images_and_scenes_must_match(make_clevr: Make) -> None:
    root = make_clevr(val=[scene(f"{name}.png", [9.0] * 3) for name in "abcd"])
    images = root / "CLEVR_v1.0" / "images" / "val"
    (images / "e.png").write_bytes(noise_jpeg(0))
    with pytest.raises(DataError, match=r"1 of 5 images in images/val have no scene in CLEVR_val_.*first 'e.png'"):
        clevr("clevr_count", root).data()
    for name in "bce":
        (images / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 4 scenes of CLEVR_val_scenes.json have no image in .*first 'b.png'"):
        clevr("clevr_count", root).data()


def test_an_image_with_two_scenes_is_refused(make_clevr: Make) -> None:
    root = make_clevr(val=[scene("a.png", [9.0] * 3), scene("a.png", [9.0] * 4)])
    with pytest.raises(DataError, match=r"holds 'val/a.png' 2 times"):
        clevr("clevr_count", root).data()


def test_what_is_absent_is_named(make_clevr: Make, tmp_path: Path) -> None:
    root = make_clevr(val=[scene("a.png", [9.0] * 3)])
    with pytest.raises(DataError, match=r"no scenes of its split 'train': expected scenes/CLEVR_train_scenes.json"):
        clevr("clevr_count:knn", root).data()
    with pytest.raises(DataError, match=r"CLEVR_v1.0 not found"):
        clevr("clevr_count", tmp_path).data()


# Presets


@pytest.fixture
def two_thousand(make_clevr: Make, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of 2,000 training scenes, whose files are links to one image."""
    scenes = [scene(f"CLEVR_train_{n:06d}.png", [9.0] * (3 + n % 8)) for n in reversed(range(2000))]
    root = make_clevr(images=False, train=scenes, val=[scene("CLEVR_val_000000.png", [9.0] * 3)])
    home = root / "CLEVR_v1.0" / "images"
    (home / "val" / "CLEVR_val_000000.png").write_bytes(noise_jpeg(0))
    for each in scenes:
        (home / "train" / each["image_filename"]).hardlink_to(home / "val" / "CLEVR_val_000000.png")
    return root


def test_dseq_takes_the_first_of_the_first_nine_tenths(two_thousand: Path) -> None:
    task = clevr("clevr_count:knn,preset=dseq", two_thousand)
    assert list(task.split("train").names) == [f"train/CLEVR_train_{n:06d}.png" for n in range(800)]
    assert list(task.split("held_out").names) == [f"train/CLEVR_train_{n:06d}.png" for n in range(1800, 2000)]
    assert list(task.split("val").names) == ["val/CLEVR_val_000000.png"]


def test_vtab_counts_in_the_order_of_tensorflow_datasets(two_thousand: Path) -> None:
    task = clevr("clevr_count:knn,preset=vtab", two_thousand)
    names = [name.removeprefix("train/") for split in ("train", "held_out") for name in task.split(split).names]
    keys = [int(hashlib.md5(b"train" + name.encode()).hexdigest(), 16) for name in names]
    assert keys == sorted(keys)
    assert (len(task.split("train")), len(names), len(set(names))) == (1800, 2000, 2000)


@pytest.mark.parametrize("preset", ["all", "vissl"])
def test_every_scene_is_trained_on(two_thousand: Path, preset: str) -> None:
    task = clevr(f"clevr_count:knn,preset={preset}", two_thousand)
    assert len(task.split("train")) == 2000
    with pytest.raises(DataError, match=rf"preset '{preset}' has no scenes in its split 'held_out', of 2000"):
        task.split("held_out")


def test_the_official_test_has_no_scenes(two_thousand: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'test' with scenes: expected one of train, held_out, val"):
        clevr("clevr_count", two_thousand).split("test")


def test_presets_of_the_whole_data_set() -> None:
    sizes = {name: preset.official() for name, preset in PRESETS.items()}
    assert sizes["all"] == sizes["vissl"] == {"train": 70_000, "held_out": 0, "val": 15_000}
    assert sizes["vtab"] == {"train": 63_000, "held_out": 7_000, "val": 15_000}
    assert sizes["dseq"] == {"train": 800, "held_out": 200, "val": 15_000}


def test_presets_train_on_different_data(two_thousand: Path) -> None:
    stamps = {name: clevr(f"clevr_count:knn,preset={name}", two_thousand).data() for name in PRESETS}
    assert len({stamp.fingerprint for stamp in stamps.values()}) == 3
    assert stamps["all"] == stamps["vissl"]
    assert {stamp.name for stamp in stamps.values()} == {"clevr-part"}


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(SetupError, match="preset=vtab1k cannot be used"):
        build_task("clevr_dist:knn,preset=vtab1k")


def test_nothing_is_cut_off() -> None:
    assert dict(clevr("clevr_count", Path()).preprocessing) == {"crop_mode": "squash", "crop_pct": 1.0}


# A user's own model, and what its record says


def test_a_users_own_model(make_clevr: Make, nets: str, tmp_path: Path) -> None:
    train = [scene(f"t{n:02d}.png", [9.0] * (3 + (n > 4) + (n > 11))) for n in range(20)]  # 5, 7 and 8 of 3, 4, 5
    val = [scene(f"v{n}.png", [8.6] * (4 if n < 7 else 5)) for n in range(10)]
    root = make_clevr(train=train, val=val)
    records = run(
        [f"{nets}:tiny"], ["clevr_count:knn", "clevr_dist:knn,preset=dseq"], data=root, results=tmp_path / "results"
    )
    count, distance = sorted(records, key=lambda record: record.task)
    assert count.error is None
    assert count.setup.preprocessing.crop_mode == "squash"
    shown = [m.metric.name for m in count.measurements if not m.metric.minor]
    assert shown == ["top1", "top5", "majority"]
    assert count.values()["majority"] == pytest.approx(70)
    assert count.values()["train_majority"] == pytest.approx(30)
    assert count.details["label_histogram"]["train"] == {
        "3": 5, "4": 7, "5": 8, "6": 0, "7": 0, "8": 0, "9": 0, "10": 0
    }  # fmt: skip
    assert count.details["guesses"] == {
        "most frequent in train": {"class": "5", "score on val": pytest.approx(30)},
        "most frequent in val": {"class": "4", "score on val": pytest.approx(70)},
    }
    low, high = count.measurements[0].interval or (0.0, 0.0)
    assert low < (count.values()["top1"] or 0) < high
    # Five images within one class: the first 18 of 20 scenes are the first nine tenths.
    assert distance.values()["majority"] == 100
    assert distance.details["splits"]["scenes"] == {"train": 18, "val": 10}
    assert distance.details["splits"]["scenes_of_the_whole_data_set"] == {"train": 800, "val": 15_000}
    boards, left_out = make_boards(records)
    assert not left_out
    assert [[metric.name for metric in board.metrics][:3] for board in boards] == [["top1", "top5", "majority"]] * 2
    assert "clevr-part val, 10 images" in boards[0].title


def test_guesses_are_scored_on_what_was_evaluated(make_clevr: Make, nets: str, tmp_path: Path) -> None:
    scenes = [scene(f"{n}.png", [9.0] * (3 + n % 2)) for n in range(8)]
    root = make_clevr(train=scenes, val=scenes)
    (record,) = run([f"{nets}:tiny"], ["clevr_count:knn"], data=root, results=tmp_path / "results", limit=4)
    assert record.details["label_histogram"]["val"]["3"] == 4  # every second one
    assert (record.values()["majority"], record.values()["train_majority"]) == (100, 100)


@pytest.mark.parametrize("protocol", ["knn", "linear", "ridge", "few_shot,shots=2"])
def test_every_protocol_on_frozen_features(make_clevr: Make, nets: str, tmp_path: Path, protocol: str) -> None:
    scenes = [scene(f"{n}.png", [9.0] * (3 + n % 2)) for n in range(20)]
    root = make_clevr(train=scenes, val=scenes[:6])
    (record,) = run([f"{nets}:tiny"], [f"clevr_count:{protocol}"], data=root, results=tmp_path / "results")
    assert record.error is None
    assert record.details["label_histogram"]["val"]["3"] == 3
    assert record.values()["majority"] == 50


class Plain(nn.Module):
    """What a plain ViT says of its tokens."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix


@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        ("clevr_count:knn", Plain(1), ("last", "mean")),
        ("clevr_count:knn,pooling=class", Plain(1), ("last", "class")),
        ("clevr_count:knn", Plain(0), ("last", "default")),
        ("clevr_count:knn", nn.Identity(), ("last", "default")),
        ("clevr_dist:linear,preset=dseq", Plain(1), ("last", "class")),
        ("clevr_dist:linear,preset=dseq", nn.Identity(), ("last", "default")),
        ("clevr_dist:linear,preset=vissl", Plain(1), ("last", "mean")),
        ("imagenet:linear", Plain(1), ("last", "default")),
        ("imagenet:linear,preset=dseq", Plain(1), ("last4", "mean")),
        ("imagenet:linear,preset=dseq,layer=3", Plain(1), ("3", "default")),
    ],
)
def test_what_a_probe_reads_where_nothing_was_asked_for(task: str, model: nn.Module, expected: tuple[str, str]) -> None:
    found = build_task(task)
    assert isinstance(found, Classification)
    assert found.protocol.source(model, found) == expected
