"""Accuracy equals scikit-learn's, and ties, NaN and infinity count by the stated rules."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch import Tensor

from harness.errors import DataError, ModelError
from harness.metric import Evaluation
from harness.task import Batch
from tasks.metrics.accuracy import Accuracy, rank

NAN, INF = float("nan"), float("inf")


def evaluate(scores: Tensor, targets: Sequence[int], batch_size: int = 7, **options: object) -> Evaluation:
    meter = Accuracy(scores.shape[1], **options)  # type: ignore[arg-type]
    for start in range(0, len(scores), batch_size):
        rows = range(start, min(start + batch_size, len(scores)))
        chosen = torch.tensor([targets[row] for row in rows])
        meter.update(scores[rows.start : rows.stop], Batch(torch.empty(0), chosen, tuple(f"{row}" for row in rows)))
    return meter.compute()


def values(evaluation: Evaluation) -> dict[str, float | None]:
    return {measurement.metric.name: measurement.value for measurement in evaluation.measurements}


@pytest.mark.parametrize("classes", [6, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_random_scores_equal_scikit_learn(classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(classes)
    # Distinct within each row, and exact in fp16, so that no rule for ties is needed.
    scores = torch.rand(200, classes, generator=generator).argsort(dim=1).to(dtype) - classes // 2
    targets = torch.randint(classes, (200,), generator=generator)
    found = values(evaluate(scores, targets.tolist()))
    for k in (1, 5):
        truth = top_k_accuracy_score(targets.numpy(), scores.numpy(), k=k, labels=np.arange(classes))
        assert found[f"top{k}"] == pytest.approx(100 * truth, abs=1e-12)


def test_a_known_case_by_hand() -> None:
    scores = torch.tensor([[9.0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 9, 0, 0, 0, 1]])
    found = evaluate(scores, [0, 0, 1, 5])
    assert values(found) == {"top1": 25.0, "top5": 75.0}
    assert found.outcomes is not None
    assert found.outcomes.columns == ("item", "target", "top1", "top2", "top3", "top4", "top5")
    assert found.outcomes.rows == (
        ("0", 0, 0, 5, 4, 3, 2), ("1", 0, 5, 4, 3, 2, 1), ("2", 1, 0, 1, 2, 3, 4), ("3", 5, 1, 5, 0, 2, 3),
    )  # fmt: skip
    assert [measurement.metric.unit for measurement in found.measurements] == ["%", "%"]
    assert all(measurement.metric.higher_is_better for measurement in found.measurements)


def test_the_result_does_not_depend_on_batches() -> None:
    scores = torch.randn(50, 12, generator=torch.Generator().manual_seed(3))
    targets = [row % 12 for row in range(50)]
    assert evaluate(scores, targets, 1) == evaluate(scores, targets, 9) == evaluate(scores, targets, 50)


def test_top_one_has_its_interval() -> None:
    scores = torch.eye(10).repeat(12, 1)
    targets = [row % 10 if row < 47 else (row + 1) % 10 for row in range(120)]
    found = evaluate(scores, targets)
    expected = binomtest(47, 120).proportion_ci(0.95, method="wilson")
    assert found.measurements[0].interval == pytest.approx((100 * expected.low, 100 * expected.high))


def test_the_interval_of_the_mean_of_classes_covers_the_truth() -> None:
    generator, shares, covered = np.random.default_rng(0), np.linspace(0.5, 1, 30), 0
    targets = np.repeat(np.arange(30), 12)
    for _ in range(300):
        right = generator.random(360) < np.repeat(shares, 12)
        meter = Accuracy(30, per_class=True)
        meter.rows = [
            (str(i), int(t), int(t if good else (t + 1) % 30))
            for i, (t, good) in enumerate(zip(targets, right, strict=True))
        ]
        low, high = meter.compute().measurements[0].interval or (0, 0)
        covered += low <= 100 * shares.mean() <= high
    assert 0.93 <= covered / 300 <= 0.985


# Ties


@pytest.mark.parametrize("score", [0.0, -0.0, 1.0, -3.5, 1e30])
def test_a_constant_output_scores_how_often_the_first_classes_come(score: float) -> None:
    targets = [0] * 3 + [4] * 2 + [5] * 4 + [999]
    found = evaluate(torch.full((10, 1000), score), targets)
    assert values(found) == {"top1": 30.0, "top5": 50.0}
    assert "lower class index" in found.details["ties"]
    assert found.outcomes is not None
    assert {row[2:] for row in found.outcomes.rows} == {(0, 1, 2, 3, 4)}


def test_zero_of_either_sign_is_one_score() -> None:
    assert rank(torch.tensor([[-0.0, 0.0, -0.0, 0.0]]), 4).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ties_in_low_precision_go_to_the_lower_class(dtype: torch.dtype) -> None:
    scores = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    tied = (scores == scores.max(dim=1, keepdim=True).values).sum(dim=1) > 1
    assert dtype != torch.bfloat16 or tied.sum() > 0
    best = np.array([sorted(range(1000), key=lambda c: (-row[c], c))[:5] for row in scores.double().numpy()])
    assert rank(scores, 5).tolist() == best.tolist()


def test_half_precision_is_ranked_in_single() -> None:
    scores = torch.tensor([[1.0, 1.001, 60000.0, 2.0, 3.0, 4.0]], dtype=torch.float16)
    assert rank(scores, 5).tolist() == [[2, 5, 4, 3, 1]]
    # What differs in double precision only is a tie.
    assert rank(torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64), 2).tolist() == [[0, 1]]


# Scores that are not finite


@pytest.mark.parametrize("bad", [NAN, INF, -NAN])
def test_a_broken_row_is_wrong_and_reported(bad: float) -> None:
    scores = torch.eye(10)
    scores[3, 3] = bad
    scores[7, 0] = bad
    found = evaluate(scores, list(range(10)))
    # Row 3 would be right if the bad score won, and row 7 if it were passed over.
    assert values(found) == {"top1": 80.0, "top5": 80.0}
    assert (found.details["not_finite"], found.details["not_finite_items"]) == (2, ["3", "7"])
    assert found.outcomes is not None
    assert found.outcomes.rows[3] == ("3", 3, -1, -1, -1, -1, -1)


def test_no_more_than_twenty_broken_rows_are_named() -> None:
    scores = torch.eye(60)
    scores[:50] = NAN
    details = evaluate(scores, list(range(60))).details
    assert details["not_finite"] == 50
    assert details["not_finite_items"] == [str(row) for row in range(20)]
    assert "not_finite_items" not in evaluate(torch.eye(60), list(range(60))).details


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_nothing_but_broken_rows_is_a_broken_model(bad: float) -> None:
    with pytest.raises(ModelError, match=r"All 8 outputs hold NaN or infinity.*--precision fp32"):
        evaluate(torch.full((8, 10), bad), [0] * 8)


def test_minus_infinity_excludes_a_class() -> None:
    scores = torch.full((2, 8), -INF)
    scores[0, 6], scores[0, 2] = 1.0, 2.0
    scores[1, 1] = -5.0
    found = evaluate(scores, [6, 0])
    assert values(found) == {"top1": 0.0, "top5": 50.0}
    assert found.details["not_finite"] == 0
    assert found.outcomes is not None
    assert [row[2:] for row in found.outcomes.rows] == [(2, 6, -1, -1, -1), (1, -1, -1, -1, -1)]


def test_a_row_without_any_class_left_is_broken() -> None:
    scores = torch.eye(6)
    scores[5] = -INF
    found = evaluate(scores, list(range(6)))
    assert found.details["not_finite_items"] == ["5"]
    assert values(found)["top1"] == pytest.approx(500 / 6)


def test_nothing_to_evaluate() -> None:
    with pytest.raises(DataError, match="There were no images to evaluate"):
        Accuracy(10).compute()


# Few classes, and ReaL


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_few_classes_have_no_top_five(classes: int) -> None:
    found = evaluate(torch.eye(classes), list(range(classes)))
    assert values(found) == {"top1": 100.0}
    assert found.outcomes is not None
    assert len(found.outcomes.columns) == 2 + classes
    assert {len(row) for row in found.outcomes.rows} == {2 + classes}


def test_real_labels_judge_only_the_images_that_have_any() -> None:
    scores = torch.eye(8)
    real = {"0": [0], "1": [0, 1], "2": [3], "3": [], "4": [4, 5]}
    found = evaluate(scores, list(range(8)), real=real)
    assert values(found) == {"top1": 100.0, "top5": 100.0, "real_top1": 75.0}
    assert found.details["real_images"] == 4
    assert "real_top1" not in values(evaluate(scores, list(range(8)), real={"3": [], "elsewhere": [1]}))


def test_a_broken_row_is_wrong_for_real_too() -> None:
    scores = torch.eye(8)
    scores[0] = NAN
    assert values(evaluate(scores, list(range(8)), real={"0": [0], "1": [1]}))["real_top1"] == 50.0


# The mean of the classes' accuracies


@pytest.mark.parametrize("classes", [3, 10, 200])
def test_mean_per_class_equals_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    # Unequal classes, of which the last two do not occur; the model predicts them nevertheless.
    targets = np.minimum(rng.geometric(3 / classes, 400) - 1, max(0, classes - 3))
    found = np.where(rng.random(400) < 0.5, targets, rng.integers(classes, size=400))
    scores = torch.nn.functional.one_hot(torch.tensor(found), classes).float()
    evaluation = evaluate(scores, targets.tolist(), per_class=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        truth = 100 * balanced_accuracy_score(targets, found)
    assert values(evaluation)["mean_per_class"] == pytest.approx(truth, abs=1e-12)
    assert [measurement.metric.name for measurement in evaluation.measurements][:2] == ["mean_per_class", "top1"]


def test_mean_per_class_by_hand() -> None:
    scores = torch.eye(3)[[0, 0, 0, 1, 1]]
    scores[4] = NAN
    # Three of three right, one of one wrong, one broken of one: classes weigh alike, images do not.
    assert values(evaluate(scores, [0, 0, 0, 2, 1], per_class=True)) == {
        "mean_per_class": pytest.approx(100 / 3),
        "top1": 60.0,
    }
    assert "mean_per_class" not in values(evaluate(scores, [0, 0, 0, 2, 1]))
