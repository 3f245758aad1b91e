"""The initial values of linear layers."""

from __future__ import annotations

from torch import nn


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Return a linear layer as ViTs start it: weights normal with deviation 0.02, cut at two units; bias zero.

    A layer that starts itself, rather than a sweep over the finished model, leaves a mixer free to start otherwise.

    Source: timm's ViT, after DeiT, arXiv:2012.12877, section 6.
    """
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
