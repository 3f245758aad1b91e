"""Self-guided attention: blocks take turns to find out which tokens matter, and to attend to those more finely."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import pad_to_multiple, to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from baselines.layers.prefix import refuse_prefix
from baselines.layers.windows import Pair, counts, cut, fit, join
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

COARSEST = 32
SIDE = 7
SIGNIFICANCE = "self_guided.significance"
# Tokens that become one key, from the least to the most significant ones, by the ratio of the map's reduction.
GROUPS = {8: (196, 56, 28), 4: (49, 14, 7), 2: (2, 1)}


class ScaledAttention(nn.Module, ABC):
    """Attention at some scales, a 3x3 convolution of the tokens beside it, and one projection of their sum.

    Source: SG-Former, arXiv:2308.12216, section 3; the convolution: the official code.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.heads = site.heads
        self.lepe_linear, self.proj = linear(site.dim, site.dim), linear(site.dim, site.dim)
        self.lepe_conv = nn.Conv2d(site.dim, site.dim, kernel_size=3, padding=1, groups=site.dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C), mixed over the map."""
        near = to_tokens(self.lepe_conv(to_map(self.lepe_linear(tokens), context.grid)))
        mixed: Tensor = self.proj(self.mix(tokens, context) + near)
        return mixed

    @abstractmethod
    def mix(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return the attention (B, h * w, C) before its projection."""


