"""What a model costs: parameters, MACs, latency and memory, on images of its own size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.device import noise
from harness.metric import Evaluation, Measurement
from harness.progress import track
from harness.record import Setup
from harness.registry import COSTS, TASKS, Entry
from harness.task import Task

if TYPE_CHECKING:
    from torch import nn


# What every model's row has; `cost:NAME` measures any one registered cost.
USUAL = ("latency", "macs", "memory", "parameters")


@TASKS.register("cost")
class Cost(Task):
    """The usual costs, or the one that follows the colon, on seeded noise in the model's own input size.

    Args:
        variant: the entry of the one cost to measure; the usual ones by default.
    """

    machine_bound = True
    untrained = "rank"
    variants = COSTS

    def __init__(self, variant: Entry[Any] | None = None) -> None:
        self.costs = [variant] if variant else [COSTS.get(name) for name in USUAL]

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Measure each cost in turn."""
        images = noise(setup)
        measurements: list[Measurement] = []
        disturbed: list[str] = []
        details: dict[str, Any] = {"input": f"noise, {tuple(images.shape)}"}
        for cost in track(self.costs, "measure costs"):
            evaluation: Evaluation = cost.build(model, images, setup)
            measurements += evaluation.measurements
            if evaluation.details:
                details[cost.name] = evaluation.details
            if nominal := evaluation.details.get("nominal"):
                details["nominal"] = nominal
            disturbed += [f"{cost.name}: {reason}" for reason in evaluation.details.get("disturbed", ())]
        if disturbed:
            details["disturbed"] = disturbed
        return Evaluation(tuple(measurements), details)
