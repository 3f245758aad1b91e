"""The blocks of an isotropic ViT, opened where tokens can be dropped, merged or clustered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.block import Blocks
from baselines.layers.heads import merge_heads, split_heads
from harness.errors import ModelError
from harness.models import AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

Between = Callable[[Tensor, Tensor, Tensor], Tensor]


class OpenAttention(nn.Module):
    """Softmax attention with the layers of another, which takes a bias and tells its queries and keys.

    Args:
        attention: the carriers' own softmax attention or timm's `Attention`; parameters keep their names.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.heads if hasattr(attention, "heads") else attention.num_heads
        self.qkv: nn.Module = attention.qkv
        self.q_norm, self.k_norm, self.norm = (_child(attention, name) for name in ("q_norm", "k_norm", "norm"))
        self.attn_drop = _child(attention, "attn_drop")
        self.gate: nn.Module | None = getattr(attention, "gate", None)
        self.proj: nn.Module = attention.proj
        self.proj_drop = _child(attention, "proj_drop")

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed tokens (B, N, C), and queries and keys (B, heads, N, C / heads).

        Args:
            bias: added to the logits (B, heads, N, N), to which it is broadcast; of booleans: what may be seen.
        """
        query, key, value = split_heads(self.qkv(tokens), self.heads, parts=3)
        query, key = self.q_norm(query), self.k_norm(key)
        bias = self.connect(query, key) if bias is None else bias
        if bias is not None and bias.dtype != torch.bool:
            bias = bias.to(query.dtype)
        dropout = self.attn_drop.p if self.training and isinstance(self.attn_drop, nn.Dropout) else 0.0
        mixed = self.norm(merge_heads(F.scaled_dot_product_attention(query, key, value, bias, dropout)))
        if self.gate is not None:
            mixed = mixed * self.gate(tokens).sigmoid()
        return self.proj_drop(self.proj(mixed)), query, key

    def connect(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Return the bias that queries and keys themselves make; None for none."""
        return None


