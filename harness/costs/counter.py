"""Multiply-adds of one forward pass, counted at the dispatcher, below autograd and above every device."""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.costs.formulas import FORMULAS, Kind, count_operator
from harness.costs.free import is_free, operator_name
from harness.costs.recurrent import WholeRecurrence, call_operator
from harness.errors import ModelError

T = TypeVar("T")


FOREIGN = "a kernel outside torch's dispatcher"


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds of one forward pass in evaluation mode.

    Args:
        total: all of them.
        by_kind: by what the work is.
        by_operator: by the operator that did it.
        by_module: by the path of the module that it was done in, children included; the root is the empty path.
        uncounted: calls of operators that have no formula and are not known to be free.
        calls: operator calls in all.
        tensors: what the model ran on, `meta` where shapes were enough; otherwise with the reason.
    """

    total: int
    by_kind: Mapping[Kind, int] = field(default_factory=dict)
    by_operator: Mapping[str, int] = field(default_factory=dict)
    by_module: Mapping[str, int] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)
    calls: int = 0
    tensors: str = ""


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-adds of whatever runs inside, in any grad mode and on any device.

    Args:
        path: the paths of the modules that are running, outermost first; read at each operator.
    """

    supports_higher_order_operators = True

    def __init__(self, path: Sequence[str] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._path = path
        self._kinds: Counter[Kind] = Counter()
        self._operators: Counter[str] = Counter()
        self._modules: Counter[str] = Counter()
        self._uncounted: Counter[str] = Counter()
        self._calls = 0
        self._unwritten: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operator_name(func)
        counted, free = name in FORMULAS, is_free(func)
        if not counted and not free and isinstance(func, torch._ops.OpOverload):
            # Inference mode hands composite operators over whole; their parts are what the other modes show.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        self._notice_foreign_kernels(func, args, kwargs)
        output = call_operator(func, args, kwargs)
        self._remember_allocations(func, output)
        self._calls += 1
        if counted:
            self._add(name, count_operator(name, output, args, kwargs))
        elif not free:
            self._uncounted[name] += 1
        return output

    def _add(self, name: str, macs: Mapping[Kind, int]) -> None:
        total = sum(macs.values())
        self._kinds.update(macs)
        self._operators[name] += total
        for path in {"", *chain.from_iterable(map(_lineage, self._path))}:
            self._modules[path] += total

    def _notice_foreign_kernels(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Report memory that is read though no operator has written it: a kernel that torch does not know has."""
        if not self._unwritten or _looks_only(func):
            return
        for tensor, written in _tensors(func, args, kwargs):
            if storage_id(tensor) in self._unwritten:
                self._unwritten.discard(storage_id(tensor))
                if not written and tensor.numel():
                    self._uncounted[f"{FOREIGN} in {self._path[-1] if self._path else 'the model'}"] += 1

    def _remember_allocations(self, func: Any, output: Any) -> None:
        if getattr(func, "is_view", False):
            return
        storages = {storage_id(tensor) for tensor in stored_tensors(output)}
        if _short_name(func).startswith(("empty", "new_empty")):
            self._unwritten |= storages
        else:
            self._unwritten -= storages

    def result(self, tensors: str = "") -> MacCount:
        """Return everything counted so far."""
        return MacCount(
            total=self._modules[""],
            by_kind=dict(self._kinds),
            by_operator=dict(self._operators),
            by_module=dict(self._modules),
            uncounted=dict(self._uncounted),
            calls=self._calls,
            tensors=tensors,
        )


@cache
def _lineage(path: str) -> tuple[str, ...]:
    """Return a module's path and those of the modules that hold it, which need not run themselves: lists do not."""
    names = path.split(".")
    return tuple(".".join(names[: depth + 1]) for depth in range(len(names)))


def _tensors(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[Tensor, bool]]:
    """Yield each tensor among the arguments of a call, and whether the call writes it."""
    arguments = func._schema.arguments if isinstance(func, torch._ops.OpOverload) else []
    written = {argument.name for argument in arguments if argument.is_write}
    names = [argument.name for argument in arguments] or [""] * len(args)
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        yield from ((tensor, name in written) for tensor in stored_tensors(value))


def stored_tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a value, except sparse and nested ones, which have no storage of their own."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and torch._C._has_storage(leaf)]


def _short_name(func: Any) -> str:
    return operator_name(func).partition("::")[2]


def _looks_only(func: Any) -> bool:
    """Whether an operator takes no more than the shape or the place of its arguments."""
    name = _short_name(func)
    return getattr(func, "is_view", False) or name.startswith("new_") or name.endswith("_like")


def storage_id(tensor: Tensor) -> int:
    """Return what tells the storage of a tensor from those of other tensors that are alive."""
    return int(tensor.untyped_storage()._cdata)


def count_macs(model: nn.Module, images: Tensor) -> MacCount:
    """Count the multiply-adds of `model(images)` in evaluation mode, on a copy that holds only shapes where these do.

    Args:
        images: (B, 3, H, W); the values matter only to models whose work depends on them.

    Raises:
        ModelError: the model cannot be copied or run; what was tried is said.
    """
    return on_copy(model, images, _count)


def _count(model: nn.Module, images: Tensor, tensors: str) -> MacCount:
    with module_path(model) as path:
        counter = MacCounter(path)
        with counter:
            model(images)
    return counter.result(tensors)


@contextmanager
def module_path(model: nn.Module) -> Iterator[list[str]]:
    """Keep a list of the paths of the modules that are running, outermost first."""
    path: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            enter, leave = partial(_enter, path, name), partial(_leave, path)
            hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield path


def _enter(path: list[str], name: str, *_: Any) -> None:
    path.append(name)


def _leave(path: list[str], *_: Any) -> None:
    path.pop()


def on_copy(model: nn.Module, images: Tensor, job: Callable[[nn.Module, Tensor, str], T]) -> T:
    """Do a job on a copy of a model in evaluation mode: on meta tensors, else on the CPU, else where the images are.

    The job's third argument says which of these it is, and why the earlier ones would not do.

    Raises:
        ModelError: none of them will do.
    """
    failures: list[str] = []
    for device in dict.fromkeys(("meta", "cpu", str(images.device))):
        try:
            with _quiet_surroundings():
                return job(
                    copy_to(model, device), images.detach().to(device, copy=True), "; ".join((device, *failures))
                )
        except Exception as error:
            message = str(error).strip().partition("\n")[0]
            failures.append(f"not {device} ({type(error).__name__}: {message})")
    raise ModelError(f"{type(model).__name__} cannot be run to count its MACs ({'; '.join(failures)}).")


@contextmanager
def _quiet_surroundings() -> Iterator[None]:
    """Switch off what changes which operators run: gradients, attention's fast path, compilation. Keep the seed.

    Recurrent networks on meta tensors stay whole, for the time that their steps would take.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(WholeRecurrence())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def copy_to(model: nn.Module, device: str) -> nn.Module:
    """Return a deep copy of a model on a device, in evaluation mode, with every tensor that it holds anywhere."""
    with _TensorsTo(device):
        try:
            copied = copy.deepcopy(model)
        except TypeError:
            copied = copy.deepcopy(model, {id(thing): thing for thing in _uncopyable(model)})
    return _without_compilation(copied).eval()


def _uncopyable(model: nn.Module) -> Iterator[Any]:
    """Yield what `copy.deepcopy` refuses among the attributes, such as locks and operators; the copy may share it."""
    for module in model.modules():
        for leaf in tree_leaves(vars(module)):
            if not isinstance(leaf, nn.Module | Tensor):
                try:
                    copy.deepcopy(leaf)
                except TypeError:
                    yield leaf


def _without_compilation(model: nn.Module) -> nn.Module:
    """Put the modules that `torch.compile` wrapped in the place of their wrappers, and return the root."""
    for module in list(model.modules()):
        module._compiled_call_impl = None
        for name, child in module._modules.items():
            module._modules[name] = getattr(child, "_orig_mod", child)
    return cast(nn.Module, getattr(model, "_orig_mod", model))


class _TensorsTo(TorchFunctionMode):
    """Makes `copy.deepcopy` put the tensors that it copies on one device, without copying them where they are first."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A parameter copies itself by `clone`, any other tensor by `__deepcopy__`.
        if func not in (Tensor.__deepcopy__, Tensor.clone):
            return func(*args, **(kwargs or {}))
        tensor = args[0].detach()
        if self._device == "meta":
            return torch.empty_like(tensor, device="meta")
        return tensor.to(self._device, copy=True)
