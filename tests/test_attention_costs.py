"""Costs of mixers: closed forms against the counters, export, compilation, and memory on 16,384 tokens."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from mixers import CASES, build, context_after, site, takes_prefix, tokens_of
from torch import Tensor, nn

from harness.costs.counter import MacCount, MacCounter, count_macs
from harness.models import AttentionContext, AttentionSite
from harness.registry import ATTENTIONS, MODELS

GRID = (9, 15)
NAMES = list(ATTENTIONS)

every_case = pytest.mark.parametrize(("name", "prefix"), CASES)
every_name = pytest.mark.parametrize("name", NAMES)


def products(count: MacCount) -> int:
    """Return the MACs that closed forms state: all but normalisation and interpolation."""
    assert not count.uncounted
    return sum(macs for kind, macs in count.by_kind.items() if kind not in ("normalisation", "interpolation"))


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@every_case
@pytest.mark.parametrize(("grid", "stride"), [((56, 56), 4), ((16, 17), 4), ((28, 14), 8), ((9, 15), 16), ((2, 1), 32)])
@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_closed_forms_of_the_mixer(name: str, prefix: int, grid: tuple[int, int], stride: int, layer: int) -> None:
    place = site(grid, prefix, layer, stride, dim=48)
    tokens = torch.zeros(1, prefix + grid[0] * grid[1], 48, device="meta")
    with torch.device("meta"):
        mixer = ATTENTIONS.get(name).build(place).eval()
    context = context_after(name, place, tokens, grid)
    with MacCounter() as counter:
        mixer(tokens, context)
    card = ATTENTIONS.get(name).card
    assert parameters_of(mixer) == card.parameters(place)
    assert products(counter.result()) == card.macs(place)


# The second has odd grids at every stride, which neither reductions nor windows divide.
SIZES = ((224, 224), (72, 136))


@cache
def carrier_costs(carrier: str, name: str, size: tuple[int, int]) -> tuple[int, int, list[AttentionSite]]:
    """Return parameters and MACs of a carrier with a mixer, and the mixer's sites."""
    sites: list[AttentionSite] = []

    def attention(place: AttentionSite) -> nn.Module:
        sites.append(place)
        mixer: nn.Module = ATTENTIONS.get(name).build(place)
        return mixer

    with torch.device("meta"):
        model = MODELS.get(carrier).build(image_size=size, attention=attention)
        images = torch.zeros(1, 3, *size)
    return parameters_of(model), products(count_macs(model, images)), sites


@every_name
@pytest.mark.parametrize("carrier", ["vit_t16", "pyramid_t"])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_closed_forms_in_the_carrier(name: str, carrier: str, size: tuple[int, int]) -> None:
    carrier = "vit_t16_cls" if carrier == "vit_t16" and takes_prefix(name) else carrier
    card, control = ATTENTIONS.get(name).card, ATTENTIONS.get("softmax").card
    parameters, macs, sites = carrier_costs(carrier, name, size)
    others, work, control_sites = carrier_costs(carrier, "softmax", size)
    assert len(sites) == 12
    assert sites == control_sites
    assert parameters - others == sum(map(card.parameters, sites)) - sum(map(control.parameters, sites))
    assert macs - work == sum(map(card.macs, sites)) - sum(map(control.macs, sites))


class OnGrid(nn.Module):
    """Two blocks of a mixer on one grid, as a module of tokens alone: what exporters and compilers take."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(build(name, site(GRID, layer=layer, depth=2)) for layer in (0, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        context = AttentionContext(GRID)
        for mixer in self.mixers:
            tokens = mixer(tokens, context)
        return tokens


@every_name
@torch.no_grad()
def test_every_mixer_can_be_exported(name: str) -> None:
    module, tokens = OnGrid(name).eval(), tokens_of(GRID)
    exported = torch.export.export(module, (tokens,)).module()
    torch.testing.assert_close(exported(tokens), module(tokens), rtol=1e-4, atol=1e-5)


def assert_compiles(name: str, backend: str) -> None:
    """Compare a compiled mixer with itself, and its gradients, in one graph without a break."""
    torch.compiler.reset()
    module, tokens = OnGrid(name), tokens_of(GRID)
    outcomes = []
    for run in (module, torch.compile(module, fullgraph=True, backend=backend)):
        leaf = tokens.clone().requires_grad_()
        mixed = run(leaf)
        gradients = torch.autograd.grad(mixed.square().sum(), [leaf, *module.parameters()])
        outcomes.append((mixed.detach(), *gradients))
    for eager, compiled in zip(*outcomes, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@every_name
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex:UserWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_mixer_equals_itself(name: str, backend: str) -> None:
    assert_compiles(name, backend)


GROWTH = """
import sys, torch
from harness.costs.memory import resident_peak
from harness.models import AttentionContext, AttentionSite
from harness.record import Setup
from harness.registry import ATTENTIONS

