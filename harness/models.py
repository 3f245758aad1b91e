"""What a model is to the harness, and how a model id becomes an `nn.Module`.

A model id is one of
    vit_s16                      a registered model
    vit_s16+agent                a registered carrier with an attention or with wrappers, left to right
    timm:NAME                    any model of timm, with or without a weights tag
    mmseg:path/to/config.py      the model of an mmsegmentation configuration
    package.module:callable      anything importable
    path/to/file.py:callable     a file of the user's
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError, SetupError, UnknownName, WeightsError
from harness.factory import call, find_factory, nearest, parameters_of, source_file
from harness.mmseg_config import PREFIX, config_sha256
from harness.registry import ATTENTIONS, MODELS, WRAPPERS

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ModelCard:
    """Where a model comes from and what its authors published.

    Args:
        title: of the paper, or of the model where there is none.
        paper: an arXiv id such as `arXiv:2103.14030`, or empty.
        source: where the figures were read: paper and table, or repository.
        published: figures by metric: `parameters` in M, `gmacs` in G, `top1` in %; costs at the model's own image size.
        notes: where this code departs from the paper or the official code.
    """

    title: str
    paper: str = ""
    source: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class AttentionSite:
    """The place that a token mixer is built for.

    Args:
        dim: channels of a token.
        heads: attention heads of the carrier at this place.
        grid: height and width of the token map at the carrier's own image size.
        prefix: tokens before the map (1 with a class token, else 0).
        layer: index of the block in the whole carrier, from 0.
        depth: blocks in the whole carrier.
        stage: index of the stage, from 0; always 0 in an isotropic carrier.
        stride: pixels of the image along each side of a token.
        first: layer of the first block of the stage; always 0 in an isotropic carrier.
        last: layer of the last block of the stage; -1 for the last of the carrier.
    """

    dim: int
    heads: int
    grid: tuple[int, int]
    prefix: int
    layer: int
    depth: int
    stage: int
    stride: int
    first: int = 0
    last: int = -1

    @property
    def block(self) -> int:
        """Index of the block in its stage, from 0."""
        return self.layer - self.first

    @property
    def ends_stage(self) -> bool:
        """Whether no block of the stage comes after this one."""
        return self.layer == self.last % self.depth


@dataclass(frozen=True)
class AttentionCard(ModelCard):
    """The card of a token mixer, with the closed forms that its counted costs must equal.

    Args:
        equation: what it computes, in one line.
        parameters: from a site to the number of the mixer's parameters.
        macs: from a site to the MACs of one image at the site's own grid: products, convolutions and Fourier
            transforms alone.
    """

    equation: str = ""
    parameters: Callable[[AttentionSite], int] | None = None
    macs: Callable[[AttentionSite], int] | None = None


@dataclass
class AttentionContext:
    """What a token mixer is called with; made afresh for each forward pass.

    Args:
        grid: height and width of the token map of these tokens; may differ from the site's.
        memory: state that crosses blocks, such as a significance map or earlier tokens. A mixer must do without what
            it does not find, since it may be called alone.
        auxiliary: what others read: attention maps, masks, training losses.
    """

    grid: tuple[int, int]
    memory: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)


BuildAttention = Callable[[AttentionSite], "nn.Module"]


def build_model(
    model_id: str,
    *,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
    any_size: bool = False,
) -> nn.Module:
    """Build the model that an id names, on the CPU.

    Args:
        num_classes: columns of the output; None for the model's own.
        image_size: height and width; None for the model's own.
        pretrained: with the weights that its factory downloads, instead of initial ones.
        any_size: so that it takes images of any size, where its factory has timm's option `dynamic_img_size`.

    Raises:
        UnknownName: with the nearest names.
        ModelError: the callable failed, or did not return an `nn.Module`.
        WeightsError: there are no pretrained weights, or they cannot be had.
    """
    factory, attention, wrappers = _named(model_id)
    name = public_id(model_id)
    options = {"num_classes": num_classes, "image_size": _side(image_size), "attention": attention}
    if pretrained:
        if "pretrained" not in parameters_of(factory):
            raise WeightsError(
                f"{name!r} has no pretrained weights to download. Give --weights random, own, or a file."
            )
        options["pretrained"] = True
    if any_size and "dynamic_img_size" in parameters_of(factory):
        options["dynamic_img_size"] = True
    module = _built(factory, name, **{option: value for option, value in options.items() if value is not None})
    if not attention and not wrappers:
        _claim(module, model_id)
    for wrapper in wrappers:
        module = _built(wrapper, name, model=module)
    return module


def claimed_gmacs(module: nn.Module) -> float | None:
    """Return the MACs of one image in G that a model claims to need at its own image size; None where it claims none.

    Its card claims them, as `published["gmacs"]`; or the module itself, as an attribute or property `nominal_gmacs`,
    which a wrapper that prunes or merges tokens sets.
    """
    claimed = getattr(module, "nominal_gmacs", None)
    return None if claimed is None else float(claimed)


def _claim(module: nn.Module, name: str) -> None:
    """Let a module carry what its card says that it needs, unless it says so itself."""
    card = None if ":" in name else MODELS.get(name).card
    if isinstance(card, ModelCard) and "gmacs" in card.published and claimed_gmacs(module) is None:
        module.nominal_gmacs = card.published["gmacs"]  # type: ignore[assignment]


def check_model_id(model_id: str) -> None:
    """Raise what `build_model` would raise about the names in an id, without building anything."""
    _named(model_id)


def source_sha256(model_id: str) -> str:
    """Return the SHA-256 of the user's file or files that an id names; empty for registered and timm models."""
    base = _split(model_id)[0]
    if base.startswith(PREFIX):
        return config_sha256(base.removeprefix(PREFIX))
    source = source_file(base)
    return hashlib.sha256(source.read_bytes()).hexdigest() if source else ""


