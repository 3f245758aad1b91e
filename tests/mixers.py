"""Token mixers, and the sites and tokens that tests give them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models import AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

DIM, HEADS = 32, 4


def site(
    grid: tuple[int, int] = (14, 14),
    prefix: int = 0,
    layer: int = 1,
    stride: int = 16,
    dim: int = DIM,
    depth: int = 12,
) -> AttentionSite:
    return AttentionSite(dim, HEADS, grid, prefix, layer, depth, stage=0, stride=stride)


def randomise(module: nn.Module) -> nn.Module:
    """Move every parameter and statistic off special values such as zero, and stop training."""
    torch.manual_seed(0)
    with torch.no_grad():
        statistics = [buffer for name, buffer in module.named_buffers() if "running_" in name]
        for tensor in (*module.parameters(), *statistics):
            tensor.add_(0.1 * torch.randn_like(tensor))
    return module.eval()


def build(name: str, place: AttentionSite) -> nn.Module:
    torch.manual_seed(0)
    return randomise(ATTENTIONS.get(name).build(place))


@cache
def crosses_blocks(name: str) -> bool:
    """Return whether blocks of a mixer leave anything for later ones."""
    context = AttentionContext((2, 2))
    build(name, site(layer=0))(tokens_of((2, 2)), context)
    return bool(context.memory)


@torch.no_grad()
def context_after(name: str, place: AttentionSite, tokens: Tensor, grid: tuple[int, int]) -> AttentionContext:
    """Return a fresh context with what the blocks before a site leave there when all have the same tokens."""
    context = AttentionContext(grid)
    for layer in range(place.layer if crosses_blocks(name) else 0):
        with tokens.device:
            earlier = build(name, replace(place, layer=layer))
        earlier.to(tokens.dtype)(tokens, context)
    return context


def tokens_of(grid: tuple[int, int], prefix: int = 0, batch: int = 2, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, prefix + grid[0] * grid[1], dim, generator=generator)


def takes_prefix(name: str) -> bool:
    try:
        ATTENTIONS.get(name).build(site(prefix=1))
    except ModelError:
        return False
    return True


NAMES = list(ATTENTIONS)
CASES = [(name, prefix) for name in ATTENTIONS for prefix in (0, 1) if not prefix or takes_prefix(name)]
