"""Batches are the same for any number of workers, hold every image once, and say which image is broken."""

from __future__ import annotations

import gc
import io
import multiprocessing
import time
import weakref
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from torch import Tensor, nn

from harness.errors import DataError
from harness.preprocessing import DEFAULT, normalize
from harness.record import Setup
from harness.task import Batch
from tasks.data.labelled import LabelledImages
from tasks.data.loader import Batches, spread
from tasks.imagenet import ImageNet, class_ids

WNIDS = class_ids(Path())[:6]
SETUP = Setup(preprocessing=replace(DEFAULT, image_size=(16, 16), crop_pct=1.0), batch_size=4)


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six classes of three images each, 18 in all: four batches of 4 and one of 2."""
    for place, wnid in enumerate(WNIDS):
        folder = tmp_path / "val" / wnid
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.JPEG").write_bytes(jpeg(3 * place + number))
    (tmp_path / "synsets.txt").write_text("\n".join(WNIDS))
    return tmp_path


def batches(images: LabelledImages, workers: int = 0, indices: Sequence[int] | None = None) -> list[Batch]:
    return list(Batches(images, range(len(images)) if indices is None else indices, SETUP, workers))


def items(found: Sequence[Batch]) -> list[str]:
    return [item for batch in found for item in batch.items]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(root: Path, workers: int) -> None:
    images = ImageNet(root).split("val")
    for one, other in zip(batches(images), batches(images, workers), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one.items == other.items


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_once_and_in_order(root: Path, workers: int) -> None:
    images = ImageNet(root).split("val")
    found = batches(images, workers)
    assert [len(batch.images) for batch in found] == [4, 4, 4, 4, 2]
    assert len(Batches(images, range(18), SETUP, workers)) == 5
    assert items(found) == list(images.names)
    assert torch.cat([batch.targets for batch in found]).tolist() == list(images.targets) == sorted([*range(6)] * 3)
    assert len({batch.images[row].numpy().tobytes() for batch in found for row in range(len(batch.images))}) == 18


def test_batches_can_be_taken_twice(root: Path) -> None:
    loader = Batches(ImageNet(root).split("val"), range(18), SETUP, workers=2)
    assert items(list(loader)) == items(list(loader))


def test_indices_choose_and_order_the_images(root: Path) -> None:
    images = ImageNet(root).split("val")
    chosen = [17, 0, 9, 9, 4]
    found = batches(images, 2, chosen)
    assert items(found) == [images.names[index] for index in chosen]
    assert torch.cat([batch.targets for batch in found]).tolist() == [5, 0, 3, 3, 1]


def test_pixels_are_what_timm_makes_of_the_file(root: Path) -> None:
    from timm.data import create_transform

    apply = create_transform((3, 16, 16), interpolation="bicubic", mean=DEFAULT.mean, std=DEFAULT.std, crop_pct=1.0)
    images = ImageNet(root).split("val")
    first = batches(images)[0]
    for row, item in enumerate(first.items):
        with Image.open(root / "val" / item) as image:
            assert torch.equal(first.images[row], apply(image.convert("RGB")))


@pytest.mark.parametrize(("total", "limit"), [(18, 1), (18, 6), (18, 7), (18, 17), (50_000, 999), (3, 2)])
def test_a_limit_spreads_evenly(total: int, limit: int) -> None:
    chosen = spread(total, limit)
    gaps = np.diff([*chosen, total])
    assert len(set(chosen)) == limit
    assert chosen == sorted(chosen)
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("limit", [None, 18, 19, 10_000])
def test_a_limit_that_does_not_bind(limit: int | None) -> None:
    assert spread(18, limit) == list(range(18))


def test_a_limit_covers_the_classes(root: Path) -> None:
    found = list(ImageNet(root).batches(replace(SETUP, limit=6)))
    assert torch.cat([batch.targets for batch in found]).tolist() == [0, 1, 2, 3, 4, 5]


# Images that are none

TRUNCATED = jpeg(0)[: len(jpeg(0)) // 2]
BROKEN = {
    "truncated": (TRUNCATED, "OSError"), "text": (b"just a text\n" * 50, "of no format"), "empty": (b"", "readable"),
    "header only": (jpeg(0)[:4], "readable"),
}  # fmt: skip


def message(images: LabelledImages, workers: int) -> str:
    with pytest.raises(DataError) as caught:
        batches(images, workers)
    assert not multiprocessing.active_children()
    return str(caught.value)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named_whoever_decodes_it(root: Path, kind: str) -> None:
    content, part = BROKEN[kind]
    (root / "val" / WNIDS[3] / "1.JPEG").write_bytes(content)
    images = ImageNet(root).split("val")
    alone, shared = message(images, 0), message(images, 2)
    assert alone == shared == message(images, 0)
    assert alone.startswith(f"{WNIDS[3]}/1.JPEG is not a readable image (")
    assert part in alone
    assert alone.endswith("Restore the file, or remove it.")
    assert "\n" not in alone
    assert "0x" not in alone


def test_a_file_that_goes_meanwhile(root: Path) -> None:
    images = ImageNet(root).split("val")
    (root / "val" / WNIDS[3] / "1.JPEG").unlink()
    alone, shared = message(images, 0), message(images, 2)
    assert alone == shared
    assert alone == f"{WNIDS[3]}/1.JPEG cannot be read (No such file or directory). Restore it, or its permissions."
    assert str(root) not in alone


def test_the_first_of_several_broken_images_is_named(root: Path) -> None:
    for place in (5, 2, 4):
        (root / "val" / WNIDS[place] / "0.JPEG").write_bytes(b"")
    images = ImageNet(root).split("val")
    for workers in (0, 1, 2, 3):
        assert message(images, workers).startswith(f"{WNIDS[2]}/0.JPEG ")


def test_the_workers_of_a_broken_run_end_with_it(root: Path) -> None:
    """Even while the error, with its traceback, is kept."""
    (root / "val" / WNIDS[3] / "1.JPEG").write_bytes(b"")
    images = ImageNet(root).split("val")
    started, kept = time.monotonic(), []
    for _ in range(3):
        with pytest.raises(DataError) as caught:
            batches(images, 2)
        kept.append(caught)
        assert not multiprocessing.active_children()
    assert time.monotonic() - started < 5  # torch waits so long for each worker that does not end


def test_a_worker_does_not_collect_what_it_inherits(root: Path) -> None:
    """A loader that it collected would wait for processes that are not its own, and say so."""

    class Collecting:
        def __call__(self, image: Image.Image) -> Tensor:
            gc.collect()
            return torch.full((3, 16, 16), 255 * (abandoned() is not None), dtype=torch.uint8)

    gc.disable()
    try:
        left = iter(Batches(ImageNet(root).split("val"), range(18), SETUP, workers=1))
        next(left)
        circle: list[object] = [left]
        circle.append(circle)
        abandoned = weakref.ref(left)
        del left, circle
        loader = Batches(ImageNet(root).split("val"), range(2), SETUP, workers=1)
        loader._loader.dataset._crop = Collecting()  # type: ignore[attr-defined]
        (batch,) = loader
        white = normalize(torch.full((2, 3, 16, 16), 255, dtype=torch.uint8), SETUP.preprocessing)
        assert torch.equal(batch.images, white)
    finally:
        generator = abandoned()
        assert isinstance(generator, Generator)
        generator.close()
        gc.enable()


def test_batches_before_the_broken_image_still_come(root: Path) -> None:
    (root / "val" / WNIDS[3] / "0.JPEG").write_bytes(b"")  # the tenth image, in the third batch
    loader = iter(Batches(ImageNet(root).split("val"), range(18), SETUP, workers=2))
    assert [len(next(loader).items) for _ in range(2)] == [4, 4]
    with pytest.raises(DataError):
        next(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_the_transform_refuses(root: Path, workers: int) -> None:
    class Refusing:
        def __call__(self, image: Image.Image) -> Tensor:
            raise ValueError("no such size\nand more")

    loader = Batches(ImageNet(root).split("val"), range(18), SETUP, workers)
    loader._loader.dataset._crop = Refusing()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=rf"^{WNIDS[0]}/0.JPEG cannot be preprocessed \(ValueError: no such size"):
        list(loader)


def test_a_data_set_without_any_error_costs_no_warning(root: Path) -> None:
    """More workers than cores are the user's choice; warnings are errors in these tests."""
    assert len(batches(ImageNet(root).split("val"), workers=9)) == 5


