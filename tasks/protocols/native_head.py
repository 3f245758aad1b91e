"""The model's own classifier, as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ModelError
from harness.record import Setup
from harness.registry import PROTOCOLS

if TYPE_CHECKING:
    from torch import Tensor, nn


@PROTOCOLS.register("native_head")
class NativeHead:
    """Scores are the model's logits; an object with an attribute `logits` will do."""

    untrained: Literal["rank", "apart", "never"] = "never"
    trains_on: tuple[str, ...] = ()
    details: Mapping[str, Any] = MappingProxyType({"protocol": "the model's own classifier"})

    def adapt(self, model: nn.Module, task: Any, setup: Setup) -> Callable[[Tensor], Tensor]:
        """Return the model with a check of what it returns."""

        def predict(images: Tensor) -> Tensor:
            output = model(images)
            return check_logits(getattr(output, "logits", output), len(images), task.num_classes)

        return predict


def check_logits(output: object, rows: int, columns: int) -> Tensor:
    """Return logits (rows, columns).

    Raises:
        ModelError: the output is something else.
    """
    import torch

    if not isinstance(output, torch.Tensor):
        raise ModelError(
            f"The model returned a {type(output).__name__}; expected a tensor of logits ({rows}, {columns}). "
            "Wrap it so that it returns them alone."
        )
    if tuple(output.shape) != (rows, columns):
        raise ModelError(
            f"The model returned a tensor {tuple(output.shape)}; expected logits ({rows}, {columns}) for {columns} "
            "classes. Check its num_classes, or evaluate its features, for example with imagenet:knn."
        )
    if not output.is_floating_point():
        raise ModelError(f"The model returned {output.dtype}; expected floating-point logits ({rows}, {columns}).")
    return output
