"""The part of the training images on which a head's settings are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FRACTION = 0.2
MOST = 10_000


def hold_out(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the images to fit and of those held out: a fifth, at most 10,000, alike in each class.

    One image of each class is always fitted. The draw depends on the targets and the seed alone.

    Args:
        targets: (N,) class indices.

    Raises:
        DataError: no image can be held out.
    """
    import torch

    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    order = order[targets[order].sort(stable=True).indices]
    ordered = targets[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    share = min(FRACTION, MOST / len(targets))
    steps = (torch.arange(1, len(targets) + 1, dtype=torch.float64) * share + 0.5).floor()
    chosen = (steps.diff(prepend=torch.zeros(1, dtype=torch.float64)) > 0) & ~first
    if not chosen.any():
        raise DataError(
            f"The regulariser cannot be chosen on {len(targets)} training images of {int(first.sum())} classes: "
            "expected several images a class. Give one, such as linear,C=0.01 or ridge,alpha=1."
        )
    return order[~chosen].sort().values, order[chosen].sort().values


def best(scores: list[float]) -> int:
    """Return the place of the highest score; of equal ones the first, so that settings go from strong to weak."""
    return scores.index(max(scores))


def choice(
    name: str, grid: Sequence[Any], accuracies: list[float], chosen: int, held: int, seed: int
) -> dict[str, Any]:
    """Return what records say of a choice: the value, the grid, the curve and on what."""
    return {
        name: grid[chosen],
        "chosen_on": f"{held} training images held out, stratified, seed {seed}",
        "grid": grid,
        "held_out_accuracy": accuracies,
        "at_the_edge": chosen in (0, len(grid) - 1),
    }


def accuracy(scores: Tensor, targets: Tensor) -> float:
    """Return the percentage of rows of scores (N, C) whose best class is the target; a row with NaN is wrong."""
    right = (scores.argmax(dim=1) == targets) & ~scores.isnan().any(dim=1)
    return 100 * float(right.double().mean())
