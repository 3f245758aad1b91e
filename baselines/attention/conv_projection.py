"""Convolutional projection: queries, keys and values are convolved first, keys and values at every second place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

KERNEL = 3
STRIDE = 2


class ConvolutionalProjection(nn.Module):
    """softmax(Q K^T / sqrt(C)) V with Q, K, V = Linear(BatchNorm(DWConv3x3(map))), of stride 2 for K and V.

    Tokens before the map go past the convolutions to the linear layers. The scale takes the whole width C, not that of
    a head, as in the official code and the released weights.

    Source: CvT, arXiv:2103.15808, section 3.2; the scale: the official code.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.heads, self.prefix = site.heads, site.prefix
        self.conv_proj_q, self.conv_proj_k, self.conv_proj_v = (
            _convolution(site.dim, stride) for stride in (1, STRIDE, STRIDE)
        )
        self.proj_q, self.proj_k, self.proj_v, self.proj = (linear(site.dim, site.dim) for _ in range(4))

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, prefix + h * w, C) mixed over the prefix and a quarter of the map."""
        prefix, maps = tokens[:, : self.prefix], to_map(tokens[:, self.prefix :], context.grid)
        query, key, value = (
            split_heads(project(torch.cat([prefix, to_tokens(convolve(maps))], dim=1)), self.heads)[0]
            for convolve, project in (
                (self.conv_proj_q, self.proj_q),
                (self.conv_proj_k, self.proj_k),
                (self.conv_proj_v, self.proj_v),
            )
        )
        scale = tokens.shape[-1] ** -0.5
        mixed: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value, scale=scale)))
        return mixed


def _convolution(dim: int, stride: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("conv", nn.Conv2d(dim, dim, KERNEL, stride, KERNEL // 2, groups=dim, bias=False))
    layers.add_module("bn", nn.BatchNorm2d(dim))
    return layers


def parameters(site: AttentionSite) -> int:
    """Return the closed form: three depthwise kernels with a normalisation each, four projections with bias."""
    return 3 * site.dim * (KERNEL**2 + 2) + 4 * (site.dim + 1) * site.dim


def macs(site: AttentionSite) -> int:
    """Return the closed form: convolutions, projections and two products with the keys of every second place."""
    (height, width), dim = site.grid, site.dim
    queries, keys = height * width, -(-height // STRIDE) * -(-width // STRIDE)
    convolutions = KERNEL**2 * dim * (queries + 2 * keys)
    queries, keys = queries + site.prefix, keys + site.prefix
    return convolutions + 2 * (queries + keys) * dim**2 + 2 * queries * keys * dim


@ATTENTIONS.register(
    "conv_projection",
    AttentionCard(
        title="CvT: Introducing Convolutions to Vision Transformers",
        paper="arXiv:2103.15808",
        source="section 3.2; kernel 3, stride 2 of keys and values of the released configurations",
        equation="softmax(Q K^T / sqrt(C)) V with Q, K, V = Linear(BN(DWConv3x3(x))), stride 2 for K and V",
        parameters=parameters,
        macs=macs,
        notes="scores are divided by the root of the whole width, as in the official code, where other Transformers "
        "take that of a head. "
        "Heads are the carrier's. Batch normalisation: images see each other in training",
    ),
)
def conv_projection(site: AttentionSite) -> nn.Module:
    """Build attention with convolutional projection; it takes any prefix and grid."""
    return ConvolutionalProjection(site)
