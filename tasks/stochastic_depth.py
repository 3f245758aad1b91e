"""Stochastic depth in a model that was built without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def set_stochastic_depth(module: nn.Module, rate: float) -> int:
    """Drop residual branches in training, the last block's with this rate and earlier ones' linearly less often.

    It needs the places that timm's blocks have for it, which are layers named `drop_path...`. Returns their number;
    a model without any is left as it is.

    Source: Huang et al. 2016 (arXiv:1603.09382), section 4; the linear rule as timm applies it.
    """
    from timm.layers import DropPath
    from torch import nn

    blocks = [
        (block, places)
        for block in module.modules()
        if (places := [name for name, part in block.named_children()
                       if name.startswith("drop_path") and isinstance(part, nn.Identity | DropPath)])
    ]  # fmt: skip
    for index, (block, places) in enumerate(blocks):
        share = rate * index / max(1, len(blocks) - 1)
        for name in places:
            setattr(block, name, DropPath(share) if share else nn.Identity())
    return sum(len(places) for _, places in blocks) if rate else 0
