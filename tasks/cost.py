"""What a model costs: parameters, MACs, latency and memory, on images of its own size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.metric import Evaluation, Measurement
from harness.progress import track
from harness.record import Setup
from harness.registry import COSTS, TASKS
from harness.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@TASKS.register("cost")
class Cost(Task):
    """Every registered cost, measured on seeded noise in the model's own input size."""

    machine_bound = True
    untrained = "rank"

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Measure each cost in turn."""
        images = noise(setup)
        measurements: list[Measurement] = []
        for name in track(list(COSTS), "measure costs"):
            measurements += COSTS.get(name).build(model, images, setup)
        return Evaluation(tuple(measurements), {"input": f"noise, {tuple(images.shape)}"})


def noise(setup: Setup) -> Tensor:
    """Return seeded images (batch, 3, H, W) on the setup's device."""
    import torch

    from harness.device import to_device

    height, width = setup.preprocessing.image_size or (224, 224)
    generator = torch.Generator().manual_seed(setup.seed)
    return to_device(torch.randn(setup.batch_size, 3, height, width, generator=generator), setup)
