"""Optimisers and schedules are those of timm, and a model that does not tell its layers has one rate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from baselines.backbones.pyramid import pyramid_t
from baselines.backbones.vit import vit_t16_cls
from harness.optimizer import adamw, cosine, knows_layers


def test_the_schedule_is_a_warm_up_and_half_a_cosine() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.4)
    schedule = cosine(optimizer, 100, 10, lr_min=0.04)
    rates = []
    for step in range(100):
        schedule(step)
        rates.append(optimizer.param_groups[0]["lr"])
    expected = [0.4 * (step + 1) / 11 for step in range(10)]
    expected += [0.04 + 0.18 * (1 + math.cos(math.pi * step / 90)) for step in range(90)]
    assert rates == pytest.approx(expected)
    schedule(3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected[3])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 5), (2, 1), (3, 9)])
def test_short_schedules_have_rates_too(steps: int, warmup: int) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.4)
    schedule = cosine(optimizer, steps, warmup)
    for step in range(steps):
        schedule(step)
        assert 0 < optimizer.param_groups[0]["lr"] <= 0.4


def rates_of(groups: Any, module: nn.Module) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)]: (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_layer_wise_rates_are_those_of_timm(name: str) -> None:
    module = timm.create_model(name)
    excepted = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
    judge = param_groups_layer_decay(module, 0.05, excepted, layer_decay=0.7)
    found = rates_of(adamw(module, 1e-3, 0.05, 0.7).param_groups, module)
    assert found == rates_of(judge, module)
    assert len(found) == len(list(module.parameters()))
    assert len(set(found.values())) > 4


def test_the_carriers_know_their_layers_as_timm_knows_its() -> None:
    ours, theirs = vit_t16_cls(10, 64), timm.create_model("deit_tiny_patch16_224", num_classes=10, img_size=64)
    assert {name: scale for name, (scale, _) in rates_of(adamw(ours, 1, 0.05, 0.5).param_groups, ours).items()} == {
        name: scale for name, (scale, _) in rates_of(adamw(theirs, 1, 0.05, 0.5).param_groups, theirs).items()
    }
    pyramid = pyramid_t(10, 64)
    scales = {name: scale for name, (scale, _) in rates_of(adamw(pyramid, 1, 0, 0.5).param_groups, pyramid).items()}
    ordered = [scales[name] for name, _ in pyramid.named_parameters()]
    assert ordered == sorted(ordered)
    assert len(set(ordered)) == 14  # the stem, twelve blocks, the head


def test_a_model_that_does_not_tell_its_layers_has_one_rate() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    assert not knows_layers(net)
    assert {scale for scale, _ in rates_of(adamw(net, 1e-3, 0.05, 0.5).param_groups, net).values()} == {1.0}
