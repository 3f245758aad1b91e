"""IA-RED2: in front of each group of blocks an interpreter says which tokens are still needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from baselines.layers.heads import split_heads
from baselines.layers.linear import linear
from baselines.layers.reduction import Canvas, OpenBlocks, reduced, refuse_without_class
from harness.models import AttentionContext, ModelCard
from harness.registry import WRAPPERS

CARD = ModelCard(
    title="IA-RED2: Interpretability-Aware Redundancy Reduction for Vision Transformers",
    paper="arXiv:2106.12620",
    source="section 3; the interpretation tool of the authors' page for the interpreter",
    notes=(
        "a reconstruction: neither training code nor weights were published. Three groups of blocks; a token stays "
        "where its mean score over heads is above 0.5, in training where a draw says so. The interpreters get their "
        "gradient from policy_loss alone. The number of tokens depends on the image: a batch is padded to its image "
        "with the most, so only at batch 1 all of the saving is real. A dropped token keeps its last value in the map, "
        "as in arXiv:2306.07050. The authors' interpreter has a third projection that nothing uses; it is left out"
    ),
)


class Interpreter(nn.Module):
    """The policy network: how much each token tells the class token.

    Source: arXiv:2106.12620, section 3, multi-head interpreter.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.query = linear(dim, dim)
        self.key = linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores (B, N) between 0 and 1 of tokens (B, N, C), the first of them the class token."""
        normed = self.norm(tokens)
        (query,) = split_heads(self.query(normed[:, :1]), self.heads)
        (key,) = split_heads(self.key(normed), self.heads)
        scores: Tensor = (query @ key.mT * key.shape[-1] ** -0.5).sigmoid().mean(dim=1)
        return scores[:, 0]


class IaRed2Blocks(OpenBlocks):
    """Blocks in groups, with an interpreter in front of each.

    Source: arXiv:2106.12620, section 3.
    """

    def __init__(self, model: nn.Module, groups: int) -> None:
        super().__init__(model, "ia_red2")
        for group in range(groups):
            block: Any = self[group * len(self) // groups]
            block.interpreter = Interpreter(block.norm1.normalized_shape[0], block.attn.heads)

    def forward(self, tokens: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return tokens (B, prefix + h * w, C), each as it was when last computed.

        In front of block i `context.auxiliary["scores.i"]` and `["kept.i"]` (B, prefix + h * w) are what its
        interpreter said and what was decided; dropped tokens have zeros in both.
        """
        canvas = Canvas(tokens)
        present = torch.ones_like(tokens[..., 0], dtype=torch.bool)
        for place, block in enumerate(self):
            interpreter = getattr(block, "interpreter", None)
            if interpreter is not None:
                scores = interpreter(tokens) * present
                kept = self._decide(scores) & present
                if context is not None:
                    context.auxiliary[f"scores.{place}"] = _spread(canvas, scores)
                    context.auxiliary[f"kept.{place}"] = _spread(canvas, kept)
                tokens, present = _drop(canvas, tokens, kept)
            # Alone, an image has no padding that must be hidden.
            tokens = block(tokens, present[:, None, None] if len(tokens) > 1 else None, None)
        return canvas.write(tokens)

    def _decide(self, scores: Tensor) -> Tensor:
        """Return which tokens (B, N) stay: by threshold, in training by draw; the prefix always does."""
        kept = torch.bernoulli(scores.detach()).bool() if self.training else scores > 0.5
        kept[:, : self.prefix] = True
        return kept


def policy_loss(context: AttentionContext, right: Tensor, benefits: tuple[float, ...] = (1, 2 / 3, 1 / 3)) -> Tensor:
    """Return the loss of REINFORCE for the interpreters, after a forward pass in training mode with this context.

    The reward of a group is its benefit times 1 - (share kept)^2 where the image was classified right, else -1.

    Args:
        right: (B,) of booleans.
        benefits: the share of the blocks that a group's decision still concerns.

    Source: arXiv:2106.12620, section 3, for a reward of both efficiency and accuracy; its terms, and the batch's mean
    as the baseline, are a reconstruction.
    """
    names = [name.removeprefix("scores.") for name in context.auxiliary if name.startswith("scores.")]
    total = torch.zeros((), device=right.device)
    for name, benefit in zip(names, benefits, strict=True):
        scores, kept = context.auxiliary[f"scores.{name}"].float(), context.auxiliary[f"kept.{name}"].float()
        reward = torch.where(right, benefit * (1 - kept.mean(dim=1).square()), -1.0)
        open_to_choice = (scores > 0) & (scores < 1)
        drawn = torch.where(kept > 0, scores, 1 - scores)
        log_probability = torch.where(open_to_choice, drawn, 1.0).log().sum(dim=1)
        total = total - ((reward - reward.mean()) * log_probability).mean()
    return total


def _drop(canvas: Canvas, tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens kept (B, K, C), padded to the most of an image, and which are no padding (B, K)."""
    most = int(kept.sum(dim=1).max())
    order = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    tokens, present = canvas.keep(tokens, order), kept.gather(1, order)
    canvas.places = canvas.places.masked_fill(~present, canvas.nowhere)
    return tokens, present


def _spread(canvas: Canvas, values: Tensor) -> Tensor:
    """Return values of the current tokens (B, K) at the places of all (B, N), zero elsewhere."""
    blank = values.new_zeros(len(values), canvas.nowhere + 1)
    return blank.scatter(1, canvas.places, values)[:, : canvas.nowhere]


@WRAPPERS.register("ia_red2", CARD)
def ia_red2(model: Any, groups: int = 3) -> nn.Module:
    """Put an interpreter in front of each third of the blocks.

    Raises:
        ModelError: the model is no isotropic ViT with softmax attention, or has no class token.
    """
    blocks = IaRed2Blocks(model, groups)
    refuse_without_class(model, "ia_red2")
    return reduced(model, blocks)