class WholeAttention(ScaledAttention):
    """Softmax attention to all tokens, where the map is at its coarsest."""

    def __init__(self, site: AttentionSite) -> None:
        super().__init__(site)
        self.qkv = linear(site.dim, 3 * site.dim)

    def mix(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return softmax attention (B, h * w, C)."""
        query, key, value = split_heads(self.qkv(tokens), self.heads, parts=3)
        return merge_heads(F.scaled_dot_product_attention(query, key, value))


class HybridScaleAttention(ScaledAttention):
    """Half of the heads attend to a reduced map, the others inside 7x7 windows; what they attend to is significant.

    A token's significance is the attention that it gets, as the mean over heads and queries, from both halves. No
    gradient flows through it.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__(site)
        self.ratio = ratio_at(site)
        self.far, self.near = halves(site.heads)
        width = site.dim // site.heads
        self.sr = nn.Conv2d(site.dim, site.dim, kernel_size=self.ratio, stride=self.ratio)
        self.norm = nn.LayerNorm(site.dim)
        self.q1, self.kv1 = linear(site.dim, self.far * width), linear(site.dim, 2 * self.far * width)
        self.q2, self.kv2 = linear(site.dim, self.near * width), linear(site.dim, 2 * self.near * width)

    def mix(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return attention (B, h * w, C), and leave the significance (B, h, w) in the memory."""
        far, sought = self._attend_far(tokens, context.grid)
        near, noted = self._attend_near(tokens, context.grid)
        context.memory[SIGNIFICANCE] = (sought + noted).detach()
        return torch.cat([far, near], dim=2)

    def _attend_far(self, tokens: Tensor, grid: Pair) -> tuple[Tensor, Tensor]:
        reduced = self.sr(pad_to_multiple(to_map(tokens, grid), self.ratio, self.ratio))
        (query,) = split_heads(self.q1(tokens), self.far)
        key, value = split_heads(self.kv1(F.gelu(self.norm(to_tokens(reduced)))), self.far, parts=2)
        weights = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)  # (B, far, N, n)
        mean = torch.unflatten(weights.detach().float().mean(dim=(1, 2)), 1, reduced.shape[2:])
        fine = mean.repeat_interleave(self.ratio, dim=1).repeat_interleave(self.ratio, dim=2)
        return merge_heads(weights @ value), fine[:, : grid[0], : grid[1]]

    def _attend_near(self, tokens: Tensor, grid: Pair) -> tuple[Tensor, Tensor]:
        window = fit(SIDE, grid)
        parts = torch.cat([self.q2(tokens), self.kv2(tokens), torch.ones_like(tokens[:, :, :1])], dim=2)
        maps = pad_to_multiple(to_map(parts, grid), *window)
        windows = cut(maps, window)
        own = windows[..., -1] > 0  # (B, W, n)
        heads = torch.unflatten(windows[..., :-1], 3, (3, self.near, -1)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = heads.unbind(0)  # (B, W, near, n, d)
        scores = query * query.shape[-1] ** -0.5 @ key.mT
        weights = scores.masked_fill(~own[:, :, None, None], float("-inf")).softmax(dim=-1)
        asked = weights.detach().float().mean(dim=2) * own.unsqueeze(-1)
        mean = (asked.sum(dim=2) / own.sum(dim=2, keepdim=True)).unsqueeze(-1)
        mixed = (weights @ value).transpose(2, 3).flatten(3)
        whole, noted = (
            join(part, (maps.shape[2], maps.shape[3]), window)[:, : grid[0], : grid[1]] for part in (mixed, mean)
        )
        return whole.flatten(1, 2), noted.squeeze(3)


class SelfGuidedAttention(ScaledAttention):
    """Attention to keys that stand for few significant tokens or for many others.

    Tokens are sorted by their significance and cut into shares; inside a share each group of neighbours in that order
    becomes one key by learned weights, which all channels share. Half of the heads have tokens of the same
    significance in the order of rows, the others in that of columns. The last group of a share is filled with zeros.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__(site)
        self.parts = halves(site.heads)
        width = site.dim // site.heads
        self.q = linear(site.dim, site.dim)
        self.kv1, self.kv2 = (linear(site.dim, 2 * heads * width) for heads in self.parts)
        self.sizes = GROUPS[ratio_at(site)]
        self.groups = nn.ModuleList(linear(size, 1) for size in self.sizes)

    def mix(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return attention (B, h * w, C) guided by the memory, which is used up; without one all tokens are alike."""
        significance = context.memory.pop(SIGNIFICANCE, None)
        if significance is None:
            significance = torch.zeros(len(tokens), *context.grid, device=tokens.device)
        if significance.shape[1:] != context.grid:
            significance = F.interpolate(significance.unsqueeze(1), size=context.grid).squeeze(1)
        maps = torch.unflatten(tokens, 1, context.grid)
        (query,) = split_heads(self.q(tokens), self.heads)
        rows = split_heads(self.kv1(self._compress(maps, significance)), self.parts[0], parts=2)
        columns = split_heads(self.kv2(self._compress(maps.transpose(1, 2), significance.mT)), self.parts[1], parts=2)
        key, value = (torch.cat(part, dim=1) for part in zip(rows, columns, strict=True))
        return merge_heads(F.scaled_dot_product_attention(query, key, value))

    def _compress(self, maps: Tensor, significance: Tensor) -> Tensor:
        """Return keys (B, n, C) of maps (B, h, w, C) that are sorted by a significance (B, h, w)."""
        order = significance.flatten(1).argsort(dim=1, stable=True)
        tokens = maps.flatten(1, 2).gather(1, order.unsqueeze(2).expand(-1, -1, maps.shape[3]))
        shares = torch.split(tokens, shares_of(tokens.shape[1], len(self.groups)), dim=1)
        keys = []
        for share, group, size in zip(shares, self.groups, self.sizes, strict=True):
            if share.shape[1]:
                filled = F.pad(share, (0, 0, 0, -share.shape[1] % size))
                keys.append(group(torch.unflatten(filled, 1, (-1, size)).mT).squeeze(3))
        return torch.cat(keys, dim=1)


def ratio_at(site: AttentionSite) -> int:
    """Return the ratio 8, 4, 2, 1 at strides 4, 8, 16, 32."""
    return max(1, COARSEST // site.stride)


def halves(heads: int) -> tuple[int, int]:
    """Return how many heads each half has; of an odd number the first has one more."""
    return heads - heads // 2, heads // 2


def shares_of(tokens: int, shares: int) -> list[int]:
    """Return how many tokens each share has: a half each, or a quarter, a half and the rest."""
    if shares == 2:
        return [tokens // 2, tokens - tokens // 2]
    return [tokens // 4, tokens // 4 * 2, tokens - tokens // 4 * 3]


def parameters(site: AttentionSite) -> int:
    """Return the closed form: five projections, the convolution, and a reduction or the weights of groups."""
    dim, ratio = site.dim, ratio_at(site)
    common = 5 * (dim + 1) * dim + 10 * dim
    if ratio == 1:
        return common
    return common + (sum(size + 1 for size in GROUPS[ratio]) if site.block % 2 else ratio**2 * dim**2 + 3 * dim)


def macs(site: AttentionSite) -> int:
    """Return the closed form: the convolution, projections, and products with the keys of the block's kind."""
    (height, width), dim, ratio = site.grid, site.dim, ratio_at(site)
    tokens = height * width
    common = tokens * (3 * dim**2 + 9 * dim)
    if ratio == 1:
        return common + tokens * (2 * dim**2 + 2 * tokens * dim)
    if site.block % 2:
        groups = GROUPS[ratio]
        keys = [-(-share // size) for share, size in zip(shares_of(tokens, len(groups)), groups, strict=True)]
        compression = 2 * dim * sum(key * size for key, size in zip(keys, groups, strict=True))
        return common + compression + 2 * sum(keys) * dim**2 + 2 * tokens * sum(keys) * dim
    far, near = (heads * dim // site.heads for heads in halves(site.heads))
    reduced = -(-height // ratio) * -(-width // ratio)
    windows, inside = counts(site.grid, fit(SIDE, site.grid))
    products = 2 * tokens * reduced * far + 2 * windows * inside**2 * near
    return common + reduced * (ratio**2 * dim**2 + 2 * dim * far) + 2 * tokens * dim * near + products


@ATTENTIONS.register(
    "self_guided",
    AttentionCard(
        title="SG-Former: Self-guided Transformer with Evolving Token Reallocation",
        paper="arXiv:2308.12216",
        source="section 3; ratios, groups of tokens and the order of columns: the official code",
        equation="softmax(Q K(S)^T / sqrt(d)) V(S), S of learned groups of tokens in the order of their significance",
        parameters=parameters,
        macs=macs,
        notes="blocks of even index in their stage find the significance (hybrid-scale attention), those of odd index "
        "use it up; at stride 32 attention is whole. The official code needs maps that 7, the ratio and the groups "
        "divide; here windows and reduced maps are padded, the padding of windows masked, and the last group of a "
        "share filled with zeros. Called without a memory, all tokens are alike. Sorting is stable, where the "
        "official code leaves the order of equal tokens open; on large maps rounding alone reorders some. With an "
        "odd number of heads the first half has one more",
    ),
)
def self_guided(site: AttentionSite) -> nn.Module:
    """Build hybrid-scale attention in even blocks of a stage, self-guided attention in odd ones.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "self_guided")
    if ratio_at(site) == 1:
        return WholeAttention(site)
    return SelfGuidedAttention(site) if site.block % 2 else HybridScaleAttention(site)
