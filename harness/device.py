"""Putting a model on a device in the precision, layout and mode that a setup asks for."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from harness.errors import SetupError
from harness.record import Setup

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def default_device() -> str:
    """Return `cuda` where torch sees a GPU, else `cpu`.

    Torch takes seconds to import, so it is asked only where there is a driver.
    """
    if not any(map(_loads, ("libcuda.so.1", "nvcuda.dll"))):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _loads(library: str) -> bool:
    """Whether the system has a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def check_device(device: str) -> None:
    """Raise SetupError when this machine does not have the device.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
    """
    if device == "cpu":
        return
    import torch

    name, _, index = device.partition(":")
    count = torch.cuda.device_count()
    if name != "cuda" or not (index == "" or index.isdigit()):
        raise SetupError(f"There is no device {device!r}; expected cpu, cuda or cuda:N.")
    if count <= int(index or 0):
        raise SetupError(
            f"There is no device {device!r}: torch sees {count} GPUs. Use --device cpu, or see `run_bench.py doctor`."
        )


def place(module: nn.Module, setup: Setup) -> nn.Module:
    """Return the module in eval mode on the setup's device, in its layout, compiled where asked."""
    import torch

    torch.set_float32_matmul_precision("high" if setup.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = setup.precision == "tf32"
    module = module.eval().to(setup.device)
    if setup.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if setup.compile:
        module.compile()
    return module


def to_device(images: Tensor, setup: Setup) -> Tensor:
    """Return images (B, C, H, W) on the setup's device and in its layout."""
    import torch

    layout = torch.channels_last if setup.channels_last else torch.contiguous_format
    return images.to(setup.device, non_blocking=True, memory_format=layout)


def noise(setup: Setup) -> Tensor:
    """Return seeded images (batch, 3, H, W) on the setup's device."""
    import torch

    height, width = setup.preprocessing.image_size or (224, 224)
    generator = torch.Generator().manual_seed(setup.seed)
    return to_device(torch.randn(setup.batch_size, 3, height, width, generator=generator), setup)


@contextmanager
def evaluating(setup: Setup) -> Iterator[None]:
    """Run a model without gradients, in the setup's precision.

    This is `no_grad`, since explainers need gradients that `inference_mode` forbids.
    """
    import torch

    with torch.no_grad(), autocast(setup):
        yield


def autocast(setup: Setup) -> AbstractContextManager[None]:
    """Return the context in which a model runs in the setup's precision."""
    import torch

    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setup.precision)
    return torch.autocast(setup.device.partition(":")[0], dtype=reduced, enabled=reduced is not None)


def synchronize(device: str) -> None:
    """Wait until a device has done everything that it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
