"""The classes that the training images have, which may be fewer than the data set defines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Present:
    """The classes among some targets.

    Args:
        classes: (P,) their indices.
        targets: (N,) the targets as places in `classes`.
        defined: how many the data set has.
    """

    classes: Tensor
    targets: Tensor
    defined: int

    def __len__(self) -> int:
        return len(self.classes)

    def spread(self, scores: Tensor) -> Tensor:
        """Return scores (B, P) as (B, defined): a class without training images is never predicted."""
        import torch

        out = scores.new_full((len(scores), self.defined), -torch.inf)
        out[:, self.classes] = scores
        return out


def present(targets: Tensor, defined: int, device: str) -> Present:
    """Return the classes among targets (N,)."""
    import torch

    classes, places = torch.unique(targets.to(device), return_inverse=True)
    return Present(classes, places, defined)
