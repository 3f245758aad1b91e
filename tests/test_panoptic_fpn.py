"""Panoptic FPN: how things and stuff become segments, what it is trained on, and the branch for stuff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from harness.errors import DataError, ModelError, SetupError
from harness.record import Setup
from harness.registry import HEADS
from harness.task import build_task
from tasks.coco_panoptic import CocoPanoptic
from tasks.data.coco_panoptic import read_ids
from tasks.data.dense_samples import Samples
from tasks.data.panoptic_samples import PanopticSample
from tasks.metrics.panoptic import Segment
from tasks.panoptic import Merging, merge

CAT, DOG, SKY, SEA = 3, 4, 100, 101
ALL = Merging(stuff_area=0)


def bar(start: int, stop: int, width: int = 10) -> np.ndarray:
    """A mask of one row, true from `start` to before `stop`."""
    mask = np.zeros((1, width), bool)
    mask[0, start:stop] = True
    return mask


def merged(things: list[tuple[np.ndarray, int, float]], semantic: list[int], rule: Merging = ALL) -> Any:
    """The row of ids, and the category and area of each segment by its id."""
    masks = np.array([mask for mask, *_ in things], bool).reshape(-1, 1, len(semantic))
    ids, segments = merge(masks, [k for _, k, _ in things], [s for *_, s in things], np.array([semantic]), rule)
    return ids[0].tolist(), {segment.id: (segment.category, segment.area) for segment in segments}


# --- the rule, by hand -----------------------------------------------------------------------------------------------


def test_the_better_thing_keeps_what_both_hold() -> None:
    ids, segments = merged([(bar(0, 4), CAT, 0.6), (bar(2, 8), DOG, 0.9)], 10 * [0])
    assert ids == [2, 2, 1, 1, 1, 1, 1, 1, 0, 0]
    assert segments == {1: (DOG, 6), 2: (CAT, 2)}


@pytest.mark.parametrize(("overlap", "kept"), [(0.5, True), (0.49, False), (0.0, False), (1.0, True)])
def test_a_thing_that_is_mostly_taken_is_dropped(overlap: float, kept: bool) -> None:
    """Two of its four pixels belong to a better one: that is half, and no more."""
    rule = Merging(stuff_area=0, overlap=overlap)
    ids, segments = merged([(bar(0, 4), CAT, 0.9), (bar(2, 6), CAT, 0.8)], 10 * [0], rule)
    assert ids == ([1, 1, 1, 1, 2, 2, 0, 0, 0, 0] if kept else [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert len(segments) == (2 if kept else 1)


def test_a_dropped_thing_takes_nothing_from_the_next() -> None:
    things = [(bar(0, 4), CAT, 0.9), (bar(1, 6), DOG, 0.8), (bar(4, 6), CAT, 0.7)]
    assert merged(things, 10 * [0])[1] == {1: (CAT, 4), 2: (CAT, 2)}


def test_a_thing_without_a_pixel_of_its_own_is_none() -> None:
    rule = Merging(stuff_area=0, overlap=1.0)
    assert merged([(bar(0, 4), CAT, 0.9), (bar(1, 3), DOG, 0.8)], 10 * [0], rule)[1] == {1: (CAT, 4)}


def test_unsure_and_empty_things_are_dropped() -> None:
    things = [(bar(0, 3), CAT, 0.5001), (bar(3, 6), DOG, 0.5), (bar(6, 6), DOG, 0.9)]
    assert merged(things, 10 * [0])[1] == {1: (CAT, 3)}
    assert merged(things, 10 * [0], Merging(score=0.4, stuff_area=0))[1] == {1: (CAT, 3), 2: (DOG, 3)}


def test_of_equal_scores_the_first_comes_first() -> None:
    assert merged([(bar(0, 4), CAT, 0.7), (bar(2, 6), DOG, 0.7)], 10 * [0])[1] == {1: (CAT, 4), 2: (DOG, 2)}


@pytest.mark.parametrize(("least", "kept"), [(4, {SKY, SEA}), (5, {SEA}), (6, set())])
def test_stuff_counts_what_things_leave_of_it(least: int, kept: set[int]) -> None:
    """The sky has six pixels, two of them under a cat; the sea has five in two parts."""
    semantic = [SEA, SEA, *6 * [SKY], *3 * [SEA], 0]
    ids, segments = merged([(bar(2, 4, 12), CAT, 0.9)], semantic, Merging(stuff_area=least))
    assert {category for category, _ in segments.values()} - {CAT} == kept
    assert sum(area for _, area in segments.values()) == np.count_nonzero(ids)
    assert ids[2:4] == [1, 1]
    assert ids[-1] == 0, "where neither a thing nor stuff is, nothing is"


def test_nothing_gives_nothing() -> None:
    assert merged([], 6 * [0]) == (6 * [0], {})
    assert merged([(bar(1, 1, 6), CAT, 0.9)], 6 * [0]) == (6 * [0], {})


def test_the_published_numbers_are_the_default() -> None:
    assert Merging() == Merging(score=0.5, overlap=0.5, stuff_area=4096)
    for change in ({"score": 1.5}, {"overlap": -0.1}, {"stuff_area": -1}):
        with pytest.raises(SetupError, match=next(iter(change))):
            Merging(**change)  # type: ignore[arg-type]


# --- perfect inputs --------------------------------------------------------------------------------------------------


def oracle(task: CocoPanoptic, rule: Merging, spoil: Any = None) -> Any:
    """A segmenter that merges the annotated things and stuff, and takes the images in their order."""
    images = iter(task.panoptic.images)
    things, stuff = (task.panoptic.labels(kind) for kind in (True, False))

    def predict(pictures: Any) -> list[Any]:
        found = []
        for _ in pictures:
            image = next(images)
            one = task.panoptic.maps[str(image.id)]
            ids = read_ids(task.panoptic.folder, one, image)
            own = [info for info in one.segments_info if info.category_id in things and not info.iscrowd]
            semantic = np.zeros_like(ids)
            for info in one.segments_info:
                if info.category_id in stuff:
                    semantic[ids == info.id] = info.category_id
            masks = np.array([ids == info.id for info in own]).reshape(-1, *ids.shape)
            found.append(merge(masks, [info.category_id for info in own], [0.9] * len(own), semantic, rule))
        return found if spoil is None else [spoil(*one) for one in found]

    return predict


def values(task: CocoPanoptic, predict: Any) -> dict[str, float | None]:
    return {found.metric.name: found.value for found in task.measure(predict, Setup(batch_size=3)).measurements}


def test_perfect_things_and_stuff_give_one(scenes: Path) -> None:
    task = CocoPanoptic(scenes)
    found = values(task, oracle(task, ALL))
    assert {found[f"{name}{region}"] for name in ("pq", "sq", "rq") for region in ("", "_things", "_stuff")} == {1.0}
    some = values(task, oracle(task, Merging(stuff_area=8000)))
    assert some["pq_things"] == 1.0
    assert some["sq_stuff"] == 1.0
    assert some["pq_stuff"] < 1  # type: ignore[operator]


def test_a_part_of_the_images_is_measured_alone(scenes: Path) -> None:
    task = CocoPanoptic(scenes)
    evaluation = task.measure(oracle(task, ALL), Setup(limit=1))
    assert evaluation.measurements[0].value == 1.0
    assert evaluation.details["images"] == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ids, own: (ids[:, 1:], own), r"expected ids \("),
        (lambda ids, own: (ids.astype(float), own), "float64"),
        (lambda ids, own: (ids, own[1:]), "expected the same"),
        (lambda ids, own: (ids, [*own, own[0]]), "expected the same"),
        (lambda ids, own: (ids, [Segment(own[0].id, 91), *own[1:]]), "the category 91; expected those"),
    ],
)
def test_a_segmenter_that_breaks_its_contract_is_refused(spoil: Any, message: str, scenes: Path) -> None:
    task = CocoPanoptic(scenes)
    with pytest.raises(ModelError, match=message):
        task.measure(oracle(task, ALL, spoil), Setup())


# --- samples ---------------------------------------------------------------------------------------------------------


def test_targets_lie_on_their_pixels(scenes: Path) -> None:
    """Whether mirrored or not, targets say of each pixel what the annotation does."""
    task: Any = build_task("coco_panoptic:panoptic_fpn", scenes)
    truth = task.panoptic
    sample = PanopticSample(truth, scenes / "coco" / "val2017")
    mirrored = 0
    for number in range(len(truth.images)):
        info = truth.images[number]
        one = truth.maps[str(info.id)]
        ids = read_ids(truth.folder, one, info)
        picture = np.asarray(Image.open(scenes / "coco" / "val2017" / info.file_name).convert("RGB"))
        image, target = Samples(1, number, lambda _, n=number: sample(n))[0]
        if not np.allclose(image.permute(1, 2, 0) * 255, picture, atol=0.1):
            mirrored += 1
            image, target = image.flip(2), {**target, "semantic": target["semantic"].flip(1)}
            target |= {"masks": target["masks"].flip(2), "boxes": _mirrored(target["boxes"], info.width)}
        assert np.allclose(image.permute(1, 2, 0) * 255, picture, atol=0.1)
        own = [s for s in one.segments_info if s.category_id in truth.labels(True) and not s.iscrowd]
        assert target["labels"].tolist() == [truth.labels(True)[s.category_id] for s in own]
        for mask, box, segment in zip(target["masks"], target["boxes"].tolist(), own, strict=True):
            assert np.array_equal(mask.numpy() > 0, ids == segment.id)
            rows, columns = np.nonzero(ids == segment.id)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        expected = np.full(ids.shape, 255)
        for segment in one.segments_info:
            expected[ids == segment.id] = truth.labels(False).get(segment.category_id, 0)
        assert np.array_equal(target["semantic"].numpy(), expected)
    assert 0 < mirrored < len(truth.images)
    assert any(segment.iscrowd for one in truth.maps.values() for segment in one.segments_info)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)


def test_an_image_of_another_size_than_its_annotation_is_named(scenes: Path, tmp_path: Path) -> None:
    truth = CocoPanoptic(scenes).panoptic
    name = truth.images[0].file_name
    Image.new("RGB", (20, 30)).save(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} is 20 x 30 pixels; expected"):
        PanopticSample(truth, tmp_path)(0)


def test_other_categories_in_training_are_refused(scenes: Path, tmp_path: Path) -> None:
    content = json.loads((scenes / "coco" / "annotations" / "panoptic_val2017.json").read_text())
    content["categories"][0]["isthing"] = 0
    (tmp_path / "panoptic_mine.json").write_text(json.dumps(content))
    task: Any = build_task("coco_panoptic:panoptic_fpn", scenes, annotations=tmp_path / "panoptic_mine.json")
    with pytest.raises(DataError, match="have different categories"):
        task.data()


# --- the head --------------------------------------------------------------------------------------------------------


class Maps(nn.Module):
    """A pyramid that pools its images."""

    channels, strides, divisor, own_losses = (3, 3, 3, 3), (4, 8, 16, 32), 32, 0.0

    def features(self, images: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(images, stride, ceil_mode=True) for stride in self.strides]


def build(weight: float = 0.5, things: int = 2, stuff: int = 3) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3, "box_batch_size_per_image": 8}
    options |= {"box_detections_per_img": 4, "rpn_post_nms_top_n_test": 10, "rpn_post_nms_top_n_train": 10}
    return HEADS.get("panoptic_fpn").build(
        Maps(), things=things, stuff=stuff, semantic_weight=weight, min_size=64, max_size=128, **options
    )


def pair(count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different sizes; the first has `count` things, the second one."""
    images, targets = [], []
    for things, (height, width) in ((count, (40, 61)), (1, (75, 50))):
        masks = torch.zeros(things, height, width, dtype=torch.uint8)
        masks[:, 5:25, 8:30] = 1
        images.append(torch.rand(3, height, width))
        boxes = torch.tensor(things * [[8.0, 5.0, 30.0, 25.0]]).reshape(-1, 4)
        semantic = torch.randint(0, 4, (height, width), dtype=torch.uint8)
        targets.append(
            {"boxes": boxes, "labels": torch.ones(things, dtype=torch.long), "masks": masks, "semantic": semantic}
        )
    return images, targets


