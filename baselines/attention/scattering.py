"""Scattering: a dual-tree complex wavelet transform whose low and high frequencies are mixed apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import grid_of, to_map, to_tokens
from baselines.layers.prefix import refuse_prefix
from baselines.layers.windows import Pair
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

IMAGE = 224
BLOCKS = 4
# Kingsbury's near-symmetric filters of 13 and 19 taps, up to their centre.
LOW_HALF = (-0.0017578125, 0.0, 0.022265625, -0.046875, -0.0482421875, 0.296875, 0.55546875)
HIGH_HALF = (
    -7.062639508928571e-05,
    0.0,
    0.0013419015066964285,
    -0.0018833705357142855,
    -0.007156808035714285,
    0.023856026785714284,
    0.05564313616071428,
    -0.05168805803571428,
    -0.29975760323660716,
    0.5594308035714286,
)
LOW, HIGH = ((*half, *half[-2::-1]) for half in (LOW_HALF, HIGH_HALF))
# Synthesis has the other filter of the pair, with every second sign turned.
LOW_BACK = tuple(-tap if place % 2 == 0 else tap for place, tap in enumerate(HIGH))
HIGH_BACK = tuple(tap if place % 2 == 0 else -tap for place, tap in enumerate(LOW))


class ScatteringMixer(nn.Module):
    """W(inverse)(a * low, MLP(high)), with one weight a for each channel and place, and a complex MLP of channels.

    The transform has one level: a low-pass map of full size, and six oriented complex maps of half its size. The MLP
    has two layers with ReLU on both parts between them; it is the same for all places and orientations, and mixes
    channels inside four blocks. A map of odd size is continued by its last row or column. The weights of the low-pass
    map are interpolated to other grids. All is computed in single precision.

    Source: SVT, arXiv:2311.01310, section 3; the transform: Selesnick, Baraniuk and Kingsbury, The dual-tree complex
    wavelet transform, 2005.
    """

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        size = dim // BLOCKS
        self.low = nn.Parameter(0.02 * torch.randn(dim, side, side))
        self.weight1, self.weight2 = (nn.Parameter(0.02 * torch.randn(2, BLOCKS, size, size)) for _ in range(2))
        self.bias1, self.bias2 = (nn.Parameter(0.02 * torch.randn(2, BLOCKS, size)) for _ in range(2))

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C) after both transforms."""
        height, width = context.grid
        maps = to_map(tokens, context.grid).float()
        # In place of F.pad: of its gradient compilers and the CPU have different strides.
        maps = torch.cat([maps, maps[:, :, -1:]], dim=2) if height % 2 else maps
        maps = torch.cat([maps, maps[..., -1:]], dim=3) if width % 2 else maps
        low, waves = analyse(maps)
        mixed = synthesise(low * self._weights((maps.shape[2], maps.shape[3])), self._mix(waves))
        return to_tokens(mixed[:, :, :height, :width]).to(tokens.dtype)

    def _weights(self, size: Pair) -> Tensor:
        weights = self.low.float()
        if weights.shape[1:] == size:
            return weights
        return F.interpolate(weights.unsqueeze(0), size=size, mode="bilinear").squeeze(0)

    def _mix(self, waves: Tensor) -> Tensor:
        """Return waves (2, 6, B, C, h, w), real and imaginary parts first, after the MLP of channels."""
        blocks = torch.unflatten(waves, 3, (BLOCKS, -1)).permute(3, 1, 2, 5, 6, 0, 4)  # (blocks, 6, B, h, w, 2, s)
        flat = blocks.flatten(5).flatten(1, 4)
        hidden = F.relu(flat @ _matrix(self.weight1) + _vector(self.bias1))
        mixed = hidden @ _matrix(self.weight2) + _vector(self.bias2)
        whole = torch.unflatten(torch.unflatten(mixed, 2, (2, -1)), 1, blocks.shape[1:5])
        return whole.permute(5, 1, 2, 0, 6, 3, 4).flatten(3, 4)


def _matrix(weight: Tensor) -> Tensor:
    """Return complex weights (2, blocks, s, s) as real ones (blocks, 2 * s, 2 * s)."""
    real, imaginary = weight.float()
    return torch.cat([torch.cat([real, imaginary], dim=2), torch.cat([-imaginary, real], dim=2)], dim=1)


