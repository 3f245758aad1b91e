"""Mixers equal their formulas, written out without shortcuts, and timm's modules of the same weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from mixers import DIM, HEADS, build, randomise, site, tokens_of
from timm.models.convit import GPSA
from timm.models.pvt_v2 import Attention as TimmSpatialReduction
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from baselines.attention.agent import AgentAttention
from baselines.attention.gated_positional import GatedPositionalAttention
from baselines.attention.spatial_reduction import SpatialReductionAttention
from baselines.attention.window import WindowAttention
from baselines.layers.block import Block
from harness.models import AttentionContext
from harness.registry import ATTENTIONS

GRID = (14, 14)


def heads_of(tokens: Tensor) -> Tensor:
    return tokens.reshape(len(tokens), -1, HEADS, DIM // HEADS).transpose(1, 2)


def joined(values: Tensor) -> Tensor:
    return values.transpose(1, 2).reshape(len(values), -1, DIM)


def dense(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Return softmax attention of heads (B, heads, N, d), with the whole matrix spelt out."""
    scores = query @ key.mT / (DIM // HEADS) ** 0.5 + bias
    return scores.softmax(dim=-1) @ value


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-6)


def test_softmax_is_its_formula() -> None:
    mixer, tokens = build("softmax", site(prefix=1)), tokens_of(GRID, prefix=1)
    query, key, value = (heads_of(part) for part in mixer.qkv(tokens).chunk(3, dim=-1))
    assert_close(mixer(tokens, AttentionContext(GRID)), mixer.proj(joined(dense(query, key, value))))


def test_linear_is_its_dense_formula() -> None:
    mixer, tokens = build("linear", site(prefix=1)), tokens_of(GRID, prefix=1)
    query, key, value = (heads_of(part) for part in mixer.qkv(tokens).chunk(3, dim=-1))
    similarity = (nn.functional.elu(query) + 1) @ (nn.functional.elu(key) + 1).mT
    mixed = similarity / similarity.sum(dim=-1, keepdim=True) @ value
    assert_close(mixer(tokens, AttentionContext(GRID)), mixer.proj(joined(mixed)))


def test_linear_survives_features_that_round_to_zero() -> None:
    mixer = build("linear", site())
    with torch.no_grad():
        mixer.qkv.weight.zero_()
        mixer.qkv.bias.fill_(-100.0)
    assert mixer(tokens_of(GRID), AttentionContext(GRID)).isfinite().all()


def test_identity_changes_nothing() -> None:
    tokens = tokens_of(GRID)
    assert torch.equal(build("identity", site())(tokens, AttentionContext(GRID)), tokens)


