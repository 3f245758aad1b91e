"""Loading weights without running anybody's code, and saying exactly which weights ran."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import WeightsError
from harness.record import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

# Averaged weights come first: they are what a training run reports.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "module", "net",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a weights file.

    Raises:
        WeightsError: there is no such file.
    """
    if not path.is_file():
        raise WeightsError(
            f"There is no weights file {str(path)!r}. Give --weights random, pretrained, own, or the path of a file."
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, path: Path, requested: Weights) -> Weights:
    """Copy a file's weights into a module, and return the stamp of what was loaded.

    Args:
        path: a `.safetensors` file, or a checkpoint that `torch.load(weights_only=True)` reads.

    Raises:
        WeightsError: the file is unreadable, unsafe or of another model, or holds values that are not finite.
    """
    import torch

    container, state = unwrap(read_state(path), path)
    expected = module.state_dict()
    fits = {key: value for key, value in state.items() if key in expected and value.shape == expected[key].shape}
    missing = tuple(sorted(expected.keys() - fits.keys()))
    unexpected = tuple(sorted(state.keys() - fits.keys()))
    if not fits or ((missing or unexpected) and not requested.allow_partial):
        raise WeightsError(_mismatch(path, state, expected, missing, unexpected))
    for key, value in fits.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"{path.name} holds values in {key!r} that are not finite: the checkpoint is broken.")
    module.load_state_dict(fits, strict=False)
    return replace(requested, container=container, missing=missing, unexpected=unexpected)


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint without unpickling anything but tensors and plain containers.

    Raises:
        WeightsError: the file cannot be read in this way.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{path.name} is not a readable safetensors file ({error}). Download or export it again.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name} holds more than tensors and was not run ({_first_line(error)}). "
            "Save the bare state dict: torch.save(model.state_dict(), ...), or use safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path.name} is not a checkpoint that torch reads ({_first_line(error)}).") from error
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path.name} holds a {type(found).__name__}, not a state dict: save model.state_dict().")
    return found


def unwrap(found: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the key of the usual container (empty for none) and the tensors in it, without a common prefix.

    Raises:
        WeightsError: there are no tensors.
    """
    container = next((key for key in CONTAINERS if isinstance(found.get(key), Mapping)), "")
    state = _tensors(found[container] if container else found)
    if not state:
        raise WeightsError(f"{path.name} holds no tensors; its keys are {', '.join(map(str, list(found)[:8]))}.")
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
                stripped = True
    return container, state


def state_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of a module's state."""
    import torch

    total = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        value = value.detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()


def _tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    return {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}


def _mismatch(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Any], missing: tuple[str, ...], unexpected: tuple[str, ...]
) -> str:
    """Say which keys do not match, and what to do."""
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}" for key in missing if key in state
    ]
    absent = [key for key in missing if key not in state]
    extra = [key for key in unexpected if key not in expected]
    parts = [
        f"{len(keys)} {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for word, keys in (("missing", absent), ("unexpected", extra), ("of another shape", reshaped))
        if keys
    ]
    if len(missing) == len(expected):
        return f"{path.name} is a checkpoint of another model: no parameter fits. Keys: {'; '.join(parts)}."
    return (
        f"{path.name} does not match the model: {'; '.join(parts)}. "
        "Give the checkpoint of this model, or --allow-partial (the record will say so)."
    )


def _first_line(error: Exception) -> str:
    """The part of torch's long messages that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next((line for line in lines if "GLOBAL" in line), lines[0] if lines else type(error).__name__)
    return cause.split(" was not an allowed")[0].split(". ")[0].rstrip(".")[:160]
