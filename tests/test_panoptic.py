"""Panoptic quality: panopticapi's rule, void and crowds included."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import run
from tasks.metrics.panoptic import Counts, Segment, average, compare

VOID, OTHER = 0, 60


def strip(*runs: tuple[int, int]) -> np.ndarray:
    """A map of one row: so many pixels of each id."""
    return np.concatenate([np.full(count, id, np.int64) for id, count in runs])[None]


def counted(truth: Any, segments: list[Segment], found: Any, guesses: list[Segment]) -> dict[int, tuple[Any, ...]]:
    counts = compare(truth, segments, found, guesses)
    return {category: (c.right, c.wrong, c.missed, c.overlap) for category, c in counts.items()}


def test_counted_by_hand() -> None:
    truth, found = strip((1, 60), (2, 40)), strip((7, 50), (8, 50))
    segments, guesses = [Segment(1, 3), Segment(2, 4)], [Segment(7, 3), Segment(8, 4)]
    assert counted(truth, segments, found, guesses) == {3: (1, 0, 0, 50 / 60), 4: (1, 0, 0, 40 / 50)}


def test_half_an_overlap_is_no_match() -> None:
    truth = strip((1, 20), (2, 80))
    assert counted(truth, [Segment(1, 3)], strip((7, 10), (VOID, 90)), [Segment(7, 3)]) == {3: (0, 1, 1, 0.0)}
    assert counted(truth, [Segment(1, 3)], strip((7, 11), (VOID, 89)), [Segment(7, 3)]) == {3: (1, 0, 0, 11 / 20)}


def test_void_is_in_no_union_and_excuses_a_guess_that_is_mostly_on_it() -> None:
    truth = strip((1, 50), (VOID, 50))
    assert counted(truth, [Segment(1, 3)], strip((7, 90), (VOID, 10)), [Segment(7, 3)]) == {3: (1, 0, 0, 1.0)}
    mostly, half = strip((VOID, 40), (7, 60)), strip((VOID, 25), (7, 50), (VOID, 25))
    assert counted(truth, [Segment(1, 3)], mostly, [Segment(7, 4)]) == {3: (0, 0, 1, 0.0)}
    assert counted(truth, [Segment(1, 3)], half, [Segment(7, 4)]) == {3: (0, 0, 1, 0.0), 4: (0, 1, 0, 0.0)}


def test_a_crowd_is_neither_missed_nor_matched_and_excuses_its_own_category() -> None:
    truth, crowd = strip((1, 60), (2, 40)), Segment(1, 3, crowd=True)
    found = strip((7, 60), (8, 40))
    assert counted(truth, [crowd, Segment(2, 4)], found, [Segment(7, 3), Segment(8, 4)]) == {4: (1, 0, 0, 1.0)}
    assert counted(truth, [crowd], found, [Segment(7, 5)]) == {5: (0, 1, 0, 0.0)}


def test_another_category_on_the_same_pixels_is_wrong_twice() -> None:
    ids = strip((1, 50))
    assert counted(ids, [Segment(1, 3)], ids, [Segment(1, 4)]) == {3: (0, 0, 1, 0.0), 4: (0, 1, 0, 0.0)}


def test_categories_that_do_not_occur_take_no_part() -> None:
    counts = {1: Counts(1.6, right=2), 2: Counts(0.0, wrong=1), 3: Counts()}
    quality = average(counts, [1, 2, 3, 4])
    assert quality is not None
    assert (quality.pq, quality.sq, quality.rq, quality.categories) == (0.4, 0.4, 0.5, 2)
    assert average(counts, [3, 4]) is None


def write_case(folder: Path, seed: int) -> tuple[list[Any], list[Any]]:
    """Maps of blocks with void, crowds, strange ids and wrong categories: PNG files and their segments."""
    rng = np.random.default_rng(seed)
    truth, results = [], []
    for number in range(4):
        ids = np.kron(rng.integers(0, rng.integers(3, 9), (6, 6)), np.ones((5, 5), int)) * int(rng.integers(1, 90000))
        found = np.where(rng.random(ids.shape) < rng.choice([0.1, 0.4]), np.roll(ids, 1, 0), ids)
        segments = [
            {
                "id": i, "category_id": int(rng.integers(1, 7)), "iscrowd": int(rng.random() < 0.25),
                "area": int((ids == i).sum()),
            }
            for i in np.unique(ids).tolist() if i and rng.random() < 0.9
        ]  # fmt: skip
        known = {segment["id"]: segment["category_id"] for segment in segments}
        guesses = [
            {"id": i, "category_id": known.get(i, 3) if rng.random() < 0.8 else int(rng.integers(1, 7))}
            for i in np.unique(found).tolist() if i
        ]  # fmt: skip
        for kind, map_, infos, into in (("truth", ids, segments, truth), ("found", found, guesses, results)):
            (folder / kind).mkdir(exist_ok=True)
            write_ids(folder / kind / f"{number}.png", map_)
            into.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
    return truth, results


def write_ids(path: Path, ids: np.ndarray) -> None:
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)


def read_ids(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), np.int64) @ np.array([1, 256, 65536])


def ours(folder: Path, truth: list[Any], results: list[Any]) -> dict[int, Counts]:
    total = {category: Counts() for category in range(1, 7)}
    for one, other in zip(truth, results, strict=True):
        segments = [Segment(s["id"], s["category_id"], s["area"], bool(s["iscrowd"])) for s in one["segments_info"]]
        guesses = [Segment(s["id"], s["category_id"]) for s in other["segments_info"]]
        maps = [read_ids(folder / kind / one["file_name"]) for kind in ("truth", "found")]
        for category, counts in compare(maps[0], segments, maps[1], guesses).items():
            total[category] += counts
    return total


# panopticapi at 7bb4655 over all categories of `write_case`, seeds 0 to 4.
PANOPTICAPI = (
    (0.6817586559562766, 0.7879706920344783, 0.7163299663299663),
    (0.628882444527329, 0.7708342391941017, 0.6848484848484849),
    (0.6998564234619278, 0.7933052970182474, 0.7361111111111112),
    (0.7433130835103808, 0.956885344083737, 0.7777777777777777),
    (0.6760518165925024, 0.7589877324463202, 0.7428571428571429),
)


@pytest.mark.parametrize("seed", range(5))
def test_panopticapis_numbers(seed: int, tmp_path: Path) -> None:
    quality = average(ours(tmp_path, *write_case(tmp_path, seed)), range(1, 7))
    assert quality is not None
    assert (quality.pq, quality.sq, quality.rq) == pytest.approx(PANOPTICAPI[seed], abs=1e-15)


def test_panopticapi_agrees(tmp_path: Path) -> None:
    api = pytest.importorskip("panopticapi.evaluation", reason="panopticapi is not installed: it is on GitHub only")
    categories = {category: {"id": category, "isthing": category % 2} for category in range(1, 7)}
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        truth, results = write_case(folder, seed)
        with contextlib.redirect_stdout(io.StringIO()):
            pairs = list(zip(truth, results, strict=True))
            stat = api.pq_compute_single_core(0, pairs, str(folder / "truth"), str(folder / "found"), categories)
        total = ours(folder, truth, results)
        for thing in (None, True, False):
            reference = stat.pq_average(categories, thing)[0]
            quality = average(total, [c for c in categories if thing is None or c % 2 == thing])
            assert quality is not None
            assert quality.categories == reference["n"]
            assert (quality.pq, quality.sq, quality.rq) == pytest.approx(
                (reference["pq"], reference["sq"], reference["rq"]), abs=1e-15
            )


@pytest.mark.parametrize("name", ["single_team", "bird_cat_team"])
def test_published_examples_give_their_numbers(name: str, shared_data: Path, tmp_path: Path) -> None:
    case = deeplab2_case(shared_data / "panoptic_eval" / "deeplab2_testdata", name)
    total: dict[int, Counts] = {}
    for truth, found in case["maps"]:
        both = [[Segment(i, i // case["many"]) for i in np.unique(ids).tolist() if i] for ids in (truth, found)]
        for category, counts in compare(truth, both[0], found, both[1]).items():
            total.setdefault(category, Counts())
            total[category] += counts
    quality = average(total, sorted(total))
    assert quality is not None
    assert (quality.pq, quality.sq, quality.rq) == pytest.approx(case["expected"][:3], abs=5e-8)
    for got, expected in zip(("right", "missed", "wrong"), case["expected"][3:], strict=True):
        assert np.mean([getattr(counts, got) for counts in total.values()]) == pytest.approx(expected, abs=5e-8)


@pytest.mark.parametrize("name", ["single_team", "bird_cat_team"])
def test_published_examples_give_their_numbers_as_predictions(name: str, shared_data: Path, tmp_path: Path) -> None:
    case = deeplab2_case(shared_data / "panoptic_eval" / "deeplab2_testdata", name)
    content: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    results: dict[str, Any] = {"annotations": []}
    content["categories"] = [{"id": category, "name": str(category), "isthing": 1} for category in range(1, 7)]
    for number, maps in enumerate(case["maps"]):
        height, width = maps[0].shape
        content["images"].append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        for into, folder, ids in zip((content, results), ("panoptic_own", "mine"), maps, strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_ids(tmp_path / folder / f"{number}.png", ids)
            infos = [{"id": i, "category_id": i // case["many"]} for i in np.unique(ids).tolist() if i]
            into["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
    (tmp_path / "panoptic_own.json").write_text(json.dumps(content))
    (tmp_path / "mine.json").write_text(json.dumps(results))
    truth, results_folder = tmp_path / "panoptic_own.json", tmp_path / "results"
    (record,) = run(None, "coco", predictions=tmp_path / "mine.json", annotations=truth, results=results_folder)
    assert record.task == "coco_panoptic"
    values = record.values()
    assert [values[key] for key in ("pq", "sq", "rq")] == pytest.approx(case["expected"][:3], abs=5e-8)
    assert values["pq_stuff"] is None


def deeplab2_case(folder: Path, name: str) -> dict[str, Any]:
    """Panoptic maps, class * many + instance, of deeplab2's example images; 0 is void."""
    content = json.loads((folder / "expected_pq.json").read_text())
    colours = {tuple(map(int, key.split(","))): value for key, value in content["class_color_map"].items()}
    many = content[name]["max_instances_per_category"]
    maps = []
    for stem in ("team",) if name == "single_team" else ("bird", "cat", "team"):
        truth_file = next(file for file in content["gt_class_map"] if file.startswith(stem))
        classes = {int(key): value for key, value in content["gt_class_map"][truth_file].items()}
        levels = np.asarray(Image.open(folder / truth_file).convert("L"), np.int64)
        truth = np.zeros_like(levels)
        for instance, level in enumerate(np.unique(levels).tolist()):
            truth[levels == level] = classes[level] * many + instance
        painted = np.asarray(Image.open(folder / f"{stem}_pred_class.png").convert("RGB"), np.int64)
        instances = np.asarray(Image.open(folder / f"{stem}_pred_instance.png").convert("L"), np.int64)
        found = instances.copy()
        for colour, category in colours.items():
            found[(painted == colour).all(axis=-1)] += category * many
        maps.append((np.where(truth < many, 0, truth), np.where(found < many, 0, found)))
    return {"maps": maps, "many": many, "expected": content[name]["expected"]}
