"""Fixtures that several test files share: small data in the official layout, five-line models, and the real data."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from harness.progress import QUIET

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041", "n01514668")

NETS = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 4)
        self.head = nn.Linear(8, num_classes)
        self.preprocessing = {"input_size": (3, 32, 32), "crop_pct": 1.0}

    def forward(self, images):
        return self.head(self.stem(images).relu().mean((2, 3)))

def tiny(num_classes=1000):
    return Tiny(num_classes)

class Broken(Tiny):
    def __init__(self, num_classes, change):
        super().__init__(num_classes)
        self.change = change

    def forward(self, images):
        return self.change(super().forward(images))

def all_nan(num_classes=1000):
    return Broken(num_classes, lambda logits: logits * float("nan"))

def first_row_nan(num_classes=1000):
    return Broken(num_classes, lambda logits: logits.index_fill(0, torch.tensor([0]), float("nan")))

def too_few(num_classes=1000):
    return Broken(num_classes, lambda logits: logits[:, :-1])

def raises(num_classes=1000):
    return Broken(num_classes, lambda logits: logits.no_such_method())

def dies(num_classes=1000):
    import os
    return Broken(num_classes, lambda logits: os.kill(os.getpid(), 9))

def chatty(num_classes=1000):
    print("a model that talks")
    return Tiny(num_classes)

class Normed(Tiny):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.stem(images)).relu().mean((2, 3))))

def normed(num_classes=1000):
    return Normed(num_classes)

def three_classes():
    return Tiny(3)

def slow(num_classes=1000):
    import time
    return Broken(num_classes, lambda logits: time.sleep(0.2) or logits)
"""


def noise_jpeg(seed: int, size: tuple[int, int] = (40, 36)) -> bytes:
    """Return the content of a JPEG file of smooth noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _as_loud_as_before() -> Iterator[None]:
    """Let no test that asked for quiet silence the next: the switch is in the environment."""
    before = os.environ.get(QUIET)
    yield
    if before is None:
        os.environ.pop(QUIET, None)
    else:
        os.environ[QUIET] = before


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is measured here, among other load, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def make_imagenet(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an ImageNet of noise below a data root, and returns the root."""

    def make(val: int = 2, train: int = 0, classes: int = 8, own_classes: bool = True) -> Path:
        home = tmp_path / "data" / "imagenet"
        for split, count in (("val", val), ("train", train)):
            for label, wnid in enumerate(WNIDS[:classes]):
                for number in range(count):
                    folder = home / split / wnid
                    folder.mkdir(parents=True, exist_ok=True)
                    seed = 1000 * label + number + (500 if split == "train" else 0)
                    (folder / f"{wnid}_{number}.JPEG").write_bytes(noise_jpeg(seed))
        if own_classes:
            (home / "synsets.txt").write_text("\n".join(WNIDS[:classes]))
        return tmp_path / "data"

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves an object as a checkpoint, or bytes as they are."""

    def save(content: Any, name: str = "weights.pth") -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        return path

    return save


@pytest.fixture
def coloured(tmp_path: Path) -> Path:
    """Return a data root with an ImageNet of four classes that a colour tells, under noise: easy to learn."""
    home = tmp_path / "coloured" / "imagenet"
    for label, wnid in enumerate(WNIDS[:4]):
        for number in range(14):
            folder = home / ("train" if number < 8 else "val") / wnid
            folder.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([label, number]).normal(0, 25, (36, 40, 3))
            pixels = noise + (np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (180, 180, 60)][label]))
            name = f"ILSVRC2012_val_{14 * label + number + 1:08d}.JPEG"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
    (home / "synsets.txt").write_text("\n".join(WNIDS[:4]))
    return tmp_path / "coloured"


@pytest.fixture
def nets(tmp_path: Path) -> str:
    """Return the path of a user's file of small models, good and bad."""
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return str(path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the root of the small real data, or skip."""
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("the shared small real data is not beside this checkout")
    return root


class FakeNvml(ModuleType):
    """A stand-in for `pynvml` with one GPU, whose state tests set; what is None there it does not report."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
    READINGS: ClassVar = {
        "nvmlDeviceGetClockInfo": "clock",
        "nvmlDeviceGetTemperature": "temperature",
        "nvmlDeviceGetPowerUsage": "power",
        "nvmlDeviceGetPowerManagementLimit": "limit",
        "nvmlDeviceGetPowerManagementDefaultLimit": "default",
        "nvmlSystemGetDriverVersion": "driver_version",
        "nvmlDeviceGetTotalEnergyConsumption": "energy",
        "nvmlDeviceGetCurrentClocksThrottleReasons": "throttling",
        "nvmlDeviceGetComputeRunningProcesses": "processes",
    }

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.opened = 0
        self.asked: list[str] = []
        self.state: dict[str, Any] = {
            "clock": 1980, "temperature": 45, "power": 350_000, "limit": 700_000, "default": 700_000, "energy": 1000,
            "throttling": 0, "pids": (), "driver": True, "driver_version": "580.1",
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name not in self.READINGS:
            raise AttributeError(name)
        return lambda *_: self.read(self.READINGS[name])

    def read(self, quantity: str) -> Any:
        value = self.state["pids" if quantity == "processes" else quantity]
        if value is None:
            raise self.NVMLError("Not Supported")
        if quantity == "processes":
            return [SimpleNamespace(pid=pid) for pid in value]
        return value() if callable(value) else value

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.state["driver"]:
            raise self.NVMLError("Driver Not Loaded")
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.asked.append(uuid)
        if uuid != "GPU-1234":
            raise self.NVMLError("Not Found")
        return "handle"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """Return a stand-in for `pynvml`, and give torch its GPU."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    return fake


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with small generated data in the layouts of COCO and of ADE20K."""
    from tasks.data import mini_ade20k, mini_coco

    root = tmp_path_factory.mktemp("scenes")
    mini_coco.generate(root, train=2, val=8)
    mini_ade20k.generate(root, train=2, val=5)
    return root
