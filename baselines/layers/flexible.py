"""Neighbourhood attention by FlexAttention: one fused kernel that skips blocks of tokens which are no neighbours."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# The kernel's own block of queries and of keys.
BLOCK = 128
# One kernel for each map, dilation and width; dynamo stops at eight unless told otherwise, and then builds N x N.
KERNELS = 256


def attend_flexibly(query: Tensor, key: Tensor, value: Tensor, table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return values (B, heads, h * w, d) of the neighbours of each query.

    Args:
        query: (B, heads, h * w, d), as key and value.
        table: the bias (heads, 2k - 1, 2k - 1).
        rows: the row of the table (h, h) for each query and key along the axis, -1 where they are no neighbours.
        columns: the same for the other axis, (w, w).
    """
    from torch.nn.attention.flex_attention import flex_attention

    width = len(columns)
    # The kernel also looks at the places that fill the last block.
    beyond = -(-query.shape[2] // BLOCK) * BLOCK // width + 1 - len(rows)
    below = F.pad(rows, (0, max(0, beyond), 0, max(0, beyond)), value=-1)

    def near(_image: Tensor, _head: Tensor, asking: Tensor, asked: Tensor) -> Tensor:
        return (below[asking // width, asked // width] >= 0) & (columns[asking % width, asked % width] >= 0)

    def biased(score: Tensor, _image: Tensor, head: Tensor, asking: Tensor, asked: Tensor) -> Tensor:
        down = below[asking // width, asked // width].clamp(min=0)
        right = columns[asking % width, asked % width].clamp(min=0)
        return score + table[head, down, right]

    mask = block_mask(rows >= 0, width, near)
    if torch.compiler.is_compiling() or not query.is_cuda:
        mixed: Tensor = flex_attention(query, key, value, biased, mask)
        return mixed
    with torch._dynamo.config.patch(recompile_limit=KERNELS):
        fused: Tensor = _kernel()(query, key, value, biased, mask)
        return fused


@cache
def _kernel() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def block_mask(rows: Tensor, width: int, near: Any) -> BlockMask:
    """Return which blocks of keys each block of queries needs, from which rows (h, h) need each other.

    Whole rows decide, so that nothing of size N x N is built; inside a block `near` does.
    """
    from torch.nn.attention.flex_attention import BlockMask

    tokens = len(rows) * width
    blocks = torch.arange(-(-tokens // BLOCK), device=rows.device)[:, None] * BLOCK
    first = torch.arange(len(rows), device=rows.device) * width
    holds = ((first < blocks + BLOCK) & (first + width > blocks)).float()  # (blocks, h)
    needed = holds @ rows.float() @ holds.T > 0
    order = needed.int().argsort(dim=-1, descending=True, stable=True).int()
    count = needed.sum(dim=-1, dtype=torch.int32)
    size = (tokens, tokens)
    return BlockMask.from_kv_blocks(
        count[None, None], order[None, None], BLOCK_SIZE=BLOCK, mask_mod=near, seq_lengths=size
    )
