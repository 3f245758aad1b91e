"""The heads that give each pixel a class, by themselves and against mmsegmentation's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from baselines.heads.upernet import FcnHead, UPerHead
from baselines.layers.segmenter import cross_entropy, to_pixels
from harness.record import Preprocessing, Setup
from harness.registry import HEADS
from tasks.data.dense_samples import Scales, _corner
from tasks.dense import DenseRecipe
from tasks.segmentation import one_size, several_sizes, slide, starts

CHANNELS = (8, 12, 16, 20)
SETUP = Setup(preprocessing=Preprocessing(image_size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3))


def maps_of(height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    return [torch.randn(2, c, h, w, generator=generator) for c, (h, w) in zip(CHANNELS, sides, strict=True)]


class Maps(nn.Module):
    """A pyramid of given maps."""

    channels, strides, divisor, own_losses = CHANNELS, (4, 8, 16, 32), 32, 0.0

    def features(self, images: Tensor) -> list[Tensor]:
        return maps_of(*images.shape[-2:])


@pytest.mark.parametrize("name", ["linear", "semantic_fpn", "upernet"])
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
def test_logits_have_the_size_of_the_images(name: str, size: tuple[int, int]) -> None:
    module = HEADS.get(name).build(Maps(), 7)
    images, labels = torch.randn(2, 3, *size), torch.randint(0, 7, (2, *size))
    assert module.eval()(images).shape == (2, 7, *size)
    module.train().loss(images, labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_the_linear_head_is_linear() -> None:
    head = HEADS.get("linear").build(Maps(), 7).decode_head.eval()
    maps = maps_of(64, 64)
    zero = head([torch.zeros_like(one) for one in maps])
    torch.testing.assert_close(head([3 * one for one in maps]) - zero, 3 * (head(maps) - zero), rtol=1e-4, atol=1e-5)


@pytest.mark.mmseg
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
def test_upernet_equals_mmsegmentations_on_the_same_weights(size: tuple[int, int]) -> None:
    """Its state dict loads by the same names."""
    heads: Any = pytest.importorskip(
        "mmseg.models.decode_heads", reason="mmsegmentation with a compiled mmcv is absent", exc_type=ImportError
    )
    options: dict[str, Any] = {
        "num_classes": 7,
        "norm_cfg": {"type": "BN"},
        "align_corners": False,
        "dropout_ratio": 0.1,
    }
    theirs = heads.UPerHead(
        in_channels=list(CHANNELS), in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6), channels=32, **options
    ).eval()
    auxiliary = heads.FCNHead(
        in_channels=CHANNELS[2], in_index=2, channels=32, num_convs=1, concat_input=False, **options
    ).eval()
    maps = maps_of(*size)
    for head, ours, inputs in (
        (theirs, UPerHead(CHANNELS, 7, 32), maps),
        (auxiliary, FcnHead(CHANNELS[2], 7, 32), maps[2]),
    ):
        for name, value in head.state_dict().items():
            if "running" in name or "bn.weight" in name:
                value.uniform_(0.5, 1.5)
        ours.load_state_dict(head.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(inputs), head(maps), rtol=0, atol=1e-5)


def test_upernet_has_the_published_size() -> None:
    """UPerNet with Swin-T has 60 M parameters (arXiv:2103.14030, table 3), of which 27.5 M are the backbone's."""
    heads = [UPerHead((96, 192, 384, 768), 150), FcnHead(384, 150)]
    count = sum(p.numel() for head in heads for p in head.parameters()) / 1e6
    assert count == pytest.approx(60 - 27.5, abs=0.5)


def test_the_loss_is_the_mean_over_annotated_pixels() -> None:
    logits, labels = torch.randn(2, 5, 6, 6), torch.randint(0, 5, (2, 6, 6))
    labels[0, :3] = 255
    expected = -functional.log_softmax(logits, 1).gather(1, labels.clamp(max=4)[:, None])[:, 0][labels != 255].mean()
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    assert cross_entropy(logits, torch.full_like(labels, 255)) == 0


def test_cells_beyond_the_border_move_nothing() -> None:
    """A map of a ramp is the same ramp in an image of 13 pixels as in one of 16."""
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    whole = to_pixels(ramp, 4, torch.zeros(1, 3, 16, 16))
    assert torch.equal(to_pixels(ramp, 4, torch.zeros(1, 3, 13, 13)), whole[..., :13, :13])


