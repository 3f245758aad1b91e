"""EViT: the tokens that the class token attends to are kept, the others become one."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.reduction import Canvas, OpenBlocks, reduced, take
from harness.models import AttentionContext, ModelCard
from harness.registry import WRAPPERS

CARD = ModelCard(
    title="Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    paper="arXiv:2202.07800",
    source="section 3; README of youweiliang/evit: DeiT-S with fusion, 4.0, 3.5, 3.0, 2.6, 2.3 GMACs at 0.9 to 0.5",
    notes=(
        "keep rate 0.7 (evit) or 0.5 to 0.9 (evit_k50 ... evit_k90) after the attention of blocks 4, 7 and 10 of 12, "
        "with fusion. A dropped token keeps its last value in the map, as in arXiv:2306.07050. Without a class token, "
        "which the paper does not treat, the attention that a token gets from all tokens takes its place"
    ),
)


def attention_received(query: Tensor, key: Tensor, prefix: int) -> Tensor:
    """Return the mean over heads of the attention (B, N - prefix) that the class token pays to each other token.

    Args:
        prefix: tokens before the map, the first of them the class token; with 0 the mean over all queries is meant.
    """
    rows = query[:, :, :1] if prefix else query
    attention: Tensor = (rows * key.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)
    return attention.mean(dim=(1, 2))[:, prefix:]


class EViTBlocks(OpenBlocks):
    """Blocks of which three drop tokens, between attention and MLP, and fuse what they drop.

    Args:
        keep: share of the tokens, without the prefix, that are left each time.

    Source: arXiv:2202.07800, section 3.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        super().__init__(model, "evit")
        self.keep = keep
        self.places = {quarter * len(self) // 4 for quarter in (1, 2, 3)}

    def forward(self, tokens: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return tokens (B, prefix + h * w, C), each as it was when last computed.

        `context.auxiliary["kept"]` (B, K) holds the indices of those that were never dropped, and N for a fused one.
        """
        canvas = Canvas(tokens)
        for place, block in enumerate(self):
            tokens = block(tokens, None, partial(self._drop, canvas) if place in self.places else None)
        if context is not None:
            context.auxiliary["kept"] = canvas.places
        return canvas.write(tokens)

    def _drop(self, canvas: Canvas, tokens: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return the prefix, the tokens kept, and the fused one."""
        others = tokens.shape[1] - self.prefix
        left = math.ceil(self.keep * others)
        if left >= others:
            return tokens
        scores, order = attention_received(query, key, self.prefix).sort(dim=1, descending=True)
        order = order + self.prefix
        # A weighted sum, as in the official code: its weights do not add up to one.
        fused = (take(tokens, order[:, left:]) * scores[:, left:, None]).sum(dim=1, keepdim=True)
        front = torch.arange(self.prefix, device=tokens.device).expand(len(tokens), -1)
        kept = canvas.keep(tokens, torch.cat([front, order[:, :left]], dim=1))
        canvas.places = F.pad(canvas.places, (0, 1), value=canvas.nowhere)
        return torch.cat([kept, fused.to(kept.dtype)], dim=1)


def evit(model: Any, keep: float = 0.7) -> nn.Module:
    """Keep a share of the tokens, three times.

    Raises:
        ModelError: the model is no isotropic ViT with softmax attention.
    """
    return reduced(model, EViTBlocks(model, keep))


WRAPPERS.register("evit", CARD)(evit)
for percent in (50, 60, 80, 90):
    WRAPPERS.register(f"evit_k{percent}", CARD)(partial(evit, keep=percent / 100))