# What batches must not change


class Small(nn.Module):
    """A fixed convolution and a fixed head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 5, 3)
        self.head = nn.Linear(16, len(WNIDS))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stem(images).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize("batch_size", [1, 5, 18, 64])
def test_outcomes_do_not_depend_on_the_batch_size(root: Path, batch_size: int) -> None:
    model = Small().eval()
    reference = ImageNet(root).evaluate(model, SETUP)
    other = ImageNet(root, workers=2).evaluate(model, replace(SETUP, batch_size=batch_size))
    assert reference.outcomes == other.outcomes
    assert reference.measurements == other.measurements
    assert reference.outcomes is not None
    assert reference.outcomes.columns == ("item", "target", "top1", "top2", "top3", "top4", "top5")
    assert len(reference.outcomes.rows) == 18


@pytest.mark.parametrize(
    ("output", "part"),
    [
        (lambda logits: logits[:, :5], r"returned a tensor \(4, 5\); expected logits \(4, 6\)"),
        (lambda logits: logits[:1], r"returned a tensor \(1, 6\); expected logits \(4, 6\)"),
        (lambda logits: logits.unsqueeze(1), r"returned a tensor \(4, 1, 6\)"),
        (lambda logits: (logits, logits), r"returned a tuple; expected a tensor of logits \(4, 6\)"),
        (lambda logits: logits.argmax(1, keepdim=True).expand(4, 6), "returned torch.int64; expected floating-point"),
        (lambda logits: torch.complex(logits, logits), "returned torch.complex64; expected floating-point"),
    ],
)
def test_a_model_that_returns_something_else(root: Path, output: object, part: str) -> None:
    from harness.errors import ModelError

    class Odd(Small):
        def forward(self, images: Tensor) -> Tensor:
            return output(super().forward(images))  # type: ignore[operator, no-any-return]

    with pytest.raises(ModelError, match=part):
        ImageNet(root).evaluate(Odd(), SETUP)


def test_an_output_object_with_logits_will_do(root: Path) -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Wrapped(Small):
        def forward(self, images: Tensor) -> Output:  # type: ignore[override]
            return Output(super().forward(images))

    assert ImageNet(root).evaluate(Wrapped(), SETUP) == ImageNet(root).evaluate(Small(), SETUP)
