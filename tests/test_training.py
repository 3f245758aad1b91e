"""One training loop: resumed or not, with any number of workers, it gives the same bits, and says what went wrong."""

from __future__ import annotations

import io
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from harness.checkpoint import Checkpoint
from harness.errors import ModelError
from harness.models import AttentionContext
from harness.optimizer import adamw, cosine
from harness.record import Setup
from harness.training import CURVE_POINTS, Curve, Training, derived_seed, forward_with_losses, tensors

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12


class Net(nn.Module):
    """Everything that has a state or draws: batch statistics, dropout, a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        noise = random.random() + numpy.random.rand() if self.training else 0.0
        return self.body(values + 0.1 * noise + 0.01 * self.calls)


def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(first, STEPS):
        generator = torch.Generator().manual_seed(step)
        values = torch.randn(8, 6, generator=generator)
        yield values, values[:, :3].argmax(dim=1)


def training(path: Path | None = None, change: Callable[[Any], Any] = lambda batch: batch, **options: Any) -> Training:
    net = Net()
    optimizer = adamw(net, options.pop("lr", 0.05), 0.05)

    def loss(batch: Any) -> Tensor:
        values, targets = change(batch)
        return nn.functional.cross_entropy(net(values), targets)

    settings: dict[str, Any] = {
        "module": net, "loss": loss, "optimizer": optimizer, "schedule": cosine(optimizer, STEPS, 3),
        "batches": batches, "steps": STEPS, "setup": Setup(), "clip_grad": 1.0, "average": 0.9,
        "checkpoint": Checkpoint(path, "state") if path else None,
    }  # fmt: skip
    return Training(**{**settings, **options})


def state(run: Training) -> bytes:
    """Every bit that a training leaves: parameters, statistics, the average, the optimiser's moments, the curve."""
    trained = run.run()
    out = io.BytesIO()
    found = [tensors(run.module), tensors(trained.module), run.optimizer.state_dict(), trained.curve]
    torch.save(found, out)
    return out.getvalue()


@pytest.fixture(scope="module")
def whole() -> bytes:
    return state(training())


def test_the_same_seed_gives_the_same_bits(whole: bytes) -> None:
    assert state(training()) == whole
    assert state(training(seed=1)) != whole


def test_what_ran_before_does_not_matter(whole: bytes) -> None:
    run = training()
    random.seed(5)
    numpy.random.seed(6)
    torch.manual_seed(7)
    assert state(run) == whole


class Stop(Exception):
    pass


def stopping(at: int, error: type[BaseException]) -> Callable[[Any], Any]:
    """Raise an error in the middle of a step."""
    calls = 0

    def change(batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return batch

    return change


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("at", [1, 2, 7, STEPS])
def test_an_interrupted_training_ends_in_the_same_bits(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]
) -> None:
    monkeypatch.setattr("harness.training.CHECKPOINT_SECONDS", 0)
    path = tmp_path / "unfinished" / "x.pt"
    with pytest.raises(error):
        training(path, stopping(at, error)).run()
    assert path.is_file() == (at > 1)
    resumed = training(path, stopping(STEPS - at + 2, Stop))  # not one step is done twice
    assert state(resumed) == whole


