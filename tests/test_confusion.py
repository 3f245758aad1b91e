"""Semantic segmentation: counts that scikit-learn and mmsegmentation confirm, and what must not count."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn import metrics

from harness.errors import DataError
from tasks.metrics.confusion import Confusion, boundary
from tasks.metrics.segmentation import Segmentation

Pair = tuple[np.ndarray, np.ndarray]


def patches(seed: int, shape: tuple[int, int] = (60, 83), classes: int = 150, cells: int = 7) -> Pair:
    """A prediction (1 to classes) and an annotation (0 to classes) of blocks, of which a third differs."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.arange(side) * cells // side for side in shape)
    annotation = rng.integers(0, classes + 1, (cells, cells))[rows][:, columns]
    wrong = (rng.random((cells, cells)) < 0.3)[rows][:, columns]
    prediction = np.where(wrong, rng.integers(1, classes + 1, shape), np.maximum(annotation, 1))
    return prediction.astype(np.uint8), annotation.astype(np.uint8)


def measured(pairs: list[Pair], classes: int = 150) -> Confusion:
    confusion = Confusion(classes)
    for prediction, annotation in pairs:
        confusion.update(prediction, annotation)
    return confusion


def test_scikit_learn_counts_the_same() -> None:
    pairs = [patches(seed, classes=6) for seed in range(4)]
    prediction, annotation = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    prediction, annotation = prediction[annotation > 0], annotation[annotation > 0]
    scores, labels = measured(pairs, 6).compute(), range(1, 7)
    assert scores.miou == pytest.approx(
        metrics.jaccard_score(annotation, prediction, labels=labels, average="macro"), abs=1e-15
    )
    assert scores.fwiou == pytest.approx(
        metrics.jaccard_score(annotation, prediction, labels=labels, average="weighted"), abs=1e-15
    )
    assert scores.macc == pytest.approx(metrics.balanced_accuracy_score(annotation, prediction), abs=1e-15)
    assert scores.aacc == metrics.accuracy_score(annotation, prediction)


def test_counted_by_hand() -> None:
    annotation = np.array([[0, 1, 1, 2], [255, 1, 2, 2]], np.uint8)
    prediction = np.array([[3, 1, 2, 2], [1, 1, 2, 0]], np.uint8)
    scores = measured([(prediction, annotation)], 5).compute()
    assert scores.iou[:2].tolist() == [2 / 3, 2 / 4]
    assert np.isnan(scores.iou[2:]).all(), "class 3 was predicted on `other` only, which does not count"
    assert (scores.miou, scores.aacc) == ((2 / 3 + 1 / 2) / 2, 4 / 6)
    assert scores.fwiou == pytest.approx((3 * 2 / 3 + 3 * 1 / 2) / 6)


def test_a_class_that_is_only_predicted_counts_as_zero_and_an_absent_one_not_at_all() -> None:
    annotation = np.ones((4, 4), np.uint8)
    prediction = annotation.copy()
    prediction[0] = 2
    scores = measured([(prediction, annotation)]).compute()
    assert scores.miou == (12 / 16 + 0) / 2
    assert scores.macc == 12 / 16, "accuracy is over annotated classes"


def test_it_is_one_matrix_and_no_mean_over_images() -> None:
    pairs = [patches(seed, classes=4) for seed in range(3)]
    single = np.mean([measured([pair], 4).compute().miou for pair in pairs])
    assert measured(pairs, 4).compute().miou != pytest.approx(single, abs=1e-3)


def test_shifted_labels_lose_everything() -> None:
    _, annotation = patches(0)
    assert measured([(annotation, annotation)]).compute().miou == 1
    assert measured([(annotation % 150 + 1, annotation)]).compute().miou < 0.02


def test_nothing_annotated_is_nan() -> None:
    zeros = np.zeros((3, 3), np.uint8)
    scores = measured([(zeros + 1, zeros)]).compute()
    assert np.isnan([scores.miou, scores.macc, scores.aacc, scores.fwiou]).all()


