"""Panels of runs: pictures of what was evaluated, that no number depends on; and `show`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import run
from harness.album import PAGE, pictures
from harness.cli import app
from harness.errors import BenchError, RecordError, SetupError
from harness.preprocessing import crop
from harness.record import Record
from harness.show import find, show_data, show_record
from harness.store import Store
from tasks.panels.canvas import GAP, TEXT, colour_of

Make = Callable[..., Path]
TOP = 2 * GAP + 2 * (TEXT + 6) - 4


def go(nets: str, data: Path, results: Path, model: str = "tiny", **options: Any) -> Record:
    options = {"task": "imagenet", "executor": "inline", "workers": 0, "batch_size": 4, **options}
    (record,) = run(f"{nets}:{model}", data=data, results=results, **options)
    return record  # type: ignore[no-any-return]


def panels(results: Path, record: Record) -> list[Path]:
    return pictures(results / "panels" / record.name)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


# --- classification --------------------------------------------------------------------------------------------------


def test_panels_change_no_number(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    plain, drawn = go(nets, data, tmp_path / "a"), go(nets, data, tmp_path / "b", save_panels=3)
    assert (plain.key, plain.measurements, plain.outcomes_sha256) == (
        drawn.key, drawn.measurements, drawn.outcomes_sha256,
    )  # fmt: skip
    assert drawn.details.pop("panels") == {
        "items": [f"{wnid}/{wnid}_{number}.JPEG" for wnid, number in
                  (("n01440764", 0), ("n01484850", 1), ("n01496331", 0))],
        "chosen": "spread evenly over the evaluated images",
    }  # fmt: skip
    assert drawn.details == plain.details
    assert not (tmp_path / "a" / "panels").exists()
    assert [path.name[:14] for path in panels(tmp_path / "b", drawn)] == [
        "001_n01440764-",
        "002_n01484850-",
        "003_n01496331-",
    ]
    assert (tmp_path / "b" / "panels" / drawn.name / PAGE).is_file()


def test_the_image_is_what_the_model_saw(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    record = go(nets, data, tmp_path, save_panels=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    for item, path in zip(record.details["panels"]["items"], panels(tmp_path, record), strict=True):
        file = Image.open(data / "imagenet" / "val" / item).convert("RGB")
        seen = np.asarray(crop(record.setup.preprocessing)(file)).transpose(1, 2, 0)  # (32, 32, 3)
        scale = -(-360 // 32)
        shown = pixels(path)[TOP : TOP + 32 * scale : scale, GAP : GAP + 32 * scale : scale]
        assert (shown == seen).all()


def test_every_protocol_draws_its_first_word_on_an_image(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet(val=1, train=3)
    for task in ("imagenet:knn,k=2", "imagenet:ridge", "imagenet:few_shot,shots=1,seeds=2"):
        record = go(nets, data, tmp_path, task=task, save_panels=2)
        assert record.error is None
        assert len(panels(tmp_path, record)) == 2, task


def test_an_interrupted_run_keeps_its_panels(
    make_imagenet: Make, nets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.metrics.accuracy import Accuracy

    data, update, calls = make_imagenet(), Accuracy.update, []

    def interrupted(self: Accuracy, outputs: Any, batch: Any) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(batch)
        update(self, outputs, batch)

    whole = go(nets, data, tmp_path / "whole", save_panels=16)
    for folder, early in (("drawn", 16), ("late", None)):
        calls.clear()
        monkeypatch.setattr(Accuracy, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(nets, data, tmp_path / folder, save_panels=early)
        monkeypatch.setattr(Accuracy, "update", update)
        resumed = go(nets, data, tmp_path / folder, save_panels=16)
        assert resumed.details == whole.details
        same = [
            one.read_bytes() == other.read_bytes()
            for one, other in zip(panels(tmp_path / folder, resumed), panels(tmp_path / "whole", whole), strict=True)
        ]
        assert same == [early is not None] * 8 + [True] * 8, "without probabilities where these are gone"


def test_pictures_of_an_earlier_run_go(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet()
    record = go(nets, data, tmp_path, save_panels=4)
    assert len(panels(tmp_path, record)) == 4
    assert len(panels(tmp_path, go(nets, data, tmp_path, save_panels=2, rerun=True))) == 2
    assert not panels(tmp_path, go(nets, data, tmp_path, rerun=True))


def test_what_is_skipped_is_said_to_have_no_panels(
    make_imagenet: Make, nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_imagenet()
    go(nets, data, tmp_path)
    go(nets, data, tmp_path, save_panels=2)
    assert "1 of these have no panels; --rerun draws them" in capsys.readouterr().err
    go(nets, data, tmp_path, task="cost:parameters", save_panels=2)
    assert "cost:parameters has no pictures to save" in capsys.readouterr().err
    with pytest.raises(SetupError, match="number of panels is -1"):
        go(nets, data, tmp_path, save_panels=-1)


def test_a_table_of_classes_is_drawn_without_probabilities(make_imagenet: Make, tmp_path: Path) -> None:
    data = make_imagenet(val=1)
    names = sorted(path.name for path in (data / "imagenet" / "val").rglob("*.JPEG"))
    table = tmp_path / "theirs.csv"
    table.write_text("\n".join(f"{name},0,1,2" for name in names))
    (record,) = run(None, "imagenet", predictions=table, data=data, results=tmp_path / "results", save_panels=2)
    first, second = panels(tmp_path / "results", record)
    right = np.array((0, 128, 70))
    assert (pixels(first) == right).all(-1).any(), "the first class is right"
    assert (pixels(second) == (213, 25, 32)).all(-1).any(), "and wrong for the fifth"


# --- dense -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def results_of(scenes: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """Return a function that writes the annotated objects as results, changed."""

    def write(change: Callable[[dict[str, Any]], None]) -> Path:
        found = json.loads((scenes / "coco" / "annotations" / "instances_val2017.json").read_text())
        ids = sorted(category["id"] for category in found["categories"])
        results = []
        for one in found["annotations"]:
            if not one["iscrowd"]:
                result = {name: one[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.9, "ids": ids}
                change(result)
                del result["ids"]
                results.append(result)
        path = tmp_path / "theirs.json"
        path.write_text(json.dumps(results))
        return path

    return write


def shifted(result: dict[str, Any]) -> None:
    result["category_id"] = result["ids"][(result["ids"].index(result["category_id"]) + 1) % len(result["ids"])]


@pytest.mark.parametrize(("change", "solid"), [(lambda result: None, True), (shifted, False)])
def test_results_are_drawn_where_they_say_in_the_colour_of_what_they_say(
    change: Any, solid: bool, scenes: Path, results_of: Any, tmp_path: Path
) -> None:
    file, out = results_of(change), tmp_path / "out"
    # One in each image, so that nothing covers it.
    results = list({result["image_id"]: result for result in json.loads(file.read_text())}.values())
    file.write_text(json.dumps(results))
    (record,) = run(None, "coco", predictions=file, data=scenes, results=out, save_panels=8)
    content = json.loads((scenes / "coco" / "annotations" / "instances_val2017.json").read_text())
    labels = {id: n for n, id in enumerate(sorted(category["id"] for category in content["categories"]))}
    paths = dict(zip(record.details["panels"]["items"], panels(out, record), strict=True))
    assert len(paths) == len(content["images"])
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for result in results:
        (x, y, wide, high), size = result["bbox"], sizes[result["image_id"]]
        scale = -(-360 // max(size))
        left, bottom = GAP + 2 * (size[0] * scale + GAP) + round(x * scale), TOP + round((y + high) * scale) - 1
        side = pixels(paths[str(result["image_id"])])[bottom, left : left + round(wide * scale)]
        share = (side == colour_of(labels[result["category_id"]])).all(-1).mean()
        assert (share == 1) if solid else (0.3 < share < 0.7)


def test_without_images_the_truth_is_drawn_on_grey(scenes: Path, results_of: Any, tmp_path: Path) -> None:
    annotations = scenes / "coco" / "annotations" / "instances_val2017.json"
    (record,) = run(
        None, "coco", predictions=results_of(lambda result: None), annotations=annotations, data=tmp_path,
        results=tmp_path / "out", save_panels=1,
    )  # fmt: skip
    (path,) = panels(tmp_path / "out", record)
    assert (pixels(path)[TOP + 40, GAP + 5] == 205).all()


def test_label_maps_are_drawn(scenes: Path, tmp_path: Path) -> None:
    truth = scenes / "ADEChallengeData2016" / "annotations" / "validation"
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for path in truth.iterdir():
        Image.fromarray((np.asarray(Image.open(path)) % 150 + 1).astype(np.uint8)).save(theirs / path.name)
    (record,) = run(None, "ade20k", predictions=theirs, data=scenes, results=tmp_path / "out", save_panels=5)
    for name, path in zip(record.details["panels"]["items"], panels(tmp_path / "out", record), strict=True):
        labels = np.asarray(Image.open(truth / f"{name}.png"))
        scale = -(-360 // max(labels.shape))
        left = GAP + 3 * (labels.shape[1] * scale + GAP)
        differ = pixels(path)[
            TOP : TOP + labels.shape[0] * scale : scale, left : left + labels.shape[1] * scale : scale
        ]
        assert ((differ == (213, 25, 32)).all(-1) == (labels > 0)).all()


def test_segments_are_drawn(scenes: Path, tmp_path: Path) -> None:
    folder = scenes / "coco" / "annotations"
    content = json.loads((folder / "panoptic_val2017.json").read_text())
    content = {"annotations": content["annotations"]}
    for one in content["annotations"]:
        one["segments_info"] = [{"id": info["id"], "category_id": info["category_id"]} for info in one["segments_info"]]
    (folder / "theirs.json").write_text(json.dumps(content))
    (folder / "theirs").symlink_to(folder / "panoptic_val2017")
    try:
        (record,) = run(
            None, "coco_panoptic", predictions=folder / "theirs.json", data=scenes, results=tmp_path, save_panels=2
        )
    finally:
        (folder / "theirs.json").unlink()
        (folder / "theirs").unlink()
    for path in panels(tmp_path, record):
        panel = pixels(path)
        assert not (panel[TOP : TOP + 100, -panel.shape[1] // 4 :] == (213, 25, 32)).all(-1).any(), "nothing is wrong"


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_finds_a_record_by_file_key_or_beginning(make_imagenet: Make, nets: str, tmp_path: Path) -> None:
    data = make_imagenet(val=1)
    record = go(nets, data, tmp_path, save_panels=2)
    other = go(nets, data, tmp_path, seed=1)
    store = Store(tmp_path)
    for text in (record.key, record.name, record.name[:-3], str(tmp_path / "records" / f"{record.name}.json")):
        where, found = find(store, text)
        assert found == record
        assert where.root.resolve() == tmp_path.resolve()
    with pytest.raises(RecordError, match="2 records match 'imagenet'"):
        find(store, "imagenet")
    with pytest.raises(RecordError, match="No record: 'nothing'"):
        find(store, "nothing")
    shown = show_record(store, record, data, 12)
    assert (len(shown.pictures), shown.absent) == (2, [])
    shown.pictures[0].unlink()
    shown = show_record(store, record, data, 12)
    assert (len(shown.pictures), shown.absent) == (1, record.details["panels"]["items"][:1])
    assert len(show_record(store, other, data, 5).pictures) == 5, "drawn from its outcomes"


def test_what_cannot_be_drawn_again_says_how(
    make_imagenet: Make, nets: str, scenes: Path, results_of: Any, tmp_path: Path
) -> None:
    store = Store(tmp_path / "out")
    (dense,) = run(None, "coco", predictions=results_of(lambda result: None), data=scenes, results=store.root)
    with pytest.raises(RecordError, match=r"coco is not kept .* --save-panels 3 --rerun: run_bench\.py run .*theirs"):
        show_record(store, dense, scenes, 3)
    cost = go(nets, tmp_path, store.root, task="cost:parameters")
    with pytest.raises(RecordError, match="No panels of cost-parameters"):
        show_record(store, cost, None, 3)
    data = make_imagenet(val=2)
    record = go(nets, data, store.root)
    next((data / "imagenet" / "val").rglob("*.JPEG")).unlink()
    with pytest.raises(RecordError, match="made on other data than is here"):
        show_record(store, record, data, 3)
    with pytest.raises(BenchError, match="it has no data"):
        show_data(store, "cost", None, None, 3)


@pytest.mark.parametrize("task", ["coco", "ade20k", "coco_panoptic", "imagenet"])
def test_the_truth_is_shown_without_a_run(task: str, scenes: Path, make_imagenet: Make, tmp_path: Path) -> None:
    root = make_imagenet() if task == "imagenet" else scenes
    shown = show_data(Store(tmp_path / "out"), task, root, None, 3)
    assert len(shown.pictures) == 3
    assert shown.page.parent.name.startswith(f"{task}__data__")
    assert not (tmp_path / "out" / "records").exists()


def test_the_command_prints_the_pictures_and_their_page(scenes: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    words = ["show", "--task", "ade20k", "--data", str(scenes), "--results", str(tmp_path), "--count", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    *paths, last = done.output.splitlines()
    assert [Path(path).is_file() for path in paths] == [True, True]
    assert last.startswith("2 panels: ")
    assert isinstance(CliRunner().invoke(app, ["show"]).exception, SetupError)
