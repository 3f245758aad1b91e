"""Where a record was made: hardware, versions, commit; never a path, a host or a user."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.cgroup import quota
from harness.nvml import NotReadable, open_gpu
from harness.record import Environment
from harness.registry import ROOT

PACKAGES = ("torch", "torchvision", "timm", "fvcore", "numpy", "pillow", "pycocotools", "safetensors")


def environment(device: str) -> Environment:
    """Describe this machine and process for a record made on `device`."""
    import psutil

    commit, dirty = _commit()
    software, power_limit = gpu_state(device) if device.startswith("cuda") else ({}, None)
    return Environment(
        device=machine(device, 0)[0],
        cpu=cpu_name(),
        cores=cores(),
        threads=_threads(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions() | software,
        commit=commit,
        dirty=dirty,
        power_limit=power_limit,
        cpu_quota=quota(),
    )


def _threads() -> int:
    """The threads of torch; one where nothing that ran has imported it, as with predictions made elsewhere."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else 1


def machine(device: str, threads: int) -> tuple[str, ...]:
    """Return what must be equal for two cost figures to be of one machine, without importing torch on a CPU."""
    if device.startswith("cuda"):
        import torch

        software, power_limit = gpu_state(device)
        name = torch.cuda.get_device_name(device)
        return name, versions()["torch"], *map(str, software.values()), str(power_limit)
    return cpu_name(), str(cores()), str(threads), versions()["torch"], str(quota())


def gpu_state(device: str) -> tuple[dict[str, str], float | None]:
    """Return the versions of CUDA, cuDNN and the driver, and the power limit in W; the last two only where NVML is."""
    import torch

    found = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    try:
        with open_gpu(device) as gpu:
            return found | {"driver": gpu.driver() or "unknown"}, gpu.power_limit()
    except NotReadable:
        return found, None


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that decide numbers; `missing` for one that is not installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


@cache
def _commit() -> tuple[str, bool]:
    """The harness's git commit and whether its tracked code differs; an empty commit outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"]
        return commit, bool(subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return "", False
