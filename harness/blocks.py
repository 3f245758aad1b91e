"""What the blocks of any network put out: the tokens before the map, and the map itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError, SetupError
from harness.factory import method, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

INDEX = re.compile(r"-?\d+")
LAYOUTS = re.compile(r"auto|NCHW|NHWC|(\d+\+)?NLC")
SHOWN = 12


@dataclass(frozen=True)
class BlockOutput:
    """What one block puts out for some images.

    Args:
        maps: (B, C, h, w).
        prefix: (B, P, C), the tokens before those of the map: class, distillation, registers; P is 0 without any.
        has_class: whether the first of them is a class token.
    """

    maps: Tensor
    prefix: Tensor
    has_class: bool

    @property
    def tokens(self) -> Tensor:
        """The map's tokens (B, h * w, C), row by row."""
        return self.maps.flatten(2).transpose(1, 2)


Read = Callable[["Tensor"], list[BlockOutput]]


def reader(module: nn.Module, layer: str = "last", layout: str = "auto") -> Read:
    """Return the function from images to the outputs of the blocks that a layer means.

    Args:
        layer: `last`: what `forward_features` returns, else the last block; `last4`: the last four blocks, or stages
            of a network that has stages; an index of a block or stage, from the end where negative; or the name of
            any module, whose output is taken as it is.
        layout: of a stranger's output, see `FrozenProtocol`.

    The final norm is applied as timm's `forward_intermediates(norm=True)` and DINO's `get_intermediate_layers` do: in
    a network of one width to every block, in one with stages to the last stage.

    Raises:
        SetupError: at once, a layout that does not exist; when called, a layer that does not exist.
        ModelError: when called, where the module alone does not tell what its blocks or their layouts are.
    """
    if not LAYOUTS.fullmatch(layout):
        raise SetupError(
            f"layout is {layout!r}; expected auto, NCHW, NHWC, NLC, or 1+NLC for one token before the map."
        )
    if layer == "last":
        return _last(module, layout)
    if layer == "last4":
        return _numbered(module, (-4, -3, -2, -1), layout)
    if INDEX.fullmatch(layer):
        return _numbered(module, (int(layer),), layout)
    return _named(module, (layer,), layout)


def joint_reader(module: nn.Module, layers: Sequence[str], layout: str = "auto") -> Read:
    """Return the function from images to the outputs of several layers, see `reader`.

    Layers that are all indices, or all names, are read in one pass.
    """
    if all(map(INDEX.fullmatch, layers)):
        return _numbered(module, tuple(map(int, layers)), layout)
    if not any(layer in ("last", "last4") or INDEX.fullmatch(layer) for layer in layers):
        return _named(module, layers, layout)
    readers = [reader(module, layer, layout) for layer in layers]
    return lambda images: [output for read in readers for output in read(images)]


def _last(module: nn.Module, layout: str) -> Read:
    """Read what the network itself calls its features; else its last block."""
    features = method(module, "forward_features")
    if features is None:
        return _numbered(module, (-1,), layout)

    def read(images: Tensor) -> list[BlockOutput]:
        return [_output(module, features(images), images, layout, "forward_features")]

    return read


def _numbered(module: nn.Module, indices: Sequence[int], layout: str) -> Read:
    """Read blocks by their place: timm's way, else the network's pyramid, else its list of blocks."""
    if method(module, "forward_intermediates"):
        return lambda images: _by_timm(module, images, indices)
    pyramid = method(module, "features")
    if pyramid and hasattr(module, "strides") and not hasattr(module, "blocks"):
        return lambda images: [_of_map(maps) for maps in _chosen(pyramid(images), indices)]
    return lambda images: _by_list(module, images, indices, layout)


def _by_timm(module: Any, images: Tensor, indices: Sequence[int]) -> list[BlockOutput]:
    prefix = int(getattr(module, "num_prefix_tokens", 0))
    options = {"return_prefix_tokens": True} if prefix else {}
    try:
        found = module.forward_intermediates(
            images, indices=list(indices), norm=True, output_fmt="NCHW", intermediates_only=True, **options
        )
    except AssertionError as error:
        raise SetupError(f"The layers {_list(indices)} cannot be had of {type(module).__name__}: {error}.") from error
    if not prefix:
        return [_of_map(maps) for maps in found]
    return [BlockOutput(maps, tokens, _has_class(module, prefix)) for maps, tokens in found]


