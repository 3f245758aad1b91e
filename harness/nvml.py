"""What the driver says of a GPU, through NVML; it is only read, never set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

INSTALL = "needs nvidia-ml-py: pip install 'backbone-bench[gpu]'"

# The bits of nvmlDeviceGetCurrentClocksThrottleReasons (nvml.h) that say that the clocks are held down.
POWER_CAP = "software power cap"
THROTTLING = {
    0x04: POWER_CAP,
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class NotReadable(Exception):
    """NVML is absent, or does not know the GPU; the text says why."""


class Gpu:
    """One GPU. A quantity that it does not report is None.

    Args:
        nvml: the module `pynvml`.
        handle: NVML's own, of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def sm_clock(self) -> float | None:
        """MHz."""
        return self._read(lambda: self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))

    def temperature(self) -> float | None:
        """Degrees Celsius."""
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        return self._read(lambda: self._nvml.nvmlDeviceGetTemperature(self._handle, sensor))

    def power(self) -> float | None:
        """W, of the whole board."""
        return self._read(lambda: self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000)

    def power_limit(self) -> float | None:
        """W."""
        return self._read(lambda: self._nvml.nvmlDeviceGetPowerManagementLimit(self._handle) / 1000)

    def default_power_limit(self) -> float | None:
        """W, as the board is sold."""
        return self._read(lambda: self._nvml.nvmlDeviceGetPowerManagementDefaultLimit(self._handle) / 1000)

    def driver(self) -> str | None:
        """Return the version of the driver."""
        return self._read(lambda: str(self._nvml.nvmlSystemGetDriverVersion()))

    def energy(self) -> float | None:
        """J that the whole board has used since the driver was loaded; Volta and later."""
        return self._read(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000)

    def throttling(self) -> tuple[str, ...]:
        """Return why the clocks are held down at this moment."""
        bits = self._read(lambda: self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)) or 0
        return tuple(name for bit, name in THROTTLING.items() if int(bits) & bit)

    def others(self) -> float | None:
        """Count the other processes that compute on the GPU.

        In a container NVML may number processes as its host does; then one of those listed is this one.
        """

        def count() -> float:
            pids = {process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
            return len(pids - {os.getpid()}) if os.getpid() in pids else max(0, len(pids) - 1)

        return self._read(count)

    def _read(self, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except self._nvml.NVMLError:
            return None


@contextmanager
def open_gpu(device: str) -> Iterator[Gpu]:
    """Open the GPU that torch calls `device`, found by its UUID, since the two count GPUs in different orders.

    Raises:
        NotReadable: pynvml is not installed, there is no driver, or it does not know the GPU.
    """
    import torch

    try:
        import pynvml
    except ImportError:
        raise NotReadable(INSTALL) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NotReadable(f"NVML: {error}") from None
    try:
        uuid = torch.cuda.get_device_properties(device).uuid
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError as error:
            raise NotReadable(f"NVML: {error}") from None
        yield Gpu(pynvml, handle)
    finally:
        pynvml.nvmlShutdown()
