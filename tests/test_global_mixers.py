"""Mixers that join the whole map equal their formulas, written out without shortcuts."""

from __future__ import annotations

import math

import pytest
import torch
from mixers import DIM, HEADS, build, site, tokens_of
from torch import Tensor, nn

from baselines.attention import polyline_path
from baselines.attention.scattering import HIGH, HIGH_BACK, LOW, LOW_BACK, analyse, synthesise
from baselines.attention.token_aware import LOSS, similarity
from harness.models import AttentionContext, build_model
from harness.training import forward_with_losses

Pair = tuple[int, int]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-6)


def heads_of(tokens: Tensor) -> Tensor:
    return tokens.reshape(len(tokens), -1, HEADS, DIM // HEADS).transpose(1, 2)


def joined(values: Tensor) -> Tensor:
    return values.transpose(1, 2).reshape(len(values), -1, DIM)


def turned(heads: Tensor) -> Tensor:
    """Return heads (B, heads, N, d) with each pair of channels as a complex number, turned by its angle."""
    pairs = DIM // HEADS // 2
    speed = torch.tensor([10000 ** (-pair / (pairs - 1)) for pair in range(pairs)])
    angle = torch.arange(heads.shape[2])[:, None] * speed
    turn = torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(torch.view_as_complex(heads.unflatten(-1, (pairs, 2))) * turn).flatten(-2)


def decays(mixer: nn.Module, tokens: Tensor, grid: Pair) -> Tensor:
    """Return the decays (2, B, heads, h, w) of a step along the row and of one along the column."""
    paces = tokens.reshape(len(tokens), -1, HEADS, DIM // HEADS) @ mixer.pace.weight.T + mixer.pace_bias[:, None]
    logarithms = -mixer.log_rate.exp()[:, None] * nn.functional.softplus(paces)
    return logarithms.exp().permute(3, 0, 2, 1).unflatten(3, grid)


def path_mask(right: Tensor, down: Tensor) -> Tensor:
    """Return the mask (B, heads, N, N), step by step along the query's row, then along the key's column."""
    _, _, height, width = right.shape
    mask = torch.ones(*right.shape, height, width)
    for row in range(height):
        for column in range(width):
            for to_row in range(height):
                for to_column in range(width):
                    for step in range(min(column, to_column) + 1, max(column, to_column) + 1):
                        mask[:, :, row, column, to_row, to_column] *= right[:, :, row, step]
                    for step in range(min(row, to_row) + 1, max(row, to_row) + 1):
                        mask[:, :, row, column, to_row, to_column] *= down[:, :, step, to_column]
    return mask.flatten(4).flatten(2, 3)


@pytest.mark.parametrize("held", [1, 2**24])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 2)])
@torch.no_grad()
def test_polyline_path_is_attention_under_both_masks(grid: Pair, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polyline_path, "HELD", held)
    mixer, tokens = build("polyline_path", site()), tokens_of(grid)
    query, key, value = (heads_of(part) for part in mixer.qkv(tokens).chunk(3, dim=-1))
    weights = (turned(query) @ turned(key).mT / (DIM // HEADS) ** 0.5).exp()
    mask = path_mask(*decays(mixer, tokens, grid))
    first, second = (weights * one / (weights * one).sum(dim=-1, keepdim=True) for one in (mask, mask.mT))
    mixed = joined((first + second) / 2 @ value) + mixer.lepe(joined(value).mT.unflatten(2, grid)).flatten(2).mT
    assert_close(mixer(tokens, AttentionContext(grid)), mixer.proj(mixed))


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 2)])
@torch.no_grad()
def test_criss_cross_is_two_dense_matrices_in_both_orders(grid: Pair) -> None:
    mixer, tokens = build("polyline_path_crisscross", site()), tokens_of(grid)
    query, key, value = (heads_of(part) for part in mixer.qkv(tokens).chunk(3, dim=-1))
    weights = (turned(query) @ turned(key).mT / (DIM // HEADS) ** 0.5).exp()
    weights = weights * path_mask(*decays(mixer, tokens, grid))
    place = torch.arange(grid[0] * grid[1])
    rows, columns = (
        weights * (line[:, None] == line) / (weights * (line[:, None] == line)).sum(dim=-1, keepdim=True)
        for line in (place // grid[1], place % grid[1])
    )
    mixed = joined((columns @ rows + rows @ columns) / 2 @ value)
    mixed = mixed + mixer.lepe(joined(value).mT.unflatten(2, grid)).flatten(2).mT
    assert_close(mixer(tokens, AttentionContext(grid)), mixer.proj(mixed))


def test_gradients_are_the_same_when_scores_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, gradients = build("polyline_path", site()), []
    for held in (2**24, 1):
        monkeypatch.setattr(polyline_path, "HELD", held)
        tokens = tokens_of((5, 6)).requires_grad_()
        loss = mixer(tokens, AttentionContext((5, 6))).square().sum()
        gradients.append(torch.autograd.grad(loss, [tokens, *mixer.parameters()]))
    for whole, parts in zip(*gradients, strict=True):
        assert_close(parts, whole)


def around(maps: Tensor, dilation: int) -> Tensor:
    """Return maps (B, 9, C, h, w) of the nine tokens that lie a dilation apart around each one, zeros outside."""
    height, width = maps.shape[2:]
    padded = nn.functional.pad(maps, [dilation] * 4)
    steps = [(row * dilation, column * dilation) for row in range(3) for column in range(3)]
    return torch.stack([padded[:, :, top : top + height, left : left + width] for top, left in steps], dim=1)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("grid", [(1, 1), (5, 9)])
@torch.no_grad()
def test_token_aware_is_its_dense_formula(grid: Pair, prefix: int) -> None:
    mixer, tokens = build("token_aware", site(prefix=prefix)), tokens_of(grid, prefix)
    maps = tokens[:, prefix:].mT.unflatten(2, grid)
    first, norm, second = mixer.pool.weigh
    hidden = torch.einsum("bkchw,ock->bohw", around(maps, 1), first.weight.flatten(2))
    hidden = (hidden - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    hidden = hidden * norm.weight[:, None, None] + norm.bias[:, None, None]
    share = torch.einsum("bkchw,ock->bohw", around(hidden, 1), second.weight.flatten(2)).softmax(dim=1)
    scales = [maps, *(around(maps, dilation).mean(dim=1) for dilation in (1, 2, 3))]
    pooled = sum(share[:, scale, None] * scales[scale] for scale in range(4))
    sources = mixer.norm(torch.cat([tokens[:, :prefix], pooled.flatten(2).mT], dim=1))
    query, key, value = (heads_of(part) for part in mixer.qkv(sources).chunk(3, dim=-1))
    mixed = (query @ key.mT / (DIM // HEADS) ** 0.5).softmax(dim=-1) @ value
    assert_close(mixer(tokens, AttentionContext(grid)), mixer.proj(joined(mixed)))


def test_diversification_is_the_similarity_to_the_mean_row() -> None:
    weights = (3 * torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))).softmax(dim=-1)
    cosines = []
    for image in weights.mean(dim=1).tolist():
        mean = [sum(row[key] for row in image) / 6 for key in range(6)]
        shared = [value if value > 2 / 6 else 0.0 for value in mean]
        for row in image:
            kept = [value if value > 2 / 6 else 0.0 for value in row]
            size = math.sqrt(sum(value**2 for value in kept) * sum(value**2 for value in shared))
            cosines.append(sum(a * b for a, b in zip(kept, shared, strict=True)) / size if size else 0.0)
    assert any(cosines)
    assert similarity(weights).item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)


def test_diversification_is_one_where_all_attend_to_the_same_and_zero_where_none_do() -> None:
    assert similarity(torch.eye(8)[3].expand(2, 4, 8, 8)).item() == pytest.approx(1)
    assert similarity(torch.full((2, 4, 8, 8), 1 / 8)).item() == 0
    assert similarity(torch.eye(8).expand(2, 4, 8, 8)).item() == 0


def training_at(prefix: int, layer: int, depth: int) -> nn.Module:
    """Return a mixer whose attention is far from uniform, and which trains except for its statistics."""
    mixer = build("token_aware", site(prefix=prefix, layer=layer, depth=depth))
    mixer.qkv.weight.data.mul_(6)
    mixer.train().pool.eval()
    return mixer


@pytest.mark.parametrize("prefix", [0, 1])
def test_loss_of_attention_is_for_training_and_a_mean_over_blocks(prefix: int) -> None:
    grid, tokens, losses = (4, 5), tokens_of((4, 5), prefix), []
    shared, evaluated = AttentionContext(grid), AttentionContext(grid)
    for layer in (0, 1):
        mixer, alone = training_at(prefix, layer, depth=2), AttentionContext(grid)
        mixed = training_at(prefix, layer, depth=1)(tokens, alone)
        losses.append(alone.auxiliary[LOSS].item())
        assert_close(mixer(tokens, shared), mixed)
        assert_close(mixer.eval()(tokens, evaluated), mixed)
    assert not evaluated.auxiliary
    assert 0 < sum(losses) < 2
    assert shared.auxiliary[LOSS].item() == pytest.approx(sum(losses) / 2, rel=1e-5)
    shared.auxiliary[LOSS].backward()
    assert mixer.qkv.weight.grad.any()
    assert mixer.proj.weight.grad is None


def test_training_finds_the_loss_of_attention() -> None:
    model = build_model("vit_t16+token_aware", num_classes=3).train()
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(20)
    _, loss = forward_with_losses(model)(torch.randn(2, 3, 48, 64))
    assert 0 < loss < 1
    assert loss.requires_grad
    assert forward_with_losses(model.eval())(torch.randn(2, 3, 48, 64))[1] == 0


def filter_matrix(taps: tuple[float, ...], size: int) -> Tensor:
    """Return the matrix (n, n) of a filter along an axis that is mirrored at both ends."""
    matrix = torch.zeros(size, size)
    for target in range(size):
        for place, tap in enumerate(taps):
            source = target + place - len(taps) // 2
            while not 0 <= source < size:
                source = -1 - source if source < 0 else 2 * size - 1 - source
            matrix[target, source] += tap
    return matrix


@pytest.mark.parametrize("grid", [(2, 2), (4, 14), (9, 5), (1, 1), (14, 14)])
@torch.no_grad()
def test_scattering_is_a_transform_by_matrices_and_complex_numbers(grid: Pair) -> None:
    mixer, tokens = build("scattering", site()), tokens_of(grid)
    maps = nn.functional.pad(tokens.mT.unflatten(2, grid), (0, grid[1] % 2, 0, grid[0] % 2), mode="replicate")
    low, high, low_back, high_back = (
        [filter_matrix(taps, size) for size in maps.shape[2:]] for taps in (LOW, HIGH, LOW_BACK, HIGH_BACK)
    )
    coarse = low[0] @ maps @ low[1].T
    weights = nn.functional.interpolate(mixer.low[None], size=maps.shape[2:], mode="bilinear")
    result = low_back[0] @ (coarse * weights) @ low_back[1].T
    for down, right, down_back, right_back in (
        (high, low, high_back, low_back),
        (high, high, high_back, high_back),
        (low, high, low_back, high_back),
    ):
        band = down[0] @ maps @ right[1].T / 2**0.5
        a, b, c, d = band[..., ::2, ::2], band[..., ::2, 1::2], band[..., 1::2, ::2], band[..., 1::2, 1::2]
        one, two = (complex_mlp(mixer, torch.complex(*pair)) for pair in ((a - d, b + c), (a + d, b - c)))
        band = torch.empty_like(band)
        band[..., ::2, ::2], band[..., ::2, 1::2] = (one + two).real, (one + two).imag
        band[..., 1::2, ::2], band[..., 1::2, 1::2] = (one - two).imag, (two - one).real
        result = result + down_back[0] @ (band / 2**0.5) @ right_back[1].T
    expected = result[:, :, : grid[0], : grid[1]].flatten(2).mT
    assert_close(mixer(tokens, AttentionContext(grid)), expected)


def complex_mlp(mixer: nn.Module, waves: Tensor) -> Tensor:
    """Return complex maps (B, C, h, w) after the MLP of channels, inside four blocks."""
    first, second, bias, other = (
        torch.complex(*part) for part in (mixer.weight1, mixer.weight2, mixer.bias1, mixer.bias2)
    )
    blocks = waves.unflatten(1, (4, -1))
    hidden = torch.einsum("bnihw,nij->bnjhw", blocks, first) + bias[..., None, None]
    hidden = torch.complex(hidden.real.relu(), hidden.imag.relu())
    return (torch.einsum("bnihw,nij->bnjhw", hidden, second) + other[..., None, None]).flatten(1, 2)


@pytest.mark.parametrize("size", [(2, 2), (2, 10), (14, 14), (56, 28)])
def test_wavelets_give_the_map_back(size: Pair) -> None:
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    back = synthesise(*analyse(maps))
    torch.testing.assert_close(back, maps, rtol=0, atol=1e-12)


def test_a_step_lights_up_the_orientation_that_crosses_it() -> None:
    maps = torch.zeros(1, 1, 32, 32)
    maps[..., 17:] = 1
    energy = analyse(maps)[1].square().sum(dim=(0, 2, 3, 4, 5))
    assert energy[[2, 5]].sum() > 0.99 * energy.sum()


def stretched(weights: Tensor, size: int, axis: int) -> Tensor:
    """Return a matrix or maps interpolated along one axis, place by place, with pixels as areas."""
    old, parts = weights.shape[axis], []
    for target in range(size):
        position = min(max((target + 0.5) * old / size - 0.5, 0.0), old - 1.0)
        low = min(int(position), max(old - 2, 0))
        share = position - low
        above = weights.select(axis, min(low + 1, old - 1))
        parts.append((1 - share) * weights.select(axis, low) + share * above)
    return torch.stack(parts, dim=axis)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("grid", [(14, 14), (1, 1), (9, 15)])
@torch.no_grad()
def test_fusion_is_attention_from_windows_to_mixtures(grid: Pair, prefix: int) -> None:
    mixer, tokens, (height, width) = build("multi_scale_fusion", site(prefix=prefix)), tokens_of(grid, prefix), grid
    own, place, narrow = tokens[:, prefix:], torch.arange(height * width), math.ceil(width / 2)
    rows, columns = place // width // 7, place % width // 7
    together = (rows[:, None] == rows) & (columns[:, None] == columns)
    query, key, value = (heads_of(part) for part in mixer.qkv(own).chunk(3, dim=-1))
    scores = (query @ key.mT / (DIM // HEADS) ** 0.5).masked_fill(~together, -math.inf)
    local = own + mixer.local_proj(joined(scores.softmax(dim=-1) @ value))
    down = stretched(stretched(mixer.rows, height, 0), height, 1) * 14 / height
    right = stretched(stretched(mixer.columns, narrow, 0), width, 1) * 14 / width
    mixtures = torch.einsum("ir,js,brsc->bijc", down, right, own.unflatten(1, grid))
    positions = stretched(stretched(mixer.positions, height, 1), narrow, 2)
    shared = (mixtures + positions.permute(1, 2, 0)).flatten(1, 2)
    query = heads_of(mixer.q(torch.cat([tokens[:, :prefix], local], dim=1)))
    key, value = (heads_of(part) for part in mixer.kv(shared).chunk(2, dim=-1))
    mixed = (query @ key.mT / (DIM // HEADS) ** 0.5).softmax(dim=-1) @ value
    assert_close(mixer(tokens, AttentionContext(grid)), mixer.proj(joined(mixed)))