def test_many_interruptions_end_in_the_same_bits(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.training.CHECKPOINT_SECONDS", 0)
    for _ in range(STEPS - 1):
        with pytest.raises(Stop):
            training(tmp_path / "x.pt", stopping(2, Stop)).run()
    assert state(training(tmp_path / "x.pt")) == whole


def test_steps_between_checkpoints_are_done_again(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("harness.training.CHECKPOINT_SECONDS", 5)
    monkeypatch.setattr("harness.training.time.monotonic", lambda: next(clock))
    with pytest.raises(Stop):
        training(tmp_path / "x.pt", stopping(9, Stop)).run()
    kept = Checkpoint(tmp_path / "x.pt", "state").read()
    assert kept is not None
    assert 1 <= kept["step"] < 8
    assert state(training(tmp_path / "x.pt")) == whole


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
import torch
torch.set_num_threads(1)
import harness.training
from pathlib import Path
from test_training import training
harness.training.CHECKPOINT_SECONDS = 0
calls = 0
def die(batch):
    global calls
    calls += 1
    if calls == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch
training(Path({path!r}), die).run()
"""


def test_a_killed_training_ends_in_the_same_bits(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    script = KILLED.format(tests=str(ROOT / "tests"), root=str(ROOT), path=str(path))
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    kept = Checkpoint(path, "state").read()
    assert kept is not None
    assert kept["step"] == 5
    assert state(training(path)) == whole


def test_a_finished_training_is_not_done_again(whole: bytes, tmp_path: Path) -> None:
    assert state(training(tmp_path / "x.pt")) == whole
    assert state(training(tmp_path / "x.pt", stopping(1, Stop))) == whole


def test_checkpoints_hold_tensors_and_plain_values_only(tmp_path: Path) -> None:
    training(tmp_path / "x.pt").run()
    assert torch.load(tmp_path / "x.pt", weights_only=True)["content"]["step"] == STEPS
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("spoil", ["other state", "cut short", "nonsense", "another object"])
def test_a_checkpoint_that_cannot_be_used_is_not(whole: bytes, tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "x.pt"
    training(path, checkpoint=Checkpoint(path, "other" if spoil == "other state" else "state"), lr=0.9).run()
    if spoil == "cut short":
        path.write_bytes(path.read_bytes()[:-500])
    elif spoil == "nonsense":
        path.write_bytes(b"nonsense")
    elif spoil == "another object":
        torch.save([1, 2], path)
    assert state(training(path)) == whole


def test_a_full_disk_stops_nothing(whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("a file where the folder should be")
    assert state(training(tmp_path / "x" / "y.pt")) == whole
    assert "No checkpoint was written" in capsys.readouterr().err


def test_removing_takes_all_parts_and_remains_and_nothing_else(tmp_path: Path) -> None:
    mine = Checkpoint(tmp_path / "a[1].b.pt", "state")
    for name in ("a[1].b.pt", "a[1].b.seed1.pt", ".a[1].b.pt.x7", ".a[1].b.seed1.pt.x8", "a[1].c.pt", "a1.b.pt"):
        (tmp_path / name).write_text("")
    assert mine.part("seed1").path.name == "a[1].b.seed1.pt"
    mine.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1.b.pt", "a[1].c.pt"]


def test_a_loss_that_is_not_finite_is_named_with_step_and_rate(tmp_path: Path) -> None:
    def spoil(batch: Any) -> Any:
        values, targets = batch
        return values * (math.inf if run._curve.counts == [1, 1, 1, 1] else 1), targets

    run = training(tmp_path / "x.pt", spoil)
    with pytest.raises(ModelError, match=r"The training loss is nan at step 4 of 12, at learning rate 0\.0485: .*lr"):
        run.run()


def test_a_loss_without_a_gradient_is_refused() -> None:
    run = training()
    run.loss = lambda batch: run.module(batch[0]).detach().sum()
    with pytest.raises(ModelError, match="does not depend on its parameters"):
        run.run()


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameter that can be trained"):
        adamw(nn.ReLU(), 0.1, 0.0)


def test_training_lowers_the_loss_and_leaves_eval_mode() -> None:
    trained = training(average=None).run()
    assert trained.curve[-1] < 0.8 * trained.curve[0]
    assert not any(part.training for part in trained.module.modules())
    assert trained.details["steps"] == STEPS
    assert trained.details["parameters_trained"] == sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    monkeypatch.setattr("harness.training.CHECKPOINT_SECONDS", 0)
    setup = Setup(precision=precision)
    whole = training(setup=setup).run()
    assert whole.curve[-1] < 0.8 * whole.curve[0]
    assert whole.curve != training().run().curve
    with pytest.raises(Stop):
        training(tmp_path / "x.pt", stopping(7, Stop), setup=setup).run()
    kept = Checkpoint(tmp_path / "x.pt", "state").read()
    assert kept is not None
    assert bool(kept["scaler"]) == (precision == "fp16")
    assert training(tmp_path / "x.pt", setup=setup).run().curve == whole.curve


def test_the_average_is_what_timm_gives() -> None:
    from timm.utils import ModelEmaV3

    run = training()
    judge = ModelEmaV3(run.module, decay=0.9)
    run.schedule, inner = (lambda step: (step and judge.update(run.module), inner(step))), run.schedule
    trained = run.run()
    judge.update(run.module)
    for name, tensor in tensors(judge.module).items():
        assert torch.equal(tensors(trained.module)[name], tensor), name
    assert not torch.equal(trained.module.body[0].weight, run.module.body[0].weight)


@pytest.mark.parametrize("steps", [1, 7, 99, 100, 101, 1234])
def test_the_curve_has_means_of_equal_stretches(steps: int) -> None:
    curve = Curve(steps)
    for step in range(steps):
        curve.add(step, float(step))
    points = curve.points()
    assert len(points) == min(steps, CURVE_POINTS)
    assert sum(curve.counts) == steps
    assert max(curve.counts) - min(curve.counts) <= 1
    bounds = numpy.cumsum([0, *curve.counts])
    assert points == [(first + after - 1) / 2 for first, after in pairwise(bounds)]


def test_memory_does_not_grow_with_steps() -> None:
    import gc

    counts = []

    def count(step: int) -> None:
        if step in (20, 399):
            gc.collect()
            counts.append(len(gc.get_objects()))

    def endless(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(first, 400):
            yield torch.randn(4, 6), torch.zeros(4, dtype=torch.long)

    training(batches=endless, steps=400, schedule=count).run()
    assert counts[1] - counts[0] < 400  # the curve's points, and less than one object a step


def test_seeds_are_the_same_everywhere() -> None:
    assert derived_seed(0, "step", 1) == 983214275
    assert len({derived_seed(seed, "step", step) for seed in range(20) for step in range(500)}) == 10_000


# Losses that a model leaves beside its output


class Leaves(nn.Module):
    def forward(self, images: Tensor, context: AttentionContext | None = None) -> Tensor:
        assert context is not None
        context.auxiliary["0.loss"] = images.mean() * 2
        context.auxiliary["diversity_loss"] = images.mean() * 3
        context.auxiliary["attention"] = images * 1e6
        return images


class Stranger(nn.Module):
    def forward(self, images: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is None
        return images


def test_losses_in_the_context_are_added() -> None:
    output, own = forward_with_losses(Leaves())(torch.ones(2, 3))
    assert torch.equal(output, torch.ones(2, 3))
    assert float(own) == 5
    assert forward_with_losses(Net().eval())(torch.ones(2, 6))[1] == 0
    assert forward_with_losses(Stranger())(torch.ones(2, 6))[1] == 0
