"""Mixers that join the whole map equal their formulas, written out without shortcuts."""

from __future__ import annotations

import pytest
import torch
from mixers import DIM, HEADS, build, site, tokens_of
from torch import Tensor, nn

from baselines.attention import polyline_path
from harness.models import AttentionContext

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
