"""Which sites a mixer of maps can serve."""

from __future__ import annotations

from harness.errors import ModelError
from harness.models import AttentionSite


def refuse_prefix(site: AttentionSite, mixer: str) -> None:
    """Check that a site has a map of tokens and nothing else.

    Raises:
        ModelError: the site has a class token or the like; carriers without one are named.
    """
    if site.prefix:
        raise ModelError(
            f"{mixer!r} would tell the {site.prefix} token(s) before the map nothing of the image. "
            "Use a carrier without a class token, such as vit_s16 instead of vit_s16_cls."
        )
