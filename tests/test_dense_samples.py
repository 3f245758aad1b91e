"""Training samples and pictures of dense tasks: distorted in colour alone, of the size that was annotated, or named."""

from __future__ import annotations

import colorsys
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.errors import DataError
from harness.record import Setup
from harness.task import build_task
from tasks.data.dense_samples import DetectionSample, Samples, Scales, SegmentationSample, objects_by_image
from tasks.data.distortion import _coloured, _linear, distort
from tasks.data.picture import read_picture


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((4, 5, 3), colour, np.uint8)


def test_what_is_red_stays_red() -> None:
    """Within 36 degrees of hue and what bytes round; one that permutes channels, as torchvision's, makes others."""
    random.seed(0)
    changed = [distort(plain((180, 60, 60)))[0, 0].astype(float) for _ in range(400)]
    hues = np.array([colorsys.rgb_to_hsv(*colour)[0] * 360 for colour in changed])
    turned = (hues + 180) % 360 - 180
    assert np.abs(turned).max() < 45
    assert turned.min() < -25
    assert turned.max() > 25


def test_each_change_happens_half_the_time() -> None:
    """So that one of sixteen leaves an image alone; grey shows brightness and contrast only, three of four."""
    random.seed(1)
    grey = np.array([(distort(plain((120, 120, 120))) == 120).all() for _ in range(1500)])
    assert grey.mean() == pytest.approx(1 / 4, abs=0.04)
    same = np.array([(distort(plain((180, 60, 90))) == (180, 60, 90)).all() for _ in range(1500)])
    assert same.mean() == pytest.approx(1 / 16, abs=0.02)


def test_colours_change_as_hsv_says() -> None:
    """Hue by degrees, saturation by a factor, with the rounding of bytes."""
    for colour in ((200, 50, 120), (30, 220, 90), (10, 20, 250)):
        for saturation, hue in ((0.5, 0.0), (1.0, 30.0), (0.7, -36.0), (1.5, 20.0)):
            h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in colour))
            expected = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1.0, s * saturation), v)
            found = _coloured(plain(colour), saturation, hue)[0, 0]
            assert found == pytest.approx([255 * value for value in expected], abs=5)
    assert _linear(plain((200, 100, 0)), 1.5)[0, 0].tolist() == [255, 150, 0]
    assert _linear(plain((200, 100, 0)), shift=-32)[0, 0].tolist() == [168, 68, 0]


def test_a_picture_is_of_the_size_that_was_annotated(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    assert read_picture(path, (30, 20)).size == (30, 20)
    with pytest.raises(DataError, match=r"a\.png is 30 x 20 pixels; expected 20 x 30, as its annotation says"):
        read_picture(path, (20, 30))
    with pytest.raises(DataError, match=r"The image b\.png cannot be read \(No such file or directory\)"):
        read_picture(tmp_path / "b.png", (30, 20))


@pytest.mark.parametrize("damage", ["absent", "another size"])
@pytest.mark.parametrize("name", ["coco", "coco_panoptic", "ade20k"])
def test_an_evaluation_names_the_image_that_it_cannot_use(name: str, damage: str, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    folder = tmp_path / "data" / ("ADEChallengeData2016/images/validation" if name == "ade20k" else "coco/val2017")
    path = sorted(folder.iterdir())[1]
    if damage == "absent":
        path.unlink()
    else:
        picture = Image.open(path)
        picture.resize((picture.width + 7, picture.height)).save(path)
    task: Any = build_task(name, tmp_path / "data")
    with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
        task.measure(lambda _: pytest.fail("the image came to the model"), Setup(batch_size=2))


def test_a_training_image_of_another_size_is_named(scenes: Path, tmp_path: Path) -> None:
    """Its boxes and masks would lie elsewhere."""
    shutil.copytree(scenes, tmp_path / "data")
    folder = tmp_path / "data" / "coco" / "train2017"
    for path in folder.iterdir():
        picture = Image.open(path)
        picture.resize((picture.width // 2, picture.height)).save(path)
    task: Any = build_task("coco:mask_rcnn", tmp_path / "data")
    objects = objects_by_image(task.training)
    sample = Samples(len(objects), 0, DetectionSample(task.training, folder, tuple(objects), objects, True, 1))[0]
    assert isinstance(sample, DataError)
    assert "as its annotation says" in str(sample)


def test_labels_stay_on_their_pixels(tmp_path: Path) -> None:
    """Red is class 5 and blue class 7 wherever a crop was taken, resized or mirrored; 0 is not a class."""
    folders = [tmp_path / "ADEChallengeData2016" / kind / "training" for kind in ("images", "annotations")]
    pixels, labels = np.zeros((90, 140, 3), np.uint8), np.zeros((90, 140), np.uint8)
    pixels[:50, :70], labels[:50, :70] = (255, 0, 0), 6
    pixels[50:, 70:], labels[50:, 70:] = (0, 0, 255), 8
    for folder, content, name in zip(folders, (pixels, labels), ("a.jpg", "a.png"), strict=True):
        folder.mkdir(parents=True)
        Image.fromarray(content).save(folder / name)
    task: Any = build_task("ade20k:linear", tmp_path)
    scales = Scales(short=64, long=256, crop=(64, 64), distort=False)
    samples = Samples(1, 0, SegmentationSample(task.training, task.training_file, scales))
    seen = set()
    for position in range(20):
        image, classes = samples[position]
        assert image.shape == (3, 64, 64)
        assert classes.shape == (64, 64)
        for channel, other, label in ((0, 2, 5), (2, 0, 7)):
            coloured = (image[channel] > 200) & (image[other] < 50)
            assert (classes[coloured] == label).float().mean() > 0.9 or not coloured.any()
        seen |= set(classes.unique().tolist())
        assert torch.equal(samples[position][0], image)
    assert seen == {5, 7, 255}
