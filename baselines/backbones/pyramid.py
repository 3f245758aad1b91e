"""The four-stage carrier: a MetaFormer-style pyramid with any token mixer in the place of its attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from baselines.layers.block import Block
from baselines.layers.grid import grid_of, pad_to_multiple, to_map, to_tokens
from baselines.layers.linear import linear
from harness.models import AttentionContext, AttentionSite, BuildAttention, ModelCard
from harness.registry import ATTENTIONS, MODELS

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Plan:
    """Widths, block counts and attention heads of the four stages."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]

    def sites(self, image_size: int | tuple[int, int]) -> Iterator[list[AttentionSite]]:
        """Yield the sites of each stage for images of a height and width."""
        for stage, (dim, depth, heads) in enumerate(zip(self.dims, self.depths, self.heads, strict=True)):
            stride, first = STRIDES[stage], sum(self.depths[:stage])
            grid, last, whole = grid_of(image_size, stride), first + depth - 1, sum(self.depths)
            yield [
                AttentionSite(dim, heads, grid, 0, layer, whole, stage, stride, first, last)
                for layer in range(first, last + 1)
            ]


class Stage(nn.Module):
    """A convolution that shrinks the map, blocks, and a LayerNorm for all who read the stage's output.

    Args:
        embedding: from the maps of the stage before, or from images.
        blocks: of the width that the embedding gives.
    """

    def __init__(self, embedding: nn.Conv2d, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embedding.out_channels, eps=1e-6)

    def forward(self, maps: Tensor, context: AttentionContext) -> Tensor:
        """Return maps (B, C, h, w), and leave the stage's grid in the context."""
        maps = self.embedding(maps)
        context.grid = (maps.shape[-2], maps.shape[-1])
        tokens = to_tokens(maps)
        for block in self.blocks:
            tokens = block(tokens, context)
        return to_map(self.norm(tokens), context.grid)


class Pyramid(nn.Module):
    """Four stages at strides 4, 8, 16 and 32, then the mean of the last map into a linear head.

    There is no position table: what the mixer does not know of positions, the padded convolutions tell. One context
    goes through all stages, so that its memory crosses them; its grid is the current stage's.

    Args:
        image_size: the size whose grids the mixers are built for; images may have any other.
        attention: builds the mixer of each block; None for softmax.

    Source: MetaFormer, arXiv:2111.11418, figure 2, for the order of things; the sizes are this project's.
    """

    strides = STRIDES

    def __init__(
        self, plan: Plan, num_classes: int, image_size: int | tuple[int, int], attention: BuildAttention | None
    ) -> None:
        super().__init__()
        build = attention or ATTENTIONS.get("softmax").build
        self.channels = plan.dims
        stem = nn.Conv2d(3, plan.dims[0], kernel_size=7, stride=4, padding=2)
        others = [nn.Conv2d(fine, coarse, kernel_size=3, stride=2, padding=1) for fine, coarse in pairwise(plan.dims)]
        self.stages = nn.ModuleList(
            Stage(embedding, [Block(site, build) for site in sites])
            for embedding, sites in zip([stem, *others], plan.sites(image_size), strict=True)
        )
        self.head = linear(plan.dims[-1], num_classes)

    def forward(self, images: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return logits (B, classes) of images (B, 3, H, W).

        Args:
            context: a fresh one where the caller wants to read what the mixers leave in it.
        """
        return self.forward_head(self.forward_features(images, context))

    def forward_features(self, images: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return the normalised tokens (B, h * w, C) of the last stage."""
        return to_tokens(self.features(images, context)[-1])

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, classes), or the pooled features (B, C), of what `forward_features` returns."""
        pooled = features.mean(dim=1)
        return pooled if pre_logits else cast(Tensor, self.head(pooled))

    def features(self, images: Tensor, context: AttentionContext | None = None) -> list[Tensor]:
        """Return the normalised maps (B, C_i, ceil(H / s_i), ceil(W / s_i)) of the stages."""
        maps = pad_to_multiple(images, STRIDES[0], STRIDES[0])
        context = context or AttentionContext((0, 0))
        pyramid = []
        for stage in self.stages:
            maps = stage(maps, context)
            pyramid.append(maps)
        return pyramid

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell the order of the layers for learning rates that differ by layer: each block is one."""
        stages = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)\.norm", (99999,))]
        return {"stem": r"^stages\.0\.embedding", "blocks": [(r"^stages\.(\d+)\.embedding", (0,)), *stages]}


CARD = ModelCard(
    title="MetaFormer-style pyramid",
    source="the project's own carrier; no published figures",
    notes="after arXiv:2111.11418: LayerNorm for its GroupNorm, no layer scale, a norm at each stage's end",
)


@MODELS.register("pyramid_n", CARD)
def pyramid_n(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the pyramid of 8 blocks, narrow enough to be trained on a CPU."""
    plan = Plan(dims=(32, 64, 128, 256), depths=(2, 2, 2, 2), heads=(2, 2, 4, 8))
    return Pyramid(plan, num_classes, image_size, attention)


@MODELS.register("pyramid_t", CARD)
def pyramid_t(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the pyramid of 12 blocks."""
    plan = Plan(dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), heads=(2, 4, 8, 16))
    return Pyramid(plan, num_classes, image_size, attention)


@MODELS.register("pyramid_s", CARD)
def pyramid_s(
    num_classes: int = 1000, image_size: int | tuple[int, int] = 224, attention: BuildAttention | None = None
) -> nn.Module:
    """Build the pyramid of 20 blocks."""
    plan = Plan(dims=(64, 128, 320, 512), depths=(2, 4, 12, 2), heads=(2, 4, 10, 16))
    return Pyramid(plan, num_classes, image_size, attention)