torch.set_num_threads(1)
name, training, grid = sys.argv[1], sys.argv[2] == "training", (128, 128)
place = AttentionSite(384, 6, grid, 0, 1, 12, 0, 16)
mixer = ATTENTIONS.get("identity" if name == "matrix" else name).build(place).train(training)
tokens = torch.randn(1, 128 * 128, 384, requires_grad=training)

def step():
    with torch.set_grad_enabled(training):
        mixed = mixer(tokens, AttentionContext(grid))
        if name == "matrix":
            mixed = (tokens[0] @ tokens[0].T).softmax(dim=-1) @ mixed[0]
        if training:
            mixed.sum().backward()

print(resident_peak(step, Setup(device="cpu"))[0])
"""


def growth_mib(name: str, mode: str) -> float:
    """Return how far a pass over 16,384 tokens of width 384 takes the memory of a process of its own."""
    command, root = [sys.executable, "-c", GROWTH, name, mode], Path(__file__).resolve().parents[1]
    output = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()
    if output == "None":
        pytest.skip("this system cannot reset the peak of a process's resident set")
    return float(output)


# The scores and weights of one head, 16,384 x 16,384 numbers each in single precision; there are six heads.
ONE_HEAD_MIB = 2048
# These attend to all tokens or to a fixed share of them, by quadratic work, and strip attention with a map of it.
QUADRATIC = (
    "conv_projection",
    "gated_positional",
    "multi_scale_fusion",
    "polyline_path",
    "self_guided",
    "softmax",
    "strip",
    "token_aware",
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the resident set differs")
@pytest.mark.parametrize("mode", ["evaluation", "training"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUADRATIC])
def test_no_matrix_of_all_tokens_is_built(name: str, mode: str) -> None:
    assert growth_mib(name, mode) < ONE_HEAD_MIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the resident set differs")
def test_a_matrix_of_all_tokens_is_seen() -> None:
    assert growth_mib("matrix", "evaluation") > 0.9 * ONE_HEAD_MIB


# What a process may hold of its own, as against the files that it maps; the limit is the kernel's.
BOUNDED = """
import resource, sys, torch
from harness.models import AttentionContext, AttentionSite
from harness.registry import ATTENTIONS

limit, grid = 4 * 2**30, (128, 128)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
torch.set_num_threads(1)
name, training = sys.argv[1], sys.argv[2] == "training"
tokens = torch.randn(1, 128 * 128, 384, requires_grad=training)
with torch.set_grad_enabled(training):
    if name == "matrix":
        heads = tokens.unflatten(2, (6, 64)).transpose(1, 2)
        mixed = (heads @ heads.mT).softmax(dim=-1) @ heads
    else:
        mixer = ATTENTIONS.get(name).build(AttentionSite(384, 6, grid, 0, 1, 12, 0, 16)).train(training)
        mixed = mixer(tokens, AttentionContext(grid))
    if training:
        mixed.sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


LOCAL_OR_MASKED = ("window", "neighborhood", "dilated_neighborhood", "polyline_path", "polyline_path_crisscross")


def bounded(name: str, mode: str) -> subprocess.CompletedProcess[str]:
    """Run a pass over 16,384 tokens of width 384 in a process that may hold 4 GiB."""
    command, root = [sys.executable, "-c", BOUNDED, name, mode], Path(__file__).resolve().parents[1]
    return subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to such a limit")
@pytest.mark.parametrize("mode", ["evaluation", "training"])
@pytest.mark.parametrize("name", LOCAL_OR_MASKED)
def test_a_process_of_4_gib_holds_16384_tokens(name: str, mode: str) -> None:
    done = bounded(name, mode)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to such a limit")
def test_a_process_of_4_gib_does_not_hold_the_whole_matrix() -> None:
    done = bounded("matrix", "evaluation")
    assert done.returncode != 0
    assert "allocate" in done.stderr
