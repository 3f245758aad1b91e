"""Ridge regression to one-hot targets, for many regularisers from one factorisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.heads.scaling import ROWS, blocks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ridge:
    """The solutions for all regularisers, and how well each does on every training image left out in turn.

    Args:
        weights: (S, D + 1, C), the bias last.
        left_out_accuracy: for each regulariser, the percentage of images that the solution without that image
            classifies rightly: exact, from the leverages (PRESS; Allen 1974).
    """

    weights: Tensor
    left_out_accuracy: list[float]


def fit_ridge(features: Tensor, targets: Tensor, classes: int, alphas: Sequence[float]) -> Ridge:
    """Return the minimum, for each alpha, of the squared errors plus alpha times the squared weights, without the bias.

    Targets are 1 for an image's class and -1 for others, as in scikit-learn's RidgeClassifier. The smaller of the two
    Gram matrices is factorised, in double precision.

    Args:
        features: (N, D) in single precision, on the device to work on.
        targets: (N,) class indices below `classes`.
    """
    import torch

    count = len(features)
    mean = torch.stack([rows.sum(dim=0) for rows in blocks(features)]).sum(dim=0) / count
    frequency = targets.bincount(minlength=classes).double() / count
    middle = 2 * frequency - 1
    axes, values, moments = _factorise(features, targets, classes, mean, middle)
    solutions = [axes @ (moments / (values + alpha)[:, None]) for alpha in alphas]
    weights = torch.stack([torch.cat([each, (middle - mean @ each)[None]]) for each in solutions])
    right = torch.zeros(len(alphas), dtype=torch.int64, device=features.device)
    for rows, wanted in zip(blocks(features), torch.split(targets, ROWS), strict=True):
        squares = ((rows - mean) @ axes).square()
        onehot = 2 * torch.nn.functional.one_hot(wanted, classes).double() - 1
        for place, alpha in enumerate(alphas):
            leverage = (squares / (values + alpha)).sum(dim=1, keepdim=True) + 1 / count
            fitted = rows @ weights[place, :-1] + weights[place, -1]
            left_out = onehot - (onehot - fitted) / (1 - leverage).clamp(min=1e-9)
            right[place] += (left_out.argmax(dim=1) == wanted).sum()
    return Ridge(weights, (100 * right.double() / count).tolist())


def _factorise(
    features: Tensor, targets: Tensor, classes: int, mean: Tensor, middle: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return orthonormal axes (D, R), the centred features' squared singular values (R,), and moments (R, C)."""
    import torch

    count, width = features.shape
    if count < width:
        centred = features.double() - mean
        values, left = torch.linalg.eigh(centred @ centred.T)
        values, left = values.flip(0), left.flip(1)
        rank = int((values > values[0].clamp(min=1e-300) * 1e-13 * width).sum())
        axes = centred.T @ left[:, :rank] / values[:rank].sqrt()
        values = values[:rank]
    else:
        gram = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        for rows in blocks(features):
            centred = rows - mean
            gram += centred.T @ centred
        values, axes = torch.linalg.eigh(gram)
        values = values.clamp(min=0)
    moments = torch.zeros(width, classes, dtype=torch.float64, device=features.device)
    for rows, wanted in zip(blocks(features), torch.split(targets, ROWS), strict=True):
        onehot = 2 * torch.nn.functional.one_hot(wanted, classes).double() - 1
        moments += (rows - mean).T @ (onehot - middle)
    return axes, values, axes.T @ moments
