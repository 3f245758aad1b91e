"""Ridge regression on frozen features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.errors import SetupError
from harness.features import Features
from harness.record import Setup
from harness.registry import PROTOCOLS
from tasks.frozen import FrozenProtocol, Predict, Scale
from tasks.heads.classes import present
from tasks.heads.held_out import best
from tasks.heads.ridge import fit_ridge
from tasks.heads.scaling import scaled, scaling_of

# Of the squared weights, beside the mean squared error: alpha = penalty x images in scikit-learn's terms.
PENALTIES = [10 ** (2 - 0.4 * place) for place in range(16)]


@PROTOCOLS.register("ridge")
@dataclass(kw_only=True)
class RidgeClassifier(FrozenProtocol):
    """Ridge regression of standardised features to one-hot targets, in closed form.

    The regulariser is the best of 16 by exact leave-one-out accuracy on the training images.

    Args:
        alpha: the regulariser, as scikit-learn defines it; chosen where none is given.
    """

    alpha: float | None = None
    scale: ClassVar[Scale] = "scores"
    _details: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise SetupError(f"alpha={self.alpha:g} cannot be used: expected a positive number.")

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the protocol, and of what it chose."""
        return {"protocol": "ridge regression to one-hot targets", **self._details}

    def fit(self, train: Features, classes: int, setup: Setup) -> Predict:
        """Fit all regularisers, and keep the best."""
        alphas = [self.alpha] if self.alpha else [penalty * len(train) for penalty in PENALTIES]
        scaling, known = scaling_of(train.values, setup.device), present(train.targets, classes, setup.device)
        found = fit_ridge(scaled(train.values, scaling), known.targets, len(known), alphas)
        chosen = best(found.left_out_accuracy)
        weights = found.weights[chosen]
        self._details = {
            "alpha": alphas[chosen],
            "chosen_on": "each training image left out in turn",
            "grid": alphas,
            "left_out_accuracy": found.left_out_accuracy,
            "at_the_edge": len(alphas) > 1 and chosen in (0, len(alphas) - 1),
        }
        return lambda rows: known.spread((scaling(rows).double() @ weights[:-1] + weights[-1]).float())
