"""Every registered token mixer keeps the contract."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from mixers import CASES, build, context_after, crosses_blocks, site, takes_prefix, tokens_of
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models import AttentionCard, AttentionContext
from harness.registry import ATTENTIONS

# Odd sides; neither divides by two, by four or by a window.
GRID = (9, 15)

every_case = pytest.mark.parametrize(("name", "prefix"), CASES)


@cache
def built(name: str, prefix: int, layer: int = 1) -> nn.Module:
    """Return a mixer that is built once for all tests, which do not change it."""
    return build(name, site(GRID, prefix, layer))


def context(name: str, tokens: Tensor, prefix: int, layer: int = 1, grid: tuple[int, int] = GRID) -> AttentionContext:
    return context_after(name, site(GRID, prefix, layer), tokens, grid)


@every_case
@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_any_grid_and_batch(name: str, prefix: int, layer: int) -> None:
    mixer = built(name, prefix, layer)
    for grid in ((1, 1), (2, 1), (5, 9), (14, 14), (16, 3), (23, 17)):
        for batch in (1, 3):
            tokens = tokens_of(grid, prefix, batch)
            mixed = mixer(tokens, context(name, tokens, prefix, layer, grid))
            assert mixed.shape == tokens.shape
            assert mixed.isfinite().all()


@every_case
@torch.no_grad()
def test_input_is_left_alone(name: str, prefix: int) -> None:
    tokens = tokens_of(GRID, prefix)
    before = tokens.clone()
    built(name, prefix)(tokens, context(name, tokens, prefix))
    assert torch.equal(tokens, before)


@every_case
def test_gradients_reach_everything(name: str, prefix: int) -> None:
    """Two blocks are a whole stage: what the first leaves for later ones is used by the second."""
    mixers = [build(name, site(GRID, prefix, layer, depth=2)) for layer in (0, 1)]
    tokens, shared = tokens_of(GRID, prefix).requires_grad_(), AttentionContext(GRID)
    mixed = tokens
    for mixer in mixers:
        mixed = mixer(mixed, shared)
    (mixed * torch.randn_like(mixed)).sum().backward()
    for place, leaf in [("tokens", tokens), *(pair for mixer in mixers for pair in mixer.named_parameters())]:
        assert leaf.grad is not None, place
        assert leaf.grad.isfinite().all(), place
        assert leaf.grad.any(), place


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_in_half_precision_learns_everywhere(name: str, prefix: int, dtype: torch.dtype) -> None:
    """A training keeps weights in single precision and lets torch choose where halves do, with its own statistics."""
    mixers = [build(name, site(GRID, prefix, layer, depth=2)).train() for layer in (0, 1)]
    shared, tokens = AttentionContext(GRID), tokens_of(GRID, prefix, batch=3).requires_grad_()
    mixed = tokens
    with torch.autocast("cpu", dtype=dtype):
        for mixer in mixers:
            mixed = mixer(mixed, shared)
    assert mixed.shape == tokens.shape
    (mixed.float() * torch.randn(mixed.shape)).sum().backward()
    for place, leaf in [("tokens", tokens), *(pair for mixer in mixers for pair in mixer.named_parameters())]:
        assert leaf.grad is not None, place
        assert leaf.grad.isfinite().all(), place
        assert leaf.grad.any(), place


@every_case
@torch.no_grad()
def test_evaluation_is_deterministic(name: str, prefix: int) -> None:
    mixer, tokens = built(name, prefix), tokens_of(GRID, prefix)
    contexts = [context(name, tokens, prefix) for _ in range(2)]
    state = torch.get_rng_state()
    first, second = (mixer(tokens, each) for each in contexts)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@every_case
@torch.no_grad()
def test_images_do_not_see_each_other(name: str, prefix: int) -> None:
    mixer, tokens = built(name, prefix), tokens_of(GRID, prefix, batch=3)
    together = mixer(tokens, context(name, tokens, prefix))
    alone = torch.cat([mixer(image, context(name, image, prefix)) for image in tokens.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(name: str, prefix: int, dtype: torch.dtype) -> None:
    tokens = tokens_of(GRID, prefix)
    exact = built(name, prefix)(tokens, context(name, tokens, prefix))
    half = tokens.to(dtype)
    rounded = copy.deepcopy(built(name, prefix)).to(dtype)(half, context(name, half, prefix))
    assert rounded.dtype is dtype
    allowed = 0.05 if dtype is torch.bfloat16 else 0.01
    assert (rounded.float() - exact).abs().mean() < allowed * exact.abs().mean()


@every_case
@torch.no_grad()
def test_weights_fit_any_image_size(name: str, prefix: int) -> None:
    """What is built depends on the stride alone, so weights move between image sizes; a call tells only the grid."""
    mixer, tokens = built(name, prefix), tokens_of(GRID, prefix)
    for own in (GRID, (3, 5), (28, 28)):
        fresh = ATTENTIONS.get(name).build(site(own, prefix)).eval()
        fresh.load_state_dict(mixer.state_dict(), strict=True)
        expected = mixer(tokens, context(name, tokens, prefix))
        assert torch.equal(fresh(tokens, context(name, tokens, prefix)), expected)


@every_case
@torch.no_grad()
def test_runs_without_memory(name: str, prefix: int) -> None:
    with torch.device("meta"):
        mixer = ATTENTIONS.get(name).build(site(GRID, prefix))
    assert all(tensor.is_meta for tensor in (*mixer.parameters(), *mixer.buffers()))
    tokens = tokens_of((5, 9), prefix).to("meta")
    assert mixer.eval()(tokens, context(name, tokens, prefix, grid=(5, 9))).shape == tokens.shape


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if crosses_blocks(name)])
@torch.no_grad()
def test_blocks_hear_of_earlier_ones_and_can_do_without(name: str) -> None:
    mixer, tokens = built(name, 0), tokens_of(GRID)
    alone = mixer(tokens, AttentionContext(GRID))
    assert alone.isfinite().all()
    assert (mixer(tokens, context(name, tokens, 0)) - alone).abs().max() > 1e-4


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_card_and_refusal(name: str) -> None:
    card = ATTENTIONS.get(name).card
    assert isinstance(card, AttentionCard)
    assert card.title
    assert card.source
    assert card.equation
    assert card.paper.startswith("arXiv:")
    if not takes_prefix(name):
        with pytest.raises(ModelError, match=rf"'{name}'.*vit_s16 instead of vit_s16_cls"):
            ATTENTIONS.get(name).build(site(prefix=1))
