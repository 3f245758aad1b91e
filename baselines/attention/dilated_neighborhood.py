"""Dilated neighborhood attention: in every second block the neighbours of a token lie further apart."""

from __future__ import annotations

from torch import nn

from baselines.layers.neighborhood import build_neighborhood, macs, parameters
from harness.models import AttentionCard, AttentionSite
from harness.registry import ATTENTIONS

COARSEST = 32


@ATTENTIONS.register(
    "dilated_neighborhood",
    AttentionCard(
        title="Dilated Neighborhood Attention Transformer",
        paper="arXiv:2209.15001",
        source="section 3.1; dilations of the released configurations",
        equation="softmax(q K^T / sqrt(d) + B) V over 7x7 tokens around each query, every D-th along each axis",
        parameters=parameters,
        macs=macs,
        notes="D is 1 in blocks of even index in the whole carrier, else 8, 4, 2, 1 at strides 4, 8, 16, 32: as "
        "released for 224 pixels, and as in the isotropic models at stride 16; on maps too small for 7 * D it shrinks, "
        "where NATTEN up to 0.14 pads them with zeros. Heads are the carrier's; DiNAT's are of width 32",
    ),
)
def dilated_neighborhood(site: AttentionSite) -> nn.Module:
    """Build neighborhood attention, dilated in odd layers so that windows span a map of 224 pixels.

    Raises:
        ModelError: the site has tokens before the map.
    """
    dilation = max(1, COARSEST // site.stride) if site.layer % 2 else 1
    return build_neighborhood(site, "dilated_neighborhood", dilation)
