"""Predictions of labels: maps for ADE20K, tables for classification; and what the command line says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness import run
from harness.errors import BenchError, DataError, SetupError
from harness.leaderboard import make_boards
from harness.record import Record
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]
Go = Callable[..., Record]
Make = Callable[..., Path]


@pytest.fixture
def go(scenes: Path, tmp_path: Path) -> Go:
    """Return a function that measures predictions, and returns the record."""

    def measure(task: str, predictions: Path, model: str | None = None, **options: object) -> Record:
        options = {"data": scenes, "results": tmp_path / "results", **options}
        (record,) = run(model, task, predictions=predictions, **options)  # type: ignore[arg-type]
        return record  # type: ignore[no-any-return]

    return measure


@pytest.fixture
def maps(scenes: Path, tmp_path: Path) -> Path:
    """Return the annotations of ADE20K, copied as predictions; where these are 0, class 1."""
    folder = tmp_path / "maps"
    shutil.copytree(scenes / "ADEChallengeData2016" / "annotations" / "validation", folder)
    each(folder, lambda labels: np.maximum(labels, 1))
    return folder


def each(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in folder.glob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(path))).astype(np.uint8)).save(path)


def test_perfect_labels_give_one_everywhere(go: Go, maps: Path, tmp_path: Path) -> None:
    record = go("ade20k", maps)
    found = record.values()
    assert found.pop("boundary_iou") == 1
    assert found == dict.fromkeys(("miou", "macc", "aacc", "fwiou"), 1.0)
    assert (record.provenance, record.data.name, record.data.size) == ("predictions", "ade20k-mini", 5)
    assert record.details["classes_that_occur"] >= 8
    rows = Store(tmp_path / "results").read_outcomes(record).rows
    assert all(len(set(row[2:5])) == len(set(row[5:8])) == 1 for row in rows), "right, annotated and predicted"
    assert all(0 < row[5] <= row[2] for row in rows), "near a boundary and everywhere"


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        (lambda labels: labels % 150 + 1, 0, 0.01),
        (lambda labels: np.roll(labels, 1, axis=1), 0.8, 0.98),
        (lambda labels: np.where(np.arange(labels.shape[1]) % 2, labels, 0), 0.45, 0.55),
        (lambda labels: np.full_like(labels, 3), 0, 0.1),
    ],
)
def test_spoilt_labels_lose_what_they_should(
    go: Go, maps: Path, change: Callable[[np.ndarray], np.ndarray], least: float, most: float
) -> None:
    each(maps, change)
    assert least <= go("ade20k", maps).values()["miou"] <= most


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels - 1, "seem to count classes from 0.*Add 1"),
        (lambda labels: labels + 101, "holds the label .*; expected 1 to 150"),
        (lambda labels: labels[:-1], r"ADE_val_0000000\d.png is .* pixels; expected .*, the annotation's size"),
        (lambda labels: np.stack([labels] * 3, axis=-1), r"expected one label a pixel"),
    ],
)
def test_labels_that_cannot_be_are_refused(
    go: Go, maps: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    each(maps, change)
    with pytest.raises(DataError, match=message):
        go("ade20k", maps)


def test_maps_that_are_missing_unknown_or_twice_are_named(go: Go, maps: Path) -> None:
    (maps / "ADE_val_00000002.png").rename(maps / "two.png")
    with pytest.raises(DataError, match=r"1 files that are no annotated image: two\. Expected names such as ADE_val"):
        go("ade20k", maps)
    (maps / "two.png").unlink()
    with pytest.raises(DataError, match="lacks 1 of 5 images: ADE_val_00000002"):
        go("ade20k", maps)
    (maps / "more").mkdir()
    shutil.copy(maps / "ADE_val_00000001.png", maps / "more")
    with pytest.raises(DataError, match=r"ADE_val_00000001\.png twice"):
        go("ade20k", maps)


def test_maps_with_other_endings(go: Go, maps: Path) -> None:
    for path in maps.glob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    assert go("ade20k", maps).values()["miou"] == 1
    for path in maps.glob("*.PNG"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    with pytest.raises(DataError, match=r"holds no PNG files but ADE_val_00000001\.jpg.*JPEG changes them"):
        go("ade20k", maps)


def test_a_palette_is_read_as_numbers_and_never_as_colours(go: Go, maps: Path) -> None:
    for path in maps.glob("*.png"):
        picture = Image.open(path)
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        picture.save(path)
    assert go("ade20k", maps).values()["miou"] == 1


def test_annotations_elsewhere(go: Go, maps: Path, scenes: Path, tmp_path: Path) -> None:
    truth = shutil.copytree(scenes / "ADEChallengeData2016" / "annotations" / "validation", tmp_path / "truth")
    record = go("ade20k", maps, data=tmp_path / "nothing", annotations=truth)
    assert record.values()["miou"] == 1
    assert record.command.endswith("--predictions maps --annotations truth")


def test_real_labels(go: Go, shared_data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared_data / "ADEChallengeData2016" / "annotations" / "validation", tmp_path / "real")
    record = go("ade20k", folder, data=shared_data)
    assert record.values()["miou"] == 1
    assert record.details["classes"][:3] == ["wall", "building, edifice", "sky"]
    assert record.data.split == "validation"


# Tables of classes


@pytest.fixture
def table(make_imagenet: Make, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return a function that writes a table with the right class second, and returns it with the data root."""

    def make(
        width: int = 5, ids: bool = True, header: bool = True, change: Callable[..., object] = len
    ) -> tuple[Path, Path]:
        root = make_imagenet()
        classes = (root / "imagenet" / "synsets.txt").read_text().split()
        lines = []
        for path in sorted((root / "imagenet" / "val").glob("*/*.JPEG")):
            own = classes.index(path.parent.name)
            best = [(own + step) % len(classes) for step in (1, 0, 2, 3, 4)][:width]
            lines.append(",".join([path.name, *(classes[label] if ids else str(label) for label in best)]))
        change(lines)
        file = tmp_path / "classes.csv"
        head = ["image," + ",".join(f"top{n + 1}" for n in range(width))] if header else []
        file.write_text("\n".join(head + lines) + "\n")
        return file, root

    return make


