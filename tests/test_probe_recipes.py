"""Linear heads by published recipes step as torch's own modules and optimizers do, each as if it were alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import SetupError
from harness.features import Features
from harness.record import Setup
from tasks.heads.held_out import hold_out
from tasks.heads.sgd import RECIPES, Recipe, Setting, recipe, train_heads
from tasks.metrics.accuracy import Accuracy
from tasks.protocols.linear import Linear

CLASSES, WIDTH = 5, 12


def mixture(rows: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (rows,), generator=generator)
    means = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    values = 3 + means[targets] + torch.randn(rows, WIDTH, generator=generator)
    return Features(values, targets, [str(index) for index in range(rows)])


TRAIN, TEST = mixture(600), mixture(200, 1)


def with_torch(plan: Recipe, setting: Setting) -> Tensor:
    """Train one head with torch's modules and return the scores of the test features."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(
            torch.empty(1, WIDTH, CLASSES).uniform_(-(WIDTH**-0.5), WIDTH**-0.5, generator=generator)[0].T
        )
        linear.bias.uniform_(-(WIDTH**-0.5), WIDTH**-0.5, generator=generator)
    net = nn.Sequential(nn.BatchNorm1d(WIDTH) if plan.normalize else nn.Identity(), linear).train()
    others = [linear.bias, *net[0].parameters()]
    groups = [{"params": [linear.weight], "weight_decay": setting.weight_decay}, {"params": others, "weight_decay": 0}]
    optimizer: torch.optim.Optimizer
    if plan.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, setting.learning_rate)
    else:
        optimizer = torch.optim.SGD(groups, setting.learning_rate, plan.momentum, nesterov=plan.nesterov)
    for epoch in range(plan.epochs):
        order = torch.randperm(600, generator=generator)
        for start in range(0, 600, plan.batch):
            chosen = order[start : start + plan.batch]
            for group in optimizer.param_groups:
                rate = plan.rate(torch.tensor(setting.learning_rate), epoch + start / 600)
                group["lr"] = float(rate) * plan.batch / 256
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(TRAIN.values[chosen]), TRAIN.targets[chosen]).backward()
            optimizer.step()
    with torch.no_grad():
        return net.eval()(TEST.values)


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.0, "nesterov": False}, {"nesterov": False}])
@pytest.mark.parametrize("name", [("dseq", ""), ("dseq", "clevr"), ("vissl", "clevr_count")])
def test_several_heads_train_as_torch_trains_each(name: tuple[str, str], changes: dict[str, Any]) -> None:
    plan = replace(RECIPES[name], batch=128, epochs=10, **changes)
    plan = plan if plan.schedule == "cosine" else replace(plan, schedule=(4, 7))
    settings = [Setting(0.01, 5e-4), Setting(0.1, 0.0), Setting(0.03, 0.3)]
    heads = train_heads(TRAIN.values, TRAIN.targets, CLASSES, plan, settings, Setup())
    for scores, setting in zip(heads(TEST.values), settings, strict=True):
        torch.testing.assert_close(scores, with_torch(plan, setting), rtol=1e-3, atol=1e-3)


def test_a_lars_step_by_hand() -> None:
    plan = replace(RECIPES["vissl", ""], epochs=1, normalize=False, momentum=0.0)
    before = train_heads(TRAIN.values, TRAIN.targets, CLASSES, replace(plan, epochs=0), [Setting(0.1, 0.01)], Setup())
    after = train_heads(TRAIN.values, TRAIN.targets, CLASSES, plan, [Setting(0.1, 0.01)], Setup())
    weight, bias = (each[0].clone().requires_grad_() for each in before.weights)
    nn.functional.cross_entropy(TRAIN.values @ weight + bias, TRAIN.targets).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    rate = 0.1 * 600 / 256
    with torch.no_grad():
        gradient = weight.grad + 0.01 * weight
        expected = weight - rate * 0.001 * weight.norm() / gradient.norm() * gradient
        torch.testing.assert_close(after.weights[0][0], expected)
        torch.testing.assert_close(after.weights[1][0], bias - rate * bias.grad)


def test_rates_fall_as_the_recipes_say() -> None:
    highest = torch.tensor(0.01)
    steps, cosine = RECIPES["dseq", ""], RECIPES["vissl", "clevr_dist"]
    assert [float(steps.rate(highest, epoch)) for epoch in (0, 7.99, 8, 16, 24)] == pytest.approx(
        [1e-2, 1e-2, 1e-3, 1e-4, 1e-5]
    )
    assert [float(cosine.rate(highest, epoch)) for epoch in (0, 50, 100)] == pytest.approx([1e-2, 5.05e-3, 1e-4])


def measure(protocol: Linear, **task: Any) -> dict[str, Any]:
    fake: Any = SimpleNamespace(num_classes=CLASSES, meter=lambda: Accuracy(CLASSES), **task)
    top1 = protocol.measure(TRAIN, TEST, fake, Setup()).measurements[0].value
    return {"top1": top1, **protocol.details}


def test_dseq_as_published_and_as_its_code_ran() -> None:
    published, ran = measure(Linear(preset="dseq")), measure(Linear(preset="dseq", momentum=0.0))
    assert published["recipe"]["momentum"] == 0.9
    assert published["recipe"]["nesterov"]
    assert ran["recipe"]["momentum"] == 0.0
    assert "momentum=0 is what the code ran" in published["recipe"]["note"]
    assert published["top1"] > 80
    assert published["augmentation"].startswith("none")


def test_the_task_decides_the_recipe() -> None:
    assert not measure(Linear(preset="dseq"), probe_family="clevr_count")["recipe"]["normalize"]
    assert recipe("vissl", "clevr_dist").epochs == 100
    assert recipe("vissl", "clevr_count").epochs == 50
    assert recipe("vissl", "birds").batch == 16384


def test_the_best_of_a_sweep_is_chosen_on_held_out_images() -> None:
    details = measure(Linear(preset="vissl"))
    curve = details["held_out_accuracy"]
    assert len(curve) == len(details["grid"]) == 6
    assert details["setting"] == details["grid"][curve.index(max(curve))]
    held = len(hold_out(TRAIN.targets, 0)[1])
    assert 115 <= held <= 120
    assert details["chosen_on"] == f"{held} training images held out, stratified, seed 0"


@pytest.mark.parametrize(
    "options", [{"C": 0.0}, {"C": 1.0, "preset": "dseq"}, {"momentum": 0.5}, {"momentum": 1.0, "preset": "dseq"}]
)
def test_options_that_do_not_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="cannot be used: expected"):
        Linear(**options)


def test_a_preset_of_images_alone_is_logistic_regression() -> None:
    vtab, logistic = measure(Linear(preset="vtab")), measure(Linear())
    assert vtab["penalty"] == logistic["penalty"]
    assert vtab["top1"] == logistic["top1"]


def test_adamw_has_no_momentum() -> None:
    with pytest.raises(SetupError, match="trains with AdamW"):
        recipe("dseq", "clevr_count", 0.5)
