"""What a token mixer costs over token counts, forward and backward, in turns with fused softmax attention."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from harness.costs.latency import train_pass
from harness.costs.memory import MIB, added_peak, free_bytes
from harness.costs.parameters import PARAMETERS
from harness.costs.training import training
from harness.device import evaluating, noise, place
from harness.errors import ModelError, SetupError, reason
from harness.growth import LEAST_ROUNDS, Pair, summarise
from harness.metric import Evaluation, Measurement
from harness.models import build_model, public_id
from harness.observe import observing
from harness.progress import track
from harness.record import Setup
from harness.registry import TASKS
from harness.scaling import forecast
from harness.task import Task
from harness.timing import time_pass, turns, warm

if TYPE_CHECKING:
    from torch import Tensor, nn

CONTROL = "softmax"
# The sizes that tell what larger ones will take, where fewer than two of those asked for are small.
PROBES = (256, 1024)
MOST_ROUNDS = 30
# A longer pass fills the caches in a small part of its time, and needs no passes that do not count.
LONG_MILLISECONDS = 100.0
# Passes of each model at one size whatever they take: two that find the peak of memory, and the least rounds.
LEAST_PASSES = 2 + LEAST_ROUNDS
# Below this much, in MiB, the resident set says more of the allocator than of the model.
LEAST_MEMORY = 0.25
MODES = ("", "training_")

Step = Callable[[], object]


@dataclass(frozen=True)
class Rule:
    """How much is measured.

    Args:
        seconds: for which models take turns at one size, once the least rounds are made.
        longest: seconds that the least passes of both models at one size may take by the forecast.
        memory: MiB that one of them may need by the forecast.
    """

    seconds: float
    longest: float
    memory: float


@dataclass
class Entrant:
    """A model on its device, with what it is called with."""

    module: nn.Module
    inputs: Tensor


@dataclass
class Timed:
    """A step that remembers how many ms it took last."""

    step: Step
    device: str
    milliseconds: float = 0.0

    def __call__(self) -> None:
        """Take the step."""
        self.milliseconds = time_pass(self.step, self.device)


@dataclass
class Known:
    """What one kind of pass took at smaller sizes: MiB of the heavier model, ms of both."""

    memory: dict[int, float] = field(default_factory=dict)
    milliseconds: dict[int, float] = field(default_factory=dict)

    def refusal(self, tokens: int, rule: Rule) -> str:
        """Return why a size is left out; empty where it can be measured."""
        memory, milliseconds = forecast(self.memory, tokens), forecast(self.milliseconds, tokens)
        if memory is not None and memory > rule.memory:
            return f"left out: about {memory / 1024:.1f} GiB are forecast, the limit is {rule.memory / 1024:.1f} GiB"
        if milliseconds is not None and (seconds := LEAST_PASSES * milliseconds / 1000) > rule.longest:
            return f"left out: {LEAST_PASSES} passes would take about {seconds:.0f} s, the limit is {rule.longest:g} s"
        return ""

    def learn(self, tokens: int, memory: Pair, latency: Pair) -> None:
        """Take in what was measured."""
        if memory.own:
            self.memory[tokens] = max(*memory.own, *memory.control, LEAST_MEMORY)
        if latency.own:
            self.milliseconds[tokens] = min(latency.own) + min(latency.control)


@TASKS.register("attention")
class Attention(Task):
    """The costs of a carrier with a mixer, and how they grow with the number of tokens.

    At each size the same carrier with softmax attention takes turns with it, so that drift hits both alike. The model
    is a carrier with a mixer, such as `vit_t16+agent`.

    Args:
        scope: `carrier` for the whole network, `alone` for its first two mixers, one after the other: in some papers
            every second one differs, and some leave state for the next.
        tokens: numbers of tokens with dashes between, each a square; of a network with stages in its first.
        seconds: for which the two take turns at each size, forward and backward each, once the least rounds are made.
        longest: a size is left out where its least passes would take longer, in seconds, as the smaller sizes tell.
        memory: a size is left out where a pass would need more GiB; 0 stands for half of what is free.

    Raises:
        SetupError: a number of tokens is no square, or a limit is below 0.
    """

    machine_bound = True
    untrained = "rank"

    def __init__(
        self,
        scope: Literal["carrier", "alone"] = "carrier",
        tokens: str = "49-196-784-3136-4096",
        seconds: float = 0.4,
        longest: float = 8.0,
        memory: float = 0.0,
    ) -> None:
        if min(seconds, longest, memory) < 0:
            raise SetupError(f"seconds={seconds:g}, longest={longest:g}, memory={memory:g}: expected none below 0.")
        self.alone, self.sizes = scope == "alone", parse_tokens(tokens)
        self.seconds, self.longest, self.memory = seconds, longest, memory

    def check(self, setup: Setup) -> None:
        """Refuse weights and CUDA graphs.

        Raises:
            SetupError: either is asked for.
        """
        if setup.weights.source != "random" or setup.cuda_graphs:
            raise SetupError("attention measures random weights without CUDA graphs: leave both options out.")

    def evaluate(self, model: nn.Module, setup: Setup) -> Evaluation:
        """Measure each size in turn; what an interrupted evaluation has measured is not measured again."""
        import torch

        bench = Bench(model, self.model_id, self.alone, setup)
        rule = Rule(self.seconds, self.longest, 1024 * self.memory or free_bytes(setup.device) / 2 / MIB)
        known = {mode: Known() for mode in MODES}
        kept = self._kept()
        with few_to_collect(), observing(setup.device) as watch:
            for tokens in track(self._rungs(), "token counts"):
                if tokens not in kept:
                    kept[tokens] = self._measure(bench, tokens, known, rule, watch.look)
                    self._keep(tokens, kept[tokens])
                for mode in MODES:
                    known[mode].learn(tokens, kept[tokens][f"{mode}memory"], kept[tokens][f"{mode}latency"])
            observation = watch.report()
        measured = {tokens: kept[tokens] for tokens in self.sizes}
        details = {
            "scope": "alone: the first two mixers, one after the other" if self.alone else "carrier",
            "control": public_id(bench.control_id),
            "tokens": self.sizes,
            "rule": {**asdict(rule), "rounds": [LEAST_ROUNDS, MOST_ROUNDS], "long_ms": LONG_MILLISECONDS},
            "threads": torch.get_num_threads(),
            "observed": observation.seen,
            "disturbed": list(observation.disturbed),
        }
        is_control = public_id(bench.control_id) == public_id(self.model_id)
        growth, *others = summarise(measured, setup.seed, setup.device, is_control)
        return Evaluation((growth, Measurement(PARAMETERS, bench.parameters / 1e6), *others), details)

    def _rungs(self) -> list[int]:
        """The sizes that were asked for, with those that must be known before a large one is dared."""
        small = sum(size <= max(PROBES) for size in self.sizes)
        return sorted({*self.sizes, *(PROBES if small < 2 and max(self.sizes) > max(PROBES) else ())})

    def _measure(
        self, bench: Bench, tokens: int, known: dict[str, Known], rule: Rule, look: Callable[[], object]
    ) -> dict[str, Pair]:
        """Return every quantity at one size."""
        refusals = {mode: known[mode].refusal(tokens, rule) for mode in MODES}
        entrants = bench.entrants(math.isqrt(tokens))
        found = {"gmacs": _gmacs(entrants)}
        for mode in MODES:
            found |= _passes(entrants, mode, refusals[mode], rule, bench.setup, look)
        return found

    def _kept(self) -> dict[int, dict[str, Pair]]:
        import msgspec

        rows = self.journal.read() if self.journal else []
        return {int(tokens): msgspec.json.decode(str(text), type=dict[str, Pair]) for tokens, text in rows}

    def _keep(self, tokens: int, pairs: dict[str, Pair]) -> None:
        import msgspec

        if self.journal:
            self.journal.append([(tokens, msgspec.json.encode(pairs).decode())])


class Bench:
    """Builds a model and its control for maps of tokens of any side.

    Args:
        model: a carrier with a mixer, as it was built for its own image size.
        model_id: of that model.
        alone: whether only the first two mixers are measured.

    Raises:
        ModelError: it is no carrier.
    """

    def __init__(self, model: nn.Module, model_id: str, alone: bool, setup: Setup) -> None:
        from harness.alone import first_mixers

        self.setup, self.model_id = setup, model_id
        folder, mark, rest = model_id.rpartition(":")
        self.control_id = f"{folder}{mark}{rest.partition('+')[0]}+{CONTROL}"
        own, (self.width, self.stride) = first_mixers(model), _finest(model)
        self.mixers = (own, first_mixers(self._built(self.control_id))) if alone else None
        measured = own if alone else [model]
        self.parameters = sum(weight.numel() for module in measured for weight in module.parameters())

    def entrants(self, side: int) -> list[Entrant]:
        """Return the model and its control."""
        import torch

        if self.setup.compile:
            torch.compiler.reset()  # else the sizes after the first would share one graph
        if self.mixers is None:
            return self._carriers(side * self.stride)
        from harness.alone import Alone

        generator = torch.Generator().manual_seed(self.setup.seed)
        tokens = torch.randn(self.setup.batch_size, side**2, self.width, generator=generator).to(self.setup.device)
        # Without it a mixer that has no parameters could not go backward.
        tokens.requires_grad_()
        return [Entrant(place(Alone(mixers, (side, side)), self.setup), tokens) for mixers in self.mixers]

    def _carriers(self, pixels: int) -> list[Entrant]:
        sized = replace(self.setup.preprocessing, image_size=(pixels, pixels))
        images = noise(replace(self.setup, preprocessing=sized))
        return [Entrant(self._built(name, pixels), images) for name in (self.model_id, self.control_id)]

    def _built(self, model_id: str, pixels: int | None = None) -> nn.Module:
        import torch

        torch.manual_seed(self.setup.seed)
        return place(build_model(model_id, image_size=(pixels, pixels) if pixels else None), self.setup)


def _finest(carrier: Any) -> tuple[int, int]:
    """Width and stride of the first map of tokens."""
    if not (hasattr(carrier, "channels") and hasattr(carrier, "strides")):
        raise ModelError(
            f"{type(carrier).__name__} does not tell its channels and strides, as a carrier of mixers does."
        )
    return carrier.channels[0], carrier.strides[0]


def _gmacs(entrants: Sequence[Entrant]) -> Pair:
    """G MACs of one image."""
    from harness.costs.macs import count_macs, describe_uncounted

    counts = [count_macs(entrant.module, entrant.inputs[:1]) for entrant in entrants]
    missing = "; ".join(filter(None, map(describe_uncounted, counts)))
    own, control = ((count.total / 1e9,) for count in counts)
    return Pair(reason=missing) if missing else Pair(own, control)


def _passes(
    entrants: Sequence[Entrant], mode: str, refusal: str, rule: Rule, setup: Setup, look: Callable[[], object]
) -> dict[str, Pair]:
    """Measure the passes of a mode; what cannot run says why: RuntimeError and ValueError are how torch refuses."""
    names = f"{mode}latency", f"{mode}memory"
    if refusal:
        return dict.fromkeys(names, Pair(reason=refusal))
    try:
        with _ready(entrants, mode, setup) as steps:
            memory, slow = _peaks(steps, setup)
            latency = _latency(steps, slow, rule, setup, look)
    except (RuntimeError, ValueError, MemoryError) as error:
        return dict.fromkeys(names, Pair(reason=reason(error)))
    return dict(zip(names, (latency, memory), strict=True))


@contextmanager
def _ready(entrants: Sequence[Entrant], mode: str, setup: Setup) -> Iterator[list[Step]]:
    """Give the passes of a mode, in the state of gradients, statistics and precision that they need."""
    with ExitStack() as stack:
        if mode:
            for entrant in entrants:
                stack.enter_context(training(entrant.module))
            yield [partial(_train, entrant, setup) for entrant in entrants]
        else:
            stack.enter_context(evaluating(setup))
            yield [partial(entrant.module, entrant.inputs) for entrant in entrants]


def _train(entrant: Entrant, setup: Setup) -> None:
    train_pass(entrant.module, entrant.inputs, setup)
    entrant.inputs.grad = None


def _peaks(steps: Sequence[Step], setup: Setup) -> tuple[Pair, bool]:
    """What each adds to the memory, and whether passes are long; the models are warm then."""
    timed = [Timed(step, setup.device) for step in steps]
    (own, why), (control, _) = [added_peak(step, setup) for step in timed]
    if own is None or control is None:
        return Pair(reason=why), False
    return Pair((own,), (control,)), max(step.milliseconds for step in timed) > LONG_MILLISECONDS


def _latency(steps: Sequence[Step], slow: bool, rule: Rule, setup: Setup, look: Callable[[], object]) -> Pair:
    """Ms of the passes of models that take turns."""
    if not slow:
        warm(steps[0], setup.device)  # for the machine's sake: both have run when their memory was measured
    timed = turns(
        steps, setup.device, MOST_ROUNDS, seed=setup.seed, look=look,
        discarded=0 if slow else 1, least=LEAST_ROUNDS, seconds=rule.seconds,
    )  # fmt: skip
    own, control = (tuple(one[0] for one in rounds) for rounds in timed)
    return Pair(own, control)


@contextmanager
def few_to_collect() -> Iterator[None]:
    """Spare the collections before each peak the many objects of the libraries, which take most of their time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def parse_tokens(text: str) -> list[int]:
    """Read numbers of tokens with dashes between them, and return them in rising order.

    Raises:
        SetupError: one is no square, or there is none.
    """
    parts = text.split("-")
    if not all(part.isdigit() and int(part) > 0 and math.isqrt(int(part)) ** 2 == int(part) for part in parts):
        raise SetupError(f"tokens is {text!r}; expected squares, the tokens of square maps, such as 49-196-784.")
    return sorted(set(map(int, parts)))
