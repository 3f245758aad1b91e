"""Task ids: what may follow a task's name, and the one way to write it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from harness.errors import BenchError, SetupError, UnknownName
from harness.registry import PROTOCOLS, Entry
from harness.task import build_task
from harness.task_id import canonical
from tasks.classification import Classification
from tasks.clevr import Clevr


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("imagenet", "imagenet"),
        ("cost:latency", "cost:latency"),
        ("imagenet:knn", "imagenet:knn"),
        ("imagenet:knn,k=20", "imagenet:knn"),
        ("imagenet:knn,temperature=0.1,k=10", "imagenet:knn,k=10,temperature=0.1"),
        ("imagenet:knn,temperature=0.10", "imagenet:knn,temperature=0.1"),
        ("imagenet:knn,pooling=mean,layer=last", "imagenet:knn,pooling=mean"),
    ],
)
def test_one_way_to_write_a_task(written: str, meant: str) -> None:
    assert canonical(written) == meant
    assert canonical(meant) == meant


def test_options_reach_the_protocol_in_their_type() -> None:
    task = build_task("imagenet:knn,k=10,temperature=1")
    assert isinstance(task, Classification)
    assert (task.protocol.k, task.protocol.temperature) == (10, 1.0)
    assert isinstance(task.protocol.temperature, float)


@pytest.mark.parametrize(
    ("written", "error", "message"),
    [
        ("imagenet:knn,kk=3", SetupError, r"no option 'kk'. Did you mean 'k'\? It has: k, layer, layout, pooling"),
        ("imagenet:knn,pooling=max", SetupError, "pooling=max cannot be used: expected one of default, class, mean"),
        ("imagenet:knn,k=ten", SetupError, "k=ten cannot be used: expected `int`"),
        ("imagenet:knn,k=1,k=2", SetupError, "each once"),
        ("imagenet:knn,k", SetupError, "as NAME=VALUE"),
        ("imagenet,k=3", SetupError, "no option 'k'. It has none"),
        ("imagenet:knn,workers=3", SetupError, "no option 'workers'"),
        ("cost:latency,model=3", SetupError, "no option 'model'. It has none"),
        ("imagenet:knm", UnknownName, "Did you mean 'knn'"),
    ],
)
def test_what_is_wrong_in_a_task_id(written: str, error: type[BenchError], message: str) -> None:
    with pytest.raises(error, match=message):
        canonical(written)
    with pytest.raises(error, match=message):
        build_task(written)


@pytest.fixture
def two_presets() -> Iterator[None]:
    """A protocol whose presets are not those of the task, but for one."""

    class Recipe:
        untrained, trains_on = "apart", ()

        def __init__(self, preset: Literal["quick", "dseq"] = "quick") -> None:
            self.preset = preset

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS._entries, "recipe", Entry("recipe", Recipe, None, "here"))
        yield


@pytest.mark.parametrize(
    ("preset", "of_task", "of_protocol", "meant"),
    [
        ("dseq", "dseq", "dseq", "clevr_count:recipe,preset=dseq"),
        ("vtab", "vtab", "quick", "clevr_count:recipe,preset=vtab"),
        ("quick", "all", "quick", "clevr_count:recipe"),
        ("all", "all", "quick", "clevr_count:recipe"),
    ],
)
@pytest.mark.usefixtures("two_presets")
def test_an_option_goes_to_all_that_can_take_it(preset: str, of_task: str, of_protocol: str, meant: str) -> None:
    task = build_task(f"clevr_count:recipe,preset={preset}")
    assert isinstance(task, Clevr)
    assert (task.preset, task.protocol.preset) == (of_task, of_protocol)
    assert canonical(f"clevr_count:recipe,preset={preset}") == meant


@pytest.mark.usefixtures("two_presets")
def test_an_option_that_none_can_take_is_refused() -> None:
    with pytest.raises(SetupError, match="preset=slow cannot be used"):
        build_task("clevr_count:recipe,preset=slow")
