"""Multi-scale attention fusion: tokens of local windows attend to a smaller number of global ones. Re-derived."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import grid_of, pad_to_multiple, to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from baselines.layers.windows import Pair, attend, counts, cut, fit, join
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

IMAGE = 224
SIDE = 7


class MultiScaleFusion(nn.Module):
    """softmax(Q K^T / sqrt(d)) V, with Q of X_L = X + window attention of X, and K, V of X_G = P + R X C.

    X_G is the global learning with down-sampling: each of its tokens is a learned mixture of the whole map, and there
    are half as many. R mixes rows, C columns, which it halves; both are the same for all channels and have the size of
    a map of 224 pixels, like the positions P, and are interpolated to others. Tokens before the map are queries only.

    Source: MAFormer, arXiv:2209.01620, abstract; the rest from a later restatement and this project.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.heads, self.prefix = site.heads, site.prefix
        side = side_at(site)
        self.qkv, self.local_proj = linear(site.dim, 3 * site.dim), linear(site.dim, site.dim)
        self.rows = nn.Parameter(nn.init.xavier_normal_(torch.empty(side, side)))
        self.columns = nn.Parameter(nn.init.xavier_normal_(torch.empty(half(side), side)))
        positions = torch.empty(site.dim, side, half(side))
        self.positions = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        self.q, self.kv = linear(site.dim, site.dim), linear(site.dim, 2 * site.dim)
        self.proj = linear(site.dim, site.dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, prefix + h * w, C), each mixed with the whole map."""
        prefix, own = tokens[:, : self.prefix], tokens[:, self.prefix :]
        local = own + self.local_proj(self._attend_in_windows(self.qkv(own), context.grid))
        (query,) = split_heads(self.q(torch.cat([prefix, local], dim=1)), self.heads)
        key, value = split_heads(self.kv(self._learn_globally(own, context.grid)), self.heads, parts=2)
        mixed: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        return mixed

    def _attend_in_windows(self, projected: Tensor, grid: Pair) -> Tensor:
        """Return softmax attention (B, h * w, C) inside windows of queries, keys and values (B, h * w, 3 * C)."""
        window = fit(SIDE, grid)
        maps = pad_to_multiple(to_map(projected, grid), *window)
        size = (maps.shape[2], maps.shape[3])
        below, beside = (torch.arange(long, device=maps.device) >= own for long, own in zip(size, grid, strict=True))
        (padding,) = cut((below[:, None] | beside)[None, None], window).squeeze(-1)  # (W, n)
        bias = torch.zeros_like(padding, dtype=maps.dtype).masked_fill(padding, float("-inf"))
        whole = bias[:, None, None].expand(-1, self.heads, padding.shape[1], -1)
        return join(attend(cut(maps, window), self.heads, whole), size, window)[:, : grid[0], : grid[1]].flatten(1, 2)

    def _learn_globally(self, tokens: Tensor, grid: Pair) -> Tensor:
        """Return global tokens (B, h * ceil(w / 2), C) of tokens (B, h * w, C)."""
        height, width = grid
        rows = resized(self.rows, (height, height))
        columns = resized(self.columns, (half(width), width))
        positions: Tensor = self.positions
        if positions.shape[1:] != (height, half(width)):
            positions = F.interpolate(positions.float().unsqueeze(0), size=(height, half(width)), mode="bilinear")[0]
        narrow = to_map(tokens, grid) @ columns.to(tokens.dtype).mT  # (B, C, h, w / 2)
        mixed = (narrow.mT @ rows.to(tokens.dtype).mT).mT
        return to_tokens(mixed + positions.to(tokens.dtype))


def resized(mixture: Tensor, size: Pair) -> Tensor:
    """Return a matrix of mixtures as one of another size, with sums over what is mixed as before."""
    if mixture.shape == size:
        return mixture
    fine = F.interpolate(mixture.float()[None, None], size=size, mode="bilinear")[0, 0]
    return fine * (mixture.shape[1] / size[1])


def half(size: int) -> int:
    """Return half of a number of columns, rounded up."""
    return -(-size // 2)


def side_at(site: AttentionSite) -> int:
    """Return the side of the map of an image of 224 pixels."""
    return grid_of(IMAGE, site.stride)[0]


def parameters(site: AttentionSite) -> int:
    """Return the closed form: eight projections with bias, two matrices of mixtures, and positions."""
    side = side_at(site)
    return 8 * (site.dim + 1) * site.dim + side * (side + half(side)) + site.dim * side * half(side)


def macs(site: AttentionSite) -> int:
    """Return the closed form: projections, products inside padded windows, mixtures, products with global tokens."""
    (height, width), dim = site.grid, site.dim
    tokens, queries, shared = height * width, site.prefix + height * width, height * half(width)
    windows, inside = counts(site.grid, fit(SIDE, site.grid))
    local = 4 * tokens * dim**2 + 2 * windows * inside**2 * dim
    mixtures = shared * (width + height) * dim
    return local + mixtures + 2 * (queries + shared) * dim**2 + 2 * queries * shared * dim


@ATTENTIONS.register(
    "multi_scale_fusion",
    AttentionCard(
        title="MAFormer: A Transformer Network with Multi-scale Attention Fusion for Visual Recognition",
        paper="arXiv:2209.01620",
        source="abstract; equations as restated in U-MAFT, GeoInformatica 30:10, section 3.3; no official code",
        equation="softmax(Q K^T / sqrt(d)) V, Q of windowed attention, K and V of P + FC(X) with half the tokens",
        parameters=parameters,
        macs=macs,
        notes="re-derived, not checked against any code. The fully connected layer over all tokens is the product of "
        "one over rows and one over columns, so that it fits any image size and costs 1.5 h^2 instead of h^4 / 2 "
        "weights; windows have no position bias, and their padding is masked; the MLP of the local stream is left to "
        "the carrier. A class token is among the queries only. In all blocks, where MAFormer has it in early stages",
    ),
)
def multi_scale_fusion(site: AttentionSite) -> nn.Module:
    """Build multi-scale attention fusion; it takes any prefix and grid."""
    return MultiScaleFusion(site)
