"""What the command line says of perfect and of spoilt predictions: boxes, masks, panoptic maps, label maps."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codes

from harness.cli import main
from harness.store import Store
from tasks.data.coco import read_instances
from tasks.metrics.overlap import draw_mask

Command = Callable[..., tuple[int, dict[str, float], str]]
Results = list[dict[str, Any]]
IDS = (1, 2, 5, 13, 27, 90)


@pytest.fixture
def measure(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that runs the command, and returns exit code, values and standard error."""
    before = signal.getsignal(signal.SIGTERM)

    def called(task: str, file: Path) -> tuple[int, dict[str, float], str]:
        words = ["run", "--task", task, "--predictions", file, "--data", scenes, "--results", tmp_path / "results"]
        monkeypatch.setattr(sys, "argv", ["run_bench.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        signal.signal(signal.SIGTERM, before)
        records = Store(tmp_path / "results").load()
        values = {name: value for record in records for name, value in record.values().items() if value is not None}
        return int(end.value.code or 0), values, capsys.readouterr().err

    return called


@pytest.fixture
def objects(scenes: Path) -> Results:
    """Return every object, crowds aside, as a result with a box and a mask."""
    instances = read_instances(scenes / "coco" / "annotations" / "instances_val2017.json")
    masks = instances.objects(masks=True).masks
    return [
        {"image_id": one.image_id, "category_id": one.category_id, "bbox": list(one.bbox), "score": 0.9,
         "segmentation": {**mask, "counts": mask["counts"].decode()}}
        for one, mask in zip(instances.annotations, masks, strict=True) if not one.iscrowd
    ]  # fmt: skip


def next_class(result: dict[str, Any]) -> None:
    result["category_id"] = IDS[(IDS.index(result["category_id"]) + 1) % len(IDS)]


def one_pixel(result: dict[str, Any]) -> None:
    result["bbox"][0] += 1
    code = {**result["segmentation"], "counts": result["segmentation"]["counts"].encode()}
    moved = codes.encode(np.asfortranarray(np.roll(draw_mask(code), 1, axis=1), np.uint8))
    result["segmentation"] = {"size": code["size"], "counts": moved["counts"].decode()}


def corners(result: dict[str, Any]) -> None:
    x, y, w, h = result["bbox"]
    result["bbox"] = [x, y, x + w, y + h]


def labels(result: dict[str, Any]) -> None:
    result["category_id"] = IDS.index(result["category_id"])


def half_size(result: dict[str, Any]) -> None:
    result["bbox"] = [number / 2 for number in result["bbox"]]
    result["segmentation"]["size"] = [side // 2 for side in result["segmentation"]["size"]]


def half_boxes(result: dict[str, Any]) -> None:
    result["bbox"] = [number / 2 for number in result["bbox"]]


@pytest.mark.parametrize(
    ("spoil", "copies", "box_ap", "mask_ap"),
    [
        (None, 1, (1 - 1e-9, 1), (1 - 1e-9, 1)),
        (next_class, 1, (0, 0.02), (0, 0.02)),
        (one_pixel, 1, (0.7, 0.97), (0.7, 0.98)),
        (half_boxes, 1, (0, 0.1), (1 - 1e-9, 1)),
        (None, 2, (0.5, 0.9), (0.5, 0.9)),
    ],
)
def test_boxes_and_masks_lose_what_they_should(
    measure: Command,
    objects: Results,
    tmp_path: Path,
    spoil: Callable[[dict[str, Any]], None] | None,
    copies: int,
    box_ap: tuple[float, float],
    mask_ap: tuple[float, float],
) -> None:
    for result in objects if spoil else []:
        spoil(result)  # type: ignore[misc]
    (tmp_path / "mine.json").write_text(json.dumps(objects * copies))
    code, values, _ = measure("coco", tmp_path / "mine.json")
    assert code == 0
    assert box_ap[0] <= values["box_ap"] <= box_ap[1]
    assert mask_ap[0] <= values["mask_ap"] <= mask_ap[1]
    if spoil is None and copies == 1:
        few = ("box_ar1", "box_ar10", "mask_ar1", "mask_ar10")
        assert all(value == pytest.approx(1) for name, value in values.items() if name not in few)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (corners, "look like left, top, right, bottom"),
        (labels, "category ids that the annotations do not know: .*They seem to be labels from 0 to 5"),
        (half_size, r"is of size \[90, 83\]; expected \[180, 166\]"),
    ],
)
def test_boxes_and_masks_that_cannot_be_are_one_line(
    measure: Command, objects: Results, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    for result in objects:
        spoil(result)
    (tmp_path / "mine.json").write_text(json.dumps(objects))
    code, values, error = measure("coco", tmp_path / "mine.json")
    assert (code, values) == (2, {})
    (line,) = [line for line in error.splitlines() if line.startswith("Error: ")]
    assert error.splitlines()[-1] == line
    assert re.search(message, line)


@pytest.fixture
def maps(scenes: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(scenes / "ADEChallengeData2016" / "annotations" / "validation", tmp_path / "maps")
    for path in folder.glob("*.png"):
        Image.fromarray(np.maximum(np.asarray(Image.open(path)), 1)).save(path)
    return folder


@pytest.fixture
def panoptic(scenes: Path, tmp_path: Path) -> Path:
    source = scenes / "coco" / "annotations"
    shutil.copytree(source / "panoptic_val2017", tmp_path / "mine")
    shutil.copy(source / "panoptic_val2017.json", tmp_path / "mine.json")
    return tmp_path / "mine.json"


def each(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in folder.glob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


@pytest.mark.parametrize(
    ("change", "least", "most", "message"),
    [
        (lambda pixels: pixels, 1, 1, ""),
        (lambda pixels: np.roll(pixels, 1, axis=1), 0.8, 0.98, ""),
        (lambda pixels: pixels % 150 + 1, 0, 0.01, ""),
        (lambda pixels: pixels - 1, 0, 0, "seem to count classes from 0"),
        (lambda pixels: pixels[::2, ::2], 0, 0, "the annotation's size"),
    ],
)
def test_label_maps(
    measure: Command,
    maps: Path,
    change: Callable[[np.ndarray], np.ndarray],
    least: float,
    most: float,
    message: str,
) -> None:
    each(maps, change)
    code, values, error = measure("ade20k", maps)
    assert code == (2 if message else 0)
    assert message in error.splitlines()[-1]
    assert message or least <= values["miou"] <= most


@pytest.mark.parametrize(
    ("change", "least", "most", "message"),
    [
        (lambda pixels: pixels, 1, 1, ""),
        (lambda pixels: np.roll(pixels, 1, axis=1), 0.7, 0.99, ""),
        (lambda pixels: pixels[::2, ::2], 0, 0, "the image's original size"),
        (lambda pixels: pixels[..., ::-1], 0, 0, "does not list"),
    ],
)
def test_panoptic_maps(
    measure: Command,
    panoptic: Path,
    change: Callable[[np.ndarray], np.ndarray],
    least: float,
    most: float,
    message: str,
) -> None:
    each(panoptic.with_suffix(""), change)
    code, values, error = measure("coco", panoptic)
    assert code == (2 if message else 0)
    assert message in error.splitlines()[-1]
    assert message or least <= values["pq"] <= most