def public_id(model_id: str) -> str:
    """Return a model id as records and boards show it: a file without its folder."""
    base, parts = _split(model_id)
    location, _, name = base.rpartition(":")
    if base.startswith(PREFIX):
        base = PREFIX + Path(name).name
    return "+".join((f"{Path(location).name}:{name}" if location.endswith(".py") else base, *parts))


def callable_id(factory: Callable[..., Any]) -> str:
    """Return the model id of a callable: where it can be imported from.

    Raises:
        SetupError: it has no name there.
    """
    name, module = getattr(factory, "__qualname__", ""), getattr(factory, "__module__", "")
    if getattr(sys.modules.get(module), name, None) is not factory:
        raise SetupError(f"The model {name or factory!r} cannot be found by name: define it with a name in a module.")
    return f"{module}:{name}"


def _built(factory: Callable[..., Any], name: str, **options: Any) -> nn.Module:
    """Call a factory, and refuse what is no module."""
    from torch import nn

    module = call(factory, name, **options)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{name!r} gave an object of type {type(module).__name__}, not a torch.nn.Module: return the module itself."
        )
    return module


def _split(model_id: str) -> tuple[str, list[str]]:
    """Separate the base of an id from its parts; a '+' in the name of a folder separates nothing."""
    folder, mark, rest = model_id.rpartition("/" if model_id.startswith(PREFIX) else ".py:")
    base, *parts = rest.split("+")
    return folder + mark + base, parts


def _named(model_id: str) -> tuple[Callable[..., Any], BuildAttention | None, list[Callable[..., Any]]]:
    """Look up the factory, the attention and the wrappers that an id names."""
    base, parts = _split(model_id)
    factory = find_factory(base)
    attentions = [part for part in parts if part in ATTENTIONS and part not in WRAPPERS]
    if len(attentions) > 1:
        raise UnknownName(f"{model_id!r} names two attentions, {' and '.join(attentions)}: a carrier takes one.")
    if attentions and "attention" not in parameters_of(factory):
        raise UnknownName(
            f"{base!r} has no slot for an attention, so {model_id!r} cannot be built: "
            "use a carrier, which is a callable with a parameter 'attention'."
        )
    wrappers = [_wrapper(part) for part in parts if part not in attentions]
    return factory, ATTENTIONS.get(attentions[0]).build if attentions else None, wrappers


def _side(image_size: tuple[int, int] | None) -> int | tuple[int, int] | None:
    """A square size as one number, which is what most factories take."""
    return image_size[0] if image_size and image_size[0] == image_size[1] else image_size


def _wrapper(name: str) -> Callable[..., Any]:
    if name not in WRAPPERS:
        near = nearest(name, [*ATTENTIONS, *WRAPPERS])
        raise UnknownName(
            f"No attention or wrapper is named {name!r}.{near} "
            "`run_bench.py list attentions` and `list wrappers` show them."
        )
    return WRAPPERS.get(name).build
