"""Files of COCO results as people write them: pycocotools' own reading of the same file, or an error that helps."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as codes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from harness import run
from harness.errors import DataError
from tasks.data.coco import Instances, read_instances
from tasks.data.masks import _pixels
from tasks.metrics.detection import NAMES
from tasks.metrics.overlap import draw_mask

Results = list[dict[str, Any]]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def truth(scenes: Path) -> Path:
    return scenes / "coco" / "annotations" / "instances_val2017.json"


@pytest.fixture(scope="module")
def instances(truth: Path) -> Instances:
    return read_instances(truth)


@pytest.fixture
def found(instances: Instances) -> Results:
    """Return detections near the objects, some of another category, not cut at the image's edge."""
    rng = np.random.default_rng(0)
    ids, sizes = [c.id for c in instances.categories], {image.id: image for image in instances.images}
    results = []
    for one in instances.annotations:
        for _ in range(3):
            x, y, w, h = np.array(one.bbox) + rng.normal(0, 2, 4)
            w, h, image = max(w, 2), max(h, 2), sizes[one.image_id]
            mask = np.zeros((image.height, image.width), np.uint8, order="F")
            mask[max(0, int(y)) : int(y + h), max(0, int(x)) : int(x + w)] = 1
            code = codes.encode(mask)
            category = one.category_id if rng.random() < 0.8 else int(rng.choice(ids))
            results.append({
                "image_id": one.image_id, "category_id": category,
                "bbox": [x, y, w, h], "score": round(rng.random(), 2),
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            })  # fmt: skip
    return results


