"""Mixers with state that crosses blocks equal their formulas, and the state goes where it should and no further."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mixers import DIM, HEADS, build, crosses_blocks, randomise, site, tokens_of
from torch import Tensor, nn

from baselines.attention.forward_cross import MERGED
from baselines.attention.self_guided import SIGNIFICANCE
from harness.models import AttentionContext, build_model
from harness.registry import ATTENTIONS, MODELS

Pair = tuple[int, int]
WIDTH = DIM // HEADS
STATEFUL = [name for name in ATTENTIONS if crosses_blocks(name)]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-6)


def heads_of(tokens: Tensor) -> Tensor:
    return tokens.reshape(len(tokens), tokens.shape[1], -1, WIDTH).transpose(1, 2)


def joined(values: Tensor) -> Tensor:
    return values.transpose(1, 2).flatten(2)


def tiles(maps: Tensor, side: int) -> Tensor:
    """Return tiles (B, h, w, side * side * C) of maps (B, H, W, C), filled with zeros below and to the right."""
    below, right = (-size % side for size in maps.shape[1:3])
    padded = nn.functional.pad(maps, (0, 0, 0, right, 0, below))
    whole = padded.reshape(len(maps), padded.shape[1] // side, side, padded.shape[2] // side, side, -1)
    return whole.permute(0, 1, 3, 5, 2, 4).flatten(3)


def beside(mixer: nn.Module, tokens: Tensor, grid: Pair) -> Tensor:
    """Return the 3x3 convolution of projected tokens, as a sum of shifted maps."""
    maps = nn.functional.pad(mixer.lepe_linear(tokens).reshape(len(tokens), *grid, DIM), (0, 0, 1, 1, 1, 1))
    weight = mixer.lepe_conv.weight
    shifted = [maps[:, i : i + grid[0], j : j + grid[1]] * weight[:, 0, i, j] for i in range(3) for j in range(3)]
    return (torch.stack(shifted).sum(dim=0) + mixer.lepe_conv.bias).flatten(1, 2)


@pytest.mark.parametrize(("grid", "stride"), [((14, 14), 8), ((9, 10), 8), ((16, 5), 4), ((3, 8), 16), ((1, 1), 4)])
@torch.no_grad()
def test_hybrid_scale_is_its_dense_formula(grid: Pair, stride: int) -> None:
    mixer, tokens, context = build("self_guided", site(layer=2, stride=stride)), tokens_of(grid), AttentionContext(grid)
    ratio, place = 32 // stride, torch.arange(grid[0] * grid[1])
    rows, columns = place // grid[1], place % grid[1]
    reduced = tiles(tokens.reshape(2, *grid, DIM), ratio) @ mixer.sr.weight.flatten(1).T + mixer.sr.bias
    keys, values = mixer.kv1(nn.functional.gelu(mixer.norm(reduced))).flatten(1, 2).chunk(2, dim=2)
    far = (heads_of(mixer.q1(tokens)) @ heads_of(keys).mT / WIDTH**0.5).softmax(dim=-1)
    sought = far.mean(dim=(1, 2))[:, rows // ratio * reduced.shape[2] + columns // ratio]
    near_keys, near_values = mixer.kv2(tokens).chunk(2, dim=2)
    together = (rows[:, None] // 7 == rows // 7) & (columns[:, None] // 7 == columns // 7)
    scores = heads_of(mixer.q2(tokens)) @ heads_of(near_keys).mT / WIDTH**0.5
    near = scores.masked_fill(~together, -math.inf).softmax(dim=-1)
    noted = near.mean(dim=1).sum(dim=1) / together.sum(dim=0)
    mixed = torch.cat([joined(far @ heads_of(values)), joined(near @ heads_of(near_values))], dim=2)
    assert_close(mixer(tokens, context), mixer.proj(mixed + beside(mixer, tokens, grid)))
    assert_close(context.memory[SIGNIFICANCE], (sought + noted).reshape(2, *grid))


def compressed(mixer: nn.Module, tokens: Tensor, significance: Tensor) -> Tensor:
    """Return keys (n, C) of tokens (N, C), group by group from the least significant."""
    order = sorted(range(len(tokens)), key=lambda place: significance[place].item())
    quarter, keys = len(order) // 4, []
    bounds = [quarter, 3 * quarter] if len(mixer.groups) == 3 else [len(order) // 2]
    for start, stop, group in zip([0, *bounds], [*bounds, len(order)], mixer.groups, strict=True):
        for first in range(start, stop, group.in_features):
            chosen = tokens[order[first : min(first + group.in_features, stop)]]
            keys.append(group.weight[0, : len(chosen)] @ chosen + group.bias)
    return torch.stack(keys)


@pytest.mark.parametrize(("grid", "stride"), [((14, 14), 8), ((9, 15), 8), ((28, 15), 4), ((3, 5), 16), ((1, 1), 4)])
@torch.no_grad()
def test_self_guided_attends_to_groups_in_the_order_of_significance(grid: Pair, stride: int) -> None:
    mixer, tokens = build("self_guided", site(layer=3, stride=stride)), tokens_of(grid)
    context, significance = AttentionContext(grid), torch.rand(2, *grid)
    context.memory[SIGNIFICANCE] = significance
    by_column = tokens.reshape(2, *grid, DIM).transpose(1, 2).flatten(1, 2)
    rows, columns = (
        torch.stack([compressed(mixer, *pair) for pair in zip(order, scores.flatten(1), strict=True)])
        for order, scores in ((tokens, significance), (by_column, significance.mT))
    )
    pairs = [part.chunk(2, dim=2) for part in (mixer.kv1(rows), mixer.kv2(columns))]
    keys, values = (torch.cat([heads_of(one), heads_of(two)], dim=1) for one, two in zip(*pairs, strict=True))
    mixed = (heads_of(mixer.q(tokens)) @ keys.mT / WIDTH**0.5).softmax(dim=-1) @ values
    expected = mixer.proj(joined(mixed) + beside(mixer, tokens, grid))
    assert_close(mixer(tokens, context), expected)
    assert not context.memory


@torch.no_grad()
def test_significance_has_no_gradient_and_moves_to_another_grid() -> None:
    first, second = (build("self_guided", site(layer=layer)) for layer in (0, 1))
    context = AttentionContext((4, 6))
    with torch.enable_grad():
        first(tokens_of((4, 6)).requires_grad_(), context)
    significance = context.memory[SIGNIFICANCE]
    assert not significance.requires_grad
    coarse, fine = (AttentionContext((8, 12)) for _ in range(2))
    coarse.memory[SIGNIFICANCE] = significance
    fine.memory[SIGNIFICANCE] = significance.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    tokens = tokens_of((8, 12))
    assert torch.equal(second(tokens, coarse), second(tokens, fine))


@pytest.mark.parametrize(("stride", "layer", "kind"), [
    (4, 0, "HybridScaleAttention"),
    (16, 5, "SelfGuidedAttention"),
    (32, 0, "WholeAttention"),
    (32, 1, "WholeAttention"),
])  # fmt: skip
def test_blocks_take_turns(stride: int, layer: int, kind: str) -> None:
    place = replace(site(layer=layer + 3, stride=stride), first=3)
    assert type(ATTENTIONS.get("self_guided").build(place)).__name__ == kind


def windows_of(tokens: Tensor, grid: Pair, block: int, side: int = 14) -> tuple[list[Tensor], list[Tensor], Pair]:
    """Return the windows (B, n, C) of tokens, the places of their own tokens in each, and a window's size."""
    height, width = (min(side, size) for size in grid)
    below, right = -grid[0] % height, -grid[1] % width
    above, left = (0, 0) if block % 2 else (below, right)
    maps = torch.zeros(2, grid[0] + below, grid[1] + right, DIM)
    maps[:, above : above + grid[0], left : left + grid[1]] = tokens.reshape(2, *grid, DIM)
    numbers = torch.full(maps.shape[1:3], -1)
    numbers[above : above + grid[0], left : left + grid[1]] = torch.arange(grid[0] * grid[1]).reshape(grid)
    corners = [(top, edge) for top in range(0, len(numbers), height) for edge in range(0, numbers.shape[1], width)]
    cuts = [(slice(top, top + height), slice(edge, edge + width)) for top, edge in corners]
    return [maps[:, a, b].flatten(1, 2) for a, b in cuts], [numbers[a, b].flatten() for a, b in cuts], (height, width)


