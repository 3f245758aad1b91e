"""Heads that are trained on a backbone: they learn, the same each time, wherever the training was interrupted."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from harness.checkpoint import Checkpoint
from harness.errors import DataError, ModelError, SetupError
from harness.metric import Evaluation
from harness.models import build_model
from harness.preprocessing import resolve
from harness.record import Preprocessing, Setup
from harness.task import build_task
from tasks.data import mini_ade20k, mini_coco
from tasks.data.dense_samples import DetectionSample, Samples, Scales, SegmentationSample, objects_by_image
from tasks.data.train_loader import SampledSteps
from tasks.metrics.panoptic import Segment

SEGMENTERS = ("linear", "semantic_fpn", "upernet")
DETECTORS = ("mask_rcnn", "retinanet", "fcos")
PANOPTIC = "coco_panoptic:panoptic_fpn"
KINDS = ("timm:resnet18", "timm:test_convnext", "timm:swin_tiny_patch4_window7_224", "vit_t16", "timm:test_maxvit")
OWN, NAMED = "channels, strides and features", "names of layers"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dense")
    mini_coco.generate(root, train=6, val=2)
    mini_ade20k.generate(root, train=6, val=2)
    return root


class Backbone(nn.Module):
    """A user's own: one convolution a stage."""

    channels, strides = (8, 16, 16, 16), (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 5, stride=4 if a == 3 else 2, padding=2), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for stage in self.stages:
            images = stage(images)
            found.append(images)
        return found


