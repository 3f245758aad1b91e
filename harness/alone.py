"""The token mixers of a carrier without the rest of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from harness.errors import ModelError
from harness.models import AttentionContext

SLOT = "attn"
# In some papers every second mixer differs, and some leave state for the next.
TAKEN = 2


class Alone(nn.Module):
    """Some mixers one after the other, with one context, and nothing between them.

    Args:
        grid: height and width of the map of tokens.
    """

    def __init__(self, mixers: Sequence[nn.Module], grid: tuple[int, int]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, h * w, C) of the same shape."""
        context = AttentionContext(self.grid)
        for mixer in self.mixers:
            tokens = mixer(tokens, context)
        return tokens


def first_mixers(carrier: nn.Module) -> list[nn.Module]:
    """Return the first two mixers of a carrier: what its blocks have under the name `attn`.

    Raises:
        ModelError: it has no two.
    """
    names = [name.split(".") for name, _ in carrier.named_modules()]
    places = [name for name in names if name[-1] == SLOT and SLOT not in name[:-1]][:TAKEN]
    if len(places) < TAKEN:
        raise ModelError(f"{type(carrier).__name__} is no carrier of mixers: give one such as vit_t16+agent.")
    return [carrier.get_submodule(".".join(name)) for name in places]
