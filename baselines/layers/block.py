"""The block that both carriers repeat, and a row of them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.linear import linear
from harness.models import AttentionContext, AttentionSite, BuildAttention


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, four times wider inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = linear(dim, 4 * dim)
        self.fc2 = linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, N, C), each computed from itself alone."""
        outputs: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return outputs


class Block(nn.Module):
    """Norm, mixer, norm, MLP, with a residual around each half; the mixer is whatever the slot is given.

    Source: ViT, arXiv:2010.11929, equations 2 and 3; MetaFormer, arXiv:2111.11418, equations 2 and 3.
    """

    def __init__(self, site: AttentionSite, attention: BuildAttention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(site.dim, eps=1e-6)
        self.attn = attention(site)
        self.norm2 = nn.LayerNorm(site.dim, eps=1e-6)
        self.mlp = Mlp(site.dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, prefix + h * w, C) of the same shape."""
        mixed: Tensor = tokens + self.attn(self.norm1(tokens), context)
        outputs: Tensor = mixed + self.mlp(self.norm2(mixed))
        return outputs


class Blocks(nn.ModuleList):
    """The blocks of a carrier, one after the other; what changes the set of tokens between blocks takes its place."""

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, prefix + h * w, C) of the same shape."""
        for block in self:
            tokens = block(tokens, context)
        return tokens
