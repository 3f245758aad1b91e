"""Recursive gated convolution: products of ever wider slices of a depthwise convolution, and no attention map."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import grid_of, to_map, to_tokens
from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

KERNEL = 7
SCALE = 1 / 3
IMAGE_SIDE = 224
# Strides from which HorNet-GF has global filters.
GLOBAL_FROM = 16


class GlobalLocalFilter(nn.Module):
    """Half of the channels through a depthwise 3x3 convolution, half through a filter in the frequencies; interleaved.

    The filter has the frequencies of a map of 224 pixels, and is interpolated for any other.

    Args:
        side: of a map of 224 pixels.

    Source: HorNet, arXiv:2207.14284, section 3.2, after GFNet, arXiv:2107.00645.
    """

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.dw = _convolution(dim // 2, dim // 2, kernel=3, bias=False)
        table = torch.empty(dim // 2, side, side // 2 + 1, 2)
        self.complex_weight = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.pre_norm, self.post_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, C, h, w) of the same shape."""
        near, far = _over_channels(self.pre_norm, maps).chunk(2, dim=1)
        # Some devices have no transforms below single precision.
        spectrum = torch.fft.rfft2(far.float(), norm="ortho")
        filtered = torch.fft.irfft2(spectrum * self._response(spectrum), s=far.shape[-2:], norm="ortho")
        mixed = torch.stack([self.dw(near), filtered.to(maps.dtype)], dim=2).flatten(1, 2)
        return _over_channels(self.post_norm, mixed)

    def _response(self, spectrum: Tensor) -> Tensor:
        parts = self.complex_weight.float().permute(3, 0, 1, 2)
        if parts.shape[2:] != spectrum.shape[2:]:
            parts = F.interpolate(parts, size=spectrum.shape[2:], mode="bilinear", align_corners=True)
        return torch.complex(parts[0], parts[1])


def _over_channels(norm: nn.LayerNorm, maps: Tensor) -> Tensor:
    normal: Tensor = norm(maps.permute(0, 2, 3, 1))
    return normal.permute(0, 3, 1, 2)


class GatedConvolution(nn.Module):
    """p_0 and q_0 .. q_(n-1) from one projection; p_(k+1) = f(q_k) * g_k(p_k) / a; the output is a projection of p_n.

    f is a depthwise 7x7 convolution or a global filter, g_0 the identity, and any other g_k a linear layer that doubles
    the width, so that p_1 has C / 2^(n-1) channels and p_n has C.

    Args:
        order: n, the number of products; 2^(n-1) divides the width.
        side: of a map of 224 pixels, for a global filter; None for the convolution.

    Source: HorNet, arXiv:2207.14284, section 3.1.
    """

    def __init__(self, dim: int, order: int, side: int | None = None) -> None:
        super().__init__()
        self.dims = widths(dim, order)
        self.proj_in = _convolution(dim, 2 * dim)
        inner = sum(self.dims)
        self.dwconv = GlobalLocalFilter(inner, side) if side else _convolution(inner, inner, KERNEL)
        self.pws = nn.ModuleList(_convolution(narrow, wide) for narrow, wide in pairwise(self.dims))
        self.proj_out = _convolution(dim, dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C), each mixed with its neighbourhood or with all."""
        maps, wide = torch.split(self.proj_in(to_map(tokens, context.grid)), [self.dims[0], sum(self.dims)], dim=1)
        first, *gates = torch.split(self.dwconv(wide) * SCALE, self.dims, dim=1)
        maps = maps * first
        for widen, gate in zip(self.pws, gates, strict=True):
            maps = widen(maps) * gate
        return to_tokens(self.proj_out(maps))


def widths(dim: int, order: int) -> list[int]:
    """Return the channels of p_1 to p_n."""
    return [dim // 2**halvings for halvings in reversed(range(order))]


def order_at(site: AttentionSite) -> int:
    """Return HorNet's order 2, 3, 4, 5 at strides 4, 8, 16, 32, or the highest below it that divides the width."""
    order = max(1, site.stride.bit_length() - 1)
    while site.dim % 2 ** (order - 1):
        order -= 1
    return order


