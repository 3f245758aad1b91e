"""Loading weights without running anybody's code, and saying exactly which weights ran."""

from __future__ import annotations

import hashlib
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from harness.errors import WeightsError
from harness.record import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

# Averaged weights come first: they are what a training run reports.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "module", "net",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.")
# The first byte of a pickle of protocol 2 or later; what torch saves is a zip archive.
PICKLE = b"\x80"
# What mmengine's log in a checkpoint is pickled with. It is read as `Inert`: none of these is called.
LOGGED = (
    "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "numpy.ndarray", "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)  # fmt: skip
# What torch's own strict loading lets an old checkpoint go without; evaluation never reads it.
COUNTER = "num_batches_tracked"


class Inert:
    """What stands in a checkpoint for something that is not needed: it takes anything, and keeps and does nothing."""

    def __new__(cls, *_: Any) -> Inert:
        """Return a new one, whatever it is called with."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Take a state, and drop it."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a weights file.

    Raises:
        WeightsError: there is no such file.
    """
    _check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, path: Path, requested: Weights) -> Weights:
    """Copy a file's weights into a module, and return the stamp of what was loaded.

    Args:
        path: a `.safetensors` file, or a checkpoint that `torch.load(weights_only=True)` reads.

    Raises:
        WeightsError: the file is unreadable, unsafe or of another model, or holds values that are not finite.
    """
    container, found = unwrap(read_state(path), path)
    expected = _tensors(module.state_dict())
    state = strip(found, expected)
    fits = {key: value for key, value in state.items() if key in expected and _fits(value, expected[key])}
    needed = {key for key in expected if not key.endswith(COUNTER)}
    missing = tuple(sorted(needed - fits.keys()))
    unexpected = tuple(sorted(state.keys() - fits.keys()))
    difference = _difference(state, expected, missing, unexpected)
    if not needed & fits.keys():
        raise WeightsError(
            f"{path.name} is a checkpoint of another model, since nothing in it fits: {difference}. "
            "Give the checkpoint of this model."
        )
    if difference and not requested.allow_partial:
        raise WeightsError(
            f"{path.name} does not match the model: {difference}. "
            "Give the checkpoint of this model, or --allow-partial (the record will say so)."
        )
    _check_finite(fits, {name for name, _ in module.named_parameters()}, path)
    module.load_state_dict(fits, strict=False)
    return replace(requested, container=container, missing=missing, unexpected=unexpected)


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint without unpickling anything but tensors and plain containers.

    Raises:
        WeightsError: the file cannot be read in this way.
    """
    import torch
    from safetensors.torch import load_file

    _check_file(path)
    try:
        with warnings.catch_warnings():
            # Torch's remarks on old formats and pickle protocols are nothing that a user could act on.
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":
                return dict(load_file(path))
            with torch.serialization.safe_globals([(Inert, name) for name in LOGGED]):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(_unreadable(path, error)) from error
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path.name} holds a {type(found).__name__}, not a state dict: save model.state_dict().")
    return found


def unwrap(found: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the key of the usual container (empty for none) and the tensors in it.

    Raises:
        WeightsError: there are no tensors.
    """
    meta = found.get("meta")
    # mmengine saves averaged weights as the state dict, and as `ema_state_dict` those that are trained.
    swapped = isinstance(meta, Mapping) and "mmengine_version" in meta
    for container in ("state_dict",) if swapped else CONTAINERS:
        inside = found.get(container)
        if isinstance(inside, Mapping) and _tensors(inside):
            return container, _tensors(inside)
    if not _tensors(found):
        keys = ", ".join(map(str, list(found)[:8])) or "none"
        raise WeightsError(f"{path.name} holds no tensors (its keys: {keys}): save model.state_dict().")
    return "", _tensors(found)


def strip(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take off what data parallelism, compilation and trainers put before every name, as far as the model lacks it."""
    while not expected.keys() & state.keys():
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def state_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of a module's state."""
    import torch

    total = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        value = value.detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    # torch's AveragedModel counts its updates beside the state that it averages.
    return {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor) and key != "n_averaged"}


def _fits(value: Tensor, place: Tensor) -> bool:
    """Whether a value can be copied without changing its meaning: quantised integers are no floating-point weights."""
    return value.shape == place.shape and (value.is_floating_point() or not place.is_floating_point())


def _check_finite(state: Mapping[str, Tensor], parameters: Set[str], path: Path) -> None:
    """Refuse a checkpoint of a run that diverged; a buffer, such as a mask, may well be infinite."""
    for key, value in state.items():
        if value.is_floating_point():
            values = value.float()
            if values.isnan().any() or (key in parameters and values.isinf().any()):
                raise WeightsError(
                    f"{path.name} holds values in {key!r} that are not finite, as a run that diverged leaves them. "
                    "Give an earlier checkpoint."
                )


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = ", which is a folder" if path.is_dir() else ""
        raise WeightsError(
            f"There is no weights file {str(path)!r}{what}. "
            "Give --weights random, pretrained, own, or the path of a file."
        )


def _difference(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], missing: Sequence[str], unexpected: Sequence[str]
) -> str:
    """Say which keys do not match; empty where all do."""
    misfits = [f"{key} {_form(state[key])} for {_form(expected[key])}" for key in missing if key in state]
    kinds = {
        "missing": [key for key in missing if key not in state],
        "unexpected": [key for key in unexpected if key not in expected],
        "of another shape or type": misfits,
    }
    return "; ".join(
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    )


def _form(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _unreadable(path: Path, error: Exception) -> str:
    """Say why a file was not read. Torch's own advice is not passed on: it is to read the file unsafely."""
    if path.suffix == ".safetensors":
        cause = textwrap.shorten(str(error), 120)
        return f"{path.name} is not a readable safetensors file ({cause}). Download or export it again."
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return (
            f"{path.name} holds more than tensors and was not read: it calls for {code[1]}, and may run any code. "
            "Save the bare state dict, torch.save(model.state_dict(), ...), or safetensors."
        )
    if _is_bare_pickle(path):
        return (
            f"{path.name} is a bare Python pickle, which may run any code, and was not read. "
            "Save the bare state dict, torch.save(model.state_dict(), ...), or safetensors."
        )
    return (
        f"{path.name} is not a checkpoint that torch reads ({type(error).__name__}): cut short, or of another format. "
        "Download or export it again."
    )


def _is_bare_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle does, in which torch found no tensors."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == PICKLE