def test_pooling_is_the_mean_of_neighbours_less_the_token() -> None:
    tokens, (height, width) = tokens_of((4, 5)), (4, 5)
    maps = tokens.reshape(2, height, width, DIM)
    expected = torch.empty_like(maps)
    for row in range(height):
        for column in range(width):
            around = maps[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            expected[:, row, column] = around.mean(dim=(1, 2)) - maps[:, row, column]
    assert_close(build("pooling", site())(tokens, AttentionContext((4, 5))), expected.flatten(1, 2))


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_spatial_reduction_equals_timm(ratio: int) -> None:
    torch.manual_seed(0)
    reference = randomise(TimmSpatialReduction(DIM, HEADS, sr_ratio=ratio))
    mixer = SpatialReductionAttention(DIM, HEADS, prefix=0, ratio=ratio).eval()
    mixer.load_state_dict(reference.state_dict(), strict=True)
    tokens = tokens_of((8, 12))
    assert_close(mixer(tokens, AttentionContext((8, 12))), reference(tokens, [8, 12]))


def test_spatial_reduction_keeps_the_prefix_and_the_padded_edge_among_its_keys() -> None:
    mixer, tokens = build("spatial_reduction", site(prefix=1, stride=8)), tokens_of((5, 9), prefix=1)
    assert mixer.ratio == 4
    whole = mixer(tokens, AttentionContext((5, 9)))
    for place in (0, -1):
        changed = tokens.clone()
        changed[:, place] += 1.0
        assert (mixer(changed, AttentionContext((5, 9)))[:, 1] - whole[:, 1]).abs().max() > 1e-4


@pytest.mark.parametrize(("stride", "ratio", "agents"), [(4, 8, 9), (8, 4, 16), (16, 2, 49), (32, 1, 49)])
def test_numbers_follow_the_stride_as_published(stride: int, ratio: int, agents: int) -> None:
    assert ATTENTIONS.get("spatial_reduction").build(site(stride=stride)).ratio == ratio
    assert ATTENTIONS.get("agent").build(site(stride=stride)).side ** 2 == agents


def blend(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) of bilinear interpolation along one axis, with pixels as areas."""
    weights = torch.zeros(new, old)
    for target in range(new):
        position = max((target + 0.5) * old / new - 0.5, 0.0)
        low = min(int(position), old - 1)
        weights[target, low] += 1 - (position - low)
        weights[target, min(low + 1, old - 1)] += position - low
    return weights


def agent_bias(bias: nn.Module, grid: tuple[int, int]) -> Tensor:
    """Return the bias (heads, agents, prefix + h * w) with every interpolation as a matrix."""
    (height, width), (old_height, old_width) = grid, (bias.row.shape[2], bias.column.shape[3])
    coarse = blend(7, height) @ bias.map @ blend(7, width).T
    rows, columns = blend(old_height, height) @ bias.row, bias.column @ blend(old_width, width).T
    whole = (coarse + rows + columns).flatten(2)
    return whole if bias.prefix is None else torch.cat([bias.prefix, whole], dim=2)


def mean_agents(queries: Tensor, side: int) -> Tensor:
    """Return agents (B, side * side, C): means over bins of a map (B, h, w, C) that may overlap or repeat."""
    height, width = queries.shape[1:3]
    bins = [[(i * size // side, -(-(i + 1) * size // side)) for i in range(side)] for size in (height, width)]
    means = [queries[:, top:bottom, left:right].mean(dim=(1, 2)) for top, bottom in bins[0] for left, right in bins[1]]
    return torch.stack(means, dim=1)


def depthwise(values: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Return maps (B, h, w, C) after a 3x3 convolution of each channel, as a sum of nine shifted maps."""
    height, width = values.shape[1:3]
    padded = nn.functional.pad(values, (0, 0, 1, 1, 1, 1))
    shifted = [
        padded[:, i : i + height, j : j + width] * convolution.weight[:, 0, i, j] for i in (0, 1, 2) for j in (0, 1, 2)
    ]
    bias = 0 if convolution.bias is None else convolution.bias
    return torch.stack(shifted).sum(dim=0) + bias


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("grid", [GRID, (5, 9), (16, 3)])
def test_agent_is_its_dense_formula(prefix: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    mixer = randomise(AgentAttention(site(prefix=prefix), side=3))
    tokens = tokens_of(grid, prefix)
    queries, keys, values = mixer.qkv(tokens).chunk(3, dim=-1)
    maps = [part[:, prefix:].reshape(2, *grid, DIM) for part in (queries, values)]
    agents = heads_of(mean_agents(maps[0], side=3))
    gathered = dense(agents, heads_of(keys), heads_of(values), agent_bias(mixer.gathering, grid))
    mixed = joined(dense(heads_of(queries), agents, gathered, agent_bias(mixer.reading, grid).mT))
    mixed[:, prefix:] += depthwise(maps[1], mixer.convolution).flatten(1, 2)
    assert_close(mixer(tokens, AttentionContext(grid)), mixer.proj(mixed))


def widened(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a table of biases (rows, heads) for windows that shrank to a map, as one for windows of 7x7."""
    height, width = (min(7, size) for size in grid)
    inner = table.reshape(2 * height - 1, 2 * width - 1, -1).permute(2, 0, 1)
    outer = nn.functional.pad(inner, (7 - width, 7 - width, 7 - height, 7 - height))
    return outer.permute(1, 2, 0).flatten(0, 1)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("grid", [(14, 14), (14, 21), (7, 14), (7, 7), (4, 6)])
def test_window_block_equals_timm(layer: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    norm = partial(nn.LayerNorm, eps=1e-6)
    reference = randomise(SwinTransformerBlock(DIM, grid, HEADS, window_size=7, shift_size=3 * layer, norm_layer=norm))
    block = Block(site(grid, layer=layer), ATTENTIONS.get("window").build).eval()
    state = reference.state_dict()
    state["attn.bias_table"] = widened(state.pop("attn.relative_position_bias_table"), grid)
    block.load_state_dict(state, strict=True)
    tokens = tokens_of(grid)
    expected = reference(tokens.reshape(2, *grid, DIM)).flatten(1, 2)
    assert_close(block(tokens, AttentionContext(grid)), expected)


def window_bias(mixer: WindowAttention, size: tuple[int, int]) -> Tensor:
    """Return the bias (heads, H * W, H * W) between all tokens of a padded map: minus infinity unless they may meet."""
    places = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    together, index = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
    for axis, length in zip(places, size, strict=True):
        place, shift = axis.flatten(), 3 if mixer.shifted and length > 7 else 0
        moved, wraps = (place - shift) % length, place < shift
        together = together & (moved[:, None] // 7 == moved // 7) & (wraps[:, None] == wraps)
        index = index * 13 + (moved[:, None] - moved).clamp(-6, 6) + 6
    bias = mixer.bias_table[index].permute(2, 0, 1)
    return bias.masked_fill(~together, float("-inf"))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("grid", "padded"), [((14, 14), (14, 14)), ((9, 16), (14, 21)), ((7, 8), (7, 14))])
def test_window_is_attention_between_neighbours(grid: tuple[int, int], padded: tuple[int, int], shifted: bool) -> None:
    torch.manual_seed(0)
    mixer = randomise(WindowAttention(site(), shifted))
    tokens = tokens_of(grid)
    maps = torch.zeros(2, *padded, DIM)
    maps[:, : grid[0], : grid[1]] = tokens.reshape(2, *grid, DIM)
    query, key, value = (heads_of(part) for part in mixer.qkv(maps.flatten(1, 2)).chunk(3, dim=-1))
    mixed = joined(dense(query, key, value, window_bias(mixer, padded))).reshape(2, *padded, DIM)
    expected = mixer.proj(mixed[:, : grid[0], : grid[1]].flatten(1, 2))
    assert_close(mixer(tokens, AttentionContext(grid)), expected)


@pytest.mark.parametrize("side", [7, 12])
def test_gated_positional_equals_timm(side: int) -> None:
    reference = randomise(GPSA(DIM, HEADS))
    mixer = GatedPositionalAttention(DIM, HEADS).eval()
    state = reference.state_dict()
    state.pop("pos_proj.bias")  # the same for all keys, so that the softmax cancels it
    mixer.load_state_dict(state, strict=True)
    tokens = tokens_of((side, side))
    assert_close(mixer(tokens, AttentionContext((side, side))), reference(tokens))


def test_gated_positional_is_its_dense_formula_on_any_grid() -> None:
    mixer, tokens, (height, width) = build("gated_positional", site()), tokens_of((5, 9)), (5, 9)
    place = torch.arange(height * width)
    right, down = (place[None] % width - place[:, None] % width), (place[None] // width - place[:, None] // width)
    seen = torch.stack([right, down, right**2 + down**2], dim=-1).float()
    places = mixer.pos_proj(seen).permute(2, 0, 1).softmax(dim=-1)
    query, key = (heads_of(part) for part in mixer.qk(tokens).chunk(2, dim=-1))
    contents = (query @ key.mT / (DIM // HEADS) ** 0.5).softmax(dim=-1)
    gate = torch.sigmoid(mixer.gating_param)[:, None, None]
    mixed = ((1 - gate) * contents + gate * places) @ heads_of(mixer.v(tokens))
    assert_close(mixer(tokens, AttentionContext((height, width))), mixer.proj(joined(mixed)))


@pytest.mark.parametrize("heads", [4, 6, 9])
def test_gated_positional_starts_as_timm_s(heads: int) -> None:
    reference, mixer = GPSA(heads * 8, heads), GatedPositionalAttention(heads * 8, heads)
    reference.local_init()
    taps = int(heads**0.5) ** 2
    assert torch.equal(mixer.pos_proj.weight[:taps], reference.pos_proj.weight[:taps])
    assert torch.equal(mixer.v.weight, reference.v.weight)
    assert torch.equal(mixer.gating_param, reference.gating_param)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("grid", [(1, 1), (5, 9), (14, 14)])
def test_conv_projection_is_its_formula(prefix: int, grid: tuple[int, int]) -> None:
    mixer, tokens = build("conv_projection", site(prefix=prefix)), tokens_of(grid, prefix)
    maps = tokens[:, prefix:].reshape(2, *grid, DIM)
    heads = []
    for (convolution, norm), project, step in (
        (mixer.conv_proj_q, mixer.proj_q, 1),
        (mixer.conv_proj_k, mixer.proj_k, 2),
        (mixer.conv_proj_v, mixer.proj_v, 2),
    ):
        convolved = depthwise(maps, convolution)[:, ::step, ::step]
        normal = (convolved - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        heads.append(heads_of(project(torch.cat([tokens[:, :prefix], normal.flatten(1, 2)], dim=1))))
    query, key, value = heads
    mixed = joined((query @ key.mT / DIM**0.5).softmax(dim=-1) @ value)
    assert_close(mixer(tokens, AttentionContext(grid)), mixer.proj(mixed))


@pytest.mark.parametrize("prefix", [0, 1])
def test_strip_is_its_dense_formula(prefix: int) -> None:
    grid = (6, 10)
    mixer, tokens = build("strip", site(prefix=prefix)), tokens_of(grid, prefix)
    tiles = tokens[:, prefix:].reshape(2, 3, 2, 5, 2, DIM).permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
    reduced = mixer.norm(tiles @ mixer.reduction.weight.flatten(1).T + mixer.reduction.bias)
    sources = torch.cat([tokens[:, :prefix], reduced], dim=1)
    query, key = (part.reshape(2, -1, HEADS, 2).transpose(1, 2) for part in (mixer.q(tokens), mixer.k(sources)))
    mixed = (query @ key.mT / 2**0.5).softmax(dim=-1) @ heads_of(mixer.v(sources))
    assert_close(mixer(tokens, AttentionContext(grid)), mixer.proj(joined(mixed)))
