"""Recursive gated convolution: products of ever wider slices of a depthwise convolution, and no attention map."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

KERNEL = 7
SCALE = 1 / 3


class GatedConvolution(nn.Module):
    """p_0 and q_0 .. q_(n-1) from one projection; p_(k+1) = f(q_k) * g_k(p_k) / a; the output is a projection of p_n.

    f is a depthwise 7x7 convolution, g_0 the identity and any other g_k a linear layer that doubles the width, so that
    p_1 has C / 2^(n-1) channels and p_n has C.

    Args:
        order: n, the number of products; 2^(n-1) divides the width.

    Source: HorNet, arXiv:2207.14284, section 3.1.
    """

    def __init__(self, dim: int, order: int) -> None:
        super().__init__()
        self.dims = widths(dim, order)
        self.proj_in = _convolution(dim, 2 * dim)
        inner = sum(self.dims)
        self.dwconv = _convolution(inner, inner, KERNEL)
        self.pws = nn.ModuleList(_convolution(narrow, wide) for narrow, wide in pairwise(self.dims))
        self.proj_out = _convolution(dim, dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C), each mixed with its 7x7 neighbourhood."""
        maps, wide = torch.split(self.proj_in(to_map(tokens, context.grid)), [self.dims[0], sum(self.dims)], dim=1)
        first, *gates = torch.split(self.dwconv(wide) * SCALE, self.dims, dim=1)
        maps = maps * first
        for widen, gate in zip(self.pws, gates, strict=True):
            maps = widen(maps) * gate
        return to_tokens(self.proj_out(maps))


def widths(dim: int, order: int) -> list[int]:
    """Return the channels of p_1 to p_n."""
    return [dim // 2**halvings for halvings in reversed(range(order))]


def order_at(site: AttentionSite) -> int:
    """Return HorNet's order 2, 3, 4, 5 at strides 4, 8, 16, 32, or the highest below it that divides the width."""
    order = max(1, site.stride.bit_length() - 1)
    while site.dim % 2 ** (order - 1):
        order -= 1
    return order


def _convolution(inputs: int, outputs: int, kernel: int = 1) -> nn.Conv2d:
    """Return a dense 1x1 or a depthwise k x k convolution with HorNet's initial values."""
    groups = inputs if kernel > 1 else 1
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _weights(site: AttentionSite) -> int:
    """Return the number of weights, each of which works once a token."""
    dim, dims = site.dim, widths(site.dim, order_at(site))
    doubling = sum(narrow * wide for narrow, wide in pairwise(dims))
    return 2 * dim**2 + KERNEL**2 * sum(dims) + doubling + dim**2


def parameters(site: AttentionSite) -> int:
    """Return the closed form: the weights, and a bias for each channel that a layer gives."""
    dims = widths(site.dim, order_at(site))
    return _weights(site) + 2 * site.dim + sum(dims) + sum(dims[1:]) + site.dim


def macs(site: AttentionSite) -> int:
    """Return the closed form: each weight works once a token."""
    return site.grid[0] * site.grid[1] * _weights(site)


@ATTENTIONS.register(
    "gated_convolution",
    AttentionCard(
        title="HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions",
        paper="arXiv:2207.14284",
        source="section 3.1; scale and orders of the released configurations",
        equation="p_(k+1) = DWConv7x7(q_k) * g_k(p_k) / 3, k = 0 .. n - 1",
        parameters=parameters,
        macs=macs,
        notes="the order is 2, 3, 4, 5 at strides 4, 8, 16, 32, less where the width cannot be halved that often; "
        "HorNet's layer scale belongs to its blocks and is left out; the variant with 7x7 kernels, not global filters",
    ),
)
def gated_convolution(site: AttentionSite) -> nn.Module:
    """Build recursive gated convolution.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "gated_convolution")
    return GatedConvolution(site.dim, order_at(site))
