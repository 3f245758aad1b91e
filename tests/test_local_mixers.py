"""Mixers of neighbourhoods, windows, grids and convolutions equal their formulas, written out without shortcuts."""

from __future__ import annotations

import math

import pytest
import torch
from mixers import DIM, HEADS, build, randomise, site, tokens_of
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl
from torch import Tensor, nn

from baselines.attention.gated_convolution import GatedConvolution, GlobalLocalFilter
from baselines.attention.multi_axis import PartitionAttention
from baselines.layers import neighborhood
from baselines.layers.flexible import attend_flexibly, block_mask
from baselines.layers.heads import merge_heads, split_heads
from baselines.layers.neighborhood import NeighborhoodAttention, neighbors, relation
from harness.models import AttentionContext
from harness.registry import ATTENTIONS

Pair = tuple[int, int]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-6)


def dense(mixer: nn.Module, tokens: Tensor, bias: Tensor) -> Tensor:
    """Return softmax attention with the whole matrix spelt out; the bias (heads, N, N) holds what may not meet."""
    query, key, value = (
        part.reshape(len(tokens), -1, HEADS, DIM // HEADS).transpose(1, 2)
        for part in mixer.qkv(tokens).chunk(3, dim=-1)
    )
    scores = query @ key.mT / (DIM // HEADS) ** 0.5 + bias
    mixed: Tensor = mixer.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
    return mixed


def window_of(place: int, size: int, dilation: int) -> list[int]:
    """Return the seven tokens of a token's own residue whose middle one is as near to it as the border allows."""
    own = [other for other in range(size) if other % dilation == place % dilation]
    windows = [own[first : first + 7] for first in range(max(1, len(own) - 6))]
    return min(windows, key=lambda window: abs(window[len(window) // 2] - place))


def neighborhood_bias(table: Tensor, grid: Pair, dilation: Pair) -> Tensor:
    """Return the bias (heads, N, N), minus infinity outside each token's window."""
    bias = torch.full((HEADS, *grid, *grid), -math.inf)
    windows = [
        [window_of(place, size, step) for place in range(size)] for size, step in zip(grid, dilation, strict=True)
    ]
    for row, rows in enumerate(windows[0]):
        for column, columns in enumerate(windows[1]):
            for below in rows:
                for beside in columns:
                    offset = (below - row) // dilation[0] + 6, (beside - column) // dilation[1] + 6
                    bias[:, row, column, below, beside] = table[:, offset[0], offset[1]]
    return bias.reshape(HEADS, math.prod(grid), math.prod(grid))


@pytest.mark.parametrize(
    ("grid", "dilation", "used"),
    [
        ((9, 12), 1, (1, 1)),
        ((14, 17), 2, (2, 2)),
        ((15, 23), 3, (2, 3)),
        ((8, 14), 2, (1, 2)),
        ((3, 16), 2, (1, 2)),
        ((1, 1), 8, (1, 1)),
    ],
)
@pytest.mark.parametrize("gathered", [2**24, 1])
@torch.no_grad()
def test_neighborhood_is_attention_under_a_mask(
    grid: Pair, dilation: int, used: Pair, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighborhood, "GATHERED", gathered)
    mixer, tokens = randomise(NeighborhoodAttention(site(), dilation)), tokens_of(grid)
    expected = dense(mixer, tokens, neighborhood_bias(mixer.rpb, grid, used))
    assert_close(mixer(tokens, AttentionContext(grid)), expected)


def fused(mixer: NeighborhoodAttention, tokens: Tensor, grid: Pair) -> Tensor:
    """Return what a neighbourhood mixer returns where it uses the fused kernel."""
    query, key, value = split_heads(mixer.qkv(tokens), HEADS, parts=3)
    rows, columns = (relation(*neighbors(size, mixer.dilation, tokens.device)) for size in grid)
    mixed: Tensor = mixer.proj(merge_heads(attend_flexibly(query, key, value, mixer.rpb, rows, columns)))
    return mixed


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize(("grid", "dilation"), [((9, 15), 1), ((20, 30), 2), ((3, 50), 4), ((33, 16), 2)])
@torch.no_grad()
def test_fused_neighborhood_equals_the_plain(grid: Pair, dilation: int) -> None:
    mixer, tokens = randomise(NeighborhoodAttention(site(), dilation)), tokens_of(grid)
    assert_close(fused(mixer, tokens, grid), mixer(tokens, AttentionContext(grid)))


def test_fused_neighborhood_skips_blocks_without_neighbours() -> None:
    rows = relation(*neighbors(64, 1, torch.device("cpu")))
    mask = block_mask(rows >= 0, 64, lambda *_: torch.tensor(True))
    # A block holds two rows of 64 tokens; theirs and three on either side make eight rows, in four or five blocks.
    assert mask.kv_num_blocks.shape == (1, 1, 32)
    assert mask.kv_num_blocks.max() <= 5


@pytest.mark.parametrize(("grid", "dilation"), [((20, 30), 2), ((40, 16), 3), ((9, 15), 1), ((2, 200), 8)])
def test_fused_neighborhood_skips_no_block_with_neighbours(grid: Pair, dilation: int) -> None:
    near = [relation(*neighbors(size, dilation, torch.device("cpu"))) >= 0 for size in grid]
    dense_mask = torch.kron(near[0].float(), near[1].float())  # (N, N)
    blocks = -(-len(dense_mask) // 128)
    padded = nn.functional.pad(dense_mask, [0, blocks * 128 - len(dense_mask)] * 2)
    needed = padded.reshape(blocks, 128, blocks, 128).amax(dim=(1, 3)) > 0
    mask = block_mask(near[0], grid[1], lambda *_: torch.tensor(True))
    for block, (count, order) in enumerate(zip(mask.kv_num_blocks[0, 0], mask.kv_indices[0, 0], strict=True)):
        assert set(needed[block].nonzero().flatten().tolist()) <= set(order[:count].tolist())


@pytest.mark.gpu
@pytest.mark.parametrize(("grid", "dilation"), [((32, 32), 1), ((56, 56), 8), ((40, 33), 2), ((128, 128), 4)])
def test_fused_neighborhood_equals_the_plain_on_a_gpu(
    grid: Pair, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = site(dim=128)
    mixer, tokens = randomise(NeighborhoodAttention(place, dilation)).cuda(), tokens_of(grid, dim=128).cuda()
    outcomes = []
    for fused_from in (0, math.inf):
        monkeypatch.setattr(neighborhood, "FUSED_FROM", fused_from)
        leaf = tokens.clone().requires_grad_()
        mixed = mixer(leaf, AttentionContext(grid))
        outcomes.append((mixed, *torch.autograd.grad(mixed.square().sum(), [leaf, *mixer.parameters()])))
    for kernel, plain in zip(*outcomes, strict=True):
        assert (kernel - plain).abs().max() < 5e-3 * plain.abs().max()


def test_neighborhood_in_blocks_has_the_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = randomise(NeighborhoodAttention(site(), dilation=2))
    gradients = []
    for gathered in (2**24, 1):
        monkeypatch.setattr(neighborhood, "GATHERED", gathered)
        tokens = tokens_of((15, 17)).requires_grad_()
        leaves = [tokens, *mixer.parameters()]
        gradients.append(torch.autograd.grad(mixer(tokens, AttentionContext((15, 17))).square().sum(), leaves))
    for whole, blocks in zip(*gradients, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "dilation"), [(4, 8), (8, 4), (16, 2), (32, 1)])
def test_dilations_are_the_released(stride: int, dilation: int) -> None:
    mixers = [ATTENTIONS.get("dilated_neighborhood").build(site(layer=layer, stride=stride)) for layer in (0, 1, 2, 3)]
    assert [mixer.dilation for mixer in mixers] == [1, dilation, 1, dilation]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("grid", [(14, 14), (21, 7), (28, 14)])
@torch.no_grad()
def test_multi_axis_equals_timm(layer: int, grid: Pair) -> None:
    config = MaxxVitTransformerCfg(dim_head=DIM // HEADS, head_first=False, rel_pos_type="bias_tf")
    config.window_size = config.grid_size = (7, 7)
    reference = randomise(PartitionAttentionCl(DIM, ["block", "grid"][layer], config))
    mixer = ATTENTIONS.get("multi_axis").build(site(layer=layer)).eval()
    state = dict(reference.attn.named_parameters())
    state["bias_table"] = state.pop("rel_pos.relative_position_bias_table")
    mixer.load_state_dict(state, strict=True)
    tokens = tokens_of(grid)
    expected = reference._partition_attn(tokens.reshape(2, *grid, DIM)).flatten(1, 2)
    assert_close(mixer(tokens, AttentionContext(grid)), expected)


def parts_bias(table: Tensor, grid: Pair, padded: Pair, spread: bool) -> Tensor:
    """Return the bias (heads, N, N), minus infinity between tokens of different parts."""
    bias = torch.zeros(HEADS, *grid, *grid)
    index = torch.full((*grid, *grid), 0)
    for axis, (size, whole) in enumerate(zip(grid, padded, strict=True)):
        place, side = torch.arange(size), min(7, size)
        part, inner = (place % (whole // side), place // (whole // side)) if spread else (place // side, place % side)
        shape = [size if position == axis else 1 for position in (0, 1)]
        queries, keys = (torch.Size((*shape, 1, 1)), torch.Size((1, 1, *shape)))
        bias = bias.masked_fill(part.reshape(queries) != part.reshape(keys), -math.inf)
        index = index * 13 + inner.reshape(keys) - inner.reshape(queries) + 6
    bias = bias + table.flatten(1)[:, index.clamp(0, 168)]
    return bias.reshape(HEADS, math.prod(grid), math.prod(grid))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(
    ("grid", "padded"), [((14, 14), (14, 14)), ((9, 16), (14, 21)), ((5, 8), (5, 14)), ((1, 3), (1, 3))]
)
@torch.no_grad()
def test_multi_axis_is_attention_under_a_mask(grid: Pair, padded: Pair, spread: bool) -> None:
    mixer, tokens = randomise(PartitionAttention(site(), spread)), tokens_of(grid)
    expected = dense(mixer, tokens, parts_bias(mixer.bias_table, grid, padded, spread))
    assert_close(mixer(tokens, AttentionContext(grid)), expected)


def around(maps: Tensor, weight: Tensor) -> Tensor:
    """Return maps (B, C, h, w) after a depthwise convolution with an odd kernel, as a sum of shifted maps."""
    side, (height, width) = weight.shape[-1], maps.shape[2:]
    padded = nn.functional.pad(maps, [side // 2] * 4)
    return sum(
        padded[:, :, row : row + height, column : column + width] * weight[:, :, row, column][None, ..., None]
        for row in range(side)
        for column in range(side)
    )


def pointwise(layer: nn.Conv2d, maps: Tensor) -> Tensor:
    return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], maps) + layer.bias[:, None, None]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@torch.no_grad()
def test_gated_convolution_is_its_recursion(order: int) -> None:
    mixer, tokens = randomise(GatedConvolution(DIM, order)), tokens_of((5, 9))
    projected = pointwise(mixer.proj_in, tokens.mT.reshape(2, DIM, 5, 9))
    narrowest = DIM // 2 ** (order - 1)
    current, wide = projected[:, :narrowest], projected[:, narrowest:]
    gates = (around(wide, mixer.dwconv.weight) + mixer.dwconv.bias[:, None, None]) / 3
    first = 0
    for step in range(order):
        current = pointwise(mixer.pws[step - 1], current) if step else current
        current = current * gates[:, first : first + current.shape[1]]
        first += current.shape[1]
    assert_close(mixer(tokens, AttentionContext((5, 9))), pointwise(mixer.proj_out, current).flatten(2).mT)


@torch.no_grad()
def test_global_filter_of_ones_changes_half_of_the_channels_only() -> None:
    layer, maps = randomise(GlobalLocalFilter(6, side=7)), torch.randn(2, 6, 5, 9)
    layer.complex_weight.copy_(torch.tensor([1.0, 0.0]).expand_as(layer.complex_weight))
    normal = nn.functional.layer_norm(maps.permute(0, 2, 3, 1), [6], layer.pre_norm.weight, layer.pre_norm.bias, 1e-6)
    near, far = normal.permute(0, 3, 1, 2).chunk(2, dim=1)
    near = around(near, layer.dw.weight)
    pairs = torch.stack([near[:, 0], far[:, 0], near[:, 1], far[:, 1], near[:, 2], far[:, 2]], dim=-1)
    expected = nn.functional.layer_norm(pairs, [6], layer.post_norm.weight, layer.post_norm.bias, 1e-6)
    assert_close(layer(maps), expected.permute(0, 3, 1, 2))


@torch.no_grad()
def test_global_filter_multiplies_a_wave_by_its_weight() -> None:
    layer = GlobalLocalFilter(2, side=8)
    layer.complex_weight.zero_()
    layer.complex_weight[0, 1, 2] = torch.tensor([0.0, -1.0])  # a quarter of a turn, for one wave
    place = 2 * math.pi / 8 * (torch.arange(8)[:, None] + 2 * torch.arange(8)[None])
    spectrum = torch.fft.rfft2(place.cos(), norm="ortho") * layer._response(torch.empty(1, 1, 8, 5))[0]
    assert_close(torch.fft.irfft2(spectrum, norm="ortho"), place.sin())


@torch.no_grad()
def test_global_filter_keeps_its_lowest_and_highest_frequencies_on_other_maps() -> None:
    layer = GlobalLocalFilter(2, side=8)
    own, other = (layer._response(torch.empty(1, 1, *size)) for size in ((8, 5), (13, 4)))
    assert_close(torch.view_as_real(other[:, ::12, ::3]), torch.view_as_real(own[:, ::7, ::4]))


@pytest.mark.parametrize(("stride", "order"), [(4, 2), (8, 3), (16, 4), (32, 5)])
def test_orders_are_the_released(stride: int, order: int) -> None:
    assert len(ATTENTIONS.get("gated_convolution").build(site(stride=stride)).dims) == order


def test_order_shrinks_where_the_width_cannot_be_halved() -> None:
    assert ATTENTIONS.get("gated_convolution").build(site(stride=32, dim=36)).dims == [9, 18, 36]


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_hyena_is_a_direct_sum_over_a_quadrant(layer: int) -> None:
    mixer, tokens, (height, width) = build("hyena", site(layer=layer)), tokens_of((4, 6)), (4, 6)
    maps = mixer.in_proj(tokens).mT.reshape(2, 3 * DIM, height, width)
    short = around(maps, mixer.short_filter.weight) + mixer.short_filter.bias[:, None, None]
    gate, inner, value = short.chunk(3, dim=1)
    gated = inner * value
    axes = [torch.linspace(0, 1, size) for size in (height, width)]
    waves = [1e-4 * 2 * math.pi * torch.arange(size) / size for size in (height, width)]
    mixed = gated * mixer.filter.bias[:, None, None]
    decay = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, DIM)
    direction = 1 if layer else -1
    for down in range(height):
        for right in range(width):
            phases = waves[0][down], waves[1][right]
            places = zip((axes[0][down], axes[1][right]), phases, strict=True)
            features = [value for place, phase in places for value in (place, phase.cos(), -phase.sin())]
            weight = mixer.filter.layers(torch.stack(features))
            weight = weight * torch.exp(-decay * (axes[0][down] + axes[1][right])) / (4 * height * width) ** 0.5
            for row in range(height):
                for column in range(width):
                    source = row - direction * down, column - direction * right
                    if 0 <= source[0] < height and 0 <= source[1] < width:
                        mixed[:, :, row, column] += weight * gated[:, :, source[0], source[1]]
    assert_close(mixer(tokens, AttentionContext((height, width))), mixer.out_proj((gate * mixed).flatten(2).mT))
