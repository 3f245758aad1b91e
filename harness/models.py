"""What a model is to the harness, and how a model id becomes an `nn.Module`.

A model id is one of
    vit_s16                      a registered model
    vit_s16+agent                a registered carrier with an attention or with wrappers, left to right
    timm:NAME                    any model of timm, with or without a weights tag
    package.module:callable      anything importable
    path/to/file.py:callable     a file of the user's
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import BenchError, ModelError, UnknownName, WeightsError
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
        published: figures by metric: `parameters` in M, `gmacs` in G, `top1` in %.
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
    """

    dim: int
    heads: int
    grid: tuple[int, int]
    prefix: int
    layer: int
    depth: int
    stage: int


@dataclass
class AttentionContext:
    """What a token mixer is called with; made afresh for each forward pass.

    Args:
        grid: height and width of the token map of these tokens; may differ from the site's.
        memory: state that crosses blocks, such as a significance map or earlier tokens.
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
) -> nn.Module:
    """Build the model that an id names, on the CPU.

    Args:
        num_classes: columns of the output; None for the model's own.
        image_size: height and width; None for the model's own.
        pretrained: with the weights that its factory downloads, instead of initial ones.

    Raises:
        UnknownName: with the nearest names.
        ModelError: the callable failed, or did not return an `nn.Module`.
        WeightsError: there are no pretrained weights, or they cannot be had.
    """
    from torch import nn

    base, *parts = model_id.split("+")
    attentions = [part for part in parts if part in ATTENTIONS and part not in WRAPPERS]
    if len(attentions) > 1:
        raise UnknownName(f"{model_id!r} names two attentions, {' and '.join(attentions)}: a carrier takes one.")
    options: dict[str, Any] = {"num_classes": num_classes, "image_size": _side(image_size)}
    options = {name: value for name, value in options.items() if value is not None}
    if attentions:
        options["attention"] = ATTENTIONS.get(attentions[0]).build
    factory = _factory(base)
    if pretrained:
        if not _takes(factory, "pretrained"):
            raise WeightsError(f"{base!r} has no pretrained weights to download. Give --weights random, own, or a file.")
        options["pretrained"] = True
    module = call(factory, model_id, **options)
    for part in parts:
        if part not in attentions:
            module = call(_wrapper(part), model_id, model=module)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{model_id!r} gave a {type(module).__name__}, not a torch.nn.Module: return the module itself.")
    return module


def check_model_id(model_id: str) -> None:
    """Raise what `build_model` would raise about the names in an id, without building anything."""
    base, *parts = model_id.split("+")
    factory = _factory(base)
    for part in parts:
        if part in ATTENTIONS and "attention" not in inspect.signature(factory).parameters:
            raise UnknownName(f"{base!r} has no slot for an attention, so {model_id!r} cannot be built.")
        if part not in ATTENTIONS:
            _wrapper(part)


def source_sha256(model_id: str) -> str:
    """Return the SHA-256 of the user's file that an id names; empty for registered and timm models."""
    base = model_id.split("+")[0]
    if ":" not in base or base.startswith("timm:"):
        return ""
    source = inspect.getsourcefile(inspect.unwrap(_factory(base)))
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""


def public_id(model_id: str) -> str:
    """Return a model id as records and boards show it: a file without its folder."""
    base, *parts = model_id.split("+")
    path, colon, name = base.rpartition(":")
    return "+".join((f"{Path(path).name}:{name}" if colon and path.endswith(".py") else base, *parts))


def call(factory: Callable[..., Any], name: str, **options: Any) -> Any:
    """Call a factory with those options that its signature takes.

    Raises:
        ModelError: whatever the factory raised, in one line.
    """
    try:
        return factory(**{option: value for option, value in options.items() if _takes(factory, option)})
    except BenchError:
        raise
    except Exception as error:
        raise ModelError(f"{name!r} cannot be built ({type(error).__name__}: {error}).") from error


def _takes(factory: Callable[..., Any], option: str) -> bool:
    """Whether a factory's signature takes an option by name."""
    parameters = inspect.signature(factory).parameters
    return option in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _side(image_size: tuple[int, int] | None) -> int | tuple[int, int] | None:
    """A square size as one number, which is what most factories take."""
    return image_size[0] if image_size and image_size[0] == image_size[1] else image_size


def _wrapper(name: str) -> Callable[..., Any]:
    if name not in WRAPPERS:
        known = [*ATTENTIONS, *WRAPPERS]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UnknownName(f"No attention or wrapper is named {name!r}.{hint} `run_bench.py list attentions` shows them.")
    return WRAPPERS.get(name).build


def _factory(base: str) -> Callable[..., Any]:
    if base.startswith("timm:"):
        return _timm_factory(base.removeprefix("timm:"))
    if ":" in base:
        location, _, name = base.rpartition(":")
        module = _load_file(Path(location)) if location.endswith(".py") else _load_module(location)
        found = getattr(module, name, None)
        if not callable(found):
            names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
            offer = f" It has: {', '.join(names)}." if names else ""
            raise UnknownName(f"{location!r} has no callable named {name!r}.{offer}")
        return found
    return MODELS.get(base).build


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnknownName(
            f"The module {name!r} cannot be imported ({error}). Install it, or give a file: path/to/file.py:callable."
        ) from error


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UnknownName(f"There is no file {str(path)!r} (looked in the current folder). Check the path before the colon.")
    name = f"backbone_bench_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{str(path)!r} cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BenchError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ModelError(f"{str(path)!r} cannot be imported ({type(error).__name__}: {error}{line}).") from error
    return module


def _timm_factory(name: str) -> Callable[..., Any]:
    import timm

    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(f'timm:{n}' for n in near)}?" if near else ""
        raise UnknownName(f"timm {timm.__version__} has no model named {architecture!r}.{hint}")

    def build(num_classes: int | None = None, image_size: Any = None, pretrained: bool = False) -> nn.Module:
        options = {name: value for name, value in (("num_classes", num_classes), ("img_size", image_size)) if value}
        return _create_timm(name, pretrained, options)

    return build


def _create_timm(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Call `timm.create_model`; networks that take any image size have no option for it."""
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return _create_timm(name, pretrained, {key: value for key, value in options.items() if key != "img_size"})
    except Exception as error:
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"The pretrained weights of timm:{name} cannot be had ({reason[:160]}). "
            "Check the connection and the weights tag, or download them elsewhere and give --weights FILE."
        ) from error