@pytest.mark.parametrize("count", [0, 2])
def test_every_part_is_trained_and_pictures_keep_their_size(count: int) -> None:
    """Also where an image has stuff alone."""
    module, (images, targets) = build().train(), pair(count)
    losses = module(images, targets)
    assert "loss_semantic" in losses
    assert "loss_mask" in losses
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    with torch.no_grad():
        found = module.eval()(images)
    for one, image in zip(found, images, strict=True):
        assert one["semantic"].shape == image.shape[1:]
        assert one["masks"].shape[2:] == image.shape[1:]
        assert set(one["semantic"].unique().tolist()) <= {0, 1, 2, 3}


def test_the_semantic_loss_is_weighted_and_leaves_void_out() -> None:
    images, targets = pair(1)
    losses = {}
    for weight in (0.5, 2.0):
        module = build(weight).train()
        losses[weight] = module(images, targets)["loss_semantic"].item()
    assert losses[2.0] == pytest.approx(4 * losses[0.5])
    assert losses[0.5] == pytest.approx(0.5 * np.log(4), rel=0.1), "four classes, and weights that are small"
    for target in targets:
        target["semantic"].fill_(255)
    assert build().train()(images, targets)["loss_semantic"] == 0


def test_labels_are_resized_with_the_images_and_padding_is_void() -> None:
    from baselines.heads.panoptic_fpn import _labels

    semantic = torch.tensor([[1, 2], [3, 0]], dtype=torch.uint8)
    labels = _labels([{"semantic": semantic}], [(4, 2)], torch.zeros(1, 4, 5, 3))
    expected = [[1, 2, 255], [1, 2, 255], [3, 0, 255], [3, 0, 255], [255] * 3]
    assert labels[0].tolist() == expected


def test_the_branch_has_the_published_size() -> None:
    """Seven 3x3 convolutions to 128 channels, four of them from 256, and a classifier of 53 kinds of stuff and one."""
    module = build(things=80, stuff=53)
    count = sum(p.numel() for part in (module.scale_heads, module.conv_seg) for p in part.parameters())
    assert count == 9 * 128 * (4 * 256 + 3 * 128) + 7 * 2 * 128 + 128 * 54 + 54


def test_semantic_logits_say_which_pixel() -> None:
    """A branch that passes a colour on finds it where it is, in an image that is resized and padded."""
    module = build().eval()
    images = [torch.zeros(3, 48, 80)]
    images[0][:, 10:30, 20:50] = 1.0
    # The last class where the mean of the colours at stride 4 is above one half.
    module._semantic = lambda levels, batch: torch.cat([batch[:, :1] * 0 + 0.5, batch], dim=1)
    with torch.no_grad():
        semantic = module(images)[0]["semantic"]
    inside = np.zeros((48, 80), bool)
    inside[10:30, 20:50] = True
    wrong = (semantic.numpy() > 0) != inside
    assert wrong.sum() <= 2 * (20 + 30), "at most the pixels along its edge"
