"""Hyena in two dimensions: gates around one convolution as large as the map, whose kernel a small network gives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.grid import to_map, to_tokens
from baselines.layers.linear import linear
from baselines.layers.prefix import refuse_prefix
from harness.models import AttentionCard, AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

WIDTH = 64
FEATURES = 3
FREQUENCY = 1e-4
TARGET, FAST, SLOW = 1e-2, 0.3, 1.5


class Sine(nn.Module):
    """sin(f x) with a learned frequency for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.ones(1, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return torch.sin(self.freq * features)


class ImplicitFilter(nn.Module):
    """The kernel k(i, j) = MLP(z(i), z(j)) * exp(-i a / (h - 1)) * exp(-j a / (w - 1)), with a fixed decay a a channel.

    z are features of a place along an axis. All layers of the MLP share one sine.

    Source: arXiv:2309.13600, section 3; Hyena, arXiv:2302.10866, section 3.3, for features and decay.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        sine = Sine(WIDTH)
        self.layers = nn.Sequential(
            linear(2 * FEATURES, WIDTH),
            sine,
            linear(WIDTH, WIDTH),
            sine,
            linear(WIDTH, WIDTH),
            sine,
            linear(WIDTH, dim, bias=False),
        )
        self.bias = nn.Parameter(torch.randn(dim))

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the kernel (C, h, w) of features (h, 3) and (w, 3) of the places along each axis."""
        grid = len(rows), len(columns)
        places = torch.cat([rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], dim=-1)
        kernel: Tensor = self.layers(places)
        decay = -math.log(TARGET) * torch.linspace(1 / SLOW, 1 / FAST, kernel.shape[-1], device=kernel.device)
        down, right = (torch.exp(-fractions(size, kernel.device)[:, None] * decay).to(kernel.dtype) for size in grid)
        return (kernel * down[:, None] * right[None]).permute(2, 0, 1)


class Hyena(nn.Module):
    """y = x0 * ((k * (x1 v)) + b x1 v) with x0, x1, v = DWConv3x3(Linear(x)) and k as large as the map.

    The convolution sees what lies above and to the left of a token, and in blocks that are flipped what lies below and
    to the right.

    Args:
        flipped: whether the map is turned by half a turn around the convolution.

    Source: arXiv:2309.13600, section 3.
    """

    def __init__(self, dim: int, flipped: bool) -> None:
        super().__init__()
        self.flipped = flipped
        self.in_proj = linear(dim, 3 * dim)
        self.short_filter = nn.Conv2d(3 * dim, 3 * dim, kernel_size=3, padding=1, groups=3 * dim)
        self.filter = ImplicitFilter(dim)
        self.out_proj = linear(dim, dim)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Return tokens (B, h * w, C), each mixed with a quadrant of the map."""
        gate, inner, value = self.short_filter(to_map(self.in_proj(tokens), context.grid)).chunk(3, dim=1)
        rows, columns = (features(size, tokens.device).to(tokens.dtype) for size in context.grid)
        gated = inner * value
        gated = gated.flip(2, 3) if self.flipped else gated
        mixed = convolve(gated, self.filter(rows, columns)) + gated * self.filter.bias[:, None, None]
        mixed = mixed.flip(2, 3) if self.flipped else mixed
        projected: Tensor = self.out_proj(to_tokens(gate * mixed))
        return projected


def convolve(maps: Tensor, kernel: Tensor) -> Tensor:
    """Return the sums over a <= i, b <= j of kernel[c, a, b] maps[:, c, i - a, j - b], over twice the side of the map.

    Args:
        maps: (B, C, h, w).
        kernel: (C, h, w).
    """
    height, width = maps.shape[2:]
    # Zeros around both, so that what leaves the map on one side does not enter it on the other; and in single
    # precision, below which some devices have no transforms.
    spectrum, response = (torch.fft.rfft2(F.pad(part.float(), (0, width, 0, height))) for part in (maps, kernel))
    mixed: Tensor = torch.fft.irfft2(spectrum * response)[..., :height, :width]
    return (mixed / math.sqrt(4 * height * width)).to(maps.dtype)


def fractions(size: int, device: torch.device) -> Tensor:
    """Return the places along an axis, from 0 to 1."""
    return torch.linspace(0, 1, size, device=device)


def features(size: int, device: torch.device) -> Tensor:
    """Return the features (size, 3) of the places along an axis: the fraction, and a slow wave."""
    phase = FREQUENCY * 2 * math.pi / size * torch.arange(size, device=device)
    return torch.stack([fractions(size, device), torch.cos(phase), -torch.sin(phase)], dim=1)


def parameters(site: AttentionSite) -> int:
    """Return the closed form: two projections, the short convolution, the network of the kernel, and the skip."""
    dim = site.dim
    network = (2 * FEATURES + 1) * WIDTH + 2 * (WIDTH + 1) * WIDTH + WIDTH + WIDTH * dim
    return 3 * (dim + 1) * dim + 3 * 10 * dim + network + dim + (dim + 1) * dim


def macs(site: AttentionSite) -> int:
    """Return the closed form: projections, the short convolution, the kernel's network, and three transforms.

    The transforms are of the map, of the kernel and back, each of twice the height and width: 2.5 N log2 N MACs for N
    complex points, half of it for real ones.
    """
    (height, width), dim = site.grid, site.dim
    tokens = height * width
    network = 2 * FEATURES * WIDTH + 2 * WIDTH**2 + WIDTH * dim
    along_rows = round(1.25 * dim * 4 * tokens * math.log2(2 * width))
    along_columns = round(2.5 * dim * 2 * height * (width + 1) * math.log2(2 * height))
    return tokens * (4 * dim**2 + 27 * dim + network) + 3 * (along_rows + along_columns)


@ATTENTIONS.register(
    "hyena",
    AttentionCard(
        title="Multi-Dimensional Hyena for Spatial Inductive Bias",
        paper="arXiv:2309.13600",
        source="section 3; options of the official README: order 2, one network for the kernel, directions by turns",
        equation="x0 * (k * (x1 v) + b x1 v) with x0, x1, v = DWConv3x3(Linear(x)), by Fourier transforms",
        parameters=parameters,
        macs=macs,
        notes="the result of the convolution is divided by twice the side of the map, as in the official code. "
        "Features of places are fixed and computed for any grid; the official code learns them for one square grid. "
        "Carriers pool by mean, where the official code classifies by the first patch",
    ),
)
def hyena(site: AttentionSite) -> nn.Module:
    """Build Hyena, flipped in even layers.

    Raises:
        ModelError: the site has tokens before the map.
    """
    refuse_prefix(site, "hyena")
    return Hyena(site.dim, flipped=site.layer % 2 == 0)
