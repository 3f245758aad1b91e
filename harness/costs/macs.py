"""The cost `macs`: multiply-adds of one image, counted at the dispatcher and a second time by fvcore."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.costs.counter import MacCount, MacCounter, count_macs, on_copy
from harness.costs.formulas import FORMULAS, KINDS, count_operator
from harness.costs.free import operator_name
from harness.costs.recurrent import call_operator
from harness.errors import MissingPackage, ModelError
from harness.metric import Evaluation, Measurement, Metric
from harness.record import Setup
from harness.registry import COSTS

__all__ = ["CONVENTION", "MacCount", "count_macs", "fvcore_macs", "macs"]

CONVENTION = (
    "One multiply-add is one MAC. As fvcore: matrix products and convolutions (padding and masked pairs included), "
    "normalisation at 2 an element where batch statistics are frozen and at 5 otherwise (1 and 4 without affine "
    "weights), interpolation at one a tap. Beyond fvcore: fused attention, recurrent layers, deformable convolution, "
    "Fourier transforms at 2.5 N log2 N (half for real ones). Free: element-wise work, reductions, RMS normalisation, "
    "pooling, copies."
)

# Composite operators that a trace shows whole, and that fvcore has no handle for.
COMPOSITES = (
    "aten::_convolution_mode",
    "aten::affine_grid_generator",
    "aten::bilinear",
    "aten::cdist",
    "aten::matrix_power",
    "aten::tensordot",
    *(f"aten::fft_{way}{axes}" for way in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for axes in ("", "2", "n")),
)


@COSTS.register("macs")
def macs(model: nn.Module, images: Tensor, setup: Setup) -> Evaluation:
    """Measure the multiply-adds of one image: the total, fvcore's total, how far these differ, and the shares by kind.

    Args:
        images: (1, 3, H, W); of a larger batch the first image.
        setup: not read; precision, layout and device do not change the count.
    """
    count = count_macs(model, images[:1])
    uncounted = describe_uncounted(count)
    second, failure = second_count(model, images[:1])
    disagreement = 100 * (second / count.total - 1) if count.total else 0.0
    measurements = (
        _measure("gmacs", "G", count.total / 1e9, uncounted, minor=False),
        _measure("gmacs_fvcore", "G", second / 1e9, uncounted or failure),
        _measure("gmacs_disagreement", "%", disagreement, uncounted or failure),
        _measure("uncounted_calls", "%", 100 * sum(count.uncounted.values()) / max(count.calls, 1)),
        *(
            _measure(f"share_{kind}", "%", 100 * count.by_kind.get(kind, 0) / max(count.total, 1), uncounted)
            for kind in KINDS
        ),
    )
    details = {
        "convention": CONVENTION,
        "tensors": count.tensors,
        "by_operator": dict(sorted(count.by_operator.items())),
    }
    return Evaluation(measurements, details)


def _measure(name: str, unit: str, value: float, missing: str = "", minor: bool = True) -> Measurement:
    return Measurement(Metric(name, unit, False, minor=minor), None if missing else value, reason=missing)


def describe_uncounted(count: MacCount) -> str:
    """Say which operators have no formula; empty where all are known."""
    shares = (f"{name} ({calls} of {count.calls} calls)" for name, calls in sorted(count.uncounted.items()))
    return (
        f"no formula counts {', '.join(shares)}; add one with `harness.costs.formulas.formula`"
        if count.uncounted
        else ""
    )


def second_count(model: nn.Module, images: Tensor) -> tuple[int, str]:
    """Return fvcore's count, or 0 and why there is none: what can be run cannot always be traced."""
    try:
        return fvcore_macs(model, images), ""
    except (MissingPackage, ModelError) as error:
        return 0, str(error)


def fvcore_macs(model: nn.Module, images: Tensor) -> int:
    """Count the multiply-adds of `model(images)` by fvcore, with handles for what it lacks.

    Its way is its own: it reads the operators from a trace, above autograd, and has its own formulas for most of them.

    Args:
        images: (B, 3, H, W).

    Raises:
        MissingPackage: fvcore is not installed.
        ModelError: the model cannot be traced.
    """
    analysis = _import_analysis()
    return on_copy(model, images, lambda copy, inputs, _: _analyse(analysis, copy, inputs))


