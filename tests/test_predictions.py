"""Predictions made elsewhere: the canaries, each with the loss or the error that it should give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import run
from harness.errors import DataError
from harness.metric import Outcomes
from harness.record import Record
from harness.store import Store
from tasks.data.coco import Instances, read_instances

Make = Callable[..., Path]
Results = list[dict[str, Any]]


@pytest.fixture
def go(scenes: Path, tmp_path: Path) -> Callable[..., Record]:
    """Return a function that measures predictions, and returns the record."""

    def measure(task: str, predictions: Path, model: str | None = None, **options: Any) -> Record:
        options = {"data": scenes, "results": tmp_path / "results", **options}
        (record,) = run(model, task, predictions=predictions, **options)
        return record  # type: ignore[no-any-return]

    return measure


@pytest.fixture(scope="module")
def instances(scenes: Path) -> Instances:
    return read_instances(scenes / "coco" / "annotations" / "instances_val2017.json")


@pytest.fixture
def perfect(instances: Instances) -> Results:
    """Return every object as a result, crowds aside."""
    masks = instances.objects(masks=True).masks
    return [
        {
            "image_id": one.image_id, "category_id": one.category_id, "bbox": list(one.bbox), "score": 0.9,
            "segmentation": {**mask, "counts": mask["counts"].decode()},
        }
        for one, mask in zip(instances.annotations, masks, strict=True)
        if not one.iscrowd
    ]  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(content: Any, name: str = "mine.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return written


def values(record: Record) -> dict[str, float | None]:
    return record.values()


Go = Callable[..., Record]
Write = Callable[..., Path]


def test_perfect_detections_give_one_everywhere(go: Go, write: Write, perfect: Results) -> None:
    record = go("coco", write(perfect))
    assert record.provenance == "predictions"
    assert (record.model, record.task, record.error) == ("mine", "coco", None)
    filled = {name: value for name, value in values(record).items() if value is not None}
    assert len(filled) >= 20
    assert {name: value for name, value in filled.items() if name[-3:] not in ("ar1", "r10")} == pytest.approx(
        dict.fromkeys([name for name in filled if name[-3:] not in ("ar1", "r10")], 1.0)
    )
    assert record.details["category_ids"] == [1, 2, 5, 13, 27, 90]
    assert record.setup.weights.source == "predictions"
    assert record.command == "run_bench.py run --model mine --task coco --predictions mine.json"


def test_what_is_not_annotated_is_an_empty_cell(go: Go, write: Write, perfect: Results) -> None:
    record = go("coco", write(perfect))
    (large,) = [m for m in record.measurements if m.metric.name == "box_ap_large"]
    assert large.value is None
    assert "-1" in large.reason


def shifted_class(results: Results) -> None:
    following = dict(zip((1, 2, 5, 13, 27, 90), (2, 5, 13, 27, 90, 1), strict=True))
    for result in results:
        result["category_id"] = following[result["category_id"]]


def shifted_pixel(results: Results) -> None:
    for result in results:
        result["bbox"][0] += 1


def halved(results: Results) -> None:
    del results[::2]


def doubled(results: Results) -> None:
    results += [dict(result) for result in results]


@pytest.mark.parametrize(
    ("spoil", "least", "most"),
    [(shifted_class, 0, 0.02), (shifted_pixel, 0.8, 0.97), (halved, 0.2, 0.7), (doubled, 0.5, 0.9)],
)
def test_spoilt_detections_lose_what_they_should(
    go: Go, write: Write, perfect: Results, spoil: Callable[[Results], None], least: float, most: float
) -> None:
    spoil(perfect)
    assert least <= values(go("coco", write(perfect)))["box_ap"] <= most


def test_repeated_detections_are_counted_and_cost_precision(go: Go, write: Write, perfect: Results) -> None:
    # Between a right detection and the next one a copy is a false alarm.
    perfect = [{**result, "score": 1 - n / 1000} for n, result in enumerate(perfect)]
    copies = [{**result, "score": result["score"] - 0.0001} for result in perfect]
    record = go("coco", write(perfect + copies))
    assert values(record)["box_ap"] < 0.75
    doubled(perfect)
    assert go("coco", write(perfect, "twice.json")).details["repeated_detections"] == len(perfect) / 2


def test_corners_for_sizes_are_found_out(go: Go, write: Write, perfect: Results) -> None:
    for result in perfect:
        x, y, w, h = result["bbox"]
        result["bbox"] = [x, y, x + w, y + h]
    with pytest.raises(DataError, match="look like left, top, right, bottom"):
        go("coco", write(perfect))


def first(change: dict[str, Any]) -> Callable[[Results], Any]:
    return lambda results: [{**results[0], **change}, *results[1:]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (first({"image_id": 4711}), "1 image ids that the annotations do not know: 4711"),
        (first({"category_id": 3}), r"1 category ids that the annotations do not know: 3\. Expected ids such as 1"),
        (first({"category_id": 1.5}), "is not a list of COCO results.*category_id"),
        (first({"score": float("nan")}), "it holds NaN or Infinity"),
        (first({"score": None}), "score"),
        (first({"bbox": [1, 2, 3]}), "boxes that are not four numbers, at entries 0"),
        (first({"bbox": [1, 2, -3, 4]}), "negative width or height, at entries 0"),
        (first({"bbox": None, "segmentation": None}), "Entry 0 of mine.json has neither bbox nor segmentation"),
        (
            first({"bbox": None, "segmentation": None, "keypoints": [1, 2, 3]}),
            "holds keypoints, which are not measured",
        ),
        (first({"segmentation": {"size": [5, 5], "counts": "0"}}), r"mask of entry 0 is of size \[5, 5\]"),
        (first({"segmentation": "what"}), "mask of entry 0 cannot be read"),
        (lambda results: [], "holds no detections"),
        (lambda results: {"images": results}, "is not a list of COCO results"),
        (lambda results: "no json", "is not JSON"),
    ],
)
def test_results_that_cannot_be_measured_are_refused(
    go: Go, write: Write, perfect: Results, tmp_path: Path, spoil: Callable[[Results], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        go("coco", write(spoil(perfect)))
    assert not (tmp_path / "results").exists()


def test_masks_alone_give_boxes_too_and_boxes_alone_no_masks(go: Go, write: Write, perfect: Results) -> None:
    masks = [{key: value for key, value in result.items() if key != "bbox"} for result in perfect]
    record = go("coco", write(masks))
    assert values(record)["mask_ap"] == pytest.approx(1)
    assert values(record)["box_ap"] == pytest.approx(1)
    assert record.details["boxes"] == "those of the masks"
    boxes = [{key: value for key, value in result.items() if key != "segmentation"} for result in perfect]
    record = go("coco", write(boxes, "boxes.json"))
    assert values(record)["box_ap"] == pytest.approx(1)
    (mask,) = [m for m in record.measurements if m.metric.name == "mask_ap"]
    assert mask.reason == "The results hold no masks."


def test_ids_may_be_text(go: Go, write: Write, perfect: Results, scenes: Path) -> None:
    content = json.loads((scenes / "coco" / "annotations" / "instances_val2017.json").read_text())
    expected = values(go("coco", write(perfect[3:])))
    for result in perfect:
        result["image_id"] = str(result["image_id"])
    assert values(go("coco", write(perfect[3:], "text.json"))) == expected
    for image in content["images"]:
        image["id"] = f"image-{image['id']}"
    for one in [*content["annotations"], *perfect]:
        one["image_id"] = f"image-{one['image_id']}"
    truth = write(content, "instances_own.json")
    record = go("coco", write(perfect[3:], "named.json"), annotations=truth)
    assert values(record) == pytest.approx(expected)
    assert record.data.split == "own"
    assert record.command.endswith("--predictions named.json --annotations instances_own.json")


def test_images_without_detections_are_named(go: Go, write: Write, perfect: Results) -> None:
    record = go("coco", write([result for result in perfect if result["image_id"] != 3]))
    assert record.details["first_images_without_detections"] == ["3"]
    assert values(record)["box_ap"] < 1


@pytest.mark.parametrize("library", ["pycocotools", "faster_coco_eval"])
def test_the_reference_can_be_asked_instead(
    go: Go, write: Write, perfect: Results, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    shifted_pixel(perfect)
    expected = values(go("coco", write(perfect)))
    monkeypatch.setenv("BENCH_COCO_BACKEND", library)
    record = go("coco", write(perfect), rerun=True)
    assert record.details["evaluator"] == library
    assert values(record) == expected


def test_outcomes_hold_what_average_precision_is_made_of(
    go: Go, write: Write, perfect: Results, tmp_path: Path
) -> None:
    shifted_pixel(perfect)
    record = go("coco", write(perfect))
    outcomes = Store(tmp_path / "results").read_outcomes(record)
    assert outcomes.columns == ("item", "masks", "category", "place", "right", "ignored")
    assert ap50(outcomes) == pytest.approx(values(record)["box_ap50"], abs=1e-12)


def ap50(outcomes: Outcomes) -> float:
    """Average precision of boxes at 0.5, from the rows alone."""
    rows = [tuple(map(int, row[2:])) for row in outcomes.rows if row[1] == 0]
    found = []
    for category in sorted({row[0] for row in rows if row[1] < 0}):
        wanted = sum(row[2] for row in rows if row[0] == category and row[1] < 0)
        ranked = sorted(row[1:] for row in rows if row[0] == category and row[1] >= 0)
        hits = np.array([right & 1 for _, right, ignored in ranked if not ignored & 1])
        precision, recall = hits.cumsum() / np.arange(1, len(hits) + 1), hits.cumsum() / wanted
        found.append(np.mean([max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)]))
    return float(np.mean(found))


# Panoptic


@pytest.fixture
def panoptic(scenes: Path, tmp_path: Path) -> Path:
    """Return the annotations, copied as predictions."""
    source = scenes / "coco" / "annotations"
    shutil.copytree(source / "panoptic_val2017", tmp_path / "mine")
    content = json.loads((source / "panoptic_val2017.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps({"annotations": content["annotations"]}))
    return tmp_path / "mine.json"


def change(path: Path, spoil: Callable[[Results], Any]) -> None:
    content = json.loads(path.read_text())
    content["annotations"] = spoil(content["annotations"]) or content["annotations"]
    path.write_text(json.dumps(content))


def test_perfect_segments_give_one_everywhere(go: Go, panoptic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = go("coco", panoptic)
    assert record.task == "coco_panoptic"
    assert "mine.json is for the task coco_panoptic" in capsys.readouterr().err
    assert values(record) == dict.fromkeys(values(record), 1.0)
    assert len(values(record)) == 9
    assert set(record.details["pq_by_category"].values()) <= {1.0, None}


def test_segments_of_another_category_lose_everything(go: Go, panoptic: Path) -> None:
    def spoil(annotations: Results) -> None:
        ids = (1, 2, 5, 13, 27, 90, 92, 124, 155, 187)
        following = dict(zip(ids, ids[1:] + ids[:1], strict=True))
        for info in (info for one in annotations for info in one["segments_info"]):
            info["category_id"] = following[info["category_id"]]

    change(panoptic, spoil)
    assert values(go("coco_panoptic", panoptic))["pq"] < 0.02


def test_segments_one_pixel_off_lose_a_little(go: Go, panoptic: Path) -> None:
    for path in panoptic.with_suffix("").glob("*.png"):
        Image.fromarray(np.roll(np.asarray(Image.open(path)), 1, axis=1)).save(path)
    found = values(go("coco_panoptic", panoptic))
    assert 0.7 < found["pq"] < 0.99
    assert found["rq"] > 0.95


def rescale(path: Path) -> None:
    Image.open(path).resize((50, 50), Image.Resampling.NEAREST).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda found: found[2:], "lacks 2 of 8 images: 1, 2"),
        (lambda found: [*found, found[0]], "image id '1' 2 times"),
        (lambda found: [{**found[0], "image_id": 99}, *found[1:]], "1 image ids that the annotations do not know: 99"),
        (lambda found: [{**found[0], "segments_info": found[0]["segments_info"][1:]}, *found[1:]], "does not list"),
        (lambda found: found[0]["segments_info"].append({"id": 9, "category_id": 1}), "does not hold"),
        (lambda found: found[0]["segments_info"][0].update(category_id=3), "1 category ids"),
    ],
)
def test_segments_that_cannot_be_measured_are_refused(
    go: Go, panoptic: Path, spoil: Callable[[Results], Any], message: str
) -> None:
    change(panoptic, spoil)
    with pytest.raises(DataError, match=message):
        go("coco_panoptic", panoptic)


def test_what_panopticapi_does_not_read_does_not_count(go: Go, panoptic: Path) -> None:
    expected = values(go("coco_panoptic", panoptic))

    def spoil(annotations: Results) -> None:
        for info in (info for one in annotations for info in one["segments_info"]):
            info.update(area=1.5, iscrowd=True, isthing=True, score=0.3, category_id=float(info["category_id"]))

    change(panoptic, spoil)
    panoptic.write_bytes(b"\xef\xbb\xbf" + panoptic.read_bytes())
    assert values(go("coco", panoptic)) == expected


def test_a_map_that_is_absent_is_named(go: Go, panoptic: Path) -> None:
    (panoptic.with_suffix("") / "000000000002.png").unlink()
    with pytest.raises(DataError, match=r"holds no 000000000002\.png, the PNG file of image 2\. Add it"):
        go("coco_panoptic", panoptic)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content["categories"][0].pop("isthing"), "categories 1 whether they are things"),
        (lambda content: content["annotations"][0]["segments_info"][0].update(area=0), "segments of area 0"),
    ],
)
def test_annotated_segments_that_cannot_be_are_refused(
    go: Go, panoptic: Path, scenes: Path, tmp_path: Path, spoil: Callable[[Any], Any], message: str
) -> None:
    content = json.loads((scenes / "coco" / "annotations" / "panoptic_val2017.json").read_text())
    spoil(content)
    (tmp_path / "panoptic_own.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        go("coco_panoptic", panoptic, annotations=tmp_path / "panoptic_own.json")


def test_segments_of_another_size_are_refused(go: Go, panoptic: Path) -> None:
    rescale(panoptic.with_suffix("") / "000000000002.png")
    with pytest.raises(DataError, match=r"000000000002\.png is 50 x 50 pixels; expected"):
        go("coco_panoptic", panoptic)
