"""Made-up CLEVR scenes: official fields and geometry, exact rays, and labels that the objects alone tell."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from harness.errors import DataError, SetupError
from harness.task import build_task
from tasks.clevr import Clevr
from tasks.data import mini_clevr
from tasks.data.clevr_rays import centres, nearest, rays, render
from tasks.data.clevr_scenes import count_class
from tasks.data.clevr_world import CAMERA, CAMERA_JITTER, SIZES, Thing, aim, describe, relationships
from tasks.data.mini_clevr import Drawing, EndlessScenes, draw, generate, imagine

Array = NDArray[np.float64]
FEW = {"train": 6, "val": 3}
COUNTS_OF_VERSION_1 = [0, 0, 3, 5, 5, 0, 1, 1, 7, 2, 2, 7]
DISTANCES_OF_VERSION_1 = [5, 4, 3, 2, 0, 5, 3, 3, 2, 3, 4, 1]
PICTURES_OF_VERSION_1 = [[[77.11, 68.15], [120.58, 124.98]], [[76.8, 73.62], [121.89, 127.99]]]  # means of quarters


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("clevr"), **FEW)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Layout


def test_layout_is_clevrs(small: Path) -> None:
    assert small.name == "CLEVR_v1.0"
    images = [f"images/train/CLEVR_train_{n:06d}.png" for n in range(6)]
    images += [f"images/val/CLEVR_val_{n:06d}.png" for n in range(3)]
    scenes = ["scenes/CLEVR_train_scenes.json", "scenes/CLEVR_val_scenes.json"]
    assert sorted(_files(small)) == sorted([*images, *scenes, "dataset.json"])
    with Image.open(small / images[0]) as picture:
        assert (picture.size, picture.mode, picture.format) == ((160, 120), "RGB", "PNG")


def test_the_task_reads_it(small: Path) -> None:
    task = build_task("clevr_count:knn", small.parent)
    assert isinstance(task, Clevr)
    stamp = task.data()
    assert (stamp.name, stamp.size, stamp.classes) == ("clevr-mini", 3, 8)
    assert list(task.split("train").targets) == [draw(n).count_class for n in range(6)]
    nearest_of = build_task("clevr_dist", small.parent)
    assert isinstance(nearest_of, Clevr)
    assert list(nearest_of.split("val").targets) == [draw(n, split=1).distance_class for n in range(3)]


def _shape_of(value: Any) -> Any:
    """The fields of a JSON value, in order, with the types of what they hold."""
    if isinstance(value, dict):
        return {key: _shape_of(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shape_of(value[0])] if value else []
    return type(value)


def test_scenes_have_every_official_field(small: Path, shared_data: Path) -> None:
    for split in ("train", "val"):
        name = f"scenes/CLEVR_{split}_scenes.json"
        ours, theirs = (json.loads((home / name).read_text()) for home in (small, shared_data / "CLEVR_v1.0"))
        assert _shape_of(ours["info"]) == _shape_of(theirs["info"])
        assert ours["info"]["split"] == split
        for mine in ours["scenes"]:
            for field in ("split", "image_index", "image_filename", "objects", "directions"):
                assert _shape_of(mine[field]) == _shape_of(theirs["scenes"][0][field])
            assert set(mine) == set(theirs["scenes"][0])
            assert list(mine["relationships"]) == list(theirs["scenes"][0]["relationships"])
            for related in mine["relationships"].values():
                assert len(related) == len(mine["objects"])
        for field in ("shape", "size", "material", "color"):
            seen = {each[field] for one in theirs["scenes"] for each in one["objects"]}
            assert {each[field] for one in ours["scenes"] for each in one["objects"]} <= seen


# The same scenes everywhere


def test_an_index_is_one_scene_whatever_is_drawn_of_it() -> None:
    first = draw(5)
    assert np.array_equal(first.pixels, draw(5).pixels)
    for other in (draw(5, size=(64, 64)), draw(5, difficulty=0.6)):
        keep = ("3d_coords", "shape", "color", "rotation")
        assert [[each[key] for key in keep] for each in other.scene["objects"]] == [
            [each[key] for key in keep] for each in first.scene["objects"]
        ]
        assert (other.count_class, other.distance_class) == (first.count_class, first.distance_class)
    changed = [draw(6), draw(5, seed=1), draw(5, split=1), draw(5, split=2)]
    assert len({drawing.pixels.tobytes() for drawing in (first, *changed)}) == 5


def test_scenes_belong_to_the_generators_version() -> None:
    drawings = [draw(index, split=1) for index in range(12)]
    blocks = np.array([drawing.pixels.reshape(2, 60, 2, 80, 3).mean((1, 3)) for drawing in drawings[:2]])
    assert mini_clevr.GENERATOR == 1, "raise GENERATOR when scenes or pictures change, and these figures with it"
    assert [drawing.count_class for drawing in drawings] == COUNTS_OF_VERSION_1
    assert [drawing.distance_class for drawing in drawings] == DISTANCES_OF_VERSION_1
    np.testing.assert_allclose(blocks.mean(axis=3), PICTURES_OF_VERSION_1, atol=0.5)


def test_difficulty_ends_with_an_empty_ground() -> None:
    world = imagine(3)
    faded, bare = draw(3, difficulty=1.0), np.random.default_rng([0, 0, 3, 1])
    spots = mini_clevr._spots(bare, 1.0)
    empty = render(replace(world, things=()), spots, 120, 160)
    noise = 0.084 * bare.standard_normal(empty.shape)
    assert np.array_equal(faded.pixels, np.rint(255 * np.clip(empty + noise, 0, 1)).astype(np.uint8))


def test_writing_is_repeatable_and_whole(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(index: int, **options: Any) -> Drawing:
        if index == 4:
            raise KeyboardInterrupt
        return draw(index, **options)

    monkeypatch.setattr(mini_clevr, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, **FEW)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert _files(generate(tmp_path, **FEW)) == _files(small)
    monkeypatch.setattr(mini_clevr, "draw", None)
    assert generate(tmp_path, **FEW) == tmp_path / "CLEVR_v1.0"
    with pytest.raises(DataError, match="seed=0 instead of 1"):
        generate(tmp_path, **FEW, seed=1)
    with pytest.raises(DataError, match=r"counts=\[3, 10\] instead of \[3, 4\]"):
        generate(tmp_path, **FEW, counts=(3, 4))


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"val": 0}, {"seed": -1}, {"difficulty": 1.1}, {"counts": (2, 10)}, {"counts": (5, 4)}]
)
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=f"{next(iter(wrong))}="):
        generate(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_training_draws_on_without_end(small: Path) -> None:
    endless = EndlessScenes.of(small, count_class, 7)
    content, target, name = endless(123)
    expected = draw(123, split=9)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), expected.pixels)
    assert (target, name) == (expected.count_class, expected.scene["image_filename"])
    task = build_task("clevr_dist", small.parent)
    assert isinstance(task, Clevr)
    assert task.stream(7)(123)[::2] == (content, name)
    assert task.stream(7)(123)[1] == expected.distance_class
    (small.parent / "other").mkdir()
    with pytest.raises(SetupError, match="not made by this generator"):
        EndlessScenes.of(small.parent / "other", count_class, 7)


# Geometry, against official scenes and against a plain search along rays


def _official(shared_data: Path) -> list[dict[str, Any]]:
    scenes = json.loads((shared_data / "CLEVR_v1.0" / "scenes" / "CLEVR_train_scenes.json").read_text())["scenes"]
    return list(scenes)


def test_the_camera_is_the_official_one(shared_data: Path) -> None:
    places = []
    for scene in [scene for scene in _official(shared_data) if len(scene["objects"]) >= 5][:100]:
        points = np.array([each["3d_coords"] for each in scene["objects"]])
        pixels = np.array([each["pixel_coords"] for each in scene["objects"]])
        # Depth is linear in the point; the camera looks at the origin, so that this gives its place.
        *axis, at = np.linalg.lstsq(np.column_stack([points, -np.ones(len(points))]), pixels[:, 2])[0]
        camera = aim(at * np.array(axis))
        places.append(camera.position)
        for name, direction in camera.directions().items():
            np.testing.assert_allclose(direction, scene["directions"][name], atol=2e-3)
        projected = np.array([camera.project(point, 160, 240) for point in points])
        assert np.abs(projected[:, :2] - pixels[:, :2]).max() <= 1
        np.testing.assert_allclose(projected[:, 2], pixels[:, 2], atol=1e-3)
    for reach in (np.max(places, axis=0) - CAMERA, CAMERA - np.min(places, axis=0)):
        np.testing.assert_allclose(reach, CAMERA_JITTER, rtol=0.1)


def test_relationships_are_the_official_ones(shared_data: Path) -> None:
    for scene in _official(shared_data)[:100]:
        things = [
            Thing(each["shape"], each["size"], each["color"], each["material"], np.array(each["3d_coords"]), 0.7, 0.0)
            for each in scene["objects"]
        ]
        assert relationships(things, scene["directions"]) == scene["relationships"]


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    """640 scenes, not drawn."""
    return [describe(imagine(index), "train", index, 160, 240) for index in range(640)]


def _depths(scenes: list[dict[str, Any]]) -> list[list[float]]:
    return [[each["pixel_coords"][2] for each in scene["objects"]] for scene in scenes]


def test_distances_and_counts_are_distributed_as_officially(made: list[dict[str, Any]], shared_data: Path) -> None:
    ours, theirs = _depths(made), _depths(_official(shared_data))
    assert stats.ks_2samp(list(map(min, ours)), list(map(min, theirs))).pvalue > 0.01
    assert stats.ks_2samp(np.concatenate(ours), np.concatenate(theirs)).pvalue > 0.01
    tables = [np.bincount([len(depths) for depths in each], minlength=11)[3:] for each in (ours, theirs)]
    assert stats.chi2_contingency(tables).pvalue > 0.01


def test_every_class_occurs_and_none_is_most(made: list[dict[str, Any]]) -> None:
    counts = np.bincount([len(depths) - 3 for depths in _depths(made)], minlength=8)
    distances = np.bincount([sum(t < min(d) for t in (8, 8.5, 9, 9.5, 10)) for d in _depths(made)], minlength=6)
    assert (counts.min(), counts.max()) > (50, 0)
    assert counts.max() < 0.18 * 640
    assert distances.min() > 30
    assert distances.max() < 0.3 * 640


def test_objects_keep_their_distances(made: list[dict[str, Any]]) -> None:
    for scene in made[:200]:
        centres = np.array([each["3d_coords"][:2] for each in scene["objects"]])
        assert np.abs(centres).max() <= 3
        offsets = centres[:, None] - centres
        apart = ~np.eye(len(centres), dtype=bool)
        reach = np.array([SIZES[each["size"]] for each in scene["objects"]])
        cubes = np.array([each["shape"] == "cube" for each in scene["objects"]])
        least = np.where(cubes, reach / np.sqrt(2), reach)
        assert (np.linalg.norm(offsets, axis=2) - least - least[:, None])[apart].min() >= 0.25
        for name in ("left", "behind"):
            assert np.abs(offsets @ scene["directions"][name][:2])[apart].min() >= 0.4 - 1e-9


def _inside(thing: Thing, points: Array) -> NDArray[np.bool_]:
    """Whether points (N, 3) lie in a thing, from its definition."""
    offset = (points - thing.centre) / thing.radius
    if thing.shape == "sphere":
        return np.linalg.norm(offset, axis=1) < 1
    flat = (offset[:, 0] + 1j * offset[:, 1]) * np.exp(-1j * thing.turn)
    if thing.shape == "cylinder":
        return (np.abs(flat) < 1) & (np.abs(offset[:, 2]) < 1)
    return (np.abs(flat.real) < 1) & (np.abs(flat.imag) < 1) & (np.abs(offset[:, 2]) < 1)


def test_rays_meet_the_first_object() -> None:
    steps = np.linspace(4, 18, 28_001)
    found = 0
    for index in range(4):
        world = imagine(index, counts=(8, 10))
        rng = np.random.default_rng(index)
        targets = np.array([thing.centre for thing in world.things])[rng.integers(len(world.things), size=25)]
        directions = (targets + rng.normal(0, 0.5, targets.shape) - world.camera.position).T
        directions /= world.camera.axes[2] @ directions
        distance, which = nearest(world.things, world.camera.position, directions)
        for ray in range(directions.shape[1]):
            points = world.camera.position + steps[:, None] * directions[:, ray]
            inside = np.array([_inside(thing, points) for thing in world.things])
            first = int(inside.any(axis=0).argmax())
            if not inside.any():
                assert which[ray] == -1
                continue
            found += 1
            assert which[ray] == inside[:, first].argmax()
            assert distance[ray] == pytest.approx(steps[first], abs=1e-3)
    assert found > 50


def test_every_object_is_in_sight() -> None:
    for index in range(40):
        world = imagine(index, counts=(8, 10))
        directions = rays(world.camera, *centres(240, 320), 240, 320)
        _, which = nearest(world.things, world.camera.position, directions)
        # The official least is 200 pixels here; it is decided on a coarser picture.
        assert np.bincount(which + 1, minlength=len(world.things) + 1)[1:].min() > 130


def test_objects_cast_shadows_and_metal_shines() -> None:
    world = imagine(2, counts=(6, 6))
    bare, nothing = replace(world, things=()), np.zeros((0, 6))
    _, which = nearest(world.things, world.camera.position, rays(world.camera, *centres(90, 120), 90, 120))
    ground = which.reshape(90, 120) < 0
    change = (render(world, nothing, 90, 120) - render(bare, nothing, 90, 120)).mean(axis=2)[ground]
    assert (change < -0.1).mean() > 0.02
    assert change.max() < 0.1  # at edges alone, which are mixed
    peaks = []
    for material in ("rubber", "metal"):
        coated = tuple(replace(thing, material=material, shape="sphere", colour="gray") for thing in world.things)
        peaks.append(render(replace(world, things=coated), nothing, 90, 120).max(axis=2)[~ground].max())
    assert peaks[1] > peaks[0] + 0.3


# The objects, and nothing else, tell the class


@pytest.mark.parametrize("label", ["count_class", "distance_class"])
def test_neither_order_nor_name_tells_the_class(label: str) -> None:
    worlds = [describe(imagine(index, split=split), "x", 0, 60, 80) for split in (0, 1) for index in range(150)]
    known = [Drawing(np.zeros((1, 1, 3), np.uint8), world) for world in worlds]
    labels = np.array([getattr(each, label) for each in known]).reshape(2, 150)
    for series in labels:
        assert stats.spearmanr(series, np.arange(150)).pvalue > 0.005
        assert stats.spearmanr(series[1:], series[:-1]).pvalue > 0.005
    assert stats.spearmanr(*labels).pvalue > 0.005


def _describe(drawing: Drawing) -> Array:
    """Edges and saturation in cells of the picture, and the largest of them."""
    pixels = drawing.pixels / 255
    down, right = np.gradient(pixels.mean(axis=2))
    maps = [np.hypot(down, right), pixels.max(axis=2) - pixels.min(axis=2)]
    cells = [[each.reshape(12, 5, n, 80 // n).mean((1, 3)) for each in maps] for n in (4, 16)]
    ranked = [np.sort(each.ravel())[::-8] for each in cells[1]]
    rows = [each.max(axis=1)[::5] for each in maps]
    return np.concatenate([*(each.ravel() for each in cells[0]), *ranked, *rows, [each.mean() for each in maps]])


def _score(splits: list[list[Drawing]], label: str, change: Callable[[Array], Array] = lambda y: y) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, x_test = (np.array([_describe(drawing) for drawing in split]) for split in splits)
    y, y_test = (np.array([getattr(drawing, label) for drawing in split]) for split in splits)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=3000)).fit(x, change(y))
    return float(probe.score(x_test, y_test))


def _splits(difficulty: float) -> list[list[Drawing]]:
    """400 scenes to learn from, 200 to test on."""
    return [
        [draw(index, split=split, size=(60, 80), difficulty=difficulty) for index in range(count)]
        for split, count in enumerate((400, 200))
    ]


@pytest.fixture(scope="module")
def clear() -> list[list[Drawing]]:
    return _splits(0.0)


@pytest.fixture(scope="module")
def faded() -> list[list[Drawing]]:
    return _splits(1.0)


def _chance(splits: list[list[Drawing]], label: str) -> float:
    """What always guessing the most frequent class of the test scores."""
    return float(np.bincount([getattr(drawing, label) for drawing in splits[1]]).max() / len(splits[1]))


@pytest.mark.parametrize("label", ["count_class", "distance_class"])
def test_pictures_tell_the_class(clear: list[list[Drawing]], label: str) -> None:
    assert _score(clear, label) > _chance(clear, label) + 0.12


@pytest.mark.parametrize("label", ["count_class", "distance_class"])
def test_a_destroyed_signal_leaves_chance(clear: list[list[Drawing]], faded: list[list[Drawing]], label: str) -> None:
    bound = stats.binom.ppf(0.99, 200, _chance(clear, label)) / 200
    assert _score(faded, label) <= bound
    # Each picture with the class of the scene before it.
    assert _score(clear, label, lambda y: np.roll(y, 1)) <= bound