def _vector(bias: Tensor) -> Tensor:
    """Return complex biases (2, blocks, s) as real ones (blocks, 1, 2 * s)."""
    return bias.float().transpose(0, 1).flatten(1).unsqueeze(1)


def analyse(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the low-pass map (B, C, H, W) and the waves (2, 6, B, C, H / 2, W / 2) of maps of even sides.

    Waves have real and imaginary parts first; orientations k and k + 3 are mirror images.
    """
    low, high = along(maps, LOW, 3), along(maps, HIGH, 3)
    bands = torch.stack([along(low, HIGH, 2), along(high, HIGH, 2), along(high, LOW, 2)]) / math.sqrt(2)
    first, second, third, fourth = (bands[..., row::2, column::2] for row in (0, 1) for column in (0, 1))
    real = torch.cat([first - fourth, first + fourth])
    imaginary = torch.cat([second + third, second - third])
    return along(low, LOW, 2), torch.stack([real, imaginary])


def synthesise(low: Tensor, waves: Tensor) -> Tensor:
    """Return maps (B, C, H, W) from what `analyse` gives."""
    (real, mirrored), (imaginary, other) = (part.chunk(2) for part in waves / math.sqrt(2))
    rows = torch.stack([real + mirrored, imaginary + other], dim=-1).flatten(-2)
    below = torch.stack([imaginary - other, mirrored - real], dim=-1).flatten(-2)
    across, diagonal, down = torch.stack([rows, below], dim=-2).flatten(-3, -2).unbind(0)
    left = along(low, LOW_BACK, 2) + along(across, HIGH_BACK, 2)
    right = along(down, LOW_BACK, 2) + along(diagonal, HIGH_BACK, 2)
    return along(left, LOW_BACK, 3) + along(right, HIGH_BACK, 3)


def along(maps: Tensor, taps: tuple[float, ...], axis: int) -> Tensor:
    """Return maps (B, C, H, W) filtered along an axis, mirrored at their edges as often as the filter needs."""
    size, reach = maps.shape[axis], len(taps) // 2
    place = torch.arange(-reach, size + reach, device=maps.device) % (2 * size)
    mirrored = maps.index_select(axis, torch.minimum(place, 2 * size - 1 - place))
    kernel = torch.tensor(taps, device=maps.device, dtype=maps.dtype)
    kernel = kernel[:, None] if axis == 2 else kernel[None]
    filtered = F.conv2d(mirrored.flatten(0, 1).unsqueeze(1), kernel[None, None])
    return torch.unflatten(filtered.squeeze(1), 0, maps.shape[:2])


def side_at(site: AttentionSite) -> int:
    """Return the side of the low-pass map of an image of 224 pixels."""
    side = grid_of(IMAGE, site.stride)[0]
    return side + side % 2


def parameters(site: AttentionSite) -> int:
    """Return the closed form: weights of the low-pass map, two complex layers."""
    return site.dim * side_at(site) ** 2 + 4 * site.dim * (site.dim // BLOCKS + 1)


def macs(site: AttentionSite) -> int:
    """Return the closed form: six filters each way of 13 and 19 taps in pairs, and the MLP at six orientations."""
    height, width = (size + size % 2 for size in site.grid)
    filters = 6 * (len(LOW) + len(HIGH)) * site.dim
    return height * width * (filters + 12 * site.dim**2 // BLOCKS)


@ATTENTIONS.register(
    "scattering",
    AttentionCard(
        title="Scattering Vision Transformer: Spectral Mixing Matters",
        paper="arXiv:2311.01310",
        source="section 3; SVT_channel_mixing of the official code",
        equation="DTCWT^-1(a * low, W_2 ReLU(W_1 high + b_1) + b_2) of (low, high) = DTCWT(map)",
        parameters=parameters,
        macs=macs,
        notes="the released mixer: tensor blending of the low frequencies, Einstein blending of channels for the high "
        "ones; the paper's best row also blends tokens. Weights of the low-pass map are as large as for an image of "
        "224 pixels and are interpolated, where the official code needs that size. In all blocks, where SVT has "
        "attention from its second stage on. MACs leave out the weights of the low-pass map, one a number",
    ),
)
def scattering(site: AttentionSite) -> nn.Module:
    """Build the scattering mixer.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "scattering")
    return ScatteringMixer(site.dim, side_at(site))