def official(truth: Path, results: Path, kind: str) -> list[float]:
    """The twelve numbers as pycocotools gives them for two files."""
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(truth))
        evaluation = COCOeval(annotations, annotations.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(map(float, evaluation.stats))


def ours(truth: Path, results: Path, kind: str, out: Path) -> list[float]:
    (record,) = run(None, "coco", predictions=results, annotations=truth, results=out)
    values = record.values()
    name = {"bbox": "box", "segm": "mask"}[kind]
    return [-1.0 if (value := values[f"{name}_{number}"]) is None else value for number in NAMES]


def without(results: Results, field: str) -> Results:
    return [{key: value for key, value in result.items() if key != field} for result in results]


def each(change: Change) -> Callable[[Results], Results]:
    """Make a change to every result, or to every object."""

    def changed(entries: Results) -> Results:
        for entry in entries:
            change(entry)
        return entries

    return changed


def negative_corner(result: dict[str, Any]) -> None:
    result["bbox"][0] -= 6 * (result["score"] > 0.5) * result["bbox"][2]


def no_width(result: dict[str, Any]) -> None:
    if result["score"] < 0.3:
        result["bbox"][2] = 0


ACCEPTED: dict[str, Callable[[Results], Results]] = {
    "as they are": lambda results: results,
    "whole numbers as 1.0": each(lambda r: r.update({name: float(r[name]) for name in ("image_id", "category_id")})),
    "keypoints beside boxes": each(lambda r: r.update(keypoints=[1, 2, 2] * 17)),
    "fields that do not count": each(lambda r: r.update(id=1, area="?", iscrowd=None, segmentation=[], a={"b": [1]})),
    "scores of any size": each(lambda r: r.update(score=40 * r["score"] - 10)),
    "one score": each(lambda r: r.update(score=1)),
    "boxes that leave the image": each(negative_corner),
    "boxes without area": each(no_width),
    "twice": lambda results: results + results,
    "backwards": lambda results: results[::-1],
    "over a hundred an image": lambda results: [{**r, "image_id": 1, "score": n} for n, r in enumerate(results * 4)],
    "one detection": lambda results: results[:1],
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_boxes_give_what_pycocotools_gives(truth: Path, found: Results, tmp_path: Path, name: str) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps(ACCEPTED[name](without(found, "segmentation"))))
    expected = official(truth, tmp_path / "boxes.json", "bbox")
    assert ours(truth, tmp_path / "boxes.json", "bbox", tmp_path) == expected
    assert len(set(expected)) > 3 or name == "one detection"


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_masks_give_what_pycocotools_gives(truth: Path, found: Results, tmp_path: Path, kind: str) -> None:
    (tmp_path / "masks.json").write_text(json.dumps(without(found, "bbox")))
    expected = official(truth, tmp_path / "masks.json", kind)
    assert ours(truth, tmp_path / "masks.json", kind, tmp_path) == expected
    empty = [{**result, "bbox": []} for result in found]
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    assert ours(truth, tmp_path / "empty.json", kind, tmp_path) == expected


def test_what_only_some_results_have_is_not_measured(truth: Path, found: Results, tmp_path: Path) -> None:
    content = json.loads(truth.read_text())
    for one in content["annotations"]:
        del one["segmentation"]
    (tmp_path / "instances_boxes.json").write_text(json.dumps(content))
    for name, field, objects, reason in (
        ("box_ap", "bbox", truth, "Only some of the results hold boxes."),
        ("mask_ap", "segmentation", truth, "Only some of the results hold masks."),
        ("mask_ap", "id", tmp_path / "instances_boxes.json", "The annotations hold no masks."),
    ):
        (tmp_path / "mine.json").write_text(json.dumps([*without(found[:1], field), *found[1:]]))
        (record,) = run(None, "coco", predictions=tmp_path / "mine.json", annotations=objects, results=tmp_path)
        (measured,) = [one for one in record.measurements if one.metric.name == name]
        assert (measured.value, measured.reason) == (None, reason)


def test_run_lengths_as_numbers_are_those_as_text(truth: Path, found: Results, tmp_path: Path) -> None:
    found = without(found, "bbox")
    (tmp_path / "text.json").write_text(json.dumps(found))
    for result in found:
        code = result["segmentation"]
        pixels = draw_mask({**code, "counts": code["counts"].encode()}).ravel(order="F")
        bounds = [0, *np.flatnonzero(np.diff(pixels, prepend=False)).tolist(), len(pixels)]
        result["segmentation"] = {"size": code["size"], "counts": np.diff(bounds).tolist()}
    (tmp_path / "numbers.json").write_text(json.dumps(found))
    expected = official(truth, tmp_path / "text.json", "segm")
    assert ours(truth, tmp_path / "numbers.json", "segm", tmp_path) == expected


OBJECTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "crowds as true and false": lambda content: each(lambda a: a.update(iscrowd=bool(a["iscrowd"])))(
        content["annotations"]
    ),
    "crowds as 1.0": lambda content: each(lambda a: a.update(iscrowd=float(a["iscrowd"])))(content["annotations"]),
    "areas as 0": lambda content: each(lambda a: a.update(area=0))(content["annotations"]),
    "sizes as 96.0": lambda content: each(lambda i: i.update(height=float(i["height"])))(content["images"]),
    "no masks": lambda content: each(lambda a: a.pop("segmentation"))(content["annotations"]),
    "keypoints": lambda content: each(lambda c: c.update(keypoints=["nose"], skeleton=[]))(content["categories"]),
    "no info": lambda content: content.pop("info", None),
    "images backwards": lambda content: content["images"].reverse(),
    "categories backwards": lambda content: content["categories"].reverse(),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_annotations_give_what_pycocotools_gives(truth: Path, found: Results, tmp_path: Path, name: str) -> None:
    content = json.loads(truth.read_text())
    OBJECTS[name](content)
    (tmp_path / "instances_own.json").write_text(json.dumps(content))
    (tmp_path / "boxes.json").write_text(json.dumps(without(found, "segmentation")))
    expected = official(tmp_path / "instances_own.json", tmp_path / "boxes.json", "bbox")
    assert ours(tmp_path / "instances_own.json", tmp_path / "boxes.json", "bbox", tmp_path) == expected


def test_a_byte_order_mark_and_ends_of_lines_do_not_count(truth: Path, found: Results, tmp_path: Path) -> None:
    text = json.dumps(without(found, "segmentation"), indent=1)
    (tmp_path / "plain.json").write_text(text)
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    expected = official(truth, tmp_path / "plain.json", "bbox")
    assert ours(truth, tmp_path / "marked.json", "bbox", tmp_path) == expected


def corners(result: dict[str, Any]) -> None:
    x, y, w, h = result["bbox"]
    result["bbox"] = [x, y, x + w, y + h]


def runs(counts: Any) -> Callable[[Results], bytes]:
    return lambda found: json.dumps(
        [{**found[0], "segmentation": {**found[0]["segmentation"], "counts": counts}}, *found[1:]]
    ).encode()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda found: b"", "is empty: expected a list"),
        (lambda found: gzip.compress(b"[]"), "compressed by gzip: run gunzip"),
        (lambda found: b"PK\x03\x04", "a zip archive: run unzip"),
        (lambda found: json.dumps(found).encode("utf-16"), "UTF-16: save it as UTF-8"),
        (lambda found: json.dumps(found).encode()[:-9], "is not JSON: Input data was truncated"),
        (lambda found: b"\n".join(json.dumps(one).encode() for one in found), "Expected `array`, got `object`"),
        (lambda found: json.dumps([{**found[0], "score": "nan"}]).encode(), "scores that are not finite, at entries 0"),
        (lambda found: json.dumps([{**found[0], "bbox": ["inf", 0, 1, 1]}]).encode(), "1 boxes not finite"),
        (lambda found: json.dumps(each(corners)(found)).encode(), "look like left, top, right, bottom"),
        (lambda found: json.dumps([{**one, "bbox": [0.1, 0.2, 0.3, 0.3]} for one in found]).encode(), "like shares"),
        (runs([5, 99_999_999]), "mask of entry 0 has run lengths that do not make up its 180 x 166 pixels"),
        (runs([5, 3]), "do not make up"),
        (runs([-5, 3]), "mask of entry 0 cannot be read"),
        (runs("05"), "do not make up"),
        (runs("\x00~~"), "do not make up"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_measured_say_why(
    truth: Path, found: Results, tmp_path: Path, spoil: Callable[[Results], bytes], message: str
) -> None:
    (tmp_path / "mine.json").write_bytes(spoil(found))
    with pytest.raises(DataError, match=message) as caught:
        run(None, "coco", predictions=tmp_path / "mine.json", annotations=truth, results=tmp_path / "results")
    assert "\n" not in str(caught.value)


def test_large_boxes_are_not_taken_for_corners(truth: Path, instances: Instances, tmp_path: Path) -> None:
    """Where objects fill their images, boxes beyond the edge look like corners to whoever sees the boxes alone."""
    content = json.loads(truth.read_text())
    sizes = {image.id: (image.width, image.height) for image in instances.images}
    for one in content["annotations"]:
        width, height = sizes[one["image_id"]]
        one.update(bbox=[3, 3, width - 6, height - 6])
    results = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "score": 0.5,
         "bbox": [5, 5, one["bbox"][2] + 2, one["bbox"][3] + 2]} for one in content["annotations"]
    ]  # fmt: skip
    (tmp_path / "instances_own.json").write_text(json.dumps(content))
    (tmp_path / "large.json").write_text(json.dumps(results))
    expected = official(tmp_path / "instances_own.json", tmp_path / "large.json", "bbox")
    assert ours(tmp_path / "instances_own.json", tmp_path / "large.json", "bbox", tmp_path) == expected
    assert expected[0] > 0.1


def test_the_pixels_of_codes_are_counted() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(rng.integers(1, 90, 2)) < share for share in (0, 0.001, 0.1, 0.5, 1) for _ in range(20)]
    masks.append(np.kron(rng.random((9, 9)) < 0.5, np.ones((300, 400), bool)))
    texts = [codes.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks]
    assert _pixels(texts).tolist() == [mask.size for mask in masks]
    # Nothing, one run of 5, one that goes on without end, another alphabet, runs 5, 3, 2 and 2 - 4.
    assert _pixels([b"", b"5", b"P", b"\x7f", b"532L"]).tolist() == [0, 5, -1, -1, -1]
