"""Sparsifiner: a cheap low-rank guess says which keys each query may see."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.layers.linear import linear
from baselines.layers.reduction import OpenAttention, OpenBlocks, reduced
from harness.costs.counter import count_macs
from harness.errors import ModelError
from harness.models import AttentionContext, ModelCard
from harness.registry import WRAPPERS

RANK_DIVISOR = 6
CHANNEL_DIVISOR = 2
COEFFICIENTS = 8
BASIS_THRESHOLD = 0.02

CARD = ModelCard(
    title="Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers",
    paper="arXiv:2303.13755",
    source="section 3; default configuration of lim142857/Sparsifiner",
    notes=(
        "each query sees a quarter of the keys (sparsifiner) or a half (sparsifiner_k50), the class token all. It "
        "masks, as the released code does: all products are computed, so its claimed MACs are nominal. Token pruning, "
        "an option of the code, is off. The guess is scaled by heads^-0.5 as in the code, not by d^-0.5. The predictor "
        "gets no gradient through the mask: it learns from context.auxiliary['approximation.i'], to be held "
        "against a dense teacher's attention in a first phase of training"
    ),
)


class MaskPredictor(nn.Module):
    """Guesses attention by projecting keys to a few tokens, and keeps the largest guesses of each query.

    Args:
        tokens: how many there are, the prefix included; its projections are made for so many.
        keep: share of the keys that a query sees.
        prefix: queries at the start that see all keys.

    Source: arXiv:2303.13755, section 3; parameters have the official code's names.
    """

    def __init__(self, tokens: int, heads: int, head_dim: int, keep: float, prefix: int) -> None:
        super().__init__()
        rank = max(tokens // RANK_DIVISOR, 1)
        self.scale = heads**-0.5
        self.prefix = prefix
        self.kept = math.ceil(keep * tokens)
        self.proj_c_q = linear(head_dim, head_dim // CHANNEL_DIVISOR)
        self.proj_c_k = linear(head_dim, head_dim // CHANNEL_DIVISOR)
        self.proj_n = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, rank), std=0.02))
        self.proj_back_n = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, rank), std=0.02))

    def coefficients(self, query: Tensor, key: Tensor) -> Tensor:
        """Return (B, heads, N - prefix, K), what each query makes of the projected keys."""
        projected = self.proj_c_k(key).mT @ self.proj_n
        logits: Tensor = self.proj_c_q(query[:, :, self.prefix :]) @ projected * self.scale
        return logits.softmax(dim=-1)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the mask (B, heads, N, N), true where a query sees a key."""
        coefficients = self.coefficients(query, key)
        largest, places = coefficients.topk(min(COEFFICIENTS, coefficients.shape[-1]), dim=-1)
        sparse = torch.zeros_like(coefficients).scatter(-1, places, largest)
        basis = self.proj_back_n.abs()
        scores = sparse @ torch.where(basis > BASIS_THRESHOLD, basis, 0.0).mT
        chosen = scores.topk(self.kept, dim=-1).indices
        seen = torch.zeros_like(scores).scatter(-1, chosen, torch.ones_like(scores)) > 0
        return torch.cat([seen.new_ones(*seen.shape[:2], self.prefix, seen.shape[-1]), seen], dim=2)

    def approximation(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the low-rank guess (B, heads, N - prefix, N) of attention, without thresholds."""
        return self.coefficients(query, key) @ self.proj_back_n.mT

    def macs(self, heads: int) -> int:
        """Return the nominal MACs of guess and sparse attention of one image, the thresholds' sparsity not counted in.

        Only kept coefficients and kept keys are multiplied, which needs kernels that the released code has not.
        """
        tokens, rank = self.proj_n.shape
        width, reduced_width = self.proj_c_q.in_features, self.proj_c_q.out_features
        queries = tokens - self.prefix
        guess = (tokens + queries) * width * reduced_width + (tokens + queries) * reduced_width * rank
        restored = queries * min(COEFFICIENTS, rank) * tokens
        attention = 2 * width * (queries * self.kept + self.prefix * tokens)
        return heads * (guess + restored + attention)


class SparseAttention(OpenAttention):
    """Softmax attention of which a predictor masks the logits.

    Source: arXiv:2303.13755, section 3.
    """

    def __init__(self, attention: Any, tokens: int, keep: float, prefix: int) -> None:
        super().__init__(attention)
        head_dim = attention.proj.in_features // self.heads
        self.mask_predictor = MaskPredictor(tokens, self.heads, head_dim, keep, prefix)

    def connect(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the predicted mask (B, heads, N, N), which has no gradient.

        Raises:
            ModelError: there are not as many tokens as the predictor was made for.
        """
        made_for = len(self.mask_predictor.proj_n)
        if key.shape[-2] != made_for:
            raise ModelError(
                f"'sparsifiner' was made for {made_for} tokens and got {key.shape[-2]}: "
                "build the model for this image size, with --image-size or image_size=."
            )
        with torch.no_grad():
            mask: Tensor = self.mask_predictor(query, key)
        return mask


class SparsifinerBlocks(OpenBlocks):
    """Blocks with masked attention; the number of tokens stays.

    Args:
        keep: share of the keys that a query sees.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        super().__init__(model, "sparsifiner")
        self.keep = keep
        tokens = self.prefix + self.grid[0] * self.grid[1]
        for block in self.children():
            block.attn = SparseAttention(block.attn, tokens, keep, self.prefix)

    def forward(self, tokens: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return tokens (B, prefix + h * w, C)."""
        for place, block in enumerate(self):
            note = partial(self._note, context, place) if self.training and context is not None else None
            tokens = block(tokens, None, note)
        return tokens

    def _note(self, context: AttentionContext, place: int, tokens: Tensor, query: Tensor, key: Tensor) -> Tensor:
        block: Any = self[place]
        context.auxiliary[f"approximation.{place}"] = block.attn.mask_predictor.approximation(
            query.detach(), key.detach()
        )
        return tokens

    def saved_macs(self) -> int:
        """Return how many MACs of one image sparse kernels would save of dense attention."""
        saved = 0
        for block in self.children():
            attention: Any = block.attn
            predictor = attention.mask_predictor
            dense = 2 * len(predictor.proj_n) ** 2 * predictor.proj_c_q.in_features
            saved += attention.heads * dense - predictor.macs(attention.heads)
        return saved


def sparsifiner(model: Any, keep: float = 0.25) -> nn.Module:
    """Mask all but a share of the keys of each query; `nominal_gmacs` says what sparse kernels would need.

    Raises:
        ModelError: the model is no isotropic ViT with softmax attention.
    """
    blocks = SparsifinerBlocks(model, keep)
    height, width = blocks.grid
    size = getattr(model.patch_embed, "img_size", None) or (height * model.strides[0], width * model.strides[0])
    dense = count_macs(model, torch.zeros(1, 3, *size, device=next(model.parameters()).device)).total
    model.nominal_gmacs = (dense - blocks.saved_macs()) / 1e9
    return reduced(model, blocks)


WRAPPERS.register("sparsifiner", CARD)(sparsifiner)
WRAPPERS.register("sparsifiner_k50", CARD)(partial(sparsifiner, keep=0.5))
