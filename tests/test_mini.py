"""The embedded data set: the official layout, the same bytes every time, classes that only structure tells apart."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.errors import DataError, SetupError
from tasks.data import mini, publish

Picture = tuple[np.ndarray, int]  # (H, W, 3) decoded pixels, size of the file in bytes
FEW = {"train_per_class": 2, "val_per_class": 1}
CHANCE = 1 / len(mini.CLASSES)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.generate(tmp_path_factory.mktemp("small"), **FEW)


def test_layout_is_imagenets(small: Path) -> None:
    assert small.name == "imagenet"
    wnids = (small / "synsets.txt").read_text().split()
    assert wnids == sorted(wnids) == list(mini.CLASSES)
    counts = Counter(name.rsplit("/", 1)[0] for name in _files(small) if "/" in name)
    assert counts == {f"{split}/{wnid}": n for split, n in (("train", 2), ("val", 1)) for wnid in wnids}
    assert (small / "train/n99000001/n99000001_1.JPEG").is_file()
    assert (small / "val/n99000012/ILSVRC2012_val_00000012.JPEG").is_file()
    assert len({path.name for path in small.glob("val/*/*")}) == len(wnids)


def test_card_tells_the_parameters(small: Path) -> None:
    card = json.loads((small / "dataset.json").read_text())
    assert card["name"] == "imagenet-mini"
    assert (card["generator"], card["seed"], card["difficulty"]) == (mini.GENERATOR, 0, mini.DIFFICULTY)
    assert card["classes"]["n99000004"] == "star"


def test_twice_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    assert _files(mini.generate(tmp_path, **FEW)) == _files(small)


def test_pictures_do_not_depend_on_the_counts(small: Path, tmp_path: Path) -> None:
    more = _files(mini.generate(tmp_path, train_per_class=3, val_per_class=2))
    pictures = {name: data for name, data in _files(small).items() if name.endswith(".JPEG")}
    assert {name: more[name] for name in pictures} == pictures


def test_pixels_belong_to_the_generators_version() -> None:
    digest = hashlib.sha256()
    for label in range(len(mini.CLASSES)):
        digest.update(mini.draw(label, 1, 0).tobytes())
    assert (mini.GENERATOR, digest.hexdigest()[:16]) == (1, "07d95bd483bffd2a"), (
        "raise GENERATOR when the pixels change"
    )


def test_seed_and_difficulty_change_the_pictures() -> None:
    pictures = [mini.draw(0, 0, 0), mini.draw(0, 0, 0, seed=1), mini.draw(0, 0, 0, difficulty=1), mini.draw(0, 1, 0)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_interruption_leaves_nothing_and_the_next_call_succeeds(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(label: int, *args: Any, **options: Any) -> Picture:
        if label == len(mini.CLASSES) // 2:
            raise KeyboardInterrupt
        return draw(label, *args, **options)

    draw = mini.draw
    monkeypatch.setattr(mini, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mini.generate(tmp_path, **FEW)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert _files(mini.generate(tmp_path, **FEW)) == _files(small)


def test_two_generators_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtake(folder: Path, *args: Any) -> None:
        monkeypatch.undo()
        mini.generate(tmp_path, train_per_class=1, val_per_class=1)
        put(folder, *args)

    put = publish._put
    monkeypatch.setattr(publish, "_put", overtake)
    folder = mini.generate(tmp_path, train_per_class=1, val_per_class=1)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_existing_folder_is_kept(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "draw", None)
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert mini.generate(small.parent, **FEW) == small
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": 1}, "seed=0 instead of 1"), ({"train_per_class": 3}, "train_per_class=2 instead of 3")],
)
def test_other_parameters_are_refused(small: Path, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=f"{named}. Delete the folder, or choose another"):
        mini.generate(small.parent, **{**FEW, **changed})


def test_incomplete_folder_is_refused(tmp_path: Path) -> None:
    folder = mini.generate(tmp_path, train_per_class=1, val_per_class=1)
    (folder / "train/n99000003/n99000003_0.JPEG").unlink()
    with pytest.raises(DataError, match="lacks 1 file"):
        mini.generate(tmp_path, train_per_class=1, val_per_class=1)


def test_folder_of_other_origin_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "imagenet/val").mkdir(parents=True)
    with pytest.raises(DataError, match="not made by this generator"):
        mini.generate(tmp_path)
    assert list(_files(tmp_path)) == []


@pytest.mark.parametrize("wrong", [{"train_per_class": 0}, {"val_per_class": 0}, {"seed": -1}, {"difficulty": 1.5}])
def test_impossible_parameters_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=f"{next(iter(wrong))}="):
        mini.generate(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


def _draw(label: int, split: int, index: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(mini.draw(label, split, index)).save(file, "JPEG", quality=mini.JPEG_QUALITY)
    return np.asarray(Image.open(file)), file.tell()


@pytest.fixture(scope="session")
def splits() -> list[list[list[Picture]]]:
    """Pictures by split, class and index: 32 a class to learn from, 16 a class to test on."""
    labels = range(len(mini.CLASSES))
    return [[[_draw(label, split, i) for i in range(n)] for label in labels] for split, n in enumerate((32, 16))]


def _colours(picture: Picture) -> np.ndarray:
    pixels = picture[0].reshape(-1, 3) / 255
    histograms = [np.histogram(channel, 16, (0, 1))[0] / len(channel) for channel in pixels.T]
    return np.concatenate([*histograms, pixels.mean(axis=0), pixels.std(axis=0)])


def _sizes(picture: Picture) -> np.ndarray:
    height, width, _ = picture[0].shape
    return np.array([width, height, width / height, picture[1], picture[1] / (width * height)])


def _contrast(picture: Picture) -> np.ndarray:
    grey = picture[0].mean(axis=2) / 255
    deviation = (grey - grey.mean()) / grey.std()
    moments = [grey.mean(), grey.std(), (deviation**3).mean(), (deviation**4).mean()]
    return np.array([*moments, *np.quantile(grey, (0.05, 0.25, 0.5, 0.75, 0.95))])


def _structure(picture: Picture) -> np.ndarray:
    """Return the spectrum by radius, the harmonics of the edges' directions, and their unevenness."""
    grey = np.asarray(Image.fromarray(picture[0]).convert("L").resize((96, 96)), dtype=float)
    grey = (grey - grey.mean()) / grey.std()
    down, right = np.gradient(grey)
    edges, directions = np.hypot(down, right), np.arctan2(down, right)
    y, x = np.mgrid[-48:48, -48:48]
    radius = np.hypot(y, x).astype(int).ravel()
    spectrum = np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(grey)))).ravel()
    rings = (np.bincount(radius, spectrum) / np.bincount(radius))[:48]
    cells = [
        np.histogram(directions[i : i + 24, j : j + 24], 8, (-np.pi, np.pi), weights=edges[i : i + 24, j : j + 24])[0]
        for i in range(0, 96, 24)
        for j in range(0, 96, 24)
    ]
    harmonics = np.abs(np.fft.rfft(np.histogram(directions, 36, (-np.pi, np.pi), weights=edges)[0]))
    unevenness = np.sort([cell.max() / cell.sum() for cell in cells])
    return np.concatenate([rings, harmonics / harmonics[0], unevenness])


def _accuracy(splits: list[list[list[Picture]]], describe: Callable[[Picture], np.ndarray], classifier: str) -> float:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = {
        "forest": RandomForestClassifier(200, random_state=0),
        "linear": make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=3000)),
    }
    (x, y), (x_test, y_test) = (
        (
            np.array([describe(picture) for pictures in split for picture in pictures]),
            np.repeat(np.arange(len(split)), len(split[0])),
        )
        for split in splits
    )
    return float(models[classifier].fit(x, y).score(x_test, y_test))


@pytest.mark.parametrize("classifier", ["linear", "forest"])
@pytest.mark.parametrize("describe", [_colours, _sizes, _contrast])
def test_neither_colour_nor_size_tells_the_class(
    splits: list[list[list[Picture]]], describe: Callable[[Picture], np.ndarray], classifier: str
) -> None:
    from scipy.stats import binom

    count = sum(map(len, splits[1]))
    assert _accuracy(splits, describe, classifier) <= binom.ppf(0.99, count, CHANCE) / count


@pytest.mark.parametrize("classifier", ["linear", "forest"])
def test_structure_tells_the_class(splits: list[list[list[Picture]]], classifier: str) -> None:
    assert _accuracy(splits, _structure, classifier) > 4 * CHANCE
