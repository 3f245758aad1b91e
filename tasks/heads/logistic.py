"""Multinomial logistic regression along a path of regularisers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Of half the sum of squared weights, beside the mean cross-entropy: C = 1 / (penalty x images) in scikit-learn's terms.
PENALTIES = [10 ** (1 - 0.4 * place) for place in range(16)]
HISTORY = 10
MOST_PASSES = 300


@dataclass(frozen=True)
class Tolerance:
    """When a fit has converged: the predicted decrease is below both.

    Args:
        absolute: in the mean cross-entropy, in nats.
        relative: to the objective.
    """

    absolute: float
    relative: float


CHOOSING = Tolerance(5e-5, 1e-2)
FINAL = Tolerance(1e-7, 1e-5)
RANK = 1e-12  # of the largest mean square: less is rounding
RESOLVED = 1e-6  # in nats: what is less may be lost in single precision


@dataclass(frozen=True)
class Logistic:
    """A linear classifier: scores are features (B, D) times `weights[:-1]` plus `weights[-1]`, the bias.

    Args:
        weights: (D + 1, C).
        objective: mean cross-entropy plus penalty / 2 times the sum of squared weights, without the bias. With two
            classes the squares count twice: so it is scikit-learn's, which has one vector of weights for both.
        passes: how often all features were read.
        converged: whether the tolerance was met.
    """

    weights: Tensor
    objective: float
    passes: int
    converged: bool

    def __call__(self, features: Tensor) -> Tensor:
        """Return scores (B, C)."""
        return features @ self.weights[:-1] + self.weights[-1]


class CrossEntropy:
    """The mean cross-entropy of a linear classifier and its gradient, in blocks of rows.

    Weights are those of the features along their principal axes: there the curvature at zero weights is diagonal, and
    where there are fewer rows than features, only as many axes as rows. The penalty does not see the rotation.

    Args:
        features: (N, D) of about unit scale.
        targets: (N,), each of `classes` present.
    """

    def __init__(self, features: Tensor, targets: Tensor, classes: int) -> None:
        variances, self.axes = principal_axes(features)
        self.features, self.targets, self.classes = features @ self.axes, targets[:, None], classes
        elements = 2**26 if features.is_cuda else 2**17
        self.rows = max(256, elements // classes)
        # Without weights every class has the probability 1 / C, and this is the curvature along each axis.
        self.curvature = (variances / classes)[:, None]

    def start(self) -> Tensor:
        """Return weights (A + 1, C) of nothing, the bias last; A axes."""
        return self.features.new_zeros(self.features.shape[1] + 1, self.classes)

    def unrotated(self, weights: Tensor) -> Tensor:
        """Return the weights (D + 1, C) of the features themselves."""
        import torch

        return torch.cat([self.axes @ weights[:-1], weights[-1:]])

    def __call__(self, weights: Tensor) -> tuple[float, Tensor]:
        """Return the loss and its gradient (A + 1, C)."""
        import torch

        loss = torch.zeros((), dtype=torch.float64, device=weights.device)
        gradient = torch.zeros_like(weights)
        for start in range(0, len(self.features), self.rows):
            rows, targets = self.features[start : start + self.rows], self.targets[start : start + self.rows]
            scores = torch.addmm(weights[-1], rows, weights[:-1])
            scores -= scores.amax(dim=1, keepdim=True)
            right = scores.gather(1, targets)
            total = scores.exp_().sum(dim=1, keepdim=True)
            loss += (total.log() - right).sum(dtype=torch.float64)
            scores /= total
            scores.scatter_add_(1, targets, torch.full_like(right, -1))
            gradient[:-1].addmm_(rows.T, scores)
            gradient[-1] += scores.sum(dim=0)
        return float(loss) / len(self.features), gradient / len(self.features)

    def precondition(self, gradient: Tensor, penalty: float) -> Tensor:
        """Return the gradient (A + 1, C) times the inverse of the curvature at zero weights."""
        import torch

        return torch.cat([gradient[:-1] / (self.curvature + penalty), gradient[-1:] * self.classes])


def principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squares (A,) of features along orthogonal axes, and the axes (D, A): A is D, or at most N.

    Where N is smaller, what is orthogonal to all rows is left out: no minimum has weights there.
    """
    import torch

    count, width = features.shape
    if count < width:
        rows = features.double()
        values, vectors = torch.linalg.eigh(rows @ rows.T / count)
        kept = values > RANK * values[-1:].clamp(min=torch.finfo(torch.float64).tiny)
        values = values[kept]
        axes = rows.T @ (vectors[:, kept] / (count * values).sqrt())
    else:
        gram = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        for start in range(0, count, 8192):
            rows = features[start : start + 8192]
            gram += rows.T @ rows
        values, axes = torch.linalg.eigh(gram / count)
    return values.clamp(min=0).to(features.dtype), axes.to(features.dtype)


