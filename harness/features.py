"""What frozen backbones give: one embedding an image, from any classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ModelError
from harness.factory import parameters_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Pooling = Literal["default", "class", "mean", "attention"]


@dataclass(frozen=True)
class Features:
    """The embeddings of a split, or of the part of it that a limit leaves.

    Args:
        values: (N, D) in single precision; it may be memory-mapped, so that blocks of it are what to work on.
        targets: (N,) class indices.
        names: of the items, in order.
    """

    values: Tensor
    targets: Tensor
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)


def embedder(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from images to embeddings (B, D).

    In this order: the module's own method `embed(images)`; timm's `forward_features` with
    `forward_head(pre_logits=True)`; otherwise the input of the linear layer whose output the module returns.

    Raises:
        ModelError: when called, where the module offers none of these.
    """
    embed, features, head = (_method(module, name) for name in ("embed", "forward_features", "forward_head"))
    if embed:
        return lambda images: _checked(embed(images), images)
    if features and head and "pre_logits" in parameters_of(head):
        return lambda images: _checked(head(features(images), pre_logits=True), images)
    return lambda images: _checked(_classifier_input(module, images), images)


def _method(module: nn.Module, name: str) -> Callable[..., Any] | None:
    """A method of a module; a layer of that name, such as a patch embedding called `embed`, is none."""
    from torch import nn

    found: Any = getattr(module, name, None)
    return found if callable(found) and not isinstance(found, nn.Module) else None


def _classifier_input(module: nn.Module, images: Tensor) -> Any:
    """Run the module and return what its last linear layer was given."""
    from torch import nn

    calls: list[tuple[Any, Any]] = []
    hooks = [
        part.register_forward_hook(
            lambda _, inputs, named, output: calls.append((inputs[0] if inputs else named["input"], output)),
            with_kwargs=True,
        )
        for part in module.modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        output = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    logits = getattr(output, "logits", output)
    found = [inputs for inputs, result in calls if result is logits]
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no embedding that can be found: its output is not that of a linear layer. "
            "Give it a method embed(images) that returns (B, D)."
        )
    return found[-1]


def _checked(embeddings: Any, images: Tensor) -> Tensor:
    """Refuse embeddings that are not one vector an image."""
    import torch

    if not isinstance(embeddings, torch.Tensor) or embeddings.ndim != 2 or len(embeddings) != len(images):
        shape = tuple(embeddings.shape) if isinstance(embeddings, torch.Tensor) else type(embeddings).__name__
        raise ModelError(
            f"The embedding of {len(images)} images is {shape}; expected ({len(images)}, D). "
            "Give the model a method embed(images) that returns that."
        )
    return embeddings.float()
