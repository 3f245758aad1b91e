"""Recipes by name: their numbers are those of the configurations that they are called after, and records hold them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from harness import run
from harness.errors import SetupError
from harness.optimizer import adamw, scaled
from harness.task import build_task
from tasks.dense import BETAS

COCO_IMAGES = 117_266  # of train2017 with objects

# As the configurations say: Swin's official Mask R-CNN of 12 epochs and its paper's appendix A2.3, and DSeq-JEPA's
# configs/detection/coco_maskrcnn_vitb16.yaml and configs/segmentation/ade20k_upernet_vitb16.yaml.
FACTS: dict[str, dict[str, Any]] = {
    "coco:mask_rcnn,preset=1x": {
        "epochs": 12, "batch": 16, "lr": 1e-4, "weight_decay": 0.05, "warmup": 500, "drop_path": 0.1,
        "schedule": "steps", "steps": 87_950,
    },
    "coco:mask_rcnn,preset=dseq": {
        "epochs": 25, "batch": 16, "lr": 1e-4, "weight_decay": 0.1, "warmup": 7_329, "drop_path": 0.1,
        "schedule": "cosine", "steps": 183_228,
    },
    "ade20k:upernet,preset=160k": {
        "batch": 16, "lr": 6e-5, "weight_decay": 0.01, "warmup": 1500, "drop_path": 0.2, "schedule": "poly",
        "steps": 160_000,
    },
    "ade20k:upernet,preset=dseq": {
        "batch": 16, "lr": 1e-4, "weight_decay": 0.05, "warmup": 1500, "drop_path": 0.1, "schedule": "poly",
        "steps": 160_000,
    },
}  # fmt: skip


def protocol(task_id: str) -> Any:
    return build_task(task_id).protocol  # type: ignore[attr-defined]


@pytest.mark.parametrize("task_id", FACTS)
def test_recipes_are_those_of_the_configurations(task_id: str) -> None:
    chosen = protocol(task_id)
    recipe = chosen.recipe_on(chosen.preset_recipe, COCO_IMAGES)
    assert {name: getattr(recipe, name) for name in FACTS[task_id]} == FACTS[task_id]
    assert recipe.clip_grad is None


def test_rates_fall_when_the_configurations_say() -> None:
    """After 8 and 11 of 12 epochs to a tenth; over DSeq-JEPA's 25 in half a cosine after one of warm-up."""
    steps = protocol("coco:mask_rcnn,preset=1x").preset_recipe.for_images(1600)
    rates = [steps.rate(100 * epoch + 50) for epoch in (7, 8, 10, 11)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])
    cosine = protocol("coco:mask_rcnn,preset=dseq").preset_recipe.for_images(1600)
    assert cosine.rate(50) == pytest.approx(0.5, abs=1e-5)
    assert [cosine.rate(100), cosine.rate(1300), cosine.rate(2500)] == pytest.approx([1, 0.5, 0], abs=1e-9)


# Learning rates at steps, by hand: (1e-6 + (1 - 1e-6) n / warm-up) lr, then what the schedule says.
RATES = {
    "coco:mask_rcnn,preset=1x": {
        0: 1e-10, 250: 1e-4 * 0.5000005, 500: 1e-4, 58_633: 1e-4, 58_634: 1e-5, 80_620: 1e-5, 80_621: 1e-6,
        87_949: 1e-6,
    },
    "coco:mask_rcnn,preset=dseq": {
        0: 1e-10, 7_329: 1e-4, 51_303: 0.5e-4 * (1 + math.cos(math.pi * 43_974 / 175_899)),
        183_227: 0.5e-4 * (1 + math.cos(math.pi * 175_898 / 175_899)),
    },
    "coco:mask_rcnn,preset=short": {
        0: 1e-10, 500: 1e-4, 7_579: 1e-4 * 0.5, 14_657: 0.5e-4 * (1 + math.cos(math.pi * 14_157 / 14_158)),
    },
    "ade20k:upernet,preset=160k": {
        0: 6e-11, 300: 6e-5 * 0.2000008, 1_500: 6e-5, 41_125: 6e-5 * 0.75, 80_750: 6e-5 * 0.5,
        159_999: 6e-5 / 158_500,
    },
    "ade20k:upernet,preset=dseq": {0: 1e-10, 1_500: 1e-4, 41_125: 1e-4 * 0.75, 159_999: 1e-4 / 158_500},
    "ade20k:upernet,preset=short": {0: 1e-10, 500: 1e-4, 5_250: 1e-4 * 0.5, 9_999: 1e-4 / 9_500},
}  # fmt: skip