@dataclass
class Path:
    """Minimises the loss for one penalty after another, each from where the last one ended.

    The method is L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.4), started from the curvature at zero
    weights. The penalty's share in the changes of the gradient is known, so that with another penalty they serve on:
    the whole path takes a third of the passes of as many fits apart.
    """

    loss: CrossEntropy
    _steps: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)  # step, change, 1 / their product
    _penalty: float = 0.0

    def __post_init__(self) -> None:
        self.weights = self.loss.start()
        self._data = self.loss(self.weights)

    def to(self, penalty: float, tolerance: Tolerance) -> Logistic:
        """Return the minimum for a penalty."""
        penalty *= 2 if self.loss.classes == 2 else 1
        self._reweigh(penalty)
        passes, converged = 0, False
        while passes < MOST_PASSES:
            objective, gradient = self._with_penalty(self.weights, *self._data, penalty)
            direction = self._direction(gradient, penalty)
            slope = float((direction.double() * gradient).sum())
            converged = -slope / 2 <= min(tolerance.absolute, tolerance.relative * objective)
            if converged:
                break
            tried, moved = self._search(direction, slope, objective, penalty)
            passes += tried
            if not moved:
                # Single precision resolves no further decrease along this direction: forget, then give up.
                if not self._steps:
                    converged = -slope / 2 <= RESOLVED
                    break
                self._steps.clear()
        return Logistic(self.loss.unrotated(self.weights), objective, passes, converged)

    def _with_penalty(self, weights: Tensor, loss: float, gradient: Tensor, penalty: float) -> tuple[float, Tensor]:
        """Return the objective and its gradient; the bias has no penalty."""
        total = gradient.clone()
        total[:-1] += penalty * weights[:-1]
        return loss + penalty / 2 * float(weights[:-1].double().square().sum()), total

    def _direction(self, gradient: Tensor, penalty: float) -> Tensor:
        """Return minus the approximate inverse Hessian times the gradient (the two-loop recursion)."""
        import torch

        q, shares = gradient.clone(), []
        for step, change, inverse in reversed(self._steps):
            shares.append(inverse * float(torch.dot(step.flatten(), q.flatten())))
            q.sub_(change, alpha=shares[-1])
        q = self.loss.precondition(q, penalty)
        if self._steps:
            change, inverse = self._steps[-1][1:]
            smoothed = self.loss.precondition(change, penalty)
            q /= inverse * float(torch.dot(change.flatten(), smoothed.flatten()))
        for (step, change, inverse), share in zip(self._steps, reversed(shares), strict=True):
            q.add_(step, alpha=share - inverse * float(torch.dot(change.flatten(), q.flatten())))
        return -q

    def _reweigh(self, penalty: float) -> None:
        """Let the changes of the gradient be those with another penalty."""
        kept = []
        for step, change, _ in self._steps:
            change[:-1].add_(step[:-1], alpha=penalty - self._penalty)
            if (product := float((step * change).sum())) > 0:
                kept.append((step, change, 1 / product))
        self._steps, self._penalty = kept, penalty

    def _search(self, direction: Tensor, slope: float, objective: float, penalty: float) -> tuple[int, bool]:
        """Go along a direction until the objective falls enough; return the passes, and whether it did."""
        length = 1.0
        for tried in range(1, 21):
            weights = self.weights + length * direction
            loss, gradient = self.loss(weights)
            reached = self._with_penalty(weights, loss, gradient, penalty)[0]
            if reached <= objective + 1e-4 * length * slope + 1e-7 * objective:
                step, change = weights - self.weights, gradient - self._data[1]
                change[:-1].add_(step[:-1], alpha=penalty)
                if (product := float((step * change).sum())) > 0:
                    self._steps = [*self._steps[1 - HISTORY :], (step, change, 1 / product)]
                self.weights, self._data = weights, (loss, gradient)
                return tried, reached < objective
            # The minimum of the parabola through what is known, kept within a tenth and a half.
            best = -slope * length**2 / (2 * (reached - objective - slope * length))
            length = max(0.1 * length, min(0.5 * length, best))
        return tried, False


def fit_path(
    features: Tensor, targets: Tensor, classes: int, penalties: Sequence[float], tolerance: Tolerance = CHOOSING
) -> list[Logistic]:
    """Return the minimum for each penalty; from high to low is quickest.

    Args:
        features: (N, D) in single or double precision, of about unit scale, on the device to work on.
        targets: (N,) class indices, each of `classes` present.
        penalties: on half the sum of squared weights, beside the mean cross-entropy: 1 / (C N) in scikit-learn's terms.
    """
    path = Path(CrossEntropy(features, targets, classes))
    return [path.to(penalty, tolerance) for penalty in penalties]


def fit(features: Tensor, targets: Tensor, classes: int, penalty: float) -> Logistic:
    """Return the minimum for one penalty, on the way through some that are stronger: quicker than from nothing.

    Args:
        features: (N, D) in single or double precision, of about unit scale, on the device to work on.
        targets: (N,) class indices, each of `classes` present.
        penalty: as of `fit_path`.
    """
    way = [each for each in PENALTIES[::2] if each > 2 * penalty]
    path = Path(CrossEntropy(features, targets, classes))
    passes = sum(path.to(each, CHOOSING).passes for each in way)
    found = path.to(penalty, FINAL)
    return replace(found, passes=found.passes + passes)