class Stranger(nn.Module):
    """A classifier that says nothing of its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = Backbone().stages
        self.head = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            images = stage(images)
        return self.head(images.mean(dim=(2, 3)))


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return Backbone()


def evaluate(
    task_id: str, data: Path, model: nn.Module, checkpoint: Checkpoint | None = None, **options: Any
) -> Evaluation:
    task = build_task(task_id, data)
    task.checkpoint = checkpoint
    setup = Setup(batch_size=2, preprocessing=Preprocessing(**options))
    return task.evaluate(
        model.eval(), replace(setup, preprocessing=resolve(setup.preprocessing, model, task.preprocessing))
    )


def values(evaluation: Evaluation) -> dict[str, float | None]:
    return {found.metric.name: found.value for found in evaluation.measurements}


@pytest.mark.parametrize(("head", "steps"), [("linear", 40), ("semantic_fpn", 20), ("upernet", 8)])
def test_a_segmenter_learns(head: str, steps: int, data: Path) -> None:
    evaluation = evaluate(
        f"ade20k:{head},preset=mini,steps={steps},batch=2,frozen=false", data, backbone(), image_size=(64, 64)
    )
    loss = evaluation.details["training_loss"]
    assert np.mean(loss[-3:]) < 0.8 * np.mean(loss[:3])
    assert evaluation.details["head"] == head
    assert evaluation.details["recipe"]["batch"] == 2
    assert evaluation.details["pyramid"]["frozen"] is False
    assert evaluation.details["test"] == "whole"


@pytest.mark.parametrize("head", DETECTORS)
def test_a_detector_learns(head: str, data: Path) -> None:
    evaluation = evaluate(f"coco:{head},preset=mini,steps=20,batch=2", data, backbone(), image_size=(64, 96))
    loss = evaluation.details["training_loss"]
    assert np.mean(loss[-3:]) < np.mean(loss[:3])
    assert (values(evaluation)["mask_ap"] is None) == (head != "mask_rcnn")


def test_a_panoptic_segmenter_learns(data: Path) -> None:
    evaluation = evaluate(f"{PANOPTIC},preset=mini,steps=20,batch=2,score=0.1", data, backbone(), image_size=(64, 96))
    loss = evaluation.details["training_loss"]
    assert np.mean(loss[-3:]) < 0.8 * np.mean(loss[:3])
    assert evaluation.details["merging"] == {"score": 0.1, "overlap": 0.5, "stuff_area": 340}
    assert evaluation.details["training_images"] == 6
    assert set(values(evaluation)) >= {f"{n}{r}" for n in ("pq", "sq", "rq") for r in ("", "_things", "_stuff")}


@pytest.mark.parametrize(
    "task_id",
    [
        "ade20k:semantic_fpn",
        "coco:fcos",
        PANOPTIC,
        pytest.param("ade20k:upernet", marks=pytest.mark.slow),
        pytest.param("coco:mask_rcnn", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_resumes_to_the_same_result(
    task_id: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import training

    chosen = f"{task_id},preset=mini,steps=6,batch=2"
    size = (64, 64)
    whole = evaluate(chosen, data, backbone(), image_size=size)
    again = evaluate(chosen, data, backbone(), image_size=size)
    assert values(whole) == values(again)
    assert whole.details["training_loss"] == again.details["training_loss"]

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    step = training.Training._step

    def interrupted(self: Any, number: int, batch: Any) -> None:
        if number == 3:
            raise KeyboardInterrupt
        step(self, number, batch)

    checkpoint = Checkpoint(tmp_path / "training.pt", "state")
    monkeypatch.setattr(training.Training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(chosen, data, backbone(), checkpoint, image_size=size)
    monkeypatch.setattr(training.Training, "_step", step)
    assert checkpoint.path.is_file()
    resumed = evaluate(chosen, data, backbone(), checkpoint, image_size=size)
    assert values(resumed) == values(whole)
    assert resumed.details["training_loss"] == whole.details["training_loss"]


def test_a_frozen_backbone_is_untouched_and_said_so(data: Path) -> None:
    model = backbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluation = evaluate(
        "ade20k:semantic_fpn,preset=mini,steps=3,batch=2,frozen=true", data, model, image_size=(64, 64)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert evaluation.details["pyramid"]["frozen"] is True
    evaluate("ade20k:semantic_fpn,preset=mini,steps=3,batch=2", data, model := backbone(), image_size=(64, 64))
    assert not torch.equal(model.state_dict()["stages.0.0.weight"], before["stages.0.0.weight"])


@pytest.mark.parametrize("test", ["slide", "ms_whole", "ms_slide"])
def test_other_ways_of_scoring_run(test: str, data: Path) -> None:
    evaluation = evaluate(
        f"ade20k:linear,preset=mini,steps=2,batch=2,test={test}", data, backbone(), image_size=(96, 96)
    )
    assert evaluation.details["test"] == test
    assert values(evaluation)["miou"] is not None


@pytest.mark.parametrize("task_id", ["coco:fcos", "coco:retinanet", "coco:mask_rcnn", PANOPTIC, "ade20k:linear"])
def test_a_model_that_puts_out_nan_is_no_result(task_id: str, data: Path) -> None:
    """It would have found nothing, which is a score of 0, or class 0 everywhere."""

    class Overflowing(Backbone):
        def features(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [one if self.training else one * float("nan") for one in super().features(images)]

    with pytest.raises(ModelError, match=r"NaN or infinite\. Try --precision fp32"):
        evaluate(f"{task_id},preset=mini,steps=1,batch=2,frozen=false", data, Overflowing(), image_size=(64, 64))


def test_options_that_make_no_training_are_refused(data: Path) -> None:
    with pytest.raises(SetupError, match="steps is 0; expected at least 1"):
        evaluate("ade20k:linear,preset=mini,steps=0", data, backbone())
    with pytest.raises(SetupError, match="preset=2x cannot be used"):
        build_task("coco:fcos,preset=2x", data)


def test_training_data_is_part_of_the_stamp(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    mini_ade20k.generate(other, train=5, val=2)
    stamps = [build_task("ade20k:linear", root).data() for root in (data, other)]
    plain = [build_task("ade20k", root).data() for root in (data, other)]
    assert plain[0] == plain[1]
    assert stamps[0] != stamps[1] != plain[1]


def test_position_tables_do_not_decay() -> None:
    from harness.optimizer import adamw
    from harness.pyramid import Pyramid
    from harness.registry import HEADS

    pyramid = Pyramid(build_model("timm:vit_tiny_patch16_224", any_size=True), size=(64, 64))
    module = HEADS.get("semantic_fpn").build(pyramid, 5)
    decaying = {
        id(one) for group in adamw(module, 1e-3, 0.05).param_groups if group["weight_decay"] for one in group["params"]
    }
    names = {name for name, parameter in module.named_parameters() if id(parameter) in decaying}
    assert "pyramid.backbone.blocks.0.attn.qkv.weight" in names
    assert "decode_head.conv_seg.weight" in names
    assert not names & {"pyramid.backbone.pos_embed", "pyramid.backbone.cls_token", "decode_head.conv_seg.bias"}


# --- samples ---------------------------------------------------------------------------------------------------------


def test_boxes_and_masks_are_mirrored_with_the_image(data: Path) -> None:
    task: Any = build_task("coco:mask_rcnn", data)
    objects = objects_by_image(task.training)
    folder = data / "coco" / "train2017"
    samples = Samples(len(objects), 0, DetectionSample(task.training, folder, tuple(objects), objects, True, 1))
    for position in range(12):
        image, target = samples[position]
        assert image.shape[1:] == target["masks"].shape[1:]
        assert 1 <= int(target["labels"].min()) <= int(target["labels"].max()) <= 6
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
            found = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
            torch.testing.assert_close(found, box, rtol=0, atol=1e-3)


def test_batches_are_the_same_for_any_number_of_processes(data: Path) -> None:
    task: Any = build_task("ade20k:linear", data)
    scales = Scales(short=64, long=256, crop=(64, 64))
    made = [
        list(
            SampledSteps(
                Samples(6, 3, SegmentationSample(task.training, task.training_file, scales)),
                Setup(), 2, range(1, 4), workers,
            )
        )
        for workers in (0, 2)
    ]  # fmt: skip
    assert len(made[0]) == 3
    for ours, theirs in zip(*made, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_broken_training_image_is_named(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(data, root)
    path = sorted((root / "ADEChallengeData2016" / "images" / "training").iterdir())[0]
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{path.name} is not a readable image"):
        evaluate("ade20k:linear,preset=mini,steps=4,batch=4", root, backbone(), image_size=(64, 64))


def test_a_training_set_without_objects_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "coco" / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(DataError, match=r"instances_train2017\.json has no image to train on: expected objects"):
        evaluate("coco:fcos,preset=mini", tmp_path / "data", backbone(), image_size=(64, 64))


def test_crowds_are_not_trained_on(data: Path) -> None:
    task: Any = build_task("coco:fcos", data)
    rows = [row for own in objects_by_image(task.training).values() for row in own]
    crowds = [row for row, one in enumerate(task.training.annotations) if one.iscrowd]
    assert crowds
    assert not set(rows) & set(crowds)


# --- six kinds of backbones under each head --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
@pytest.mark.parametrize("name", [*KINDS, OWN, NAMED])
@pytest.mark.parametrize(
    "task_id", [*(f"ade20k:{head}" for head in SEGMENTERS), *(f"coco:{head}" for head in DETECTORS), PANOPTIC]
)
def test_each_head_trains_on_each_kind(task_id: str, name: str, size: tuple[int, int], data: Path) -> None:
    torch.manual_seed(0)
    own = {OWN: Backbone, NAMED: Stranger}
    model = own[name]() if name in own else build_model(name, any_size=True)
    layers = ",layers=stages.0+stages.1+stages.2+stages.3" if name == NAMED else ""
    evaluation = evaluate(f"{task_id},preset=mini,steps=2,batch=2,frozen=false{layers}", data, model, image_size=size)
    assert np.isfinite(evaluation.details["training_loss"]).all()
    assert evaluation.measurements[0].value is not None
    assert {"optimizer", "lr", "weight_decay", "schedule", "warmup", "batch", "steps"} <= set(
        evaluation.details["recipe"]
    )
    assert evaluation.details["augmentation"]


# --- on the whole embedded data, each head finds more than who does not look ------------------------------------------


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("embedded")
    mini_coco.generate(root)
    mini_ade20k.generate(root)
    return root


def trained(task_id: str, embedded: Path) -> dict[str, float | None]:
    torch.manual_seed(0)
    return values(evaluate(f"{task_id},preset=mini", embedded, build_model("timm:resnet18", any_size=True)))


@pytest.mark.slow
@pytest.mark.parametrize("head", SEGMENTERS)
def test_a_segmenter_beats_the_majority_on_the_embedded_scenes(head: str, embedded: Path) -> None:
    task: Any = build_task("ade20k", embedded)
    labels = np.concatenate([task.annotated.read(name).ravel() for name in task.annotated.names])
    counts = np.bincount(labels[labels > 0], minlength=151)
    majority = task.measure(
        lambda pictures: [np.full(p.size[::-1], counts.argmax() - 1) for p in pictures], Setup(batch_size=8)
    )
    found = trained(f"ade20k:{head}", embedded)
    assert values(majority)["miou"] < 0.1  # type: ignore[operator]
    assert found["miou"] > 0.3  # type: ignore[operator]
    assert found["aacc"] > 0.8  # type: ignore[operator]


def blind_detector(task: Any) -> Any:
    """A detector that finds the boxes of the training images in every image, the most frequent kind surest."""
    sizes = {str(image.id): (image.width, image.height) for image in task.training.images}
    own = [one for one in task.training.annotations if not one.iscrowd][:100]
    label = task.training.label()
    labels = np.array([label[one.category_id] for one in own])
    shares = np.array([(x, y, x + w, y + h) for x, y, w, h in (one.bbox for one in own)])
    shares /= np.array([2 * sizes[str(one.image_id)] for one in own])
    scores = np.bincount(labels)[labels] / len(labels)
    return lambda pictures: [
        {"boxes": shares * (2 * picture.size), "labels": labels, "scores": scores} for picture in pictures
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "least"), [("mask_rcnn", 0.1), ("fcos", 0.1), ("retinanet", 0.1)])
def test_a_detector_finds_shapes_in_the_embedded_scenes(head: str, least: float, embedded: Path) -> None:
    task: Any = build_task("coco", embedded)
    blind = values(task.measure(blind_detector(task), Setup(batch_size=8)))
    found = trained(f"coco:{head}", embedded)
    assert blind["box_ap50"] < least / 2  # type: ignore[operator]
    assert found["box_ap50"] > least  # type: ignore[operator]


@pytest.mark.slow
def test_a_panoptic_segmenter_finds_things_and_stuff_in_the_embedded_scenes(embedded: Path) -> None:
    task: Any = build_task("coco_panoptic", embedded)

    def majority(pictures: Any) -> list[Any]:
        """The most frequent stuff everywhere."""
        return [(np.ones(p.size[::-1], np.int64), [Segment(1, most)]) for p in pictures]

    areas: dict[int, int] = {}
    for one in task.panoptic.maps.values():
        for info in one.segments_info:
            areas[info.category_id] = areas.get(info.category_id, 0) + info.area
    most = max(areas, key=lambda category: areas[category])
    blind = values(task.measure(majority, Setup(batch_size=8)))
    found = trained(PANOPTIC, embedded)
    assert blind["pq"] < 0.1  # type: ignore[operator]
    assert found["pq_stuff"] > 0.5  # type: ignore[operator]
    assert found["pq_things"] > 0.02  # type: ignore[operator]
