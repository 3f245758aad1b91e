"""A linear classifier on frozen features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import SetupError
from harness.features import Features, Pooling, prefix_tokens
from harness.metric import Evaluation
from harness.record import Setup
from harness.registry import PROTOCOLS
from tasks.frozen import FrozenProtocol, Predict
from tasks.heads.classes import Present, present
from tasks.heads.held_out import accuracy, best, choice, hold_out
from tasks.heads.logistic import PENALTIES, fit, fit_path
from tasks.heads.scaling import scaled, scaling_of
from tasks.heads.sgd import RECIPES, Setting, recipe, train_heads

if TYPE_CHECKING:
    from torch import nn

    from tasks.classification import Classification

RECIPE_NAMES = {name for name, _ in RECIPES}
NO_AUGMENTATION = "none: training images are preprocessed as those of the test"


@PROTOCOLS.register("linear")
@dataclass(kw_only=True)
class Linear(FrozenProtocol):
    """Logistic regression on standardised features, or a published recipe of a linear probe.

    What there is to choose is chosen on a held-out part of the training images; then all of them are fitted.

    Args:
        preset: `logistic`; `dseq` or `vissl` for the recipes in `tasks/heads/sgd.py`. `vtab`, by which a task names
            its images, has no recipe for a head on frozen features: it is `logistic`.
        C: of `logistic`, the inverse strength of the regulariser, as scikit-learn has it; chosen where none is given.
        momentum: of the other presets, instead of the recipe's.
    """

    preset: Literal["logistic", "dseq", "vissl", "vtab"] = "logistic"
    C: float | None = None
    momentum: float | None = None
    _details: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _family: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.C is not None and (self.preset in RECIPE_NAMES or not 0 < self.C < float("inf")):
            raise SetupError(f"C={self.C:g} cannot be used: expected a positive number, with preset=logistic.")
        if self.momentum is not None and (self.preset not in RECIPE_NAMES or not 0 <= self.momentum < 1):
            raise SetupError(
                f"momentum={self.momentum:g} cannot be used: expected a number from 0 to below 1, with another preset "
                "than logistic."
            )

    @property
    def details(self) -> dict[str, Any]:
        """What records say of the protocol, and of what it chose."""
        return {"protocol": "linear", "preset": self.preset, "augmentation": NO_AUGMENTATION, **self._details}

    def source(self, model: nn.Module, task: Classification) -> tuple[str, Pooling]:
        """Return what was asked for; by default, of a plain ViT, what the preset's paper takes.

        DSeq-JEPA reads the class token on Clevr, and elsewhere the mean of the map in each of the last four blocks.
        """
        tokens = prefix_tokens(model)
        if self.preset != "dseq" or tokens is None or (self.layer, self.pooling) != ("last", "default"):
            return super().source(model, task)
        if getattr(task, "probe_family", ""):
            return "last", "class" if tokens else "mean"
        return "last4", "mean"

    def measure(self, train: Features, test: Features, task: Classification, setup: Setup) -> Evaluation:
        """Ask the task of which family it is, since recipes differ; then fit and evaluate."""
        self._family = getattr(task, "probe_family", "")
        return super().measure(train, test, task, setup)

    def fit(self, train: Features, classes: int, setup: Setup) -> Predict:
        """Choose, then fit all training images."""
        known = present(train.targets, classes, setup.device)
        return (self._sgd if self.preset in RECIPE_NAMES else self._logistic)(train, known, setup)

    def _logistic(self, train: Features, known: Present, setup: Setup) -> Predict:
        penalty = 1 / (self.C * len(train)) if self.C else self._penalty(train, setup)
        scaling = scaling_of(train.values, setup.device)
        head = fit(scaled(train.values, scaling), known.targets, len(known), penalty)
        self._details |= {
            "C": 1 / (penalty * len(train)),
            "penalty": penalty,
            "objective": head.objective,
            "converged": head.converged,
        }
        return lambda rows: known.spread(head(scaling(rows)))

    def _penalty(self, train: Features, setup: Setup) -> float:
        """Return the penalty that is best on held-out images."""
        some, rest = hold_out(train.targets, setup.seed)
        scaling = scaling_of(train.values[some], setup.device)
        known = present(train.targets[some], int(train.targets.max()) + 1, setup.device)
        heads = fit_path(scaled(train.values[some], scaling), known.targets, len(known), PENALTIES)
        judged, targets = scaled(train.values[rest], scaling), train.targets[rest].to(setup.device)
        curve = [accuracy(known.spread(head(judged)), targets) for head in heads]
        chosen = best(curve)
        self._details = choice("penalty", PENALTIES, curve, chosen, len(rest), setup.seed)
        return PENALTIES[chosen]

    def _sgd(self, train: Features, known: Present, setup: Setup) -> Predict:
        plan = recipe(self.preset, self._family, self.momentum)
        settings = plan.settings
        self._details = plan.details
        if len(settings) > 1:
            settings = [self._setting(train, settings, setup)]
        heads = train_heads(train.values, known.targets, len(known), plan, settings, setup)
        return lambda rows: known.spread(heads(rows.float())[0])

    def _setting(self, train: Features, settings: list[Setting], setup: Setup) -> Setting:
        """Return the learning rate and weight decay that are best on held-out images."""
        plan = recipe(self.preset, self._family, self.momentum)
        some, rest = hold_out(train.targets, setup.seed)
        known = present(train.targets[some], int(train.targets.max()) + 1, setup.device)
        heads = train_heads(train.values[some], known.targets, len(known), plan, settings, setup)
        scores, targets = heads(train.values[rest].to(setup.device).float()), train.targets[rest].to(setup.device)
        curve = [accuracy(known.spread(each), targets) for each in scores]
        chosen = best(curve)
        self._details |= choice("setting", [list(each) for each in settings], curve, chosen, len(rest), setup.seed)
        return settings[chosen]
