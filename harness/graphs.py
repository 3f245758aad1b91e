"""CUDA graphs: the launches of a pass are recorded once, and replayed as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import ModelError, SetupError, reason
from harness.record import Setup

if TYPE_CHECKING:
    import torch

Call = Callable[[], object]

# As in torch's own examples: libraries choose kernels and allocate workspaces in the first passes.
WARM_UP_PASSES = 3
# A graph has its memory to itself, so that the peak of a pass says nothing there.
NO_MEMORY = "not measured in a CUDA graph, whose memory is its own; measure without --cuda-graphs"


@dataclass(frozen=True)
class Replay:
    """Replays a graph.

    Args:
        call: what was recorded; it holds the tensors that the graph reads.
    """

    graph: torch.cuda.CUDAGraph
    call: Call

    def __call__(self) -> None:
        """Give the GPU everything at once."""
        self.graph.replay()


def graphed(call: Call, setup: Setup) -> Call:
    """Return a call that replays what `call` gives the GPU, where the setup asks for CUDA graphs; else `call` itself.

    The call is warmed up on a stream of its own and recorded there. It must be replayed in the same autocast context,
    which holds the weights in reduced precision.

    Raises:
        ModelError: it cannot be recorded, as where the processor waits for a value or a shape depends on data.
    """
    if not setup.cuda_graphs:
        return call
    import torch

    with torch.cuda.device(setup.device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_PASSES):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(graph, stream=stream):
                call()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"A pass cannot be recorded as a CUDA graph ({reason(error)}). Leave --cuda-graphs out."
            ) from error
    return Replay(graph, call)


def check_graphs(setup: Setup, on_machine: bool) -> None:
    """Raise SetupError where CUDA graphs are asked for and cannot be.

    Args:
        on_machine: whether the task measures the machine; others give each batch to the model once.
    """
    if setup.cuda_graphs and not setup.device.startswith("cuda"):
        raise SetupError(f"--cuda-graphs needs a GPU, and the device is {setup.device!r}. Leave it out.")
    if setup.cuda_graphs and not on_machine:
        raise SetupError("--cuda-graphs is for costs: they replay one batch. Run the other tasks without it.")
