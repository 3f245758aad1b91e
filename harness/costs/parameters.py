"""How many parameters a model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import COSTS

if TYPE_CHECKING:
    from torch import Tensor, nn

PARAMETERS = Metric("parameters", "M", higher_is_better=False)


@COSTS.register("parameters")
def parameters(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Count every parameter once, trainable or not, shared ones once; buffers are none."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return Evaluation((Measurement(PARAMETERS, count / 1e6),))
