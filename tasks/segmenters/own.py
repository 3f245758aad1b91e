"""The model's own segmentation: nothing is added to it, and nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.device import evaluating
from harness.errors import SetupError
from harness.factory import method
from harness.record import Setup
from harness.registry import SEGMENTERS

if TYPE_CHECKING:
    from torch import nn


@SEGMENTERS.register("own")
@dataclass(kw_only=True)
class Own:
    """What a model's method `segment(pictures)` returns; it does its own preprocessing."""

    untrained: ClassVar[Literal["rank", "apart", "never"]] = "never"
    trains_on: ClassVar[tuple[str, ...]] = ()
    preprocessing: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    details: dict[str, Any] = field(default_factory=lambda: {"protocol": "the model's own segmentation"}, init=False)

    def adapt(self, model: nn.Module, task: Any, setup: Setup) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """Return the model's method, in the setup's precision.

        Raises:
            SetupError: it has none, or the user chose a preprocessing that it would not follow.
        """
        segment = method(model, "segment")
        if segment is None:
            raise SetupError(
                f"{type(model).__name__} has no method segment(pictures), so {task.name} needs a head on it: name one, "
                f"{task.name}:NAME, or give --predictions."
            )
        if setup.preprocessing.overridden:
            chosen = ", ".join(f"--{name.replace('_', '-')}" for name in setup.preprocessing.overridden)
            raise SetupError(f"{type(model).__name__} does its own preprocessing, which {chosen} cannot change.")
        self.details |= getattr(model, "segmentation", {})

        def predict(pictures: Sequence[Any]) -> Sequence[Any]:
            with evaluating(setup):
                found: Sequence[Any] = segment(pictures)
            return found

        return predict
