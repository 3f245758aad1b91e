"""The embedded fine-grained set: CUB's layout, the same bytes every time, kinds that only their marks tell apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from harness.api import run
from harness.errors import DataError, SetupError
from harness.task import build_task
from tasks.data import mini_birds

FEW = {"train_per_class": 2, "test_per_class": 1}
KINDS = range(len(mini_birds.CLASSES))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_birds.generate(tmp_path_factory.mktemp("birds"), **FEW)


def test_the_task_reads_it(small: Path) -> None:
    task: Any = build_task("cub", small.parent)
    train, test = task.split("train"), task.split("test")
    assert (len(train), len(test), task.data().name) == (20, 10, "cub-mini")
    assert train.classes == mini_birds.CLASSES
    assert train.targets == [kind for kind in KINDS for _ in range(2)]
    for images in (train, test):
        folders = [name.partition("/")[0] for name in images.names]
        assert folders == [mini_birds.CLASSES[target] for target in images.targets]


def test_lists_are_those_of_the_official_layout(small: Path) -> None:
    tables = {name: (small / name).read_text().splitlines() for name in mini_birds.LISTS}
    assert tables["classes.txt"][9] == "10 010.Barred_Tipped_Finch"
    for name in set(mini_birds.LISTS) - {"classes.txt"}:
        assert [int(line.split()[0]) for line in tables[name]] == list(range(1, 31))
    for row, box in zip(tables["images.txt"], tables["bounding_boxes.txt"], strict=True):
        left, top, width, height = map(float, box.split()[1:])
        with Image.open(small / "images" / row.split()[1]) as image:
            assert image.format == "JPEG"
            assert 0 <= left < left + width <= image.width
            assert 0 <= top < top + height <= image.height
            assert width * height > 0.05 * image.width * image.height


def test_the_marks_are_within_the_box(small: Path) -> None:
    plain, marked = (mini_birds.draw(4, 0, 0, difficulty=difficulty) for difficulty in (0.999, 0.9))
    changed = np.argwhere(np.abs(plain.pixels.astype(int) - marked.pixels).max(axis=2) > 6)
    assert len(changed) > 20
    left, top, width, height = marked.box
    y, x = changed.T
    assert (np.mean((x >= left - 2) & (x <= left + width + 2) & (y >= top - 2) & (y <= top + height + 2))) > 0.9


def test_twice_gives_the_same_bytes_and_another_seed_others(small: Path, tmp_path: Path) -> None:
    assert files(mini_birds.generate(tmp_path / "again", **FEW)) == files(small)
    other = files(mini_birds.generate(tmp_path / "other", seed=1, **FEW))
    assert not {data for name, data in other.items() if name.endswith(".jpg")} & set(files(small).values())


def test_no_two_pictures_are_the_same(small: Path) -> None:
    pictures = [data for name, data in files(small).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 30


def test_pixels_belong_to_the_generators_version() -> None:
    digest = hashlib.sha256(b"".join(mini_birds.draw(kind, 1, 0).pixels.tobytes() for kind in KINDS)).hexdigest()
    assert (mini_birds.GENERATOR, digest[:16]) == (1, "66888cc915d6a66a"), "raise GENERATOR when the pixels change"


def test_the_card_tells_the_parameters(small: Path) -> None:
    card = json.loads((small / "dataset.json").read_text())
    assert (card["name"], card["difficulty"], card["train_per_class"]) == ("cub-mini", mini_birds.DIFFICULTY, 2)
    with pytest.raises(DataError, match="test_per_class=1 instead of 2"):
        mini_birds.generate(small.parent, train_per_class=2, test_per_class=2)


@pytest.mark.parametrize("wrong", [{"train_per_class": 0}, {"test_per_class": 0}, {"seed": -1}, {"difficulty": 1.5}])
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=f"{next(iter(wrong))}="):
        mini_birds.generate(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


def colours(pixels: np.ndarray) -> np.ndarray:
    """A histogram of colours, six levels a channel."""
    levels = (pixels.reshape(-1, 3).astype(int) * 6) // 256
    return np.sqrt(np.bincount(levels @ [36, 6, 1], minlength=216) / len(levels))


def shapes(pixels: np.ndarray) -> np.ndarray:
    """What must not tell the kind: size of the picture, and light and contrast of its upper and lower edge."""
    height, width, _ = pixels.shape
    edges = np.concatenate([pixels[:8], pixels[-8:]]).astype(float)
    return np.array([height, width, height / width, *edges.mean(axis=(0, 1)), *edges.std(axis=(0, 1))])


def accuracy(difficulty: float, features: Any) -> float:
    def split(number: int, count: int) -> np.ndarray:
        birds = [mini_birds.draw(k, number, i, difficulty=difficulty) for k in KINDS for i in range(count)]
        return np.array([features(bird.pixels) for bird in birds])

    train, test = split(0, 16), split(1, 8)
    mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    head = LogisticRegression(max_iter=2000).fit((train - mean) / scale, np.repeat(KINDS, 16))
    return float(head.score((test - mean) / scale, np.repeat(KINDS, 8)))


def test_the_score_falls_as_the_marks_fade() -> None:
    # Of 80 birds chance finds 8, more than 17 with a probability below 1e-3.
    assert accuracy(mini_birds.DIFFICULTY, colours) > 0.8
    assert accuracy(1.0, colours) <= 17 / 80


def test_nothing_but_the_marks_tells_the_kind() -> None:
    assert accuracy(0.0, shapes) <= 17 / 80


@pytest.mark.slow
def test_an_untrained_network_sees_the_marks_and_loses_them(tmp_path: Path) -> None:
    scores = []
    for difficulty in (0.0, 1.0):
        mini_birds.generate(tmp_path / str(difficulty), difficulty=difficulty)
        (record,) = run(
            "timm:mobilenetv3_small_100", "cub:knn", data=tmp_path / str(difficulty), results=tmp_path / "results",
            device="cpu", image_size=(96, 96),
        )  # fmt: skip
        scores.append(record.values()["top1"])
    # Of 100 birds chance finds 10, more than 20 with a probability below 1e-3.
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0] > 25
    assert scores[1] <= 20
