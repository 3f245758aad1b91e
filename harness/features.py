"""What frozen backbones give: one embedding an image, from any classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.blocks import BlockOutput, joint_reader, reader
from harness.errors import ModelError, SetupError
from harness.factory import method, parameters_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Pooling = Literal["default", "class", "mean", "attention"]


def prefix_tokens(module: nn.Module) -> int | None:
    """Return how many tokens a module says that it has before those of its map; None where it is no such module."""
    declared = getattr(module, "num_prefix_tokens", getattr(module, "prefix", None))
    return declared if isinstance(declared, int) else None


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


def embedder(
    module: nn.Module, layer: str = "last", pooling: Pooling = "default", layout: str = "auto"
) -> Callable[[Tensor], Tensor]:
    """Return the function from images to embeddings (B, D).

    The default is the module's own embedding: its method `embed(images)`; else timm's `forward_features` with
    `forward_head(pre_logits=True)`; else the input of the linear layer whose output the module returns. Of another
    layer the default is the mean of the map, where no tokens stand before it.

    Args:
        layer: see `harness.blocks.reader`; of several blocks the embeddings are concatenated.
        pooling: `class`: the class token; `mean`: of the map, no other token in it; `attention`: the pool that the
            network was built with.

    Raises:
        SetupError: at once or when called, where the module has no such layer, or no such pooling.
        ModelError: when called, where the module does not tell.
    """
    if layer == "last" and pooling == "default":
        own = _own(module)
        return lambda images: _checked(own(images), images)
    read, pool = reader(module, layer, layout), _pool(module, layer, pooling)
    return lambda images: _checked(_side_by_side([pool(output).float() for output in read(images)]), images)


def maps(module: nn.Module, layers: Sequence[str], layout: str = "auto") -> Callable[[Tensor], list[Tensor]]:
    """Return the function from images to the maps (B, C_i, h_i, w_i) of layers, for heads that need positions.

    Args:
        layers: see `harness.blocks.reader`; `last4` gives four maps.
    """
    read = joint_reader(module, layers, layout)
    return lambda images: [output.maps for output in read(images)]


def _own(module: nn.Module) -> Callable[[Tensor], Any]:
    """The module's own embedding."""
    embed, features, head = (method(module, name) for name in ("embed", "forward_features", "forward_head"))
    if embed:
        return embed
    if features and head and "pre_logits" in parameters_of(head):
        return lambda images: head(features(images), pre_logits=True)
    return lambda images: _classifier_input(module, images)


def _pool(module: nn.Module, layer: str, pooling: Pooling) -> Callable[[BlockOutput], Tensor]:
    """The function from the output of a block to embeddings."""
    if pooling == "attention":
        return _attention_pool(module, layer)
    return {"default": _unambiguous, "class": _class_token, "mean": _mean}[pooling]


def _mean(output: BlockOutput) -> Tensor:
    return output.maps.float().mean((2, 3))


def _class_token(output: BlockOutput) -> Tensor:
    if not output.has_class:
        raise SetupError("The network has no class token at this layer, so pooling=class is not possible: use mean.")
    return output.prefix[:, 0]


def _unambiguous(output: BlockOutput) -> Tensor:
    if output.prefix.shape[1]:
        raise SetupError("Which embedding is meant at this layer is not clear: give pooling=class or pooling=mean.")
    return _mean(output)


def _attention_pool(module: nn.Module, layer: str) -> Callable[[BlockOutput], Tensor]:
    """The attention pool that a timm model was built with; it was trained on the last block, and fits no other."""
    from timm import layers

    if layer != "last":
        raise SetupError(f"The attention pool belongs to the last layer; layer={layer} takes pooling=class or mean.")
    of_maps = (layers.AttentionPool2d, layers.RotAttentionPool2d)
    of_tokens = (layers.AttentionPoolLatent,)
    found: list[Any] = [part for part in module.modules() if isinstance(part, of_maps + of_tokens)]
    if len(found) != 1:
        raise SetupError(
            f"{type(module).__name__} has {len(found) or 'no'} attention pools, so pooling=attention is not possible: "
            "use class or mean."
        )
    if isinstance(found[0], of_maps):
        return lambda output: found[0](output.maps, pre_logits=True)
    whole = bool(getattr(module, "pool_include_prefix", False))
    return lambda output: found[0](_all_tokens(output) if whole else output.tokens)


def _all_tokens(output: BlockOutput) -> Tensor:
    import torch

    return torch.cat([output.prefix, output.tokens], dim=1)


def _side_by_side(embeddings: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(embeddings), dim=1)


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
