"""From the base of a model id to the callable that builds the model: registered, timm's, or the user's own code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import socket
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.errors import BenchError, ModelError, UnknownName, WeightsError, reason
from harness.mmseg_config import PREFIX, config_file
from harness.registry import MODELS

PORTS = {"http": 80, "https": 443}


def find_factory(base: str) -> Callable[..., Any]:
    """Return the callable that a model id without parts names.

    Raises:
        UnknownName: with the nearest names.
        ModelError: the user's file cannot be imported.
    """
    if base.startswith("timm:"):
        return _timm_factory(base.removeprefix("timm:"))
    if base.startswith(PREFIX):
        return _mmseg_factory(base.removeprefix(PREFIX))
    if ":" in base:
        location, _, name = base.rpartition(":")
        return _find(_load_file(location) if location.endswith(".py") else _load_module(location), name, location)
    if base.endswith(".py"):
        raise UnknownName(f"{base!r} is a file without a callable: write {base}:NAME, where NAME returns the module.")
    return MODELS.get(base).build


def source_file(base: str) -> Path | None:
    """Return the file of the user's that a base names; None for registered, timm's and mmsegmentation's models."""
    location = base.rpartition(":")[0]
    if not location or base.startswith(("timm:", PREFIX)):
        return None
    if location.endswith(".py"):
        return _existing(location)
    factory = inspect.unwrap(find_factory(base))
    code = factory if inspect.isclass(factory) or inspect.isfunction(factory) else sys.modules[location]
    source = inspect.getsourcefile(code)
    return Path(source) if source else None


def call(factory: Callable[..., Any], name: str, **options: Any) -> Any:
    """Call a factory with those options that it takes, by its own signature or by what it hands them on to.

    Raises:
        ModelError: whatever the factory raised, in one line.
    """
    parameters = parameters_of(factory)
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {option: value for option, value in options.items() if option in parameters or hands_on}
    try:
        return factory(**taken)
    except BenchError:
        raise
    except (Exception, SystemExit) as error:
        refused = re.search(r"unexpected keyword argument(?: |\(s\): \[)'(\w+)'", str(error))
        if refused and refused[1] in taken.keys() - parameters.keys():
            return call(factory, name, **{option: value for option, value in taken.items() if option != refused[1]})
        raise ModelError(f"{name!r} cannot be built ({reason(error)}).") from error


def parameters_of(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters that can be given by name; none for a callable written in C."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {name: found for name, found in parameters.items() if found.kind is not found.POSITIONAL_ONLY}


def method(module: Any, name: str) -> Callable[..., Any] | None:
    """Return a method of a module; a layer of that name, such as a patch embedding called `embed`, is none."""
    from torch import nn

    found: Any = getattr(module, name, None)
    return found if callable(found) and not isinstance(found, nn.Module) else None


def nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return the names that come nearest, as a question; empty where none does."""
    near = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(repr(prefix + found) for found in near)}?" if near else ""


def _find(module: Any, name: str, location: str) -> Callable[..., Any]:
    """Find a callable in a module that an id names."""
    from torch import nn

    found = getattr(module, name, None)
    if isinstance(found, nn.Module):
        raise ModelError(
            f"{name!r} in {location!r} is a {type(found).__name__}, already built: name a callable that returns it."
        )
    if callable(found):
        return found  # type: ignore[no-any-return]
    public = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
    own = [known for known in public if getattr(vars(module)[known], "__module__", "") == module.__name__]
    offer = f" It has: {', '.join(own[:8])}{f' and {len(own) - 8} more' if len(own) > 8 else ''}." if own else ""
    raise UnknownName(f"{location!r} has no callable named {name!r}.{nearest(name, public)}{offer}")


def _load_module(name: str) -> Any:
    _offer_siblings(Path.cwd())
    try:
        return importlib.import_module(name)
    except BenchError:
        raise
    except (Exception, SystemExit) as error:
        raise UnknownName(
            f"The module {name!r} cannot be imported ({reason(error)}). "
            "Mend or install it, or give a file: path/to/file.py:callable."
        ) from error


def _offer_siblings(folder: Path) -> None:
    """Let a user's code import the files beside it; last on the path, so that they shadow nothing."""
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))


def _existing(location: str) -> Path:
    path = Path(location)
    if not path.is_file():
        raise UnknownName(f"There is no file {location!r}. Check the path before the last colon.")
    return path


def _load_file(location: str) -> Any:
    path = _existing(location)
    # Another content is another module, so that an edited file is not answered with what it was.
    name = f"backbone_bench_user_{hashlib.sha256(str(path.resolve()).encode() + path.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _offer_siblings(path.parent)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, BenchError):
            raise
        raise ModelError(f"{location!r} cannot be imported ({reason(error)}). Mend it.") from error
    return module


def _mmseg_factory(name: str) -> Callable[..., Any]:
    file = config_file(name)

    def build() -> Any:
        from harness.mmseg_segmentor import build_segmentor

        return build_segmentor(file)

    return build


def _timm_factory(name: str) -> Callable[..., Any]:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models(), "timm:")
        raise UnknownName(f"timm {timm.__version__} has no model named {architecture!r}.{near}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        offer = f"It has: {', '.join(tags)}" if tags else "It has none"
        raise UnknownName(f"timm {timm.__version__} has no weights {tag!r} of {architecture!r}. {offer}.")

    def build(
        num_classes: int | None = None,
        image_size: Any = None,
        pretrained: bool = False,
        dynamic_img_size: bool = False,
    ) -> Any:
        options: dict[str, Any] = {"num_classes": num_classes, "img_size": image_size}
        if dynamic_img_size:
            # Windows keep their size and their shift whatever size the network is built for.
            options |= {"dynamic_img_size": True, "always_partition": True}
        given = {option: value for option, value in options.items() if value is not None}
        if not pretrained:
            return call(partial(timm.create_model, name), f"timm:{name}", **given)
        if not tags:
            raise WeightsError(f"timm:{name} has no pretrained weights. Give --weights random, or a file.")
        return _download_timm(name, given)

    return build


def _download_timm(name: str, options: Mapping[str, Any]) -> Any:
    """Create a model with the weights of timm's hub."""
    import timm
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with _offline_if_unreachable():
            return call(partial(timm.create_model, name, pretrained=True), f"timm:{name}", **options)
    except ModelError as error:
        cause = textwrap.shorten(str(error.__cause__), 160)
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            cause = "the hub cannot be reached, and its cache on this machine lacks them"
        raise WeightsError(
            f"The pretrained weights of timm:{name} cannot be had ({cause}). "
            "Check the connection, or download them elsewhere and give --weights FILE."
        ) from error


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Spare the minute for which the hub's client retries in vain; what is in its cache is found all the same."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    """Whether a server accepts connections; taken for granted behind a proxy."""
    url = urlsplit(address)
    if urllib.request.getproxies():
        return True
    try:
        socket.create_connection((url.hostname or "", url.port or PORTS[url.scheme]), timeout=5).close()
    except OSError:
        return False
    return True
