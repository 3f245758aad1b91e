"""Neighborhood attention: softmax attention of each token to the 7x7 tokens nearest to it."""

from __future__ import annotations

from torch import nn

from baselines.layers.neighborhood import build_neighborhood, macs, parameters
from harness.models import AttentionCard, AttentionSite
from harness.registry import ATTENTIONS


@ATTENTIONS.register(
    "neighborhood",
    AttentionCard(
        title="Neighborhood Attention Transformer",
        paper="arXiv:2204.07143",
        source="section 3.1",
        equation="softmax(q K^T / sqrt(d) + B) V over the 7x7 nearest tokens of each query",
        parameters=parameters,
        macs=macs,
        notes="on maps below 7x7 the window shrinks, where NATTEN up to 0.14 pads them with zeros; "
        "NATTEN from 0.20 on has no bias. Heads are the carrier's; NAT's are of width 32",
    ),
)
def neighborhood(site: AttentionSite) -> nn.Module:
    """Build neighborhood attention.

    Raises:
        ModelError: the site has tokens before the map.
    """
    return build_neighborhood(site, "neighborhood", dilation=1)