@pytest.mark.parametrize("shape", [(7, 9), (3, 3), (1, 5), (120, 90)])
def test_the_boundary_is_what_repeated_erosion_takes_away(shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 3, shape)
    labels = np.kron(labels[: shape[0] // 3 + 1, : shape[1] // 3 + 1], np.ones((3, 3), int))[: shape[0], : shape[1]]
    found = boundary(labels.astype(np.uint8))
    steps = max(1, round(0.02 * float(np.hypot(*shape))))
    for label in np.unique(labels):
        mask = labels == label
        eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)
        assert (found & mask == mask & ~eroded).all()


def test_boundary_iou_by_hand() -> None:
    annotation = np.ones((100, 100), np.uint8)
    annotation[:, 50:] = 2
    prediction = np.ones((100, 100), np.uint8)
    prediction[:, 51:] = 2
    meter = Segmentation(150)
    meter.update("a", prediction, annotation)
    edges = {}
    for label in (1, 2):
        masks = [labels == label for labels in (annotation, prediction)]
        rims = [mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=3) for mask in masks]
        edges[label] = (rims[0] & rims[1]).sum() / (rims[0] | rims[1]).sum()
    assert meter.values()["boundary_iou"] == pytest.approx((edges[1] + edges[2]) / 2, abs=1e-15)
    assert meter.values()["boundary_iou"] < meter.values()["miou"], "one pixel off costs more at the boundary"
    perfect = Segmentation(150)
    perfect.update("a", annotation, annotation)
    assert set(perfect.values().values()) == {1.0}


def test_classes_counted_from_zero_are_found_out() -> None:
    meter = Segmentation(150)
    for seed in range(3):
        prediction, annotation = patches(seed)
        meter.update(str(seed), prediction - 1, annotation)
    with pytest.raises(DataError, match=r"count classes from 0.*Add 1"):
        meter.check_origin()
    honest = Segmentation(150)
    honest.update("a", *patches(0))
    honest.check_origin()


def test_rows_are_enough_for_the_mean_over_any_images() -> None:
    pairs = [patches(seed, classes=9) for seed in range(4)]
    meter = Segmentation(9)
    for number, pair in enumerate(pairs):
        meter.update(str(number), *pair)
    sums = np.zeros((10, 3))
    for item, label, *areas in meter.rows:  # of pixels, then of boundaries
        if item in ("1", "3"):
            sums[int(label)] += areas[:3]
    right, annotated, predicted = sums[1:].T
    expected = measured([pairs[1], pairs[3]], 9).compute().miou
    assert (right / (annotated + predicted - right)).mean() == pytest.approx(expected, abs=1e-15)


def mmseg_metric() -> Any:
    evaluation = pytest.importorskip("mmseg.evaluation", reason="mmsegmentation is not installed", exc_type=ImportError)
    return evaluation.IoUMetric


def as_mmseg(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    prediction, annotation = (torch.from_numpy(side.astype(np.int64)) for side in pair)
    return prediction - 1, torch.where(annotation == 0, 255, annotation - 1)


@pytest.mark.mmseg
@pytest.mark.filterwarnings("ignore")
def test_mmsegmentation_agrees_exactly() -> None:
    metric = mmseg_metric()
    pairs = [patches(seed, (97, 131)) for seed in range(12)]
    parts = [metric.intersect_and_union(*as_mmseg(pair), 150, 255) for pair in pairs]
    totals = [sum(part).double() for part in zip(*parts, strict=True)]
    confusion = measured(pairs)
    right, annotated, predicted = confusion.areas()
    for total, counts in zip(totals, (right, annotated + predicted - right, predicted, annotated), strict=True):
        assert total.tolist() == counts.tolist()
    reference, scores = metric.total_area_to_metrics(*totals), confusion.compute()
    assert np.array_equal(reference["IoU"], scores.iou, equal_nan=True)
    assert (np.nanmean(reference["IoU"]), np.nanmean(reference["Acc"]), reference["aAcc"]) == (
        scores.miou, scores.macc, scores.aacc
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.mmseg
@pytest.mark.filterwarnings("ignore")
def test_images_of_ade20ks_size_are_counted_eight_times_as_fast() -> None:
    metric = mmseg_metric()
    pairs = [patches(seed, (512, 683), cells=12) for seed in range(40)]
    theirs = [as_mmseg(pair) for pair in pairs]
    seconds = np.zeros(2)
    for _ in range(4):
        start = time.process_time()
        measured(pairs)
        between = time.process_time()
        for pair in theirs:
            metric.intersect_and_union(*pair, 150, 255)
        seconds += between - start, time.process_time() - between
    assert seconds[1] > 8 * seconds[0], f"only {seconds[1] / seconds[0]:.1f} times as fast"
