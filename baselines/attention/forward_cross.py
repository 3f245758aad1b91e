"""Forward cross attention: blocks attend to their own tokens and to merged tokens of all earlier blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.linear import linear
from baselines.layers.prefix import refuse_prefix
from baselines.layers.windows import Pair, counts, cut, fit, join
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

MERGED = "forward_cross.tokens"
MERGE, STEP = 7, 4
# A block attends to so many earlier ones at most.
FARTHEST = 12


class ForwardCrossAttention(nn.Module):
    """softmax(Q [K, K_s]^T / sqrt(d) + [B, b]) [V, V_s] inside windows, with K_s, V_s of LayerNorm(s * S).

    S holds the tokens that earlier blocks of the stage merged in the same window, s has a learned scale for each of
    them, b a learned bias, and B one for each distance between two tokens of a window. Then the block merges its own
    tokens by a strided convolution. A map is padded with zeros above and to the left in blocks of even index, below
    and to the right in the others, so that windows move; windows shrink to a smaller map.

    Source: FcaFormer, arXiv:2211.07198, section 3; windows and padding: the official code for dense tasks.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.heads, self.side, self.block = site.heads, side_at(site), site.block
        self.earlier = min(site.block, FARTHEST)
        self.qkv, self.proj = linear(site.dim, 3 * site.dim), linear(site.dim, site.dim)
        self.bias = nn.Parameter(torch.zeros(site.heads, self.side, self.side))
        if self.earlier:
            merged = (self.earlier, *merged_size((self.side, self.side)))
            self.scale = nn.Parameter(torch.ones(*merged, 1))
            self.cross_bias = nn.Parameter(torch.zeros(site.heads, *merged))
            self.norm = nn.LayerNorm(site.dim)
        self.merge = None if site.ends_stage else _merge(site.dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C) mixed inside their windows, and leave merged tokens in the memory."""
        (height, width), window = context.grid, fit(self.side, context.grid)
        below, right = (-size % side for size, side in zip(context.grid, window, strict=True))
        above, left = (0, 0) if self.block % 2 else (below, right)
        maps = F.pad(to_map(tokens, context.grid), (left, right - left, above, below - above))
        windows = cut(maps, window)  # (B, W, n, C)
        merged = context.memory.get(MERGED) if self.earlier else None
        mixed = self.proj(self._attend(windows, merged, window))
        if self.merge is not None:
            own = self._merged(windows + mixed, window)
            kept = [] if merged is None else [merged[:, :, -(FARTHEST - 1) * own.shape[2] :]]
            context.memory[MERGED] = torch.cat([*kept, own], dim=2)
        whole = join(mixed, (maps.shape[2], maps.shape[3]), window)
        return whole[:, above : above + height, left : left + width].flatten(1, 2)

    def _attend(self, windows: Tensor, merged: Tensor | None, window: Pair) -> Tensor:
        """Return attention (B, W, n, C) to windows (B, W, n, C) and to merged tokens (B, W, m, C)."""
        down, right = (torch.arange(size, device=windows.device) for size in window)
        rows, columns = (place[:, None] - place for place in (down, right))
        bias = self.bias[:, rows.abs()[:, None, :, None], columns.abs()[None, :, None, :]].flatten(3).flatten(1, 2)
        query, key, value = self._heads(self.qkv(windows), parts=3)
        if merged is not None:
            width = windows.shape[3]
            tall, wide = merged_size(window)
            scaled = self.norm(merged * self.scale[:, :tall, :wide].flatten(0, 2))
            pair = F.linear(scaled, self.qkv.weight[width:], self.qkv.bias[width:])
            crossed, carried = self._heads(pair, parts=2)
            key, value = torch.cat([key, crossed], dim=2), torch.cat([value, carried], dim=2)
            beside = self.cross_bias[:, :, :tall, :wide].flatten(1).unsqueeze(1)
            bias = torch.cat([bias, beside.expand(-1, bias.shape[1], -1)], dim=2)
        # Windows and heads come first and images then, so that one bias serves all images.
        bias = bias.repeat(windows.shape[1], 1, 1).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(query, key, value, bias)
        return torch.unflatten(mixed, 0, (-1, self.heads)).permute(2, 0, 3, 1, 4).flatten(3)

    def _heads(self, tokens: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Cut (B, W, n, parts * C) into `parts` tensors (W * heads, B, n, d)."""
        split = torch.unflatten(tokens, -1, (parts, self.heads, -1))
        return split.permute(3, 1, 4, 0, 2, 5).flatten(1, 2).unbind(0)

    def _merged(self, windows: Tensor, window: Pair) -> Tensor:
        """Return merged tokens (B, W, m, C) of windows (B, W, n, C)."""
        assert self.merge is not None
        maps = self.merge(to_map(windows.flatten(0, 1), window))
        return torch.unflatten(to_tokens(maps), 0, windows.shape[:2])


def _merge(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, MERGE, stride=STEP, padding=MERGE // 2, groups=dim, bias=False)


def side_at(site: AttentionSite) -> int:
    """Return the side of windows: 7 at stride 32, else 14."""
    return 7 if site.stride >= 32 else 14


def merged_size(window: Pair) -> Pair:
    """Return height and width of the map of merged tokens of a window."""
    return -(-window[0] // STEP), -(-window[1] // STEP)


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections, the biases, and what merging and earlier blocks need."""
    dim, heads, side = site.dim, site.heads, side_at(site)
    rows, columns = merged_size((side, side))
    earlier = min(site.block, FARTHEST)
    crossing = (heads + 1) * earlier * rows * columns + 2 * dim if earlier else 0
    return 4 * (dim + 1) * dim + heads * side**2 + crossing + (0 if site.ends_stage else MERGE**2 * dim)


def macs(site: AttentionSite) -> int:
    """Return the closed form after all earlier blocks: projections and products in padded windows, and the merging."""
    dim, window = site.dim, fit(side_at(site), site.grid)
    windows, tokens = counts(site.grid, window)
    rows, columns = merged_size(window)
    crossed = min(site.block, FARTHEST) * rows * columns
    products = 2 * tokens * (tokens + crossed) * dim
    merging = 0 if site.ends_stage else MERGE**2 * rows * columns * dim
    return windows * ((4 * tokens + 2 * crossed) * dim**2 + products + merging)


@ATTENTIONS.register(
    "forward_cross",
    AttentionCard(
        title="FcaFormer: Forward Cross Attention in Hybrid Vision Transformer",
        paper="arXiv:2211.07198",
        source="section 3; windows of 14, and 7 at stride 32: the official code for dense tasks",
        equation="softmax(Q [K, K_s]^T / sqrt(d) + [B, b]) [V, V_s], K_s and V_s of scaled tokens of earlier blocks",
        parameters=parameters,
        macs=macs,
        notes="on maps of 14x14, and 7x7 at stride 32, a window is the map, as in the official code for "
        "classification; other maps have windows, as in that for dense tasks. Merged tokens are of the mixer's input "
        "and output, where FcaFormer has its residual stream; the local enhancement, which replaces that stream by a "
        "3x3 convolution, belongs to its block and is left out, as is the layer scale. Queries of merged tokens, "
        "which nothing uses, are not computed. Called without a memory, a block attends to its own tokens",
    ),
)
def forward_cross(site: AttentionSite) -> nn.Module:
    """Build forward cross attention.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "forward_cross")
    return ForwardCrossAttention(site)
