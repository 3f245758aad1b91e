"""The task `attention` and its command, on a carrier small enough to count by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from mixers import NAMES, crosses_blocks
from torch import nn

from harness import attention_cli
from harness.alone import Alone, first_mixers
from harness.api import run
from harness.costs import memory
from harness.costs.memory import Peak, added_peak
from harness.errors import ModelError, SetupError, UnknownName
from harness.growth import Pair
from harness.models import AttentionSite, build_model
from harness.record import Record, Setup, Weights
from harness.registry import ATTENTIONS
from harness.runner import Job
from harness.task import build_task
from tasks import attention
from tasks.attention import Attention, Bench, Known, Rule, parse_tokens

CARRIER = """
import torch
from torch import nn
from harness.models import AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

class Block(nn.Module):
    def __init__(self, site, attention):
        super().__init__()
        self.attn = attention(site)

class Carrier(nn.Module):
    channels, strides = (16,), (2,)

    def __init__(self, num_classes, side, attention):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 2, 2)
        sites = [AttentionSite(16, 2, (side, side), 0, layer, 3, 0, 16) for layer in range(3)]
        self.blocks = nn.ModuleList(Block(site, attention) for site in sites)
        self.head = nn.Linear(16, num_classes)

    def forward(self, images):
        maps = self.embed(images)
        context = AttentionContext((maps.shape[2], maps.shape[3]))
        tokens = maps.flatten(2).mT
        for block in self.blocks:
            tokens = tokens + block.attn(tokens, context)
        return self.head(tokens.mean(1))

def carrier(num_classes=10, image_size=8, attention=None):
    return Carrier(num_classes, image_size // 2, attention or ATTENTIONS.get("softmax").build)
"""
QUICK = "seconds=0.001"


@pytest.fixture
def carrier(tmp_path: Path) -> str:
    path = tmp_path / "toys.py"
    path.write_text(CARRIER)
    return f"{path}:carrier"


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip what takes time and decides nothing here."""
    monkeypatch.setattr(attention, "warm", lambda *_: None)
    monkeypatch.setattr(attention, "MOST_ROUNDS", 4)


def evaluate(model: str, task: str, results: Path, **options: Any) -> Record:
    (record,) = run(model, f"attention,{QUICK},{task}", results=results, executor="inline", device="cpu", **options)
    return record  # type: ignore[no-any-return]


def sites(side: int) -> list[AttentionSite]:
    return [AttentionSite(16, 2, (side, side), 0, layer, 3, 0, 16) for layer in range(3)]


@pytest.mark.parametrize(("scope", "taken"), [("alone", 2), ("carrier", 3)])
def test_counts_are_the_closed_forms_and_the_control_stands_beside(
    carrier: str, tmp_path: Path, scope: str, taken: int
) -> None:
    record = evaluate(f"{carrier}+linear", f"scope={scope},tokens=9-16-25", tmp_path / "r", batch_size=2)
    assert record.error is None
    values = record.values()
    for side in (3, 4, 5):
        rest = 0 if scope == "alone" else side**2 * 12 * 16 + 16 * 10
        for part, name in (("", "linear"), ("_control", "softmax")):
            macs = sum(ATTENTIONS.get(name).card.macs(site) for site in sites(side)[:taken])
            assert values[f"gmacs{part}_n{side**2}"] == pytest.approx((macs + rest) / 1e9)
    parameters = sum(ATTENTIONS.get("linear").card.parameters(site) for site in sites(4)[:taken])
    assert values["parameters"] == pytest.approx(
        (parameters + (0 if scope == "alone" else 12 * 16 + 16 + 17 * 10)) / 1e6
    )
    assert record.details["control"] == "toys.py:carrier+softmax"
    samples = {m.metric.name: m.samples for m in record.measurements}
    for name in ("latency", "training_latency"):
        assert len(samples[f"{name}_n25"]) == len(samples[f"{name}_control_n25"]) >= 3
        assert (values[f"{name}_ratio_n25"] or 0) > 0
    assert record.measurements[0].metric.name == "latency_growth"


def test_the_control_against_itself_has_no_crossings(carrier: str, tmp_path: Path) -> None:
    record = evaluate(f"{carrier}+softmax", "tokens=9-16-25", tmp_path / "r")
    found = {m.metric.name: m for m in record.measurements}
    names = ("faster_from", "training_faster_from", "lighter_from", "training_lighter_from", "fewer_macs_from")
    assert {found[name].reason for name in names} == {"is the control"}
    assert found["latency_ratio_n25"].value, "the check of the measure stays"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [1, 5])
def test_every_mixer_goes_forward_and_backward_alone_on_odd_grids(carrier: str, name: str, side: int) -> None:
    model_id = f"{carrier}+{name}"
    own, control = Bench(build_model(model_id), model_id, True, Setup(batch_size=2)).entrants(side)
    assert isinstance(control.module, Alone)
    attention._train(own, Setup())
    assert own.inputs.grad is None, "what one pass leaves would be a part of the next one's memory"
    assert own.module(own.inputs).shape == (2, side**2, 16)


