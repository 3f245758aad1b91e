"""Average pooling as the token mixer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS


class PoolingMixer(nn.Module):
    """The mean of a token's 3x3 neighbourhood, less the token, since the residual adds it again.

    Source: arXiv:2111.11418, equation 4.
    """

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C); neighbours beyond the edge do not count."""
        maps = to_map(tokens, context.grid)
        means = F.avg_pool2d(maps, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        return to_tokens(means) - tokens


@ATTENTIONS.register(
    "pooling",
    AttentionCard(
        title="MetaFormer Is Actually What You Need for Vision",
        paper="arXiv:2111.11418",
        source="equation 4 and algorithm 1",
        equation="mean over 3x3 neighbours, less the token",
        parameters=lambda _: 0,
        macs=lambda _: 0,
        notes="the carriers differ from PoolFormer's",
    ),
)
def pooling(site: AttentionSite) -> nn.Module:
    """Build the pooling mixer.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "pooling")
    return PoolingMixer()