def crossed(mixer: nn.Module, window: Tensor, earlier: list[Tensor], size: Pair) -> Tensor:
    """Return attention (B, n, C) to a window (B, n, C) and to merged tokens (B, m, C) of earlier blocks."""
    place = torch.arange(size[0] * size[1])
    down, right = ((part[:, None] - part).abs() for part in (place // size[1], place % size[1]))
    query, key, value = (heads_of(part) for part in mixer.qkv(window).chunk(3, dim=2))
    bias = mixer.bias[:, down, right]
    tall, wide = (math.ceil(length / 4) for length in size)
    for source, merged in enumerate(earlier):
        scale = mixer.scale[source, :tall, :wide].flatten(0, 1)
        more = mixer.qkv(mixer.norm(merged * scale)).chunk(3, dim=2)[1:]
        key, value = (torch.cat(pair, dim=2) for pair in zip((key, value), map(heads_of, more), strict=True))
        own = mixer.cross_bias[:, source, :tall, :wide].flatten(1)[:, None]
        bias = torch.cat([bias, own.expand(-1, len(place), -1)], dim=2)
    return mixer.proj(joined((query @ key.mT / WIDTH**0.5 + bias).softmax(dim=-1) @ value))


@pytest.mark.parametrize(("grid", "stride"), [((14, 14), 16), ((9, 20), 16), ((9, 9), 32), ((1, 3), 8)])
@torch.no_grad()
def test_forward_cross_is_its_dense_formula(grid: Pair, stride: int) -> None:
    context, earlier = AttentionContext(grid), {}
    for block in range(4):
        mixer, tokens = build("forward_cross", site(layer=block, stride=stride, depth=4)), tokens_of(grid) + block
        expected = torch.empty_like(tokens)
        windows, places, size = windows_of(tokens, grid, block, 7 if stride == 32 else 14)
        for number, (window, place) in enumerate(zip(windows, places, strict=True)):
            mixed = crossed(mixer, window, earlier.setdefault(number, []), size)
            expected[:, place[place >= 0]] = mixed[:, place >= 0]
            if block < 3:
                maps = (window + mixed).mT.reshape(2, DIM, *size)
                merged = nn.functional.conv2d(maps, mixer.merge.weight, stride=4, padding=3, groups=DIM)
                earlier[number].append(merged.flatten(2).mT)
        assert_close(mixer(tokens, context), expected)
    assert mixer.merge is None
    merged = torch.stack([torch.cat(blocks, dim=1) for blocks in earlier.values()], dim=1)
    assert_close(context.memory[MERGED], merged)


@torch.no_grad()
def test_forward_cross_reaches_back_twelve_blocks_and_no_further() -> None:
    context, tokens, counts = AttentionContext((5, 5)), tokens_of((5, 5)), []
    for layer in range(15):
        mixer = build("forward_cross", site((5, 5), layer=layer, depth=15))
        mixer(tokens, context)
        counts.append((mixer.earlier, context.memory[MERGED].shape[2] // 4))
    assert counts == [(min(layer, 12), min(layer + 1, 12)) for layer in range(14)] + [(12, 12)]


@torch.no_grad()
def test_a_stage_begins_anew() -> None:
    opening = build("forward_cross", replace(site(layer=4), first=4, last=9))
    tokens, left_over = tokens_of((5, 5)), AttentionContext((5, 5))
    left_over.memory[MERGED] = torch.randn(2, 9, 3, 7)
    assert torch.equal(opening(tokens, left_over), opening(tokens, AttentionContext((5, 5))))
    assert left_over.memory[MERGED].shape == (2, 1, 4, DIM)


@pytest.mark.parametrize("carrier", ["vit_t16", "pyramid_t"])
@pytest.mark.parametrize("name", STATEFUL)
@torch.no_grad()
def test_nothing_is_left_for_the_next_pass_or_image(name: str, carrier: str) -> None:
    model = randomise(build_model(f"{carrier}+{name}", num_classes=3))
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    first = model(images)
    model(images.flip(0)[:, :, :50])
    assert torch.equal(model(images), first)
    assert_close(torch.cat([model(image) for image in images.split(1)]), first)


@pytest.mark.parametrize("carrier", ["vit_t16", "pyramid_t", "pyramid_s"])
def test_carriers_tell_where_a_stage_begins_and_ends(carrier: str) -> None:
    sites = []

    def attention(place: object) -> nn.Module:
        sites.append(place)
        return nn.Identity()

    with torch.device("meta"):
        MODELS.get(carrier).build(attention=attention)
    for place in sites:
        stage = [other.layer for other in sites if other.stage == place.stage]
        assert place.block == stage.index(place.layer)
        assert place.ends_stage == (place.layer == stage[-1])
