"""No mixing: what is left of a carrier when its tokens never meet."""

from __future__ import annotations

from torch import Tensor, nn

from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS


class IdentityMixer(nn.Module):
    """Each token to itself.

    Source: arXiv:2210.13452, IdentityFormer.
    """

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return the tokens (B, N, C) that came in."""
        return tokens


@ATTENTIONS.register(
    "identity",
    AttentionCard(
        title="MetaFormer Baselines for Vision",
        paper="arXiv:2210.13452",
        source="IdentityFormer",
        equation="y = x",
        parameters=lambda _: 0,
        macs=lambda _: 0,
        notes="the carriers differ from IdentityFormer's",
    ),
)
def identity(site: AttentionSite) -> nn.Module:
    """Build the identity.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "identity")
    return IdentityMixer()