Table = Callable[..., tuple[Path, Path]]


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_a_table_of_classes(go: Go, table: Table, ids: bool, header: bool) -> None:
    file, root = table(ids=ids, header=header)
    record = go("imagenet", file, data=root)
    assert record.values() == {"top1": 0, "top5": 100}
    assert record.provenance == "predictions"


def as_json(lines: list[list[str]], path: Path) -> None:
    path.write_text(json.dumps({name: best for name, *best in lines}))


def as_json_of_numbers(lines: list[list[str]], path: Path) -> None:
    path.write_text(json.dumps({name: list(map(int, best)) for name, *best in lines}))


def as_parquet(lines: list[list[str]], path: Path) -> None:
    pd.DataFrame(lines, columns=["file", *"abcde"]).to_parquet(path)


def as_indexed_parquet(lines: list[list[str]], path: Path) -> None:
    pd.DataFrame(lines, columns=["file", *"abcde"]).set_index("file").astype(int).to_parquet(path)


def as_indexed_csv(lines: list[list[str]], path: Path) -> None:
    pd.DataFrame([best for _, *best in lines], index=[name for name, *_ in lines]).to_csv(path)


def as_marked_tsv(lines: list[list[str]], path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + "".join("\t".join([*line, ""]) + "\r\n" for line in lines).encode())


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", as_json), ("b.json", as_json_of_numbers), ("c.parquet", as_parquet),
        ("d.parquet", as_indexed_parquet), ("e.csv", as_indexed_csv), ("f.tsv", as_marked_tsv),
    ],
)  # fmt: skip
def test_a_table_in_other_formats(
    go: Go, table: Table, tmp_path: Path, name: str, write: Callable[[list[list[str]], Path], None]
) -> None:
    file, root = table(ids=False, header=False)
    write([line.split(",") for line in file.read_text().splitlines()], tmp_path / name)
    assert go("imagenet", tmp_path / name, data=root).values() == {"top1": 0, "top5": 100}


def test_other_formats_that_are_something_else(go: Go, table: Table, tmp_path: Path) -> None:
    _, root = table()
    (tmp_path / "a.json").write_text(json.dumps([{"image": "x", "classes": [1]}]))
    with pytest.raises(DataError, match="not a JSON object from file names to lists of classes"):
        go("imagenet", tmp_path / "a.json", data=root)
    (tmp_path / "a.parquet").write_bytes(b"PAR")
    with pytest.raises(DataError, match=r"a\.parquet is not readable parquet"):
        go("imagenet", tmp_path / "a.parquet", data=root)


