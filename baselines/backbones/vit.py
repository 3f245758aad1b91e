"""The isotropic carrier: a plain ViT with any token mixer in the place of its attention."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.block import Block, Blocks
from baselines.layers.grid import grid_of, pad_to_multiple, to_map, to_tokens
from baselines.layers.linear import linear
from harness.models import AttentionContext, AttentionSite, BuildAttention, ModelCard
from harness.registry import ATTENTIONS, MODELS

PATCH = 16
DEPTH = 12


class PatchEmbedding(nn.Module):
    """A linear projection of the patches of an image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """Return maps (B, C, ceil(H / 16), ceil(W / 16)) of images (B, 3, H, W)."""
        maps: Tensor = self.proj(pad_to_multiple(images, PATCH, PATCH))
        return maps


class VisionTransformer(nn.Module):
    """Patches, learned positions, 12 pre-norm blocks of one width, a final LayerNorm, then a pooled linear head.

    The LayerNorm comes before the pooling, as in DeiT. With a class token the head reads that token, without one the
    mean of all tokens. Parameters have timm's names, so that its ViT and DeiT checkpoints load as they are.

    Args:
        prefix: 1 for a class token, else 0.
        image_size: the size whose grid the position table has; images of other sizes get an interpolated table.
        attention: builds the mixer of each block; None for softmax.

    Source: ViT, arXiv:2010.11929, equations 1 to 4; DeiT, arXiv:2012.12877.
    """

    strides = (PATCH,)

    def __init__(
        self,
        dim: int,
        heads: int,
        prefix: int,
        num_classes: int,
        image_size: int | tuple[int, int],
        attention: BuildAttention | None,
    ) -> None:
        super().__init__()
        attention = attention or ATTENTIONS.get("softmax").build
        self.channels = (dim,)
        self.prefix = prefix
        self.grid = grid_of(image_size, PATCH)
        self.patch_embed = PatchEmbedding(dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 1e-6) if prefix else None
        positions = torch.empty(1, prefix + self.grid[0] * self.grid[1], dim)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        sites = [AttentionSite(dim, heads, self.grid, prefix, layer, DEPTH, 0, PATCH) for layer in range(DEPTH)]
        self.blocks = Blocks(Block(site, attention) for site in sites)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = linear(dim, num_classes)

    def forward(self, images: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return logits (B, classes) of images (B, 3, H, W).

        Args:
            context: a fresh one where the caller wants to read what the mixers leave in it.
        """
        return self.forward_head(self.forward_features(images, context))

    def forward_features(self, images: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return normalised tokens (B, prefix + h * w, C) of images (B, 3, H, W)."""
        maps = self.patch_embed(images)
        context = context or AttentionContext((0, 0))
        context.grid = (maps.shape[-2], maps.shape[-1])
        tokens: Tensor = to_tokens(maps)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self._positions(context.grid)
        return cast(Tensor, self.norm(self.blocks(tokens, context)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, classes), or the pooled features (B, C), of what `forward_features` returns."""
        pooled = features[:, 0] if self.prefix else features.mean(dim=1)
        return pooled if pre_logits else cast(Tensor, self.head(pooled))

    def features(self, images: Tensor, context: AttentionContext | None = None) -> list[Tensor]:
        """Return one map (B, C, ceil(H / 16), ceil(W / 16)) of images (B, 3, H, W)."""
        tokens = self.forward_features(images, context)[:, self.prefix :]
        return [to_map(tokens, grid_of((images.shape[-2], images.shape[-1]), PATCH))]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell the order of the layers, as timm does of its ViTs, for learning rates that differ by layer."""
        blocks: list[tuple[str, Any]] = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": blocks}

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.pos_embed
        # Some kernels have no antialiased bicubic filter below single precision.
        table = to_map(self.pos_embed[:, self.prefix :].float(), self.grid)
        table = F.interpolate(table, size=grid, mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, : self.prefix], to_tokens(table).to(self.pos_embed.dtype)], dim=1)


def plain(size: str) -> ModelCard:
    """Return the card of a carrier without a class token."""
    return ModelCard(
        title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        paper="arXiv:2010.11929",
        source=f"the project's own carrier, of the width and depth of DeiT-{size}; no published figures",
        notes="no class token: mean of the tokens after the final LayerNorm; images of any size are padded",
    )


NANO = ModelCard(
    title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
    paper="arXiv:2010.11929",
    source="the project's own carrier, a third of the width of DeiT-tiny; no published figures",
    notes="for trainings on a CPU; no class token: mean of the tokens after the final LayerNorm; any image is padded",
)


def deit(size: str, parameters: float, gmacs: float, top1: float) -> ModelCard:
    """Return the card of a carrier that with softmax attention is a DeiT; parameters in M, gmacs in G, top1 in %."""
    return ModelCard(
        title="Training data-efficient image transformers & distillation through attention",
        paper="arXiv:2012.12877",
        source=f"top1: README of facebookresearch/deit, DeiT-{size}; parameters and gmacs: timm's result files",
        published={"parameters": parameters, "gmacs": gmacs, "top1": top1},
        notes="figures are of softmax attention; images of any size are padded",
    )


@MODELS.register("vit_n16", NANO)
def vit_n16(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the carrier of width 64 with 2 heads and mean pooling."""
    return VisionTransformer(64, 2, 0, num_classes, image_size, attention)


@MODELS.register("vit_t16", plain("tiny"))
def vit_t16(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the carrier of width 192 with 3 heads and mean pooling."""
    return VisionTransformer(192, 3, 0, num_classes, image_size, attention)


@MODELS.register("vit_s16", plain("small"))
def vit_s16(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the carrier of width 384 with 6 heads and mean pooling."""
    return VisionTransformer(384, 6, 0, num_classes, image_size, attention)


@MODELS.register("vit_b16", plain("base"))
def vit_b16(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the carrier of width 768 with 12 heads and mean pooling."""
    return VisionTransformer(768, 12, 0, num_classes, image_size, attention)


@MODELS.register("vit_t16_cls", deit("tiny", parameters=5.72, gmacs=1.26, top1=72.2))
def vit_t16_cls(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the carrier of width 192 with 3 heads and class token."""
    return VisionTransformer(192, 3, 1, num_classes, image_size, attention)


@MODELS.register("vit_s16_cls", deit("small", parameters=22.05, gmacs=4.61, top1=79.9))
def vit_s16_cls(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the carrier of width 384 with 6 heads and class token."""
    return VisionTransformer(384, 6, 1, num_classes, image_size, attention)


@MODELS.register("vit_b16_cls", deit("base", parameters=86.57, gmacs=17.58, top1=81.8))
def vit_b16_cls(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the carrier of width 768 with 12 heads and class token."""
    return VisionTransformer(768, 12, 1, num_classes, image_size, attention)
