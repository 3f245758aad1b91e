"""Ranks that train together: the same result as one process, one word of rank 0, and no rank that waits for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from baselines.layers.segmenter import cross_entropy
from harness import distributed, progress
from harness.checkpoint import Checkpoint
from harness.errors import DataError, ModelError, SetupError
from harness.optimizer import adamw, cosine
from harness.record import Setup
from harness.training import Training, tensors
from tasks.data.train_loader import SampledSteps
from tasks.trained import Recipe, classification_loss

ROOT = Path(__file__).resolve().parents[1]
STEPS, BATCH = 8, 6


class Net(nn.Module):
    """Nothing in it depends on the other images of a batch; one parameter is used at every second step only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 3))
        self.extra, self.never = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.calls = 0

    def forward(self, values: Tensor) -> Tensor:
        self.calls += 1
        return self.body(values) * (self.extra if self.calls % 2 else 1)


def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of the batches."""
    share = distributed.share(BATCH)
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    for step in range(first, STEPS):
        values = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(step))
        yield values[own], values[own, :3].argmax(dim=1)


def train(checkpoint: Path) -> dict[str, Any]:
    net = Net()
    optimizer = adamw(net, 0.05, 0.05)

    def loss(batch: Any) -> Tensor:
        labels = torch.where(batch[0][:, 5] > 0, batch[1], 255)[:, None, None]  # each rank has other gaps
        return cross_entropy(net(batch[0])[..., None, None], labels)

    run = Training(
        module=net, loss=loss, optimizer=optimizer, schedule=cosine(optimizer, STEPS, 2), batches=batches, steps=STEPS,
        setup=Setup(), clip_grad=1.0, average=0.9, checkpoint=Checkpoint(checkpoint, "state"),
    )  # fmt: skip
    trained = run.run()
    return {"net": tensors(net), "average": tensors(trained.module), "curve": trained.curve, "details": trained.details}


def broken() -> None:
    raise DataError("b.jpg is no image")


def three_jobs(out: Path) -> None:
    """What a rank does in the tests below: a training, a job in which rank 0 fails, one in which rank 1 does."""
    torch.set_num_threads(1)
    rank = distributed.rank()
    with distributed.joined("cpu") as meeting:
        found: dict[str, Any] = {"trained": train(out / f"{rank}.pt"), "word": distributed.by_first(lambda: rank)}
        found["sum"] = distributed.total(torch.tensor(rank + 1.0))
    found["causes"] = [meeting.end(None)]
    with distributed.joined("cpu") as meeting:
        try:
            distributed.by_first(broken)
        except (DataError, ModelError) as error:
            text = str(error)
            meeting.fail(text)
    found["causes"].append(meeting.end(text))
    with distributed.joined("cpu") as meeting:
        try:
            broken() if rank else distributed.total(torch.ones(1))
        except (DataError, RuntimeError) as error:
            text = str(error)
            meeting.fail(text)
    found["causes"].append(meeting.end(text))
    torch.save(found, out / f"found{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two ranks found."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT)!r}]\n"
    script += f"from pathlib import Path; from test_distributed import three_jobs; three_jobs(Path({str(out)!r}))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env={**os.environ, **ranked(rank, 2), "MASTER_PORT": str(port)}
        )
        for rank in range(2)
    ]
    assert [process.wait(250) for process in processes] == [0, 0]
    assert sorted(path.name for path in out.glob("?.pt")) == ["0.pt"]  # rank 0 alone writes checkpoints
    return [torch.load(out / f"found{rank}.pt", weights_only=False) for rank in range(2)]


def ranked(rank: int, count: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def test_ranks_end_where_one_process_does(two: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = train(tmp_path / "x.pt")
    for found in (one["trained"] for one in two):
        for part in ("net", "average"):
            for name, tensor in alone[part].items():
                torch.testing.assert_close(found[part][name], tensor, rtol=0, atol=1e-5, msg=name)
                assert torch.equal(found[part][name], two[0]["trained"][part][name]), name
        assert found["curve"] == pytest.approx(alone["curve"], abs=1e-5)
        assert (found["details"]["ranks"], alone["details"]["ranks"]) == (2, 1)
        assert found["details"]["batch_norm_over"] == "each rank's images"
    assert torch.equal(alone["net"]["never"], torch.ones(2))
    assert not torch.equal(alone["net"]["extra"], torch.ones(3))
    assert abs(alone["curve"][-1] - alone["curve"][0]) > 0.1


def test_what_rank_0_computes_all_have(two: list[dict[str, Any]]) -> None:
    assert [found["word"] for found in two] == [0, 0]
    assert [float(found["sum"]) for found in two] == [3, 3]


def test_all_ranks_know_the_first_error(two: list[dict[str, Any]]) -> None:
    alone, others = "b.jpg is no image", "rank {} of 2: b.jpg is no image"
    assert [found["causes"] for found in two] == [
        [None, alone, others.format(1)],
        [None, others.format(0), alone],
    ]


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process the second of two ranks."""
    for name, value in ranked(1, 2).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("of_two")