def test_one_class_an_image_gives_no_top5(go: Go, table: Table) -> None:
    file, root = table(width=1)
    record = go("imagenet", file, data=root)
    assert record.values() == {"top1": 0, "top5": None}
    assert record.measurements[1].reason == "only the 1 best classes of each image are known"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.pop(0), "lacks 1 of 16 images: n01440764/n01440764_0.JPEG"),
        (lambda lines: lines.append(lines[0]), "1 images more than once"),
        (lambda lines: lines.append("x" + lines[0]), "not know: xn01440764_0.JPEG"),
        (lambda lines: lines.append("a,b"), "1 classes for 'a' and 5 for"),
        (lambda lines: lines.__setitem__(0, lines[0].replace("n01443537", "n99")), "the label 'n99'"),
        (lambda lines: lines.__setitem__(0, lines[0].replace("n01443537", "n01440764")), "a class twice"),
        (lambda lines: lines.clear(), "holds no predictions"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_measured_are_refused(
    go: Go, table: Table, change: Callable[[list[str]], object], message: str
) -> None:
    file, root = table(change=change)
    with pytest.raises(DataError, match=message):
        go("imagenet", file, data=root)


def test_a_list_of_labels_is_truth_enough(go: Go, table: Table, tmp_path: Path) -> None:
    file, root = table()
    truth = tmp_path / "truth.csv"
    images = sorted((root / "imagenet" / "val").glob("*/*.JPEG"))
    truth.write_text("".join(f"{path.name},{path.parent.name}\n" for path in images))
    record = go("imagenet", file, data=tmp_path / "nothing", annotations=truth)
    assert record.values() == {"top1": 0, "top5": 100}


# Records and the command line


def test_predictions_rank_beside_each_other_and_are_measured_once(
    go: Go, table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, root = table()
    first = go("imagenet", file, "theirs", data=root)
    assert go("imagenet", file, "theirs", data=root) == first
    file.write_text(
        file.read_text().replace("n01440764", "swap").replace("n01443537", "n01440764").replace("swap", "n01443537")
    )
    second = go("imagenet", file, "theirs", data=root)
    assert second.key != first.key
    (board,), left_out = make_boards(Store(tmp_path / "results").load())
    assert [row.label[0].split()[0] for row in board.rows] == ["theirs", "theirs"]
    assert board.rows[0].label[1] == "predictions: classes.csv"
    assert left_out == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "cost"}, SetupError, "'cost' does not read predictions"),
        ({"task": "imagenet:knn"}, SetupError, "says how a model is adapted"),
        ({"limit": 3}, SetupError, "--limit has no meaning with --predictions"),
        ({"weights": "pretrained"}, SetupError, "--weights has no meaning"),
        ({"model": ["a", "b"]}, SetupError, "one name"),
        ({"predictions": "no.csv"}, DataError, "There are no predictions 'no.csv'"),
        ({"annotations": "no.json"}, DataError, "There are no annotations 'no.json'"),
        ({"predictions": None}, SetupError, "give --model, or --predictions"),
        ({"predictions": None, "annotations": "a"}, SetupError, "give these too"),
    ],
)
def test_what_only_a_model_can_use_is_refused(
    table: Table, tmp_path: Path, options: dict[str, object], error: type[BenchError], message: str
) -> None:
    file, root = table()
    given: dict[str, object] = {"model": None, "task": "imagenet", "predictions": file, "data": root}
    given |= {"results": tmp_path / "results", **options}
    with pytest.raises(error, match=message):
        run(**given)  # type: ignore[arg-type]


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run_bench.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_gives_the_official_examples_numbers(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "coco_eval"
    done = bench(
        "run", "--task", "coco", "--predictions", folder / "instances_val2014_fakebbox100_results.json",
        "--annotations", folder / "instances_val2014_100.json", "--results", tmp_path, "--json",
    )  # fmt: skip
    (record,) = json.loads(done.stdout)
    expected = json.loads((folder / "expected_stats.json").read_text())["bbox"]
    assert [m["value"] for m in record["measurements"]][:12] == expected


def test_a_mistake_is_one_line_and_exit_code_2(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    done = bench("run", "--task", "coco", "--predictions", tmp_path / "x.json", "--data", scenes, "--results", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("Error: x.json holds no detections")
    assert len(done.stderr.strip().splitlines()) == 1
