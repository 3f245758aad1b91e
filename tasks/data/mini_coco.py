"""The embedded COCO: generated scenes in the official layout, with polygons, run lengths, crowds and panoptic maps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.progress import track
from harness.registry import GENERATORS
from tasks.data.mini_scenes import DIFFICULTY, GROUNDS, KINDS, Scene, Thing, draw_scene
from tasks.data.publish import check_parameters, publish

GENERATOR = 1  # to be raised whenever a byte changes
FOLDER = "coco"
JPEG_QUALITY = 92
# Ids with gaps, as COCO's own have.
THINGS = dict(zip(KINDS, (1, 2, 5, 13, 27, 90), strict=True))
STUFF = dict(zip(GROUNDS, (92, 124, 155, 187), strict=True))


@GENERATORS.register(FOLDER)
def generate(root: Path, *, train: int = 64, val: int = 24, seed: int = 0, difficulty: float = DIFFICULTY) -> Path:
    """Write the data set below `root`, all of it or nothing, and return its folder; what is there already is kept.

    Args:
        train, val: images of each split.
        difficulty: 0..1, see `draw_scene`.

    Raises:
        SetupError: a parameter that makes no data set.
        DataError: the folder is there and incomplete, or holds something else.
    """
    check_parameters(seed, difficulty, train=train, val=val)
    counts = {"train2017": train, "val2017": val}
    card = {"name": "coco-mini", "generator": GENERATOR, "seed": seed, "difficulty": float(difficulty), **counts}
    return publish(root / FOLDER, card, list(_files(counts)), lambda folder: _write(folder, counts, seed, difficulty))


def _files(counts: Mapping[str, int]) -> Iterator[str]:
    for split, count in counts.items():
        yield from (f"annotations/{kind}_{split}.json" for kind in ("instances", "panoptic"))
        for image in range(1, count + 1):
            yield f"{split}/{image:012d}.jpg"
            yield f"annotations/panoptic_{split}/{image:012d}.png"


def _write(folder: Path, counts: Mapping[str, int], seed: int, difficulty: float) -> None:
    """Write images and annotations to a new folder."""
    for number, (split, count) in enumerate(counts.items()):
        maps = folder / "annotations" / f"panoptic_{split}"
        maps.mkdir(parents=True)
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        panoptic: list[dict[str, Any]] = []
        for image in track(range(1, count + 1), "draw scenes"):
            scene = draw_scene((seed, number, image), difficulty)
            name, (height, width) = f"{image:012d}", scene.ground.shape
            Image.fromarray(scene.picture).save(folder / split / f"{name}.jpg", quality=JPEG_QUALITY)
            images.append({"id": image, "file_name": f"{name}.jpg", "height": height, "width": width})
            objects += [{"id": len(objects) + n, **_object(thing, image)} for n, thing in enumerate(scene.things, 1)]
            ids, segments = _segments(scene)
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            Image.fromarray(colours).save(maps / f"{name}.png")
            panoptic.append({"image_id": image, "file_name": f"{name}.png", "segments_info": segments})
        things = [{"id": id, "name": name, "supercategory": "shape"} for name, id in THINGS.items()]
        stuff = [{"id": id, "name": name, "supercategory": "ground", "isthing": 0} for name, id in STUFF.items()]
        both = [{**category, "isthing": 1} for category in things] + stuff
        for kind, categories, annotated in (("instances", things, objects), ("panoptic", both, panoptic)):
            content = {"images": images, "categories": categories, "annotations": annotated}
            path = folder / "annotations" / f"{kind}_{split}.json"
            path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _object(thing: Thing, image: int) -> dict[str, Any]:
    """An annotation: the outline as a polygon, a crowd as run lengths."""
    if thing.polygon is None:
        segmentation: Any = {"size": list(thing.mask.shape), "counts": run_lengths(thing.mask)}
    else:
        segmentation = [[float(number) for number in thing.polygon.ravel()]]
    return {
        "image_id": image,
        "category_id": list(THINGS.values())[thing.kind],
        "segmentation": segmentation,
        "area": int(thing.mask.sum()),
        "bbox": _box(thing.mask),
        "iscrowd": int(thing.polygon is None),
    }


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's run lengths of a mask (H, W): column by column, of zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff([0, *edges, len(flat)]).tolist()  # type: ignore[no-any-return]


def _box(mask: NDArray[np.bool_]) -> list[float]:
    """Left, top, width, height of what a mask covers."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [float(left), float(top), float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)]


def _segments(scene: Scene) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """The map (H, W) of segment ids, 0 where nothing is annotated, and the segments."""
    ids = np.zeros(scene.ground.shape, np.int64)
    wanted = [(int(id), scene.ground == ground, 0) for ground, id in enumerate(STUFF.values())]
    wanted += [(list(THINGS.values())[t.kind], t.mask, int(t.polygon is None)) for t in scene.things]
    infos = []
    for number, (category, mask, crowd) in enumerate(wanted):
        # Spread over three bytes, so that a reader of one channel is found out.
        segment = 70001 * (number + 1)
        ids[mask] = segment
        infos.append({"id": segment, "category_id": category, "iscrowd": crowd})
    segments = []
    for info in infos:
        mask = ids == info["id"]
        if mask.any():
            segments.append({**info, "area": int(mask.sum()), "bbox": [int(side) for side in _box(mask)]})
    return ids, segments