@pytest.mark.parametrize("task_id", RATES)
def test_the_optimizer_has_the_rates_of_the_hand_formula(task_id: str) -> None:
    recipe = protocol(task_id).recipe_on(protocol(task_id).preset_recipe, COCO_IMAGES)
    optimizer = adamw(nn.Linear(2, 2), recipe.lr, recipe.weight_decay, betas=BETAS)
    set_rates = scaled(optimizer, recipe.rate)
    for step, rate in RATES[task_id].items():
        set_rates(step)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate] * 2, rel=1e-9, abs=0), step
        assert {tuple(group["betas"]) for group in optimizer.param_groups} == {(0.9, 0.999)}


@pytest.mark.parametrize(
    ("option", "expected"),
    [("epochs=-1", "more than 0"), ("warmup=-3", "0 or more"), ("drop_path=1", "less than 1"), ("lr=nan", "more than")],
)
def test_a_recipe_that_cannot_be_is_refused(option: str, expected: str) -> None:
    chosen = protocol(f"coco:fcos,{option}")
    with pytest.raises(SetupError, match=f"{option.partition('=')[0]} is .*; expected .*{expected}"):
        chosen.recipe_on(chosen.preset_recipe, 10)


def test_sizes_are_those_of_the_configurations() -> None:
    for preset, sides in (("1x", (800, 1333)), ("dseq", (1024, 1024)), ("short", (512, 853))):
        assert protocol(f"coco:mask_rcnn,preset={preset}").preprocessing == {"image_size": sides}
    for preset, test in (("160k", "whole"), ("dseq", "slide"), ("short", "whole")):
        chosen = protocol(f"ade20k:upernet,preset={preset}")
        scales = chosen.scales
        assert (scales.short, scales.long, scales.crop) == (512, 2048, (512, 512))
        assert (scales.least, scales.most, scales.largest_share, scales.distort) == (0.5, 2.0, 0.75, True)
        assert chosen.test == test


@pytest.mark.parametrize(
    ("task_id", "preset", "size"),
    [
        ("ade20k:linear", "160k", (64, 64)),
        ("coco:fcos", "1x", (64, 96)),
        ("coco_panoptic:panoptic_fpn", "short", (64, 96)),
    ],
)  # fmt: skip
def test_records_hold_the_recipe(
    task_id: str, preset: str, size: tuple[int, int], scenes: Path, tmp_path: Path, own: str
) -> None:
    task = f"{task_id},preset={preset},steps=1,batch=1"
    (record,) = run(
        own, task, data=scenes, results=tmp_path / "results", image_size=size, seed=3, limit=1, executor="inline"
    )
    assert record.error is None
    details = record.details
    expected = protocol(task).recipe_on(protocol(task).preset_recipe, 2).details
    assert details["recipe"] == expected
    assert {"optimizer", "lr", "weight_decay", "schedule", "warmup", "batch", "steps"} <= set(expected)
    assert details["preset"] == preset
    assert details["augmentation"]
    assert details["drop_path"] == "none", "no branch of this backbone can be dropped"
    assert record.setup.seed == 3


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A user's own backbone in a file."""
    path = tmp_path / "nets.py"
    path.write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Conv2d):\n"
        "    channels, strides = (8,), (16,)\n\n"
        "    def features(self, images):\n"
        "        return [self(images)]\n\n\n"
        "def net(num_classes=10):\n"
        "    return Net(3, 8, kernel_size=16, stride=16)\n"
    )
    return f"{path}:net"


def test_branches_that_can_be_dropped_are_counted() -> None:
    from harness.models import build_model
    from harness.record import Preprocessing, Setup

    # One branch in each of the 1, 2, 4 and 2 blocks of the four stages.
    chosen = protocol("ade20k:upernet,preset=160k")
    recipe = chosen.recipe_on(chosen.preset_recipe, 16)
    setup = Setup(preprocessing=Preprocessing(image_size=(64, 64)))
    chosen.pyramid_on(build_model("timm:test_convnext", any_size=True), recipe, setup)
    assert chosen.details["drop_path"] == "0.2 in the last of 9 branches"
