"""Polyline path masked attention: softmax attention that decays along the bent path between two tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.linear import linear
from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

KERNEL = 5
# Scores that are held at once: 64 MiB in single precision.
HELD = 2**24


class PolylineAttention(nn.Module, ABC):
    """Attention with rotary positions and a mask of decays, and beside it a 5x5 convolution of the values.

    Each token and head has two decays from its features, one for steps along the row and one for steps along the
    column. The mask between two tokens is the product of the decays that a path between them passes.

    Source: PPMA, arXiv:2506.15940, section 3; the rotary positions and the convolution: the official code.
    """

    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.heads = site.heads
        self.qkv, self.proj = linear(site.dim, 3 * site.dim), linear(site.dim, site.dim)
        self.lepe = nn.Conv2d(site.dim, site.dim, KERNEL, padding=KERNEL // 2, groups=site.dim)
        self.pace = linear(site.dim // site.heads, 2, bias=False)
        steps = torch.empty(site.heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.pace_bias = nn.Parameter(torch.log(torch.expm1(steps)))
        self.log_rate = nn.Parameter(torch.empty(site.heads).uniform_(1, 1.1).log())

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C) mixed over all of them."""
        query, key, value = split_heads(self.qkv(tokens), self.heads, parts=3)
        mixed = self.mix(rotate(query), rotate(key), value, *self._logarithms(tokens, context.grid))
        near = to_tokens(self.lepe(to_map(merge_heads(value), context.grid)))
        projected: Tensor = self.proj(merge_heads(mixed) + near)
        return projected

    @abstractmethod
    def mix(self, query: Tensor, key: Tensor, value: Tensor, right: Tensor, down: Tensor) -> Tensor:
        """Return mixed values (B, heads, h * w, d).

        Args:
            query: (B, heads, h * w, d), as are key and value.
            right: logarithms (B, heads, h, w) of the decays, summed along each row up to each token.
            down: the same along each column.
        """

    def _logarithms(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        paces = self.pace(torch.unflatten(tokens, -1, (self.heads, -1))).permute(3, 0, 2, 1)  # (2, B, heads, N)
        # Compilers and the CPU disagree on the strides of the gradient of softplus, unless all is contiguous.
        steps = F.softplus(paces.contiguous().float() + self.pace_bias.float()[:, None])
        logarithms = -torch.exp(self.log_rate.float())[:, None] * steps
        right, down = torch.unflatten(logarithms, 3, grid).unbind(0)
        return right.cumsum(dim=3), down.cumsum(dim=2)


class WholePolylineAttention(PolylineAttention):
    """(softmax(Q K^T / sqrt(d) + log L) + softmax(Q K^T / sqrt(d) + log L^T)) V / 2.

    L is of the path that goes along the query's row, then along the key's column; its transpose of the other. Queries
    come some rows of the map at a time, and for training the scores are made anew in the backward pass, so that memory
    grows linearly with the number of tokens.
    """

    def mix(self, query: Tensor, key: Tensor, value: Tensor, right: Tensor, down: Tensor) -> Tensor:
        """Return values mixed over the whole map."""
        _, heads, height, width = right.shape
        # A symbolic batch, as of an exporter, has no part in how the loop is cut.
        rows = max(1, HELD // (heads * width * height * width))
        again = rows < height and torch.is_grad_enabled()
        run = partial(checkpoint, attend, use_reentrant=False) if again else attend
        parts = zip(
            torch.split(query, rows * width, dim=2),
            torch.split(right, rows, dim=2),
            torch.split(down, rows, dim=2),
            strict=True,
        )
        return torch.cat([run(*part, key, value, right, down) for part in parts], dim=2)


class CrissCrossPolylineAttention(PolylineAttention):
    """(A_column A_row + A_row A_column) V / 2, where A_row and A_column are masked attention along rows and columns.

    Each is softmax(Q K^T / sqrt(d) + log D) between the tokens of one row or one column.
    """

    def mix(self, query: Tensor, key: Tensor, value: Tensor, right: Tensor, down: Tensor) -> Tensor:
        """Return values mixed over the whole map by way of rows and columns."""
        grid, scale = right.shape[2:], query.shape[-1] ** -0.5
        query, key, value = (torch.unflatten(part, 2, grid) for part in (query * scale, key, value))
        rows = (query @ key.mT + between(right).to(query.dtype)).softmax(dim=-1)  # (B, heads, h, w, w)
        query, key = query.transpose(2, 3), key.transpose(2, 3)
        columns = (query @ key.mT + between(down.mT).to(query.dtype)).softmax(dim=-1)  # (B, heads, w, h, h)
        first = columns @ (rows @ value).transpose(2, 3)
        second = rows @ (columns @ value.transpose(2, 3)).transpose(2, 3)
        return (first.transpose(2, 3) + second).flatten(2, 3) / 2


def between(sums: Tensor) -> Tensor:
    """Return the log masks (..., n, n) between tokens on a line from running sums (..., n) of their log decays."""
    return -(sums[..., :, None] - sums[..., None, :]).abs()


def attend(
    query: Tensor, right: Tensor, down: Tensor, key: Tensor, value: Tensor, all_right: Tensor, all_down: Tensor
) -> Tensor:
    """Return values (B, heads, n, d) of the queries of some rows of the map.

    Args:
        query: (B, heads, n, d); key and value hold all tokens.
        right: running sums (B, heads, n / w, w) of those rows; `all_right` has all rows.
        down: the same along the columns.
    """
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    # Axes: B, heads, row and column of the query, row and column of the key.
    along = between(right)[:, :, :, :, None] - (down[:, :, :, None, None] - all_down[:, :, None, None]).abs()
    back = (down[:, :, :, :, None, None] - all_down.mT[:, :, None, :, :, None]).abs()
    other = between(all_right).transpose(2, 3)[:, :, None] - back
    first, second = (
        (scores + mask.flatten(4, 5).flatten(2, 3).to(scores.dtype)).softmax(dim=-1) for mask in (along, other)
    )
    mixed: Tensor = (first + second) / 2 @ value
    return mixed


def rotate(heads: Tensor) -> Tensor:
    """Turn each pair of channels of heads (B, heads, N, d) by an angle that grows with the place of the token.

    Source: RoPE, arXiv:2104.09864, equation 15, with the official code's frequencies from 1 to 1 / 10000.
    """
    pairs = heads.shape[-1] // 2
    frequency = 10000 ** -torch.linspace(0, 1, pairs, device=heads.device)
    angle = torch.arange(heads.shape[2], device=heads.device)[:, None] * frequency
    cosine, sine = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
    even, odd = torch.unflatten(heads, -1, (pairs, 2)).unbind(-1)
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)


def parameters(site: AttentionSite) -> int:
    """Return the closed form: four projections, the convolution, the paces, and two numbers a head."""
    dim = site.dim
    return 4 * (dim + 1) * dim + (KERNEL**2 + 1) * dim + 2 * dim // site.heads + 2 * site.heads


def _projections(site: AttentionSite) -> int:
    return site.grid[0] * site.grid[1] * site.dim * (4 * site.dim + KERNEL**2 + 2)


def whole_macs(site: AttentionSite) -> int:
    """Return the closed form: projections, convolution and paces, and two products over all tokens."""
    return _projections(site) + 2 * (site.grid[0] * site.grid[1]) ** 2 * site.dim


def criss_cross_macs(site: AttentionSite) -> int:
    """Return the closed form: projections, convolution and paces, and three products along rows and columns each."""
    height, width = site.grid
    return _projections(site) + 3 * height * width * (height + width) * site.dim


TITLE = "Polyline Path Masked Attention for Vision Transformer"
PAPER = "arXiv:2506.15940"
NOTES = (
    "as in the official code and the released weights the logarithm of the mask is added before the softmax, and the "
    "decays are exp(-a softplus(x)); the paper multiplies by the mask after the softmax, with decays of ReLU and exp. "
    "Rotary positions count tokens row by row, and a 5x5 convolution of the values is added, as in the official code"
)


@ATTENTIONS.register(
    "polyline_path",
    AttentionCard(
        title=TITLE,
        paper=PAPER,
        source="section 3; MambaAttentionAllDouble of the official code",
        equation="(softmax(Q K^T / sqrt(d) + log L) + softmax(Q K^T / sqrt(d) + log L^T)) V / 2 + DWConv5x5(V)",
        parameters=parameters,
        macs=whole_macs,
        notes=f"{NOTES}; the official code has this form in its last stage, in PPMA-T in the last two",
    ),
)
def polyline_path(site: AttentionSite) -> nn.Module:
    """Build polyline path attention over the whole map.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "polyline_path")
    return WholePolylineAttention(site)


@ATTENTIONS.register(
    "polyline_path_crisscross",
    AttentionCard(
        title=TITLE,
        paper=PAPER,
        source="section 3, criss-cross form; MambaAttentionChunkDouble of the official code",
        equation="(A_column A_row + A_row A_column) V / 2 + DWConv5x5(V), A = softmax(Q K^T / sqrt(d) + log D)",
        parameters=parameters,
        macs=criss_cross_macs,
        notes=f"{NOTES}; the official code has this form in the first three stages, in PPMA-T in the first two",
    ),
)
def polyline_path_crisscross(site: AttentionSite) -> nn.Module:
    """Build polyline path attention by way of rows and columns.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "polyline_path_crisscross")
    return CrissCrossPolylineAttention(site)
