"""What a task id says: `cost`, `imagenet:knn`, or with options `imagenet:knn,k=10,temperature=0.1`."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, get_type_hints

from harness.errors import SetupError, UnknownName
from harness.registry import TASKS, Entry, Registry

# What the harness itself gives a task; everything else that has a default is the user's to choose.
GIVEN = frozenset({"data", "workers", "variant", "annotations"})


def resolve_task(task_id: str) -> tuple[Callable[..., Any], Entry[Any] | None]:
    """Return the factory of the task and the variant that an id names, each with its options bound.

    An option goes to the task, to the variant, or to both: to whichever has a parameter of that name with a default.

    Raises:
        UnknownName: with the nearest names.
        SetupError: an option that neither has, or a value of another type.
    """
    name, variant, options = _parts(task_id)
    factory = TASKS.get(name).build
    entry = _variant(factory, task_id, variant)
    known = {**(_choices(entry.build) if entry else {}), **_choices(factory)}
    _check(task_id, options, known)
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
    defaults = {**(_choices(entry.build) if entry else {}), **_choices(factory)}
    values = {option: _convert(option, text, defaults[option]) for option, text in options.items()}
    chosen = [f"{option}={values[option]}" for option in sorted(values) if values[option] != defaults[option].default]
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
    # The others' types may be names that only a type checker imports, so that these are looked up without them.
    annotated: Any = SimpleNamespace(__annotations__={name: found[name].annotation for name in found})
    types = get_type_hints(annotated, vars(sys.modules[build.__module__]))
    return {name: parameter.replace(annotation=types[name]) for name, parameter in found.items()}


def _check(task_id: str, options: Mapping[str, str], known: Mapping[str, inspect.Parameter]) -> None:
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            offer = f"It has: {', '.join(sorted(known))}." if known else "It has none."
            raise SetupError(f"{task_id!r}: there is no option {option!r}.{hint} {offer}")
        _convert(option, value, known[option])


def _bound(build: Callable[..., Any], options: Mapping[str, str]) -> Callable[..., Any]:
    choices = _choices(build)
    mine = {name: _convert(name, value, choices[name]) for name, value in options.items() if name in choices}
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
        raise SetupError(
            f"The option {option}={value} cannot be used: {str(error)[0].lower()}{str(error)[1:]}."
        ) from error
