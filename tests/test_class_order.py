"""A class order that is shuffled is found at every accuracy that leaves evidence, and chance or quality never fires."""

from __future__ import annotations

import time

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import linear_sum_assignment

from harness.task import Batch
from tasks.data import mini
from tasks.metrics.accuracy import Accuracy
from tasks.metrics.class_order import Pair, find_shuffle, match

SIZES = [(10, 24), (37, 30), (100, 10), (200, 29), (1000, 10)]


def predictions(classes: int, images: int, accuracy: float, seed: int = 0) -> list[Pair]:
    """Targets and predictions; the wrong ones are evenly random."""
    rng = np.random.default_rng([seed, classes])
    targets = np.repeat(np.arange(classes), images)
    wrong = rng.integers(classes, size=targets.size)
    found = np.where(rng.random(targets.size) < accuracy, targets, wrong)
    return [(int(target), int(one)) for target, one in zip(targets, found, strict=True)]


def renamed(pairs: list[Pair], seed: int = 0) -> tuple[list[Pair], dict[int, int]]:
    classes = sorted({target for target, _ in pairs})
    names = dict(zip(classes, map(int, np.random.default_rng(seed).permutation(classes)), strict=True))
    return [(target, names[found]) for target, found in pairs], names


@pytest.mark.parametrize("accuracy", [0.5, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(("classes", "images"), SIZES)
def test_a_permuted_order_is_found(classes: int, images: int, accuracy: float) -> None:
    pairs = predictions(classes, images, accuracy)
    permuted, names = renamed(pairs)
    found = find_shuffle(permuted)
    assert found is not None
    true = 100 * np.mean([target == one for target, one in pairs])
    # With ten images a class half of them may not show which name a class has.
    assert true - 12 < found.matched <= true + 2
    assert found.raw == pytest.approx(100 * np.mean([target == one for target, one in permuted]))
    moved = {target: one for target, one in names.items() if target != one}
    right = sum(found.mapping.get(target) == one for target, one in moved.items())
    assert right >= 0.9 * len(moved)


@pytest.mark.parametrize(("classes", "images", "accuracy"), [(1000, 50, 0.1), (200, 29, 0.2), (100, 100, 0.1)])
def test_a_weak_models_permuted_order_is_found_where_images_are_many(
    classes: int, images: int, accuracy: float
) -> None:
    permuted, _ = renamed(predictions(classes, images, accuracy))
    assert find_shuffle(permuted) is not None


@pytest.mark.parametrize("shift", [1, -1, 5])
def test_an_order_that_is_off_by_some_is_found(shift: int) -> None:
    pairs = [(target, (found + shift) % 50) for target, found in predictions(50, 20, 0.7)]
    found = find_shuffle(pairs)
    assert found is not None
    assert found.mapping == {target: (target + shift) % 50 for target in range(50)}
    assert found.remark == f"class order looks shuffled: matched {found.matched:.1f} against {found.raw:.1f}"
    assert found.pairs.startswith(f"0>{shift % 50} 1>{(1 + shift) % 50} ")


@pytest.mark.parametrize("accuracy", [0.0, 0.05, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("classes", "images"), [*SIZES, (2, 50), (6, 20), (500, 1), (1000, 3)])
def test_the_right_order_is_silent(classes: int, images: int, accuracy: float) -> None:
    for seed in range(5):
        assert find_shuffle(predictions(classes, images, accuracy, seed)) is None


def test_chance_never_fires() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        classes, images = int(rng.integers(2, 60)), int(rng.integers(1, 30))
        pairs = [(target, int(rng.integers(classes))) for target in range(classes) for _ in range(images)]
        assert find_shuffle(pairs) is None


@pytest.mark.parametrize("found", [0, 7])
def test_a_constant_prediction_is_silent(found: int) -> None:
    assert find_shuffle([(target, found) for target in range(10) for _ in range(50)]) is None


def test_confusing_neighbours_is_no_shuffle() -> None:
    # Every second class takes its neighbour's name: half of the images are right, and all would be.
    assert find_shuffle([(target, target - target % 2) for target in range(40) for _ in range(20)]) is None


def test_a_model_that_tells_groups_apart_and_not_classes_is_silent() -> None:
    # 20 groups of five classes, each group with one name, which is another group's: right for a fifth when renamed.
    assert find_shuffle([(k, (k // 5 + 3) % 20 * 5) for k in range(100) for _ in range(20)]) is None


def test_a_few_exchanged_classes_are_no_shuffled_order() -> None:
    pairs = predictions(40, 100, 0.8)
    exchanged = [(target, (found + 5) % 10 if found < 10 else found) for target, found in pairs]
    assert find_shuffle(exchanged) is None


def test_a_handful_of_images_is_no_evidence() -> None:
    assert find_shuffle([(target, (target + 1) % 5) for target in range(5) for _ in range(2)]) is None
    assert find_shuffle([(target, (target + 1) % 5) for target in range(5) for _ in range(20)]) is not None


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_untrained_models_are_silent(model: str) -> None:
    labels = range(len(mini.CLASSES))
    images = torch.stack([
        torch.nn.functional.interpolate(torch.tensor(mini.draw(k, 1, i)).permute(2, 0, 1)[None] / 255.0, (64, 64))[0]
        for k in labels for i in range(6)
    ])  # fmt: skip
    targets = [k for k in labels for _ in range(6)]
    options = {"img_size": 64} if model.startswith("vit") else {}
    for seed in range(2):
        torch.manual_seed(seed)
        net = timm.create_model(model, num_classes=len(labels), **options).eval()
        with torch.no_grad():
            found = net((images - 0.5) / 0.25).argmax(dim=1).tolist()
        assert find_shuffle(list(zip(targets, found, strict=True))) is None


@pytest.mark.parametrize(("classes", "images"), [(3, 20), (30, 300), (120, 900)])
def test_the_matching_is_that_of_the_dense_hungarian_algorithm(classes: int, images: int) -> None:
    rng = np.random.default_rng(classes)
    pairs = [(int(a), int(b)) for a, b in rng.integers(classes, size=(images, 2))]
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, tuple(np.array(pairs).T), 1)
    best = confusion[linear_sum_assignment(-confusion)].sum()
    found = match(pairs)
    assert len(set(found.values())) == len(found)
    assert sum(confusion[target, one] for target, one in found.items()) == best


def test_ten_thousand_classes_take_seconds() -> None:
    permuted, _ = renamed(predictions(10_000, 10, 0.5))
    started = time.process_time()
    assert find_shuffle(permuted) is not None
    assert time.process_time() - started < 10


def test_the_record_says_so_and_does_not_rank() -> None:
    permuted, _ = renamed(predictions(20, 10, 0.9))
    meter = Accuracy(20)
    scores = torch.nn.functional.one_hot(torch.tensor([found for _, found in permuted]), 20).float()
    targets = torch.tensor([target for target, _ in permuted])
    scores[0] = float("nan")  # a broken row is left out of the matching
    meter.update(scores, Batch(torch.empty(0), targets, tuple(map(str, range(len(permuted))))))
    details = meter.compute().details
    assert details["class_order"].startswith("class order looks shuffled: matched ")
    assert details["unranked"] == [details["class_order"]]
    assert all(">" in pair for pair in details["class_mapping"].split())
    assert "-1" not in details["class_mapping"]