# --- how images are scored -------------------------------------------------------------------------------------------


def test_windows_are_mmsegmentations() -> None:
    assert starts(512, 512) == [0]
    assert starts(683, 512) == [0, 171]
    assert starts(1200, 512) == [0, 341, 682, 688]
    assert starts(400, 512) == [0]


def test_sliding_over_a_pixelwise_function_is_that_function() -> None:
    images = torch.randn(2, 3, 90, 130)
    seen: list[tuple[int, ...]] = []

    def logits(window: Tensor) -> Tensor:
        seen.append(tuple(window.shape[-2:]))
        return window * 2 + 1

    torch.testing.assert_close(slide(logits, (64, 64), images), images * 2 + 1)
    assert set(seen) == {(64, 64)}
    assert len(seen) == len(starts(90, 64)) * len(starts(130, 64))


@pytest.mark.parametrize("size", [(96, 131), (64, 64), (50, 200), (65, 107)])
def test_sliding_is_mmsegmentations(size: tuple[int, int]) -> None:
    """Its `slide_inference`, by its formula, with logits that depend on what else is in the window."""
    crop, stride = 64, 42

    def logits(window: Tensor) -> Tensor:
        return window - window.mean(dim=(2, 3), keepdim=True)

    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    total, counts = torch.zeros_like(images), torch.zeros(size)
    rows, columns = (max(side - crop + stride - 1, 0) // stride + 1 for side in size)
    for row in range(rows):
        for column in range(columns):
            bottom, right = (min(n * stride + crop, side) for n, side in zip((row, column), size, strict=True))
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            total[:, :, top:bottom, left:right] += logits(images[:, :, top:bottom, left:right])
            counts[top:bottom, left:right] += 1
    torch.testing.assert_close(slide(logits, (crop, crop), images), total / counts, rtol=0, atol=1e-6)


def test_several_sizes_average_probabilities_and_undo_the_mirror() -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :20] = 255
    scales = Scales(short=40, long=400, crop=(40, 40))
    looked: list[tuple[int, ...]] = []

    def logits(images: Tensor) -> Tensor:
        looked.append(tuple(images.shape[-2:]))
        return 9 * torch.cat([images[:, :1], 1 - images[:, :1]], dim=1)

    found = several_sizes(logits, Image.fromarray(pixels), scales, SETUP)
    assert found.shape == (2, 40, 60)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(40, 60))
    assert (found.argmax(0)[:, :18] == 0).all()
    assert (found.argmax(0)[:, 22:] == 1).all()
    assert looked == [(round(40 * r), round(60 * r)) for r in (0.5, 0.75, 1, 1.25, 1.5, 1.75) for _ in range(2)]


def test_images_are_scored_at_the_recipes_scale() -> None:
    picture = Image.new("RGB", (300, 200))
    scales = Scales(short=128, long=160, crop=(96, 96))
    found = one_size(lambda images: images, picture, scales, SETUP)
    assert tuple(found.shape) == (3, 107, 160)


def test_crops_of_one_class_are_avoided() -> None:
    classes = np.zeros((200, 200), np.uint8)
    classes[:, 150:] = 1
    torch.manual_seed(0)
    scales = Scales(short=1, long=1, crop=(60, 60))
    shares = []
    for _ in range(40):
        top, left = _corner(classes, scales)
        shares.append((classes[top : top + 60, left : left + 60] == 0).mean())
    assert np.mean(np.array(shares) < 0.75) > 0.8


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("poly", {10: 1.0, 60: 0.5}), ("cosine", {10: 1.0, 60: 0.5}), ("steps", {10: 1.0, 72: 1.0, 75: 0.1, 105: 0.01})],
)
def test_schedules(schedule: Any, expected: dict[int, float]) -> None:
    recipe = DenseRecipe(epochs=11, batch=10, warmup=10, schedule=schedule).for_images(100)
    assert recipe.steps == 110
    assert recipe.rate(0) == pytest.approx(1e-6)
    assert recipe.rate(5) == pytest.approx(0.5, abs=1e-5)
    for step, share in expected.items():
        assert recipe.rate(step) == pytest.approx(share)
