"""CUDA graphs: what is recorded and replayed, where they are refused, and that a real GPU gives the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from harness import run
from harness.costs import energy, latency, throughput
from harness.costs.memory import memory, training_memory
from harness.device import evaluating
from harness.errors import ModelError, SetupError
from harness.graphs import WARM_UP_PASSES, Replay, check_graphs, graphed
from harness.race import race
from harness.record import Preprocessing, Setup
from harness.runner import Job, command
from harness.timing import time_pass

GRAPHS = Setup(device="cuda:0", cuda_graphs=True, batch_size=4, preprocessing=Preprocessing(image_size=(32, 32)))


class FakeCuda:
    """Stands for the parts of `torch.cuda` that recording needs, and keeps what happens in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failure: Exception | None = None

    def Stream(self) -> Any:  # noqa: N802
        return self._stream("side")

    def current_stream(self) -> Any:
        return self._stream("main")

    def _stream(self, name: str) -> Any:
        log = self.log

        class Stream:
            def wait_stream(self, other: Any) -> None:
                log.append(f"{name} waits")

        return Stream()

    def CUDAGraph(self) -> Any:  # noqa: N802
        log = self.log

        class Graph:
            def replay(self) -> None:
                log.append("replay")

        return Graph()

    @contextmanager
    def device(self, name: str) -> Iterator[None]:
        self.log.append(name)
        yield

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append("on the side")
        yield

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        self.log.append("record")
        yield
        if self.failure:
            raise self.failure
        self.log.append("recorded")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name in ("Stream", "current_stream", "CUDAGraph", "device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


def test_a_pass_is_warmed_up_on_a_side_stream_recorded_once_and_replayed(cuda: FakeCuda) -> None:
    call = graphed(lambda: cuda.log.append("pass"), GRAPHS)
    call()
    call()
    assert cuda.log == [
        *("cuda:0", "side waits", "on the side", *["pass"] * WARM_UP_PASSES, "main waits"),
        *("record", "pass", "recorded", "replay", "replay"),
    ]


def test_without_cuda_graphs_the_call_is_the_same(cuda: FakeCuda) -> None:
    call: Callable[[], None] = lambda: None  # noqa: E731
    assert graphed(call, Setup(device="cuda:0")) is call
    assert cuda.log == []


def test_what_cannot_be_recorded_says_so(cuda: FakeCuda) -> None:
    cuda.failure = RuntimeError("operation not permitted when stream is capturing\nmore")
    with pytest.raises(ModelError, match=r"cannot be recorded .*when stream is capturing.*Leave --cuda-graphs out"):
        graphed(lambda: None, GRAPHS)
    cuda.failure = torch.OutOfMemoryError("no memory")
    with pytest.raises(torch.OutOfMemoryError):
        graphed(lambda: None, GRAPHS)


def broken() -> None:
    raise RuntimeError("a fault of the model's own")


def test_a_model_that_fails_by_itself_is_not_blamed_on_the_graph(cuda: FakeCuda) -> None:
    with pytest.raises(RuntimeError, match="the model's own"):
        graphed(broken, GRAPHS)


def test_every_cost_of_time_and_energy_measures_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with graphs that only count."""
    asked: list[str] = []
    for module in (latency, throughput, energy):
        monkeypatch.setattr(module, "graphed", lambda call, setup, name=module.__name__: asked.append(name) or call)
    monkeypatch.setattr(throughput, "WINDOW_SECONDS", 0.01)
    monkeypatch.setattr(throughput, "LARGEST_BATCH", 4)
    monkeypatch.setattr(throughput, "BATCHES", (1,))
    monkeypatch.setattr(energy, "WINDOW_SECONDS", 0.01)
    monkeypatch.setattr(energy, "joules", lambda device: _joules())
    model, images, setup = nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8), Setup(batch_size=2)
    for cost, found in (
        (latency.latency, 2),
        (latency.training_latency, 1),
        (energy.energy, 2),
        (partial(latency.compare_latency, model, rounds=2), 2),
    ):
        asked.clear()
        cost(model, images, setup)
        assert len(asked) == found
    asked.clear()
    throughput.throughput(model, images, setup)
    assert asked


@contextmanager
def _joules() -> Iterator[Callable[[], float]]:
    yield lambda: 1.0


def test_memory_in_a_graph_is_an_empty_cell() -> None:
    model, images = nn.Conv2d(3, 4, 3), torch.zeros(4, 3, 8, 8)
    for cost, name in ((memory, "memory"), (training_memory, "training_memory")):
        found = cost(model, images, GRAPHS).measurements
        assert [(m.metric.name, m.value) for m in found] == [(f"{name}_b1", None), (f"{name}_b4", None)]
        assert "--cuda-graphs" in found[0].reason


def test_they_are_refused_on_the_cpu_and_for_accuracy(nets: str, make_imagenet: Any, tmp_path: Any) -> None:
    with pytest.raises(SetupError, match="--cuda-graphs needs a GPU, and the device is 'cpu'"):
        run(f"{nets}:tiny", "cost:latency", device="cpu", cuda_graphs=True, results=tmp_path)
    with pytest.raises(SetupError, match="--cuda-graphs needs a GPU"):
        race([Job(model=f"{nets}:tiny", task="cost", setup=Setup(cuda_graphs=True))])
    with pytest.raises(SetupError, match="--cuda-graphs is for costs"):
        check_graphs(GRAPHS, on_machine=False)
    check_graphs(GRAPHS, on_machine=True)
    assert not list(tmp_path.glob("records/*"))


def test_the_command_line_of_a_record_asks_for_them_again() -> None:
    assert "--cuda-graphs" in command(Job(model="vit_t16", task="cost", setup=GRAPHS)).split()
    assert "--cuda-graphs" not in command(Job(model="vit_t16", task="cost", setup=Setup()))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replay_on_a_real_gpu_does_the_same_work_and_launches_less(precision: Any) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(50) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model, images = nn.Sequential(*layers).eval().cuda(), torch.randn(8, 64, device="cuda")
    setup = Setup(device="cuda", cuda_graphs=True, precision=precision)
    outputs: list[torch.Tensor] = []

    def forward() -> None:
        outputs[:] = [model(images)]

    with evaluating(setup):
        expected = model(images).clone()
        call = graphed(forward, setup)
        assert isinstance(call, Replay)
        outputs[0].zero_()
        replayed = min(time_pass(call, "cuda") for _ in range(20))
        assert torch.equal(outputs[0], expected)
        assert replayed < min(time_pass(forward, "cuda") for _ in range(20))


@pytest.mark.gpu
def test_a_training_pass_is_recorded_on_a_real_gpu() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10)).cuda()
    found = latency.training_latency(model, torch.randn(4, 3, 8, 8, device="cuda"), GRAPHS).measurements
    assert found[0].value


@pytest.mark.gpu
def test_a_model_that_waits_for_a_value_is_refused_on_a_real_gpu() -> None:
    class Waits(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images * images.sum().item()

    with pytest.raises(ModelError, match="cannot be recorded"):
        latency.latency(Waits(), torch.ones(4, 3, 8, 8, device="cuda"), GRAPHS)
