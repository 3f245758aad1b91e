"""What a task id says: `cost`, `imagenet:knn`, or with options `imagenet:knn,k=10,temperature=0.1`."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from harness.errors import SetupError, UnknownName
from harness.registry import TASKS, Entry, Registry

# What the harness itself gives a task; everything else that has a default is the user's to choose.
GIVEN = frozenset({"data", "workers", "variant", "annotations"})


def resolve_task(task_id: str) -> tuple[Callable[..., Any], Entry[Any] | None]:
    """Return the factory of the task and the variant that an id names, each with its options bound.

    An option goes to the task, to the variant, or to both: to whichever has a parameter of that name with a default and
    can take the value.

    Raises:
        UnknownName: with the nearest names.
        SetupError: an option that neither has, or a value of another type.
    """
    name, variant, options = _parts(task_id)
    factory = TASKS.get(name).build
    entry = _variant(factory, task_id, variant)
    _check(task_id, options, _holders(factory, entry))
    if entry:
        entry = Entry(entry.name, _bound(entry.build, options), entry.card, entry.place)
    return _bound(factory, options), entry


def canonical(task_id: str) -> str:
    """Return the one way to write a task id: options by name, without those that have their default value.

    Raises:
        UnknownName, SetupError: as `resolve_task`.
    """
    resolve_task(task_id)
    name, variant, options = _parts(task_id)
    factory = TASKS.get(name).build
    entry = _variant(factory, task_id, variant)
    chosen = []
    for option, text in sorted(options.items()):
        taken = [each[option] for each in _holders(factory, entry) if _takes(each, option, text)]
        values = [_convert(option, text, parameter) for parameter in taken]
        if any(value != parameter.default for value, parameter in zip(values, taken, strict=True)):
            chosen.append(f"{option}={str(values[0]).lower() if isinstance(values[0], bool) else values[0]}")
    return ",".join([name + (f":{variant}" if variant else ""), *chosen])


def _parts(task_id: str) -> tuple[str, str, dict[str, str]]:
    """Separate the task's name, the variant's and the options."""
    head, *pairs = task_id.split(",")
    name, _, variant = head.partition(":")
    options: dict[str, str] = {}
    for pair in pairs:
        option, equals, value = pair.partition("=")
        if not option or not equals or not value or option in options:
            raise SetupError(
                f"{pair!r} in {task_id!r} is no option: expected each once, as NAME=VALUE, such as imagenet:knn,k=10."
            )
        options[option] = value
    return name, variant, options


def _variant(factory: Callable[..., Any], task_id: str, word: str) -> Entry[Any] | None:
    variants: Registry[Any] | None = getattr(factory, "variants", None)
    if word and variants is None:
        name = task_id.partition(":")[0]
        raise UnknownName(f"The task {name!r} has no variants, so {task_id!r} does not exist. Use {name!r}.")
    word = word or getattr(factory, "default_variant", "")
    return variants.get(word) if variants is not None and word else None


def _choices(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a task or variant that are the user's to choose, with their types."""
    found = {
        name: parameter
        for name, parameter in inspect.signature(build).parameters.items()
        if name not in GIVEN and parameter.default is not parameter.empty
    }
    return {name: parameter.replace(annotation=_type(build, name, parameter)) for name, parameter in found.items()}


def _type(build: Callable[..., Any], name: str, parameter: inspect.Parameter) -> Any:
    """The type of a parameter, looked up where it was written: for an inherited field that is another module."""
    owners = [owner for owner in getattr(build, "__mro__", ()) if name in vars(owner).get("__annotations__", {})]
    module = sys.modules[(owners[0] if owners else build).__module__]
    # By itself, since the others' types may be names that only a type checker imports.
    annotated: Any = SimpleNamespace(__annotations__={name: parameter.annotation})
    return get_type_hints(annotated, vars(module))[name]


def _holders(factory: Callable[..., Any], entry: Entry[Any] | None) -> list[Mapping[str, inspect.Parameter]]:
    """The choices of the task, and of the variant where there is one."""
    return [_choices(factory), *([_choices(entry.build)] if entry else [])]


def _takes(choices: Mapping[str, inspect.Parameter], option: str, value: str) -> bool:
    """Whether a task or variant has an option, and can take the value."""
    if option not in choices:
        return False
    try:
        _convert(option, value, choices[option])
    except SetupError:
        return False
    return True


def _check(task_id: str, options: Mapping[str, str], holders: Sequence[Mapping[str, inspect.Parameter]]) -> None:
    known = {option: parameter for each in reversed(holders) for option, parameter in each.items()}
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            offer = f"It has: {', '.join(sorted(known))}." if known else "It has none."
            raise SetupError(f"{task_id!r}: there is no option {option!r}.{hint} {offer}")
        if not any(_takes(each, option, value) for each in holders):
            _convert(option, value, known[option])


def _bound(build: Callable[..., Any], options: Mapping[str, str]) -> Callable[..., Any]:
    choices = _choices(build)
    mine = {
        name: _convert(name, value, choices[name]) for name, value in options.items() if _takes(choices, name, value)
    }
    return partial(build, **mine) if mine else build


def _convert(option: str, value: str, parameter: inspect.Parameter) -> Any:
    """Return a value in the type that the parameter declares.

    Raises:
        SetupError: it has another type.
    """
    import msgspec

    try:
        return msgspec.convert(value, parameter.annotation, strict=False)
    except msgspec.ValidationError as error:
        choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()
        cause = f"expected one of {', '.join(map(str, choices))}" if choices else str(error)[0].lower() + str(error)[1:]
        raise SetupError(f"The option {option}={value} cannot be used: {cause}.") from error
