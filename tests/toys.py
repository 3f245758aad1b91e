"""Toy nets whose MACs are counted by hand, and what the tests of MACs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.metric import Measurement


class Net(nn.Module):
    """A function of images and of some layers, as a module."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Any:
        return self.function(images, *self.layers)


def tokens_of(images: Tensor) -> Tensor:
    """(B, 3, 8, 8) -> (B, 64, 12)."""
    return images.flatten(2).transpose(1, 2).repeat(1, 1, 4)


def attention(images: Tensor) -> Tensor:
    query, key, value = (tokens_of(images).reshape(-1, 64, 3, 4).transpose(1, 2) for _ in range(3))
    return functional.scaled_dot_product_attention(query, key, value)


def written_out_attention(images: Tensor) -> Any:
    query, key, value = (tokens_of(images).reshape(-1, 64, 3, 4).transpose(1, 2) for _ in range(3))
    return (query @ key.transpose(2, 3)).softmax(-1) @ value


def cross_attention(images: Tensor) -> Tensor:
    key = tokens_of(images)[:, None]  # (B, 1, 64, 12)
    return functional.scaled_dot_product_attention(key[:, :, :5], key, key[..., :7])


def window_attention(images: Tensor, projection: nn.Module) -> Any:
    windows = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, 3)  # (4B, 16, 3)
    query, key, value = projection(windows).chunk(3, dim=-1)
    return functional.scaled_dot_product_attention(query, key, value)


def linear_attention(images: Tensor) -> Any:
    tokens = tokens_of(images)
    return torch.einsum("bnd,bde->bne", tokens, torch.einsum("bnd,bne->bde", tokens, tokens[..., :5]))


def fourier_mixer(images: Tensor) -> Any:
    return torch.fft.irfft2(torch.fft.rfft2(images, norm="ortho"), s=(8, 8), norm="ortho")


def self_attention(images: Tensor, layer: nn.Module) -> Any:
    tokens = tokens_of(images)
    return layer(tokens, tokens, tokens, need_weights=False)[0]


def deformable(images: Tensor, layer: nn.Module) -> Any:
    return layer(images, torch.zeros(len(images), 18, 8, 8, device=images.device))


def sampled(images: Tensor) -> Tensor:
    return functional.grid_sample(images, torch.zeros(len(images), 5, 5, 2, device=images.device), align_corners=False)


def deform_layer() -> Any:
    from torchvision.ops import DeformConv2d

    return DeformConv2d(3, 6, 3, padding=1)


def apply(images: Tensor, layer: nn.Module) -> Any:
    return layer(images)


def apply_to_tokens(images: Tensor, layer: nn.Module) -> Any:
    return layer(tokens_of(images))


# The images are (1, 3, 8, 8), the tokens (1, 64, 12).
TOYS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "attention": (lambda: Net(attention), 2 * 64 * 64 * 12),
    "attention written out": (lambda: Net(written_out_attention), 2 * 64 * 64 * 12),
    "cross attention": (lambda: Net(cross_attention), 5 * 64 * (12 + 7)),
    "window attention": (lambda: Net(window_attention, nn.Linear(3, 9)), 64 * 3 * 9 + 4 * 2 * 16 * 16 * 3),
    "linear attention": (lambda: Net(linear_attention), 2 * 64 * 12 * 5),
    "MultiheadAttention": (
        lambda: Net(self_attention, nn.MultiheadAttention(12, 4, batch_first=True)),
        4 * 64 * 12 * 12 + 2 * 64 * 64 * 12,
    ),
    "TransformerEncoderLayer": (
        lambda: Net(apply_to_tokens, nn.TransformerEncoderLayer(12, 4, 24, batch_first=True)),
        4 * 64 * 12 * 12 + 2 * 64 * 64 * 12 + 2 * 64 * 12 * 24 + 2 * 5 * 64 * 12,
    ),
    # Each way: 24 real transforms of 8 points, 15 complex ones; 2.5 N log2 N MACs a complex one, half of it a real one.
    "Fourier mixer": (lambda: Net(fourier_mixer), 2 * (24 * 30 + 15 * 60)),
    "convolution": (lambda: Net(apply, nn.Conv2d(3, 5, 3, stride=2, padding=1)), 16 * 5 * 3 * 9),
    "grouped convolution": (lambda: Net(apply, nn.Conv2d(3, 6, 3, padding="same", groups=3)), 64 * 6 * 9),
    "transposed convolution": (lambda: Net(apply, nn.ConvTranspose2d(3, 6, 3, stride=2)), 64 * 3 * 6 * 9),
    "1d convolution": (
        lambda: Net(lambda images, layer: layer(images.flatten(2)), nn.Conv1d(3, 4, 5, dilation=2)),
        56 * 3 * 4 * 5,
    ),
    "deformable convolution": (lambda: Net(deformable, deform_layer()), 64 * 3 * 6 * 9 + 4 * 64 * 3 * 9),
    "grid sampling": (lambda: Net(sampled), 4 * 3 * 25),
    "bilinear": (lambda: Net(lambda images: functional.interpolate(images, scale_factor=2, mode="bilinear")), 4 * 768),
    "bicubic": (lambda: Net(lambda images: functional.interpolate(images, (5, 5), mode="bicubic")), 16 * 75),
    "antialiased": (
        lambda: Net(lambda images: functional.interpolate(images, (4, 4), mode="bilinear", antialias=True)),
        4 * 4 * 48,
    ),
    "nearest": (lambda: Net(lambda images: functional.interpolate(images, scale_factor=2)), 768),
    "batch norm": (lambda: Net(apply, nn.BatchNorm2d(3)), 2 * 192),
    "batch norm, not affine": (lambda: Net(apply, nn.BatchNorm2d(3, affine=False)), 192),
    "instance norm": (lambda: Net(apply, nn.InstanceNorm2d(3)), 4 * 192),
    "group norm": (lambda: Net(apply, nn.GroupNorm(1, 3)), 5 * 192),
    "layer norm": (lambda: Net(apply_to_tokens, nn.LayerNorm(12, elementwise_affine=False)), 4 * 768),
    "RMS norm": (lambda: Net(apply_to_tokens, nn.RMSNorm(12)), 0),
    "LSTM": (
        lambda: Net(apply_to_tokens, nn.LSTM(12, 7, batch_first=True, bidirectional=True)),
        2 * 64 * 28 * (12 + 7),
    ),
    "GRU": (lambda: Net(apply_to_tokens, nn.GRU(12, 7, batch_first=True)), 64 * 21 * (12 + 7)),
    "bilinear layer": (
        lambda: Net(lambda images, layer: layer(tokens_of(images), tokens_of(images)), nn.Bilinear(12, 12, 5)),
        64 * 5 * 12 * 12,
    ),
    "distances": (lambda: Net(lambda images: torch.cdist(tokens_of(images), tokens_of(images)[:, :9])), 64 * 9 * 12),
}
GRAD_MODES = (torch.no_grad, torch.inference_mode, torch.enable_grad)
IMAGES = torch.zeros(1, 3, 8, 8)


def values(measurements: Iterable[Measurement]) -> dict[str, float | None]:
    return {measurement.metric.name: measurement.value for measurement in measurements}


def build_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    return model