def _by_list(module: nn.Module, images: Tensor, indices: Sequence[int], layout: str) -> list[BlockOutput]:
    names = _chosen(_block_names(module, images), indices)
    norm = getattr(module, "norm", None) if hasattr(module, "blocks") else None
    outputs = _outputs(module, names, images)
    return [
        _output(module, norm(output) if norm else output, images, layout, name)
        for name, output in zip(names, outputs, strict=True)
    ]


def _named(module: nn.Module, layers: Sequence[str], layout: str) -> Read:
    """Read the outputs of modules by their names."""
    names = [known for known, _ in module.named_modules() if known]
    for name in layers:
        if name not in names:
            hint = nearest(name, names) or f" It has: {', '.join(names[:SHOWN])}, ..."
            raise SetupError(
                f"{type(module).__name__} has no module named {name!r} (layer={name}): expected last, last4, an index, "
                f"or a module's name.{hint}"
            )
        _check_map(module, name)

    def read(images: Tensor) -> list[BlockOutput]:
        outputs = _outputs(module, layers, images)
        return [_output(module, found, images, layout, name) for name, found in zip(layers, outputs, strict=True)]

    return read


def _check_map(module: nn.Module, name: str) -> None:
    """Refuse a part of what says by `no_map_inside` why its parts have none: tokens may be a square by chance."""
    parents = (name[:end] for end, mark in enumerate(name) if mark == ".")
    for parent in map(module.get_submodule, parents):
        if why := getattr(parent, "no_map_inside", ""):
            raise ModelError(why)


def _block_names(module: nn.Module, images: Tensor) -> list[str]:
    """The blocks of a network, by name: those of `blocks`, else of the only list of several modules of one class.

    Raises:
        ModelError: no such list, or several; the candidates are listed.
    """
    from torch import nn

    if isinstance(getattr(module, "blocks", None), (nn.ModuleList, nn.Sequential)):
        return [f"blocks.{name}" for name, _ in module.blocks.named_children()]  # type: ignore[union-attr]
    runs = [
        name
        for name, part in module.named_modules()
        if isinstance(part, (nn.ModuleList, nn.Sequential))
        and len(part) > 1
        and len({type(child) for child in part}) == 1
        and any(True for _ in part[0].children())
    ]
    outer = [name for name in runs if not any(name.startswith(f"{other}.") for other in runs if other != name)]
    if len(outer) == 1:
        start = f"{outer[0]}." if outer[0] else ""
        return [start + name for name, _ in module.get_submodule(outer[0]).named_children()]
    raise ModelError(
        f"Which modules of {type(module).__name__} are its blocks is not known: it has "
        f"{'several lists' if outer else 'no list'} of like modules. Name one, as in layer={_example(module, images)}"
    )


def _example(module: nn.Module, images: Tensor) -> str:
    """The modules whose outputs could be meant, with the shapes, the last one first."""
    names = [name for name, _ in module.named_modules() if name]
    found = [
        f"{name} {tuple(output.shape)}"
        for name, output in reversed(_run(module, names, images).items())
        if hasattr(output, "ndim") and output.ndim in (3, 4)
    ]
    return (
        f"{found[0].split()[0]}, of: {'; '.join(found[:SHOWN])}." if found else "NAME; none puts out a map or tokens."
    )


def _run(module: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Any]:
    """Run the network and return what some of its modules put out, by name, in the order in which they ran."""
    outputs: dict[str, Any] = {}
    with _watching(module, names, outputs):
        module(images)
    return outputs


def _outputs(module: nn.Module, names: Sequence[str], images: Tensor) -> list[Any]:
    """What modules put out.

    Raises:
        ModelError: one of them does not run.
    """
    found = _run(module, names, images)
    for name in names:
        if name not in found:
            raise ModelError(f"The module {name!r} of {type(module).__name__} does not run in a forward pass.")
    return [found[name] for name in names]