def _import_analysis() -> Any:
    with warnings.catch_warnings():
        # fvcore scripts two losses, which the harness never uses, when it is imported.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
        try:
            from fvcore.nn import FlopCountAnalysis
        except ImportError as error:
            raise MissingPackage("fvcore", "The second count of MACs") from error
    return FlopCountAnalysis


def _analyse(analysis: Any, model: nn.Module, images: Tensor) -> int:
    counter = analysis(_Tuple(model), images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    for name in {*FORMULAS, *COMPOSITES} - {*counter._op_handles}:
        counter.set_op_handle(name, _replay)
    with _trace_on_meta() if images.is_meta else nullcontext():
        return int(counter.total())


class _Tuple(nn.Module):
    """Returns a model's outputs as a tuple of tensors: the tracer takes neither dictionaries nor classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in tree_leaves(self.model(images)) if isinstance(leaf, Tensor))


def _replay(inputs: list[Any], outputs: list[Any]) -> int:
    """Count one traced operator that fvcore has no handle for: by its formula, or by what it does to meta tensors."""
    operator = _operator(outputs[0].node())
    values = tuple(_value(node) for node in inputs)
    name = operator_name(operator)
    if name in FORMULAS:
        return sum(count_operator(name, _value(outputs[0]), values, {}).values())
    if any(value is UNKNOWN for value in tree_leaves(values)):
        raise ModelError(f"fvcore cannot count {name}: the model computes its arguments from shapes.")
    places = sum(not argument.kwarg_only for argument in operator._schema.arguments)
    keywords = [argument.name for argument in operator._schema.arguments[places:]]
    counter = MacCounter()
    with torch.no_grad(), counter:
        operator(*values[:places], **dict(zip(keywords, values[places:], strict=True)))
    return counter.result().total


def _operator(node: Any) -> Any:
    schema = torch._C.parse_schema(node.schema())
    namespace, _, name = schema.name.partition("::")
    return getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")


UNKNOWN = object()


def _value(node: Any) -> Any:
    """Return a traced value: a meta tensor of its shape, the constant that it is, or `UNKNOWN`."""
    if node.isCompleteTensor():
        kind = node.type()
        return torch.empty_strided(kind.sizes(), kind.strides(), dtype=kind.dtype(), device="meta")
    if node.node().kind() == "prim::ListConstruct":
        return [_value(element) for element in node.node().inputs()]
    return _number(node)


def _number(node: Any) -> Any:
    """Return a traced constant or the size of a tensor, through the conversions that tracing puts around it."""
    kind, inputs = node.node().kind(), list(node.node().inputs())
    if kind == "prim::Constant":
        return node.toIValue()
    if kind == "aten::size" and len(inputs) == 2 and inputs[0].isCompleteTensor():
        return inputs[0].type().sizes()[_number(inputs[1])]
    return _number(inputs[0]) if kind in ("aten::Int", "prim::NumToTensor", "aten::ScalarImplicit") else UNKNOWN


@contextmanager
def _trace_on_meta() -> Iterator[None]:
    with ThreadPoolExecutor(1) as untraced, _UntracedKernels(untraced):
        yield


class _UntracedKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets the tracer work on meta tensors.

    While it traces, the sizes of tensors are tensors themselves, which those meta kernels that are written in Python do
    not take. The tracer's state belongs to a thread, so another thread runs them.
    """

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._thread = thread

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is _CONVOLUTION and torch._C._get_tracing_state() is not None:
            # Only the inner operator enters a trace, and the meta kernel of the outer one does not call it.
            with torch.overrides.enable_reentrant_dispatch(), self:
                return _INNER_CONVOLUTION(
                    *args, benchmark=False, deterministic=False, cudnn_enabled=False, allow_tf32=False
                )
        if func is _INNER_CONVOLUTION:
            func, args = _CONVOLUTION, args[:9]
        if func.is_view:  # a view has to be made where its base is
            return func(*args, **(kwargs or {}))
        return self._thread.submit(_below_autograd, func, args, kwargs or {}).result()


_CONVOLUTION = torch.ops.aten.convolution.default
_INNER_CONVOLUTION = torch.ops.aten._convolution.default


def _below_autograd(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return call_operator(func, args, kwargs)