def side_at(site: AttentionSite) -> int | None:
    """Return the side of a map of 224 pixels where HorNet-GF has global filters, else None."""
    # The filters take an even number of channels, which the narrowest slice decides.
    even = widths(site.dim, order_at(site))[0] % 2 == 0
    return grid_of(IMAGE_SIDE, site.stride)[0] if site.stride >= GLOBAL_FROM and even else None


def _convolution(inputs: int, outputs: int, kernel: int = 1, bias: bool = True) -> nn.Conv2d:
    """Return a dense 1x1 or a depthwise k x k convolution with HorNet's initial values."""
    groups = inputs if kernel > 1 else 1
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _pointwise(site: AttentionSite) -> int:
    """Return the number of weights of all 1x1 convolutions."""
    dims = widths(site.dim, order_at(site))
    return 3 * site.dim**2 + sum(narrow * wide for narrow, wide in pairwise(dims))


def parameters(site: AttentionSite) -> int:
    """Return the closed form: 1x1 convolutions, the depthwise one, and a bias for each channel that they give."""
    dims = widths(site.dim, order_at(site))
    return _pointwise(site) + 3 * site.dim + sum(dims[1:]) + (KERNEL**2 + 1) * sum(dims)


def macs(site: AttentionSite) -> int:
    """Return the closed form: each weight works once a token."""
    inner = sum(widths(site.dim, order_at(site)))
    return site.grid[0] * site.grid[1] * (_pointwise(site) + KERNEL**2 * inner)


def parameters_with_filters(site: AttentionSite) -> int:
    """Return the closed form: as with the convolution, but 3x3 and complex weights on half of the channels each."""
    inner, side = sum(widths(site.dim, order_at(site))), side_at(site)
    if side is None:
        return parameters(site)
    return parameters(site) - (KERNEL**2 + 1) * inner + inner // 2 * (9 + 2 * side * (side // 2 + 1)) + 4 * inner


def macs_with_filters(site: AttentionSite) -> int:
    """Return the closed form: as with the convolution, but 3x3 and two transforms on half of the channels each.

    A transform has 2.5 N log2 N MACs for N complex points, half of it for real ones.
    """
    (height, width), half = site.grid, sum(widths(site.dim, order_at(site))) // 2
    if side_at(site) is None:
        return macs(site)
    along_rows = round(1.25 * half * height * width * math.log2(width))
    along_columns = round(2.5 * half * height * (width // 2 + 1) * math.log2(height))
    return height * width * (_pointwise(site) + 9 * half) + 2 * (along_rows + along_columns)


SHARED_NOTES = (
    "The order is 2, 3, 4, 5 at strides 4, 8, 16, 32, less where the width cannot be halved that often; HorNet's layer "
    "scale belongs to its blocks and is left out."
)


@ATTENTIONS.register(
    "gated_convolution",
    AttentionCard(
        title="HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions",
        paper="arXiv:2207.14284",
        source="section 3.1; scale and orders of the released configurations",
        equation="p_(k+1) = DWConv7x7(q_k) * g_k(p_k) / 3, k = 0 .. n - 1",
        parameters=parameters,
        macs=macs,
        notes=SHARED_NOTES,
    ),
)
def gated_convolution(site: AttentionSite) -> nn.Module:
    """Build recursive gated convolution with 7x7 kernels.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "gated_convolution")
    return GatedConvolution(site.dim, order_at(site))


@ATTENTIONS.register(
    "gated_convolution_gf",
    AttentionCard(
        title="HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions",
        paper="arXiv:2207.14284",
        source="sections 3.1 and 3.2; HorNet-GF of the released configurations",
        equation="p_(k+1) = f(q_k) * g_k(p_k) / 3 with f half DWConv3x3 and half a learned filter of all frequencies",
        parameters=parameters_with_filters,
        macs=macs_with_filters,
        notes=SHARED_NOTES
        + " Global filters from stride 16 on, before it 7x7 kernels; filters have the frequencies of "
        "224 pixels at any image size, where the released models for 384 have more",
    ),
)
def gated_convolution_gf(site: AttentionSite) -> nn.Module:
    """Build recursive gated convolution with global filters where HorNet-GF has them.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "gated_convolution_gf")
    return GatedConvolution(site.dim, order_at(site), side_at(site))