def test_a_rank_takes_its_share_of_each_batch() -> None:
    taken = list(SampledSteps(range(100), Setup(), 6, range(2, 5)))
    assert taken == [[15, 16, 17], [21, 22, 23], [27, 28, 29]]
    assert list(SampledSteps(range(100), Setup(), 6, range(2, 5), workers=2)) == taken


def test_batch_normalisation_counts_all_images_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), BatchNormAct2d(4))
    assert distributed.synchronize_norms(module, "cuda") == ""
    monkeypatch.setattr(distributed, "_meeting", distributed.Meeting(store=None))  # type: ignore[arg-type]
    assert distributed.synchronize_norms(module, "cpu") == "each rank's images"
    assert type(module[1]) is nn.BatchNorm2d
    before = list(module.parameters())
    assert distributed.synchronize_norms(module, "cuda") == "the images of all ranks"
    assert isinstance(module[1], nn.SyncBatchNorm)
    assert isinstance(module[2], nn.SyncBatchNorm)
    assert isinstance(module[2].act, nn.ReLU)
    # An optimiser that was made before holds the same parameters.
    assert all(one is other for one, other in zip(module.parameters(), before, strict=True))


@pytest.mark.usefixtures("of_two")
def test_rank_0_alone_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    progress.say("nothing")
    assert not capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "0")
    progress.say("a word")
    assert capsys.readouterr().err == "a word\n"


@pytest.mark.parametrize(
    ("task", "batch", "device", "message"),
    [
        ("cost", None, "cpu", "cost has no training that ranks could share: run it without torchrun"),
        ("imagenet:knn", None, "cuda", "imagenet:knn has no training"),
        (
            "x",
            7,
            "cpu",
            r"batch is 7, which 2 ranks cannot share equally: give a multiple of 2 as batch in the task id",
        ),
        ("x", 8, "cuda:1", "--device cuda:1 is not for 2 ranks: each takes a GPU of its own"),
    ],
)
@pytest.mark.usefixtures("of_two")
def test_what_ranks_cannot_do(task: str, batch: int | None, device: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        distributed.check(task, batch, device)
    distributed.check(task, 8, "cpu")


@pytest.mark.usefixtures("of_two")
def test_fewer_gpus_than_ranks_and_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    distributed.check("x", 8, "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SetupError, match="torch sees 1"):
        distributed.check("x", 8, "cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SetupError, match="torchrun started 4 ranks, 2 of them here: use one machine"):
        distributed.check("x", 8, "cpu")


@pytest.mark.usefixtures("of_two")
def test_mixed_images_need_an_even_share() -> None:
    recipe = Recipe(steps=1, batch=6, lr=0.1, mixup=0.8)
    with pytest.raises(SetupError, match=r"each of 2 ranks takes 3; mixup .* even number for each"):
        classification_loss(nn.Linear(1, 1), 4, recipe, Setup())


def test_without_torchrun_nothing_is_refused_or_shared() -> None:
    assert not distributed.active()
    distributed.check("cost", None, "cuda:7")
    assert distributed.share(7) == 7
    assert distributed.by_first(lambda: 5) == 5
    assert np.isclose(float(distributed.total(torch.tensor(2.5))), 2.5)