@contextmanager
def _watching(module: nn.Module, names: Sequence[str], outputs: dict[str, Any]) -> Iterator[None]:
    """Note what modules put out, the last time where they run several times."""

    def note(name: str) -> Callable[..., None]:
        return lambda *call: outputs.update({name: _only(call[-1])})

    hooks = [module.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _only(output: Any) -> Any:
    """The one map or token tensor of an output that may hold more."""
    if not isinstance(output, (tuple, list)):
        return output
    found = [part for part in output if getattr(part, "ndim", 0) in (3, 4)]
    return found[0] if len(found) == 1 else output


def _output(module: nn.Module, output: Any, images: Tensor, layout: str, name: str) -> BlockOutput:
    """Read a tensor in its layout: the user's word first, then the module's, then what the shape leaves open."""
    import torch

    if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4) or len(output) != len(images):
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"The output of {name!r} is {shape} for {len(images)} images; expected tokens (B, N, C) or a map "
            "(B, C, H, W). Name another module, as in layer=NAME."
        )
    if output.ndim == 4:
        chosen = layout if layout != "auto" else getattr(module, "output_fmt", "") or _map_layout(output, images, name)
        if "NLC" in chosen:
            raise SetupError(f"layout={layout}: the output of {name!r} is a map {tuple(output.shape)}, no tokens.")
        return _of_map(output.permute(0, 3, 1, 2) if chosen == "NHWC" else output)
    if layout in ("NCHW", "NHWC"):
        raise SetupError(f"layout={layout}: the output of {name!r} is tokens {tuple(output.shape)}, no map.")
    return _of_tokens(module, output, images, layout, name)


def _map_layout(output: Tensor, images: Tensor, name: str) -> str:
    """Which two sides of (B, ., ., .) have the proportions of the images."""
    _, first, second, third = output.shape
    fits = [
        layout
        for layout, sides in (("NCHW", (second, third)), ("NHWC", (first, second)))
        if _proportional(*sides, images)
    ]
    if len(fits) != 1:
        raise ModelError(
            f"The output of {name!r} is {tuple(output.shape)}: its shape does not tell where the channels are. "
            "Give layout=NCHW or layout=NHWC."
        )
    return fits[0]


def _of_map(maps: Tensor) -> BlockOutput:
    return BlockOutput(maps, maps.new_empty(len(maps), 0, maps.shape[1]), has_class=False)


def _of_tokens(module: nn.Module, tokens: Tensor, images: Tensor, layout: str, name: str) -> BlockOutput:
    """Separate the tokens before the map, and give the others the proportions of the images."""
    declared = getattr(module, "num_prefix_tokens", getattr(module, "prefix", None))
    prefix = int(layout.partition("+")[0]) if "+" in layout else declared if layout == "auto" else 0
    known = prefix if isinstance(prefix, int) else 0
    grid = _grid(tokens.shape[1] - known, images)
    if grid is None:
        raise ModelError(
            f"The output of {name!r} is {tuple(tokens.shape)}: with {known} tokens before those of the map, "
            f"{tokens.shape[1] - known} are left, which is no grid of the images' proportions. "
            "Say how many come before, as in layout=1+NLC."
        )
    maps = tokens[:, known:].transpose(1, 2).reshape(len(tokens), -1, *grid)
    return BlockOutput(maps, tokens[:, :known], _has_class(module, known))


def _grid(count: int, images: Tensor) -> tuple[int, int] | None:
    """The height and width of a map of so many tokens."""
    sides = ((height, count // height) for height in range(1, count + 1) if count % height == 0)
    return next((grid for grid in sides if _proportional(*grid, images)), None)


def _proportional(height: int, width: int, images: Tensor) -> bool:
    """Whether a map has the proportions of the images, to less than one of its cells."""
    return abs(height * images.shape[-1] - width * images.shape[-2]) < max(images.shape[-2:])


def _has_class(module: nn.Module, prefix: int) -> bool:
    """Whether the first token is a class token: a network may have registers alone, and then says so."""
    return prefix > 0 and getattr(module, "cls_token", prefix) is not None


def _chosen(found: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    for index in indices:
        if not -len(found) <= index < len(found):
            raise SetupError(f"There is no layer {index}: the network has {len(found)} blocks or stages, from 0.")
    return [found[index] for index in indices]


def _list(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))
