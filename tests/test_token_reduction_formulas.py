"""What each reducer of tokens computes, against the same thing spelt out with loops."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.layers.reduction import Canvas, OpenAttention
from baselines.wrappers.token_reduction.evit import EViTBlocks, attention_received
from baselines.wrappers.token_reduction.expedit import cluster, reconstruction
from baselines.wrappers.token_reduction.ia_red2 import policy_loss
from baselines.wrappers.token_reduction.sparsifiner import MaskPredictor
from baselines.wrappers.token_reduction.tome import Merged, match
from harness.models import AttentionContext, AttentionSite, build_model
from harness.registry import ATTENTIONS

DIM, HEADS = 16, 2


def tokens_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merged_by_hand(metric: Tensor, r: int, prefix: int) -> list[list[int]]:
    """Return the tokens that each token after merging stands for, of one image (N, D)."""
    first, second = range(0, len(metric), 2), range(1, len(metric), 2)
    pairs = []
    for a in first:
        cosines = {b: float(F.cosine_similarity(metric[a], metric[b], dim=0)) for b in second if b >= prefix}
        if a >= prefix:
            partner = max(cosines, key=lambda b: cosines[b])
            pairs.append((cosines[partner], a, partner))
    merged = {a: b for _, a, b in sorted(pairs, reverse=True)[:r]}
    groups = [[a] for a in first if a not in merged]
    groups += [[b, *(a for a in merged if merged[a] == b)] for b in second]
    return groups


@pytest.mark.parametrize("count", [9, 12])
@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
@pytest.mark.parametrize("r", [1, 3])
def test_tome_merges_the_most_similar_pairs(r: int, prefix: int, count: int) -> None:
    metric = tokens_of(3, count, 5)
    index = match(metric, r, prefix)
    for image, own in zip(metric, index, strict=True):
        groups = {frozenset((own == place).nonzero()[:, 0].tolist()) for place in range(count - r)}
        assert groups == {frozenset(group) for group in merged_by_hand(image, r, prefix)}
        assert own[:prefix].tolist() == list(range(prefix))


def test_tome_averages_by_size_and_remembers_where_from() -> None:
    tokens = tokens_of(2, 17, DIM)
    state, current = Merged(tokens, 4, prefix=1), tokens
    for step in range(3):
        current = state.merge(current, current, tokens_of(2, HEADS, current.shape[1], 8, seed=step))
    assert current.shape == (2, 5, DIM)
    sizes = state.sizes
    assert sizes is not None
    for image in range(2):
        for place in range(5):
            members = (state.source[image] == place).nonzero()[:, 0]
            assert sizes[image, place] == len(members)
            torch.testing.assert_close(current[image, place], tokens[image, members].mean(dim=0))


def test_tome_attention_to_a_merged_token_is_that_to_its_copies() -> None:
    attention = OpenAttention(softmax())
    tokens = tokens_of(1, 4, DIM)
    copies = tokens[:, [0, 1, 1, 1, 2, 3, 3]]
    sizes = torch.tensor([[1.0, 3.0, 1.0, 2.0]])
    mixed, *_ = attention(tokens, sizes.log()[:, None, None])
    expected, *_ = attention(copies)
    torch.testing.assert_close(mixed, expected[:, [0, 1, 4, 5]])


def softmax() -> nn.Module:
    torch.manual_seed(0)
    mixer: nn.Module = ATTENTIONS.get("softmax").build(AttentionSite(DIM, HEADS, (4, 4), 1, 0, 12, 0, 16))
    return mixer.double().eval()


def test_opened_attention_is_masked_softmax() -> None:
    attention, tokens = OpenAttention(softmax()), tokens_of(2, 6, DIM)
    mask = tokens_of(2, HEADS, 6, 6) > 0
    mask |= torch.eye(6, dtype=torch.bool)
    mixed, query, key = attention(tokens, mask)
    value = attention.qkv(tokens)[..., 2 * DIM :].unflatten(-1, (HEADS, -1)).transpose(1, 2)
    weights = (query @ key.mT / math.sqrt(DIM // HEADS)).exp() * mask
    heads = weights / weights.sum(dim=-1, keepdim=True) @ value
    torch.testing.assert_close(mixed, attention.proj(heads.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_evit_keeps_what_the_class_token_attends_to(keep: float) -> None:
    blocks: Any = build_model("vit_t16_cls+evit", image_size=(64, 64)).blocks
    assert isinstance(blocks, EViTBlocks)
    blocks.keep = keep
    tokens, query, key = tokens_of(1, 17, DIM), tokens_of(1, HEADS, 17, 8), tokens_of(1, HEADS, 17, 8, seed=2)
    canvas = Canvas(tokens)
    left = blocks._drop(canvas, tokens, query, key)[0]
    scores = [(query[0, :, 0] * key[0].transpose(0, 1)).sum(-1) / math.sqrt(8)]
    weights = torch.stack(scores)[0].softmax(dim=0).mean(dim=1)  # (N,)
    order = sorted(range(1, 17), key=lambda place: -float(weights[place]))
    kept, dropped = order[: math.ceil(16 * keep)], order[math.ceil(16 * keep) :]
    expected = [tokens[0, place] for place in (0, *kept)]
    expected.append(sum((tokens[0, place] * weights[place] for place in dropped), torch.zeros(DIM)))
    torch.testing.assert_close(left, torch.stack(expected))
    assert canvas.places[0].tolist() == [0, *kept, 17]
    torch.testing.assert_close(canvas.write(2 * left[None])[0, dropped], tokens[0, dropped])
    torch.testing.assert_close(canvas.write(2 * left[None])[0, kept], 2 * tokens[0, kept])


def test_without_a_class_token_all_queries_vote() -> None:
    query, key = tokens_of(2, HEADS, 6, 8), tokens_of(2, HEADS, 6, 8, seed=2)
    received = attention_received(query, key, prefix=0)
    torch.testing.assert_close(received.sum(dim=1), torch.ones(2, dtype=torch.float64))
    weights = (query @ key.mT / math.sqrt(8)).softmax(dim=-1)
    torch.testing.assert_close(received, weights.mean(dim=(1, 2)))


@pytest.mark.parametrize(("grid", "cells"), [((6, 6), (4, 4)), ((9, 5), (7, 3))])
def test_expedit_clusters_near_cells(grid: tuple[int, int], cells: tuple[int, int]) -> None:
    tokens, temperature = tokens_of(1, grid[0] * grid[1], 3), 0.3
    count = cells[0] * cells[1]
    centroids = F.adaptive_avg_pool2d(tokens.mT.unflatten(2, grid), cells).flatten(2).mT[0]
    for _ in range(5):
        sums, weights = torch.zeros(count, 3, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        for place, token in enumerate(tokens[0]):
            row, column = place // grid[1] * cells[0] // grid[0], place % grid[1] * cells[1] // grid[1]
            near = [
                cell for cell in range(count) if abs(cell // cells[1] - row) <= 2 and abs(cell % cells[1] - column) <= 2
            ]
            affinity = (-temperature * (token - centroids[near]).square().sum(dim=1)).softmax(dim=0)
            sums[near] += affinity[:, None] * token
            weights[near] += affinity
        centroids = sums / weights[:, None]
    torch.testing.assert_close(cluster(tokens, grid, cells, temperature)[0], centroids)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_expedit_reconstructs_from_the_nearest(scale: float) -> None:
    tokens, centroids = scale * tokens_of(1, 12, 3), scale * tokens_of(1, 6, 3, seed=2)
    weights = reconstruction(tokens, centroids, neighbors=4, temperature=0.3)[0]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(12, dtype=torch.float64))
    for token, own in zip(tokens[0], weights, strict=True):
        distances = (token - centroids[0]).square().sum(dim=1)
        near = distances.argsort()[:4]
        # Shifted by the least distance, since far from all centroids every weight underflows.
        expected = torch.exp(-0.3 * (distances[near] - distances.min()))
        torch.testing.assert_close(own[near], expected / expected.sum())
        assert int((own == 0).sum()) >= 2


@pytest.mark.parametrize("keep", [0.25, 0.5, 1.0])
def test_sparsifiner_shows_each_query_its_share_of_keys(keep: float) -> None:
    torch.manual_seed(0)
    predictor = MaskPredictor(tokens=65, heads=HEADS, head_dim=8, keep=keep, prefix=1).double()
    query, key = tokens_of(2, HEADS, 65, 8), tokens_of(2, HEADS, 65, 8, seed=2)
    mask = predictor(query, key)
    assert mask[:, :, 0].all()
    assert (mask[:, :, 1:].sum(dim=-1) == math.ceil(65 * keep)).all()
    projected = predictor.proj_c_k(key).mT @ predictor.proj_n
    coefficients = (predictor.proj_c_q(query) @ projected / math.sqrt(HEADS)).softmax(dim=-1)[0, 1, 7]
    coefficients = coefficients * (coefficients >= coefficients.sort().values[-8])
    basis = predictor.proj_back_n.abs()
    scores = (basis * (basis > 0.02)) @ coefficients
    assert scores[mask[0, 1, 7]].min() >= scores[~mask[0, 1, 7]].max() if keep < 1 else mask.all()


def test_sparsifiner_learns_from_its_guess_alone() -> None:
    model: Any = build_model("vit_t16_cls+sparsifiner", image_size=(64, 64)).train()
    context = AttentionContext((0, 0))
    logits = model(torch.randn(2, 3, 64, 64), context)
    guesses = [context.auxiliary[f"approximation.{layer}"] for layer in range(12)]
    assert all(guess.shape == (2, 3, 16, 17) for guess in guesses)
    predictor = model.blocks[3].attn.mask_predictor
    assert all(
        gradient is None
        for gradient in torch.autograd.grad(logits.sum(), predictor.parameters(), None, True, allow_unused=True)
    )
    gradients = torch.autograd.grad(guesses[3].square().sum(), predictor.parameters())
    assert all(gradient.any() for gradient in gradients)


def test_ia_red2_learns_by_its_policy_loss() -> None:
    scores = torch.tensor([[0.6, 0.5, 0.2, 0.9], [0.6, 0.5, 0.2, 0.9]], requires_grad=True)
    kept = torch.tensor([[True, False, False, True], [True, True, True, True]])
    context = AttentionContext((0, 0), auxiliary={"scores.0": scores, "kept.0": kept})
    loss = policy_loss(context, torch.tensor([True, False]), benefits=(1.0,))
    rewards = (1 - 0.5**2, -1.0)
    mean = sum(rewards) / 2
    logs = (math.log(0.6 * 0.5 * 0.8 * 0.9), math.log(0.6 * 0.5 * 0.2 * 0.9))
    expected = -sum((reward - mean) * log for reward, log in zip(rewards, logs, strict=True)) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0, 2] > 0, "what was rightly dropped becomes less likely to stay"


def test_ia_red2_draws_in_training_and_its_interpreters_learn() -> None:
    torch.manual_seed(0)
    model: Any = build_model("vit_t16_cls+ia_red2", image_size=(64, 64)).train()
    context = AttentionContext((0, 0))
    logits = model(torch.randn(4, 3, 64, 64), context)
    kept = [context.auxiliary[f"kept.{place}"] for place in (0, 4, 8)]
    assert all((later <= earlier).all() for earlier, later in pairwise(kept))
    assert kept[0].sum(dim=1).unique().numel() > 1
    (logits.sum() + policy_loss(context, torch.tensor([True, False, True, True]))).backward()
    for name, parameter in model.named_parameters():
        if "interpreter" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