class OpenBlock(nn.Module):
    """A pre-norm block with the layers of another, which lets a reducer act between attention and MLP."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1: nn.Module = block.norm1
        self.attn = OpenAttention(block.attn)
        self.ls1, self.drop_path1 = _child(block, "ls1"), _child(block, "drop_path1")
        self.norm2: nn.Module = block.norm2
        self.mlp: nn.Module = block.mlp
        self.ls2, self.drop_path2 = _child(block, "ls2"), _child(block, "drop_path2")

    def forward(self, tokens: Tensor, bias: Tensor | None, between: Between | None) -> Tensor:
        """Return tokens (B, N', C) of tokens (B, N, C).

        Both arguments must be given, so that code which runs the blocks by itself fails instead of reducing nothing.

        Args:
            between: from the tokens after the attention, its queries and its keys to the tokens that the MLP gets.
        """
        mixed, query, key = self.attn(self.norm1(tokens), bias)
        tokens = tokens + self.drop_path1(self.ls1(mixed))
        if between is not None:
            tokens = between(tokens, query, key)
        outputs: Tensor = tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))
        return outputs


class OpenBlocks(nn.Sequential):
    """The opened blocks of a model; a reducer is a subclass, whose `forward` says what happens between them.

    `forward` takes and returns tokens (B, prefix + h * w, C) in the order of the grid, so that the final norm, the
    pooling, the head and the maps of the model are what they were. It runs with `context` None in timm's models.
    """

    no_map_inside: str

    def __init__(self, model: Any, wrapper: str) -> None:
        _check(model, wrapper)
        super().__init__(*(OpenBlock(block) for block in model.blocks))
        self.no_map_inside = (
            f"Between its blocks a model with {wrapper!r} has no map: its tokens are reduced. Use layer=last, whose "
            "tokens are put back to their places."
        )
        self.prefix = int(getattr(model, "num_prefix_tokens", getattr(model, "prefix", 0)))
        self.grid: tuple[int, int] = model.grid if hasattr(model, "grid") else tuple(model.patch_embed.grid_size)

    def forward(self, tokens: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return tokens (B, prefix + h * w, C) of the same shape."""
        for block in self:
            tokens = block(tokens, None, None)
        return tokens


class Canvas:
    """All tokens of some images, each with the value that it had when it was last computed.

    What is dropped is kept here, so that there are maps (arXiv:2306.07050); nothing reads it before the end.

    Args:
        values: (B, N + 1, C); the last row takes what has no place of its own.
        places: (B, K), the row of each of the current tokens.
    """

    def __init__(self, tokens: Tensor) -> None:
        batch, count, _ = tokens.shape
        self.nowhere = count
        self.values = F.pad(tokens, (0, 0, 0, 1))
        self.places = torch.arange(count, device=tokens.device).expand(batch, count)

    def keep(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Return the chosen of the current tokens (B, K, C), by their indices (B, K')."""
        self.write(tokens)
        self.places = self.places.gather(1, chosen)
        return take(tokens, chosen)

    def write(self, tokens: Tensor) -> Tensor:
        """Note the values of the current tokens (B, K, C), and return all (B, N, C)."""
        rows = self.places[..., None].expand_as(tokens)
        self.values = self.values.to(tokens.dtype).scatter(1, rows, tokens)
        return self.values[:, : self.nowhere]


def take(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Return the tokens (B, K, C) of (B, N, C) that indices (B, K) name."""
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))


def reduced(model: Any, blocks: OpenBlocks) -> nn.Module:
    """Return the model with these blocks in the place of its own; other ways through the blocks are closed."""
    model.blocks = blocks
    model.forward_intermediates = partial(_refuse_intermediates, blocks.no_map_inside)
    return model  # type: ignore[no-any-return]


def refuse_without_class(model: Any, wrapper: str) -> None:
    """Check that a model has a class token.

    Raises:
        ModelError: it has none; carriers that have one are named.
    """
    if getattr(model, "cls_token", None) is None:
        raise ModelError(
            f"{wrapper!r} decides by the class token, and {type(model).__name__} has none here. "
            f"Use a model with one, such as vit_s16_cls+{wrapper} instead of vit_s16+{wrapper}."
        )


def _refuse_intermediates(why: str, *_: Any, **__: Any) -> NoReturn:
    raise ModelError(why)


def _check(model: Any, wrapper: str) -> None:
    """Refuse a model whose blocks cannot be opened."""
    from timm.models.vision_transformer import Attention, VisionTransformer
    from timm.models.vision_transformer import Block as TimmBlock

    blocks = list(getattr(model, "blocks", ()))
    mixers = {type(getattr(block, "attn", block)) for block in blocks}
    if isinstance(getattr(model, "blocks", None), Blocks) and mixers == {_softmax()}:
        return
    plain = {type(block) for block in blocks} == {TimmBlock} and mixers == {Attention}
    if isinstance(model, VisionTransformer) and plain:
        return
    found = ", ".join(sorted(mixer.__name__ for mixer in mixers)) or "no blocks"
    raise ModelError(
        f"{wrapper!r} needs an isotropic ViT whose blocks mix with softmax attention, which takes any set of tokens; "
        f"{type(model).__name__} has {found}. Use vit_s16_cls+{wrapper}, or a plain ViT of timm such as "
        f"timm:deit_small_patch16_224+{wrapper}."
    )


def _softmax() -> type[nn.Module]:
    """The class of the carriers' softmax attention, which alone takes any set of tokens."""
    return type(ATTENTIONS.get("softmax").build(AttentionSite(1, 1, (1, 1), 0, 0, 1, 0, 1)))


def _child(module: nn.Module, name: str) -> nn.Module:
    child = getattr(module, name, None)
    return child if isinstance(child, nn.Module) else nn.Identity()
