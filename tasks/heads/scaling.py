"""Features on a common scale, by the statistics of the training images alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 8192
CONSTANT = 1e-6  # relative to the largest value


@dataclass(frozen=True)
class Scaling:
    """Takes the mean from each feature and divides by its standard deviation; a constant feature becomes 0.

    In double precision on the way, where no square overflows.
    """

    mean: Tensor
    deviation: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Return features (N, D) in single precision."""
        return ((values.double() - self.mean) / self.deviation).float()


def blocks(values: Tensor, device: str | None = None) -> Iterator[Tensor]:
    """Yield blocks of rows in double precision, on another device where one is given."""
    for start in range(0, len(values), ROWS):
        yield values[start : start + ROWS].to(device or values.device).double()


def scaling_of(values: Tensor, device: str) -> Scaling:
    """Return the scaling of features (N, D), which are finite."""
    import torch

    count = len(values)
    mean = torch.stack([rows.sum(dim=0) for rows in blocks(values, device)]).sum(dim=0) / count
    squares = torch.stack([(rows - mean).square().sum(dim=0) for rows in blocks(values, device)]).sum(dim=0)
    highest = torch.stack([rows.amax(dim=0) for rows in blocks(values, device)]).amax(dim=0)
    lowest = torch.stack([rows.amin(dim=0) for rows in blocks(values, device)]).amin(dim=0)
    # What differs by rounding alone is constant: division would blow up what depends on an image's place in its batch.
    constant = highest - lowest <= CONSTANT * torch.maximum(highest.abs(), lowest.abs())
    return Scaling(mean, (squares / count).sqrt().masked_fill(constant, torch.inf))


def scaled(values: Tensor, scaling: Scaling) -> Tensor:
    """Return the scaled features (N, D) in single precision on the scaling's device, made block by block."""
    import torch

    out = torch.empty(values.shape, device=scaling.mean.device)
    for start in range(0, len(values), ROWS):
        out[start : start + ROWS] = scaling(values[start : start + ROWS].to(out.device))
    return out
