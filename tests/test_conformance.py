"""The conformance kit: each way to break the contract of models is found, and explained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from harness.conformance import Check, Subject, blocking, examine
from harness.device import place
from harness.record import Preprocessing, Setup

SETUP = Setup(preprocessing=Preprocessing(image_size=(32, 32)))


class Net(nn.Module):
    """A sound model, with a change to its outputs."""

    def __init__(self, change: Callable[[Tensor, Tensor], object] = lambda logits, images: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 10)
        self.change = change

    def forward(self, images: Tensor) -> object:
        return self.change(self.head(self.stem(images).relu().mean((2, 3))), images)


def found(model: nn.Module, classes: int | None = 10, **fields: object) -> dict[str, Check]:
    subject = Subject(place(model, SETUP), SETUP, classes, images=100, seconds=60)
    return {check.name: check for check in examine(replace(subject, **fields))}  # type: ignore[arg-type]


def test_a_sound_model_passes_everything() -> None:
    checks = found(Net())
    assert list(checks) == [
        "output shape", "finite outputs", "determinism", "batch invariance", "two image sizes", "memory growth",
        "time per image",
    ]  # fmt: skip
    assert all(check.passed for check in checks.values()), checks
    assert blocking(list(checks.values())) == []


KEPT: list[Tensor] = []


def keep(logits: Tensor, images: Tensor) -> Tensor:
    KEPT.append(torch.ones(9 * 10**6))  # more than what the allocator may have kept of what others freed
    return logits


@pytest.mark.parametrize(("change", "name", "said"), [
    (lambda logits, images: logits[:, :-1], "output shape", "(4, 9) for 4 images; expected (4, 10): the factory has"),
    (lambda logits, images: [logits], "output shape", "returns a list; return a tensor of shape (4, 10)"),
    (lambda logits, images: logits.nothing(), "output shape", "The model raised AttributeError"),
    (lambda logits, images: logits.log(), "finite outputs", "NaN or infinite outputs. Look for"),
    (lambda logits, images: logits + torch.rand_like(logits), "determinism", "Is dropout or noise on in eval mode?"),
    (lambda logits, images: logits - logits.mean(0), "batch invariance", "Does a layer use the batch's statistics?"),
    (keep, "memory growth", "MiB over 12 batches. Does it keep tensors in a list?"),
    (lambda logits, images: time.sleep(0.02) or logits, "time per image", "the limit is 0 s"),
])  # fmt: skip
def test_a_broken_contract_is_named(change: Callable[..., object], name: str, said: str) -> None:
    checks = found(Net(change), seconds=0.4)
    KEPT.clear()
    assert [check.name for check in blocking(list(checks.values()))][:1] == [name]
    assert said in checks[name].message


def test_a_model_of_one_size_is_told_but_not_refused() -> None:
    def only_32(logits: Tensor, images: Tensor) -> Tensor:
        assert images.shape[-1] == 32, "32 pixels alone"
        return logits

    checks = found(Net(only_32))
    assert not checks["two image sizes"].passed
    assert "32 pixels alone" in checks["two image sizes"].message
    assert blocking(list(checks.values())) == []


def test_a_pyramid_is_judged_by_its_batch() -> None:
    assert found(Net(lambda logits, images: {"maps": [logits, images]}), classes=None)["output shape"].passed
    assert not found(Net(lambda logits, images: [logits[:1]]), classes=None)["output shape"].passed
