"""Fine-tuning learns, ends in the same record however it came there, and says what it did to the model."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
from dying import DIES, ITSELF
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn import functional

from harness import run
from harness.errors import ModelError, SetupError
from harness.preprocessing import DEFAULT, transform
from harness.record import Record, Setup, digest
from harness.store import Store
from harness.task import Batch, build_task
from harness.task_id import canonical
from tasks.data.augmentation import Augmentation, train_transform
from tasks.data.train_loader import Shuffled, TrainingBatches
from tasks.head import fit_head
from tasks.imagenet import ImageNet
from tasks.protocols.fine_tune import PRESETS, FineTune
from tasks.stochastic_depth import set_stochastic_depth
from tasks.trained import Recipe, classification_loss

ROOT = Path(__file__).resolve().parents[1]
TASK = "imagenet:fine_tune,epochs=8,batch=8,lr=0.02,randaugment=0,erasing=0"
SMALL = replace(DEFAULT, image_size=(32, 32), crop_pct=1.0)


def go(model: str, data: Path, results: Path, task: str = TASK, **options: Any) -> Record:
    options = {"executor": "inline", "workers": 0, "weights": "random", **options}
    (record,) = run(model, task, data=data, results=results, **options)
    return record


def essence(record: Record) -> str:
    """What must be equal of two records: all but times and places."""
    details = {name: value for name, value in record.details.items() if name != "seconds_per_step"}
    return digest(record.measurements, record.outcomes_sha256, json.dumps(details, default=str))


def test_it_learns_and_the_record_says_how(coloured: Path, nets: str, tmp_path: Path) -> None:
    record = go(f"{nets}:normed", coloured, tmp_path / "r")
    assert record.error is None
    assert record.values()["top1"] >= 90
    assert record.untrained == "apart"
    details = record.details
    assert details["steps"] == 8 * 32 // 8 == len(details["training_loss"])
    assert details["final_training_loss"] == details["training_loss"][-1] < details["training_loss"][0]
    assert details["parameters_trained"] == 7 * 7 * 3 * 8 + 8 + 2 * 8 + 4 * 8 + 4
    assert details["seconds_per_step"] > 0
    assert details["recipe"]["lr"] == 0.02
    assert details["recipe"]["warmup"] == 12
    assert (details["head"], details["drop_path"]) == ("the model's own", "none")
    assert details["layers"] == "unknown: all have one learning rate"
    assert not (tmp_path / "r" / "unfinished").exists()


def test_any_number_of_workers_and_any_process_gives_the_same(coloured: Path, nets: str, tmp_path: Path) -> None:
    task = "imagenet:fine_tune,epochs=3,batch=6,lr=0.01"  # with all its augmentation
    first = go(f"{nets}:normed", coloured, tmp_path / "0", task)
    assert essence(go(f"{nets}:normed", coloured, tmp_path / "1", task)) == essence(first)
    assert essence(go(f"{nets}:normed", coloured, tmp_path / "2", task, workers=2)) == essence(first)
    assert essence(go(f"{nets}:normed", coloured, tmp_path / "3", task, executor="process", threads=1)) == essence(
        first
    )
    assert essence(go(f"{nets}:normed", coloured, tmp_path / "4", task, batch_size=5)) == essence(first)
    assert essence(go(f"{nets}:normed", coloured, tmp_path / "5", task, seed=1)) != essence(first)


KILLED = (
    DIES
    + """
