"""Whether predictions are right but for the order of the classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Pair = tuple[int, int]  # target, prediction

ODDS = 4.0
SIGMAS = 5.0
SPREAD = 0.5


@dataclass(frozen=True)
class Shuffle:
    """A renaming of the predicted classes that makes the predictions far better.

    Args:
        matched: percentage of images that are right once the classes are renamed, by a renaming from other images.
        raw: percentage of images that are right as they are.
        mapping: the predicted class that stands for each class, where the two differ.
    """

    matched: float
    raw: float
    mapping: Mapping[int, int]

    @property
    def remark(self) -> str:
        """The finding in one line."""
        return f"class order looks shuffled: matched {self.matched:.1f} against {self.raw:.1f}"

    @property
    def pairs(self) -> str:
        """The mapping in one line, `class>prediction` each."""
        return " ".join(f"{target}>{found}" for target, found in sorted(self.mapping.items()))


def find_shuffle(pairs: Sequence[Pair]) -> Shuffle | None:
    """Return the renaming of classes that explains predictions (target, prediction); None where there is none.

    The images of each class are dealt into two halves. The renaming that is best for one half (the Hungarian
    algorithm on its confusion matrix) is scored on the other, so that a model at chance stays at chance. It is
    reported where

    - its odds of being right are 4 times those of the predictions as they are, and of always guessing one class;
    - the difference is 5 standard errors;
    - the predictions use half as many classes as there are, by the exponential of the entropy: an untrained model,
      which may tell bright images from dark ones, uses few.

    Classes with one image give no evidence. The matching is sparse: 100,000 images of 10,000 classes take seconds.
    """
    if not pairs:
        return None
    total, halves = len(pairs), _halves(pairs)
    raw = sum(target == found for target, found in pairs)
    targets, predictions = Counter(target for target, _ in pairs), Counter(found for _, found in pairs)
    baseline = max(raw, max(targets.values()))
    # Most predictions are spared the matching, and its import, by what no renaming can exceed.
    if not _is_far(sum(map(_most, halves)), baseline, total) or _effective(predictions) < SPREAD * _effective(targets):
        return None
    renamings = [match(half) for half in halves]
    right = sum(renamings[1 - side].get(target) == found for side, half in enumerate(halves) for target, found in half)
    moved = {target: found for target, found in match(pairs).items() if target != found}
    return Shuffle(100 * right / total, 100 * raw / total, moved) if _is_far(right, baseline, total) else None


def _is_far(right: int, baseline: int, total: int) -> bool:
    """Whether so many right images are far above the baseline, by odds and by standard errors."""
    significant = right - baseline > SIGMAS * math.sqrt(right + baseline)
    return significant and right * (total - baseline) > ODDS * baseline * (total - right)


def _most(pairs: Sequence[Pair]) -> int:
    """How many predictions are right at most, were several classes allowed to have one name."""
    best: Counter[int] = Counter()
    for (_, found), count in Counter(pairs).items():
        best[found] = max(best[found], count)
    return best.total()


def match(pairs: Sequence[Pair]) -> dict[int, int]:
    """Return the one-to-one renaming, from class to predicted class, that makes most predictions right.

    Classes that it gives no right prediction are left out.
    """
    if not pairs:
        return {}
    import numpy
    from scipy.sparse import csr_array, hstack
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    counts = Counter(pairs)
    targets, rows = numpy.unique([target for target, _ in counts], return_inverse=True)
    found, columns = numpy.unique([prediction for _, prediction in counts], return_inverse=True)
    confusion: Any = csr_array((numpy.array(list(counts.values()), float), (rows, columns)))
    # A class may stay without a partner: it then takes a column of its own, which is worth less than any image.
    alone = csr_array((numpy.full(len(targets), 0.5 / len(targets)), (range(len(targets)), range(len(targets)))))
    _, partners = min_weight_full_bipartite_matching(csr_array(hstack([confusion, alone])), maximize=True)
    return {
        int(target): int(found[partner])
        for target, partner in zip(targets, partners, strict=True)
        if partner < len(found)
    }


def _halves(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Deal the images of each class in turn to one half and to the other."""
    seen: Counter[int] = Counter()
    halves: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        halves[seen[pair[0]] % 2].append(pair)
        seen[pair[0]] += 1
    return halves


def _effective(counts: Counter[int]) -> float:
    """How many equally frequent classes would be as varied: the exponential of the entropy."""
    total = counts.total()
    return math.exp(-sum(count / total * math.log(count / total) for count in counts.values()))