@pytest.mark.parametrize("name", [name for name in NAMES if crosses_blocks(name)])
def test_what_the_first_mixer_leaves_reaches_the_second(carrier: str, name: str) -> None:
    torch.manual_seed(0)
    mixers = first_mixers(build_model(f"{carrier}+{name}").eval())
    with torch.no_grad():
        for parameter in (parameter for mixer in mixers for parameter in mixer.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = torch.randn(1, 64, 16)
    together = Alone(mixers, (8, 8))(tokens)
    apart = Alone(mixers[1:], (8, 8))(Alone(mixers[:1], (8, 8))(tokens))
    assert not torch.allclose(together, apart)


def test_only_the_outermost_mixers_of_a_network_count() -> None:
    blocks = [nn.ModuleDict({"attn": nn.ModuleDict({"attn": nn.Linear(1, 1)})}) for _ in range(3)]
    assert first_mixers(nn.Sequential(*blocks)) == [block["attn"] for block in blocks[:2]]
    with pytest.raises(ModelError, match="no carrier of mixers"):
        first_mixers(nn.Sequential(*blocks[:1]))


def test_an_interrupted_sweep_goes_on_after_its_last_size(
    carrier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    whole = Bench.entrants

    def failing(self: Bench, side: int) -> Any:
        measured.append(side)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return whole(self, side)

    monkeypatch.setattr(Bench, "entrants", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(f"{carrier}+linear", "tokens=9-16-25-36", tmp_path / "r")
    record = evaluate(f"{carrier}+linear", "tokens=9-16-25-36", tmp_path / "r")
    assert measured == [3, 4, 5, 5, 6], "the first two sizes are not measured again"
    assert record.error is None
    assert record.details["tokens"] == [9, 16, 25, 36]
    assert all(record.values()[f"latency_n{tokens}"] for tokens in (9, 16, 25, 36))
    assert not (tmp_path / "r" / "unfinished").exists()


def test_what_the_machine_refuses_is_a_reason_and_the_rest_goes_on(
    carrier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks: list[str] = []

    def refusing(step: Callable[[], object], setup: Setup) -> tuple[float, str]:
        peaks.append("peak")
        if len(peaks) == 3:  # the first pass of the second mode
            raise torch.OutOfMemoryError("no 99 GiB here")
        step()
        return 1.0, ""

    monkeypatch.setattr(attention, "added_peak", refusing)
    record = evaluate(f"{carrier}+linear", "tokens=9-16", tmp_path / "r")
    found = {m.metric.name: m for m in record.measurements}
    assert "no 99 GiB here" in found["training_latency_n9"].reason
    assert "no 99 GiB here" in found["training_memory_n9"].reason
    assert found["latency_n9"].value
    assert found["training_latency_n16"].value


@pytest.mark.parametrize(
    ("option", "reason"), [("longest=0.0", "passes would take about"), ("memory=0.0002", "GiB are forecast")]
)
def test_what_would_take_too_much_is_left_out_by_forecast(
    carrier: str, tmp_path: Path, option: str, reason: str
) -> None:
    record = evaluate(f"{carrier}+linear", f"tokens=9-16-400,{option}", tmp_path / "r")
    found = {m.metric.name: m for m in record.measurements}
    assert found["latency_n16"].value, "two sizes are measured whatever they take"
    for name in ("latency_n400", "memory_n400", "training_latency_ratio_n400"):
        assert found[name].value is None
        assert reason in found[name].reason
    assert found["gmacs_n400"].value, "what is counted needs no pass"


def test_a_forecast_is_of_the_heavier_model_and_of_both_times() -> None:
    known, rule = Known(), Rule(seconds=1, longest=9, memory=1024)
    for tokens in (1024, 4096):
        scale = (tokens / 1024) ** 2
        known.learn(tokens, Pair((10 * scale,), (40 * scale,)), Pair((50 * scale,), (25 * scale,)))
    assert known.refusal(5000, rule) == ""
    assert known.refusal(16384, rule) == "left out: about 10.0 GiB are forecast, the limit is 1.0 GiB"
    assert "5 passes would take about 96 s" in known.refusal(16384, replace(rule, memory=10**6))
    known.learn(16384, Pair(reason="none"), Pair(reason="none"))
    assert "96 s" in known.refusal(16384, replace(rule, memory=10**6)), "what was not measured teaches nothing"


@pytest.mark.parametrize(
    ("tokens", "rungs"),
    [("16384", [256, 1024, 16384]), ("196-16384", [196, 256, 1024, 16384]), ("49-196-4096", [49, 196, 4096])],
)
def test_small_sizes_come_before_a_large_one(tokens: str, rungs: list[int]) -> None:
    assert Attention(tokens=tokens)._rungs() == rungs


@pytest.mark.parametrize("tokens", ["", "50", "49-", "49,64", "-49", "0", "a"])
def test_what_are_no_squares_is_refused(tokens: str) -> None:
    with pytest.raises(SetupError, match="expected squares"):
        parse_tokens(tokens)


@pytest.mark.parametrize("setup", [Setup(cuda_graphs=True), Setup(weights=Weights(source="own"))])
def test_what_makes_no_sense_is_refused_before_anything_runs(setup: Setup) -> None:
    with pytest.raises(SetupError, match="random weights without CUDA graphs"):
        build_task("attention").check(setup)


@pytest.mark.parametrize(
    ("model", "error"), [("tiny", "no carrier of mixers"), ("timm:vit_tiny_patch16_224", "channels and strides")]
)
def test_a_model_that_is_no_carrier_is_an_error(nets: str, tmp_path: Path, model: str, error: str) -> None:
    record = evaluate(model if ":" in model else f"{nets}:{model}", "tokens=9", tmp_path / "r")
    assert error in str(record.error)


def test_each_size_is_compiled_by_itself(carrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    model_id, setup = f"{carrier}+linear", Setup(batch_size=1, compile=True)
    compiled: list[object] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    bench = Bench(build_model(model_id), model_id, False, setup)
    for side in (2, 3):
        bench.entrants(side)
    assert (len(resets), compiled) == (2, ["Carrier"] * 4)


def test_on_a_gpu_the_added_memory_is_what_tensors_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_cuda_peak", lambda step, device: Peak(100 * 2**20, 164 * 2**20, 0, None))
    assert added_peak(lambda: None, Setup(device="cuda")) == (64.0, "")


def command(results: Path, **options: Any) -> int:
    """Return the exit code of the command."""
    chosen = {"alone": "none", "carrier": "none", "seconds": 0.001, "device": "cpu", "executor": "inline", **options}
    try:
        attention_cli.attention(results=results, **chosen)
    except typer.Exit as end:
        return int(end.exit_code)
    return 0


def test_the_command_measures_writes_and_goes_on(
    carrier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(f"{carrier}+linear", "scope=alone,tokens=9-16-25", tmp_path / "r", batch_size=1)
    assert command(tmp_path / "r", mixers="linear,pooling", alone=carrier, tokens="9,16,25") == 0
    assert "1 of 2 were measured before" in capsys.readouterr().err
    folder = tmp_path / "r" / "token_counts"
    assert (folder / "README.md").read_text().count("| pooling ") == 1
    rows = list(csv.DictReader((folder / "points.csv").read_text().splitlines()))
    assert {row["tokens"] for row in rows} == {"9", "16", "25"}
    assert len(rows) == 2 * 5 * 3
    figures = {path.name for path in folder.glob("*.svg")}
    # A toy's memory may be below what the resident set tells, and then has no figure.
    for quantity in ("latency", "training_latency"):
        assert {f"toys.py-carrier_alone_b1_fp32_cpu_{quantity}_{theme}.svg" for theme in ("dark", "light")} <= figures


def test_all_is_every_mixer() -> None:
    assert attention_cli.chosen_mixers(True, None) == NAMES
    assert attention_cli.chosen_mixers(False, "agent, window,agent") == ["agent", "window"]


@pytest.mark.parametrize(("all", "mixers"), [(True, "agent"), (False, None)])
def test_all_or_some_must_be_chosen(all: bool, mixers: str | None) -> None:
    with pytest.raises(SetupError, match="Give --all"):
        attention_cli.chosen_mixers(all, mixers)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mixers": "agnt"}, UnknownName, "Did you mean 'agent'"),
        ({"mixers": "agent"}, SetupError, "nothing to measure"),
        ({"mixers": "agent", "carrier": "vit_t16", "batch": "1,x"}, SetupError, "--batch is '1,x'"),
        ({"mixers": "agent", "carrier": "vit_t16", "tokens": "50"}, SetupError, "expected squares"),
    ],
)
def test_mistakes_in_the_command_measure_nothing(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        command(tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


class Stopped(Exception):
    """Raised where jobs would run."""


def test_with_a_gpu_there_are_more_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(jobs: Sequence[Job], *_: object) -> None:
        assert [job.task for job in jobs] == ["attention,tokens=49-196-784-3136-4096-16384"]
        assert (jobs[0].setup.device, jobs[0].setup.precision, jobs[0].setup.compile) == ("cuda", "bf16", True)
        raise Stopped

    monkeypatch.setattr("harness.api.run_jobs", stop)
    options = {"mixers": "agent", "carrier": "vit_t16", "seconds": None}
    with pytest.raises(Stopped):
        command(tmp_path / "r", device="cuda", precision="bf16", compile=True, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["softmax", "agent", "neighborhood", "window"])
def test_a_gpu_measures_forward_and_backward(tmp_path: Path, name: str, compile: bool) -> None:
    options: dict[str, Any] = {"executor": "inline", "device": "cuda", "precision": "bf16", "compile": compile}
    (record,) = run(
        f"vit_t16+{name}", "attention,scope=alone,tokens=196-1024-4096", results=tmp_path, batch_size=2, **options
    )
    assert record.error is None
    for quantity in ("latency", "training_latency", "memory", "training_memory"):
        assert (record.values()[f"{quantity}_n4096"] or 0) > 0
