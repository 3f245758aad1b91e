"""Nearest neighbours vote as scikit-learn's and a plain reference do, whatever the blocks and whatever is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional

from harness.errors import ModelError, SetupError
from harness.features import Features
from harness.record import Setup
from tasks.frozen import check_finite
from tasks.metrics.accuracy import Accuracy, rank
from tasks.protocols import knn
from tasks.protocols.knn import NearestNeighbours, nearest, vote

K, T = 20, 0.07
ROOT = Path(__file__).resolve().parents[1]


def random(rows: int, width: int = 24, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def labels(rows: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


def reference(queries: Tensor, keys: Tensor, targets: Tensor, k: int, classes: int) -> NDArray[np.float64]:
    """Votes in double precision; of equal similarities, in steps of 2**-24, the earlier key is nearer."""
    similarities = np.round(queries.double().numpy() @ keys.double().numpy().T * 2**24) / 2**24
    votes = np.full((len(queries), classes), -np.inf)
    for row, similar in enumerate(similarities):
        for key in sorted(range(len(keys)), key=lambda key: (-similar[key], key))[:k]:
            before = votes[row, targets[key]]
            votes[row, targets[key]] = np.exp(similar[key] / T) + (0 if np.isinf(before) else before)
    return votes


@pytest.mark.parametrize(("keys", "k", "classes"), [(300, 20, 10), (300, 1, 10), (50, 7, 40), (12, 20, 5)])
def test_votes_equal_a_plain_reference(keys: int, k: int, classes: int) -> None:
    queries, bank, targets = random(40, seed=1), random(keys, seed=2), labels(keys, classes)
    votes = vote(queries, bank, targets, k, T, classes)
    assert votes.dtype == torch.float32
    np.testing.assert_allclose(votes.numpy(), reference(queries, bank, targets, k, classes), rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_predictions_equal_scikit_learn(classes: int) -> None:
    queries, bank, targets = random(200, seed=3), random(1000, seed=4), labels(1000, classes)
    judge = KNeighborsClassifier(
        K, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / T)
    ).fit(bank.numpy(), targets.numpy())
    predicted = rank(vote(queries, bank, targets, K, T, classes), 1)[:, 0]
    assert predicted.tolist() == judge.predict(queries.numpy()).tolist()


@pytest.mark.parametrize("block", [1, 7, 20, 64, 299, 300, 10_000])
def test_blocks_of_any_size_give_the_same_votes(block: int) -> None:
    queries, bank, targets = random(30, seed=5), random(300, seed=6), labels(300, 12)
    bank[100:140] = bank[:40]  # doubles, whose products differ in the last bit from block to block
    queries[:10] = bank[:10]
    expected = vote(queries, bank, targets, K, T, 12)
    assert torch.equal(vote(queries, bank, targets, K, T, 12, block=block), expected)


def test_similarities_never_exceed_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = random(64, 4, seed=7), random(20_000, 4, seed=8)
    seen = []
    original = torch.Tensor.__matmul__

    def matmul(one: Tensor, other: Tensor) -> Tensor:
        product = original(one, other)
        seen.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)
    vote(queries, bank, labels(20_000, 5), K, T, 5, block=1000)
    assert len(seen) == 20 + 1  # and the candidates in double precision
    assert max(seen) == 64 * 1000


def test_of_equal_similarities_the_earlier_image_is_nearer() -> None:
    bank = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1]])
    targets = torch.tensor([3, 0, 2, 1, 0])
    for block in (1, 2, 5):
        votes = vote(torch.tensor([[1.0, 0]]), bank, targets, 2, T, 4, block)
        assert votes.isfinite().tolist() == [[False, False, True, True]]
    # Two classes with one equal vote each: the lower class is predicted.
    assert rank(votes, 2).tolist() == [[2, 3]]


def test_classes_without_a_neighbour_are_never_predicted() -> None:
    queries, bank = random(25, seed=9), random(100, seed=10)
    targets = labels(100, 3) + 4  # only 4, 5 and 6 of ten
    votes = vote(queries, bank, targets, K, T, 10)
    ranked = rank(votes, 5)
    assert set(ranked.flatten().tolist()) == {4, 5, 6, -1}
    assert (ranked[:, 3:] == -1).all()


def test_opposite_vectors_vote_however_weakly() -> None:
    votes = vote(torch.tensor([[1.0, 0]]), torch.tensor([[-1.0, 0]]), torch.tensor([1]), 1, 0.001, 3)
    assert votes.tolist() == [[-torch.inf, 0, -torch.inf]]


def test_more_neighbours_than_training_images() -> None:
    votes = vote(random(3, seed=1), random(5, seed=2), torch.arange(5), K, T, 6)
    assert votes.isfinite().sum(dim=1).tolist() == [5, 5, 5]


def test_queries_that_are_not_finite() -> None:
    queries, bank, targets = random(4, seed=1), random(30, seed=2), labels(30, 6)
    expected = vote(queries, bank, targets, K, T, 6)
    broken = queries.clone()
    broken[1] = torch.nan
    broken[2, 0] = torch.inf
    votes = vote(broken, bank, targets, K, T, 6)
    assert votes[1:3].isnan().all()
    assert torch.equal(votes[[0, 3]], expected[[0, 3]])
    assert rank(votes, 1)[:, 0].tolist()[1:3] == [-1, -1]


def test_a_zero_vector_is_as_near_to_all() -> None:
    targets = torch.tensor([5] * 3 + [2] * 27)
    votes = vote(torch.zeros(1, 24), random(30, seed=2), targets, 4, T, 6)
    assert votes.tolist() == [[-torch.inf, -torch.inf, 1, -torch.inf, -torch.inf, 3]]


def test_votes_do_not_depend_on_the_precision_of_the_run() -> None:
    queries, bank, targets = random(60, seed=1), random(400, seed=2), labels(400, 50)
    expected = vote(queries, bank, targets, K, T, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vote(queries, bank, targets, K, T, 50), expected)


# The protocol: from features to votes


def features(values: Tensor, targets: Tensor) -> Features:
    return Features(values, targets, [str(index) for index in range(len(values))])


TRAIN = features(random(60, seed=0), labels(60, 7))


def predict(values: Tensor, train: Features = TRAIN) -> Tensor:
    return NearestNeighbours().fit(train, 7, Setup())(values)


def test_features_are_classified_as_the_reference_does() -> None:
    queries = random(20, seed=1)
    expected = reference(*(functional.normalize(each, dim=1) for each in (queries, TRAIN.values)), TRAIN.targets, K, 7)
    np.testing.assert_allclose(predict(queries).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e30, 1e-7])
def test_the_scale_of_features_does_not_matter(scale: float) -> None:
    scaled = features(TRAIN.values * scale, TRAIN.targets)
    torch.testing.assert_close(predict(TRAIN.values, scaled), predict(TRAIN.values), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_features_of_training_images_are_refused(bad: float) -> None:
    broken = TRAIN.values.index_fill(0, torch.tensor([3]), bad)
    with pytest.raises(ModelError, match=r"embeddings of 1 of 60 training images.* '3': .*--precision fp32"):
        check_finite(features(broken, TRAIN.targets))


def test_a_dead_model_scores_a_constant() -> None:
    dead = torch.zeros_like(TRAIN.values)
    votes = predict(dead, features(dead, TRAIN.targets))
    assert (votes == votes[0]).all()
    assert rank(votes, 1)[0, 0] == TRAIN.targets[:K].bincount(minlength=7).argmax()


def measure(
    train: Features, test: Features, split: str = "val", **options: Any
) -> tuple[dict[str, float | None], dict[str, Any]]:
    task: Any = SimpleNamespace(num_classes=7, evaluated_on=split, meter=lambda: Accuracy(7))
    protocol = NearestNeighbours(**options)
    found = protocol.measure(train, test, task, Setup())
    return {each.metric.name: each.value for each in found.measurements}, protocol.details


def named(values: Tensor, targets: Tensor, prefix: str) -> Features:
    return Features(values, targets, [f"{prefix}{index}" for index in range(len(values))])


def test_all_neighbourhoods_come_from_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = named(random(500, seed=1), labels(500, 7, 1), "a"), named(random(90, seed=2), labels(90, 7, 2), "b")
    searches = []
    monkeypatch.setattr(knn, "nearest", lambda *args: searches.append(args[2]) or nearest(*args))
    found, _ = measure(train, test, k=5)
    assert searches == [200]
    for k in (5, 10, 20, 100, 200):
        judge = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / T)
        ).fit(train.values.numpy(), train.targets.numpy())
        expected = 100 * judge.score(test.values.numpy(), test.targets.numpy())
        assert found["top1" if k == 5 else f"top1_k{k}"] == pytest.approx(expected)


def test_an_image_is_no_neighbour_of_itself() -> None:
    # With labels that know nothing of the features, a neighbour that is the image itself makes everything right.
    values, targets = random(300, seed=3), labels(300, 7, seed=4)
    found, details = measure(named(values, targets, "a"), named(values, targets, "a"), "train", k=1)
    assert details["left_out_themselves"] == 300
    assert found["top1"] is not None
    assert found["top1"] < 30
    judge = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(values.numpy(), targets.numpy())
    # Asked without queries, scikit-learn leaves each image out of its own neighbours.
    others = judge.kneighbors(return_distance=False)[:, 0]
    assert found["top1"] == pytest.approx(100 * float((targets[others] == targets).double().mean()))


def test_the_same_name_in_another_split_is_another_image() -> None:
    train = named(random(60, seed=3), labels(60, 7, seed=4), "a")
    found, details = measure(train, train, k=1)
    assert details["left_out_themselves"] == 0
    assert found["top1"] == 100


def test_an_only_training_image_has_no_neighbour() -> None:
    similarities, _ = nearest(random(1), random(1), 1, torch.tensor([0]))
    assert similarities.tolist() == [[-torch.inf]]


@pytest.mark.parametrize("copies", [1, 100])
def test_candidates_find_what_an_exact_search_finds(copies: int) -> None:
    # Copies differ by less than single precision tells, so that candidates alone would miss some.
    bank = random(50, 16, seed=5).repeat(copies, 1)
    bank = functional.normalize(
        bank + 1e-7 * torch.randn(bank.shape, generator=torch.Generator().manual_seed(1)), dim=1
    )
    queries = random(80, 16, seed=6)
    exact = knn._all(queries, bank, 10, torch.full((80,), -1), 7)
    similarities, indices = nearest(queries, bank, 10, block=1000)
    assert torch.equal(indices, -exact % 2**32)
    assert similarities.shape == (80, 10)


def test_memory_does_not_grow_with_the_number_of_keys() -> None:
    def peak(keys: int) -> int:
        code = (
            "import resource, torch; from tasks.protocols.knn import nearest; torch.set_num_threads(1);"
            f"bank = torch.nn.functional.normalize(torch.randn({keys}, 16), dim=1);"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
            "nearest(bank[:512], bank, 200);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        return int(done.stdout) // 1024

    small, large = peak(20_000), peak(200_000)
    # All products of the large bank would take 390 MiB in single precision.
    assert large < 250
    assert large < small + 60


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="cannot be used: expected at least one neighbour and a positive temperature"):
        NearestNeighbours(**options)
