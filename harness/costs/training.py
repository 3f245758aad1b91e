"""What the costs of training share: the mode, and a loss to go backward from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.device import evaluating
from harness.errors import ModelError
from harness.record import Setup

if TYPE_CHECKING:
    from torch import Tensor, nn


def loss(model: nn.Module, images: Tensor, setup: Setup) -> Any:
    """Return the sum of all outputs of a pass in the setup's precision, with gradients.

    Raises:
        ModelError: no output has a gradient.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    model.zero_grad(set_to_none=True)
    with evaluating(setup), torch.enable_grad():
        leaves = [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if not leaves:
            raise ModelError(f"No output of {type(model).__name__} has a gradient, so it cannot be trained.")
        return sum(leaf.float().sum() for leaf in leaves)


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode, and leave neither that mode, nor gradients, nor its running statistics behind."""
    modes = {module: module.training for module in model.modules()}
    # On the CPU, so that the copies are no part of a GPU's memory.
    buffers = [(buffer, buffer.to("cpu", copy=True)) for buffer in model.buffers()]
    model.train()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for module, mode in modes.items():
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)