from harness import run
run({model!r}, {task!r}, data={data!r}, results={results!r}, executor="inline", workers=0, threads=1)
"""
)


@pytest.mark.parametrize("step", [9, 32])
def test_a_killed_run_ends_in_the_same_record(coloured: Path, nets: str, tmp_path: Path, step: int) -> None:
    whole, results = go(f"{nets}:normed", coloured, tmp_path / "whole"), tmp_path / "r"
    named = {"model": f"{nets}:normed", "task": TASK, "data": str(coloured), "results": str(results)}
    script = KILLED.format(root=str(ROOT), step=step, **ITSELF, **named)
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -9
    assert len(list(results.glob("unfinished/*.pt"))) == 1
    assert not list(results.glob("records/*"))
    assert essence(go(f"{nets}:normed", coloured, results)) == essence(whole)
    assert not (results / "unfinished").exists()


def test_through_the_command_line(coloured: Path, nets: str, tmp_path: Path) -> None:
    command = [sys.executable, "run_bench.py", "run", "--model", f"{nets}:tiny", "--task", TASK, "--workers", "0"]
    command += ["--data", str(coloured), "--results", str(tmp_path / "r"), "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (record,) = json.loads(done.stdout)
    assert record["task"] == "imagenet:fine_tune,batch=8,epochs=8,erasing=0.0,lr=0.02,randaugment=0"
    assert record["measurements"][0]["value"] >= 90


def test_a_rate_that_breaks_the_model_is_told_and_the_checkpoint_stays(
    coloured: Path, nets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.training.CHECKPOINT_SECONDS", 0)
    record = go(f"{nets}:tiny", coloured, tmp_path / "r", TASK.replace("0.02", "1e38"))
    assert record.error is not None
    assert record.error.startswith("The training loss is ")
    assert "of 32, at learning rate" in record.error
    assert len(list((tmp_path / "r" / "unfinished").glob("*.pt"))) == 1


# Heads


def test_a_head_of_another_width_is_replaced(coloured: Path, nets: str, tmp_path: Path) -> None:
    record = go(f"{nets}:three_classes", coloured, tmp_path / "r", weights="own")
    assert record.error is None
    assert record.details["head"] == "new, in place of 'head'"
    assert record.values()["top1"] >= 90


def test_timm_models_replace_their_own_head() -> None:
    images, setup = torch.zeros(2, 3, 64, 64), Setup()
    for name in ("resnet18", "vit_tiny_patch16_224", "convnext_atto"):
        size = {"img_size": 64} if "vit" in name else {}
        heads = []
        for noise in (0, 1):
            torch.manual_seed(noise)  # what the new head must not depend on
            module = timm.create_model(name, num_classes=7, **size).eval()
            assert fit_head(module, 7, images, setup, 0) == "the model's own"
            assert fit_head(module, 5, images, setup, 0) == "new, by the model's reset_classifier"
            assert module(images).shape == (2, 5)
            heads.append(module.get_classifier().weight)
        assert torch.equal(*heads)
    headless = timm.create_model("resnet18", num_classes=0).eval()
    assert fit_head(headless, 512, images, setup, 0).startswith("new")


class NoHead(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_a_head_that_cannot_be_found_is_told() -> None:
    with pytest.raises(ModelError, match=r"classifier of NoHead cannot be replaced for 5 classes: .*num_classes"):
        fit_head(NoHead(), 5, torch.zeros(2, 3, 8, 8), Setup(), 0)


def test_a_checkpoint_with_another_head_needs_leave(coloured: Path, nets: str, tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.ones(8, 3, 7, 7), "stem.bias": torch.ones(8), "head.weight": torch.ones(9, 8),
                "head.bias": torch.ones(9)}, tmp_path / "w.pth")  # fmt: skip
    weights = {"weights": tmp_path / "w.pth"}
    refused = go(f"{nets}:tiny", coloured, tmp_path / "r", **weights)
    assert "--allow-partial" in (refused.error or "")
    record = go(f"{nets}:tiny", coloured, tmp_path / "r", allow_partial=True, **weights)
    assert record.error is None
    assert set(record.setup.weights.missing) == {"head.weight", "head.bias"}


# The loss, and what the model is evaluated with


def batch_of(images: int = 6, classes: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(images, 3, 8, 8, generator=generator)
    return Batch(values, torch.arange(images) % classes, tuple(map(str, range(images))))


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean((2, 3)))


def test_the_loss_is_smoothed_cross_entropy() -> None:
    module, batch, recipe = Linear(), batch_of(), Recipe(steps=1, batch=6, lr=1, label_smoothing=0.1)
    logs = module(batch.images).log_softmax(dim=1)
    soft = torch.full((6, 4), 0.1 / 4) + 0.9 * functional.one_hot(batch.targets, 4)
    torch.testing.assert_close(classification_loss(module, 4, recipe, Setup())(batch), -(soft * logs).sum(1).mean())


def test_the_mixed_loss_is_timm_s() -> None:
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy

    module, recipe = Linear(), Recipe(steps=1, batch=6, lr=1, label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    numpy.random.seed(3)
    found = [classification_loss(module, 4, recipe, Setup())(batch_of()) for _ in range(8)]
    numpy.random.seed(3)
    mix, judge = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=4), SoftTargetCrossEntropy()
    for loss in found:
        images, targets = mix(batch_of().images, batch_of().targets)
        torch.testing.assert_close(loss, judge(module(images), targets))


def test_pairs_need_an_even_batch() -> None:
    with pytest.raises(SetupError, match=r"batch is 5; mixup .*even"):
        FineTune(batch=5, mixup=0.2)


def test_the_trained_model_is_evaluated_as_it_is(coloured: Path) -> None:
    task = build_task(TASK + ",mixup=0.5,label_smoothing=0.2", coloured)
    assert isinstance(task, ImageNet)
    namespace: dict[str, Any] = {}
    exec((ROOT / "tests" / "conftest.py").read_text().split('NETS = """')[1].split('"""')[0], namespace)
    module, setup = namespace["normed"](4), Setup(preprocessing=SMALL)
    predict, images = task.adapt(module, setup), batch_of(6).images
    assert not module.training
    with torch.no_grad():
        whole = predict(images)
        assert torch.equal(whole, module(images))
        # With the running statistics, an image's logits do not depend on its neighbours.
        torch.testing.assert_close(torch.cat([predict(one[None]) for one in images]), whole)
        assert not torch.allclose(module.train()(images), whole)


def test_a_model_of_another_width_is_an_error_of_its_own(coloured: Path, nets: str, tmp_path: Path) -> None:
    record = go(f"{nets}:too_few", coloured, tmp_path / "r")
    assert "cannot be replaced for 4 classes" in (record.error or "")


# Options and recipes


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_recipes_that_options_change(preset: Any) -> None:
    usual, changed = FineTune(preset), FineTune(preset, epochs=7, lr=0.5, layer_decay=1.0, mixup=0.0, average=0.99)
    assert usual.epochs == PRESETS[preset][0]
    assert changed.recipe == dataclasses.replace(
        usual.recipe, steps=7, lr=0.5, layer_decay=1.0, mixup=0.0, average=0.99
    )
    assert FineTune(preset, randaugment=0).recipe.augmentation.randaugment == 0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("imagenet:fine_tune,preset=best", "preset=best cannot be used"),
        ("imagenet:fine_tune,epochs=few", "epochs=few cannot be used"),
        ("imagenet:fine_tune,epoch=3", "Did you mean 'epochs'"),
    ],
)
def test_options_that_cannot_be_used(task: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        canonical(task)


@pytest.mark.parametrize("option", ["epochs=0", "lr=0", "batch=0", "lr=-1"])
def test_values_that_cannot_be_used(coloured: Path, option: str) -> None:
    with pytest.raises(SetupError, match=r"expected more than 0"):
        build_task(f"imagenet:fine_tune,{option}", coloured)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_stochastic_depth_is_that_of_timm(name: str) -> None:
    def rates(module: nn.Module) -> list[float]:
        from timm.layers import DropPath

        return [part.drop_prob for part in module.modules() if isinstance(part, DropPath)]

    module = timm.create_model(name)
    places = set_stochastic_depth(module, 0.3)
    assert rates(module) == pytest.approx(rates(timm.create_model(name, drop_path_rate=0.3)))
    assert places >= len(rates(module)) > 5
    assert set_stochastic_depth(Linear(), 0.3) == 0


# Augmentation and order


def picture(seed: int = 0) -> Any:
    from PIL import Image

    pixels = numpy.random.default_rng(seed).integers(0, 255, (50, 60, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


def test_without_crops_the_pixels_are_those_of_the_evaluation() -> None:
    plain = transform(SMALL)(picture())
    assert torch.equal(train_transform(Augmentation(geometry="none"), SMALL)(picture()), plain)
    flip = train_transform(Augmentation(geometry="flip"), SMALL)
    seen = [flip(picture()) for _ in range(30)]
    assert all(torch.equal(one, plain) or torch.equal(one, plain.flip(-1)) for one in seen)
    assert 5 < sum(torch.equal(one, plain) for one in seen) < 25


def test_crops_have_the_size_and_statistics_of_the_evaluation() -> None:
    own = replace(SMALL, image_size=(24, 40), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125), interpolation="nearest")
    from PIL import Image

    grey = Image.new("RGB", (50, 60), (51, 102, 153))
    found = train_transform(Augmentation(), own)(grey)
    assert found.shape == (3, 24, 40)
    expected = torch.tensor([(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (0.6 - 0.3) / 0.125])
    torch.testing.assert_close(found.mean((1, 2)), expected, rtol=1e-5, atol=1e-6)


def test_the_strongest_posterizing_is_a_black_image() -> None:
    """Rare at magnitude 9, where a deviation of 0.5 must reach 10, but sure to come in a long training."""
    transforms = train_transform(Augmentation(randaugment=9), SMALL).transforms  # type: ignore[attr-defined]
    (chosen,) = [part for part in transforms if hasattr(part, "ops")]
    (operation,) = [one for one in chosen.ops if one.name.startswith("Posterize")]
    operation.prob, operation.magnitude_std = 1.0, 0.0
    for magnitude, levels in ((10, {0}), (8, {0, 128})):
        operation.magnitude = magnitude
        assert set(numpy.unique(numpy.asarray(operation(picture())))) == levels


def test_labels_that_crops_break_are_left_true() -> None:
    recipe = PRESETS["mae"][3]
    assert recipe.within("crop") == recipe
    kept = recipe.within("flip")
    assert (kept.mixup, kept.cutmix, kept.augmentation) == (0.0, 0.0, Augmentation(geometry="flip"))
    assert kept.lr == recipe.lr


def training_batches(coloured: Path, first: int = 0, workers: int = 0, seed: int = 0) -> list[Batch]:
    images = ImageNet(coloured).split("train")
    cut = train_transform(Augmentation(randaugment=9, erasing=0.5), SMALL)
    found = TrainingBatches(
        Shuffled(images, seed), cut, Setup(), seed=seed, batch=5, steps=14, first=first, workers=workers
    )
    assert len(found) == 14 - first
    return list(found)


def equal(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets) and one.items == other.items
    )


def test_batches_depend_on_the_seed_and_the_step_alone(coloured: Path) -> None:
    whole = training_batches(coloured)
    for first, workers in ((0, 2), (6, 0), (13, 3)):
        found = training_batches(coloured, first, workers)
        assert all(equal(one, another) for one, another in zip(found, whole[first:], strict=True))
    other = training_batches(coloured, seed=1)
    assert not any(equal(one, another) for one, another in zip(other, whole, strict=True))


def test_every_epoch_has_every_image_once_in_a_new_order(coloured: Path) -> None:
    names = [item for batch in training_batches(coloured) for item in batch.items]  # 70 of 32 images
    assert sorted(names[:32]) == sorted(names[32:64]) == sorted(ImageNet(coloured).split("train").names)
    assert names[:32] != names[32:64]
    assert len({batch.images.numpy().tobytes() for batch in training_batches(coloured)}) == 14


def test_a_broken_image_is_named(coloured: Path, nets: str, tmp_path: Path) -> None:
    broken = sorted((coloured / "imagenet" / "train").rglob("*.JPEG"))[3]
    broken.write_bytes(os.urandom(400))
    record = go(f"{nets}:tiny", coloured, tmp_path / "r", workers=2)
    assert f"{broken.name} is not a readable image" in (record.error or "")
    assert Store(tmp_path / "r").load() == [record]
