"""What a model id may be, what comes of it, and what is said where it cannot be."""

from __future__ import annotations

import hashlib
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness import factory
from harness.errors import BenchError, ModelError, UnknownName, WeightsError
from harness.factory import call
from harness.models import AttentionSite, build_model, check_model_id, public_id, source_sha256
from harness.registry import ATTENTIONS, MODELS, WRAPPERS

NETS = """
from torch import nn

def net(num_classes=10):
    return nn.Linear(4, num_classes)
"""
TINY = "timm:test_vit"


class Mixer(nn.Module):
    def __init__(self, site: AttentionSite) -> None:
        super().__init__()
        self.site = site


class Carrier(nn.Module):
    def __init__(self, num_classes: int, attention: Any) -> None:
        super().__init__()
        self.mixer = attention(AttentionSite(8, 2, (2, 2), 0, 0, 1, 0, 16))
        self.head = nn.Linear(8, num_classes)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def carrier(num_classes: int = 5, attention: Any = Mixer) -> nn.Module:
    return Carrier(num_classes, attention)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a carrier, two attentions and two wrappers for one test."""
    for kind in (MODELS, ATTENTIONS, WRAPPERS):
        assert len(kind) >= 0
        monkeypatch.setattr(kind, "_entries", dict(kind._entries))
    MODELS.register("carrier")(carrier)
    MODELS.register("plain")(lambda num_classes=3: nn.Linear(2, num_classes))
    ATTENTIONS.register("mixer_a")(Mixer)
    ATTENTIONS.register("mixer_b")(lambda site: nn.Identity())
    WRAPPERS.register("wrap")(lambda model: Wrapped(model))
    WRAPPERS.register("lose")(lambda model: None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a user's file and returns its path."""

    def write(text: str, name: str = "nets.py") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def refusal(model_id: str, kind: type[BenchError], **options: Any) -> str:
    """Return the message with which a model is refused: one line."""
    with pytest.raises(kind) as caught:
        build_model(model_id, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The five kinds of id


def test_registered(parts: None) -> None:
    assert build_model("plain", num_classes=7).out_features == 7


def test_carrier_with_parts(parts: None) -> None:
    model = build_model("carrier+mixer_a+wrap+wrap", num_classes=6)
    inner = model.inner.inner
    assert (inner.head.out_features, inner.mixer.site.grid) == (6, (2, 2))
    assert isinstance(build_model("carrier+mixer_b").mixer, nn.Identity)


def test_wrappers_and_attention_in_any_order(parts: None) -> None:
    assert isinstance(build_model("carrier+wrap+mixer_b").inner.mixer, nn.Identity)


@pytest.mark.parametrize("model_id", ["timm:test_resnet", "timm:test_resnet.r160_in1k"])
def test_timm_with_and_without_tag(model_id: str) -> None:
    model = build_model(model_id, num_classes=3)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert model.pretrained_cfg["tag"] == "r160_in1k"


def test_package_and_callable() -> None:
    assert isinstance(build_model("torch.nn:Identity"), nn.Identity)


@pytest.mark.parametrize("folder", [".", "a+b", "a:b", "a b"])
def test_file_and_callable(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "nets.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(NETS)
    assert build_model(f"{path}:net", num_classes=4).out_features == 4
    assert public_id(f"{path}:net+wrap") == "nets.py:net+wrap"


def test_file_relative_to_the_current_folder(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(write(NETS)).parent)
    assert build_model("nets.py:net").out_features == 10


def test_module_in_the_current_folder(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(Path(write(NETS, "nets_of_mine.py")).parent)
    assert build_model("nets_of_mine:net").out_features == 10


def test_file_imports_the_file_beside_it(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    write(NETS, "beside_nets.py")
    assert build_model(write("from beside_nets import net\n") + ":net").out_features == 10


def test_file_with_dataclasses_and_future_annotations(write: Callable[..., str]) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass C:\n    a: int = 1\n"
    )
    assert isinstance(build_model(write(text + NETS) + ":net"), nn.Linear)


def test_edited_file_is_read_again(write: Callable[..., str]) -> None:
    path = write(NETS)
    before = source_sha256(f"{path}:net")
    assert build_model(f"{path}:net").out_features == 10
    write(NETS.replace("10", "11"))
    assert build_model(f"{path}:net").out_features == 11
    assert source_sha256(f"{path}:net") != before


# What the factory is given


@pytest.mark.parametrize(("image_size", "grid"), [(None, (10, 10)), ((64, 64), (4, 4)), ((64, 96), (4, 6))])
def test_image_size_reaches_a_vit(image_size: tuple[int, int] | None, grid: tuple[int, int]) -> None:
    model = build_model(TINY, image_size=image_size, num_classes=2)
    assert model.patch_embed.grid_size == grid
    assert model(torch.zeros(1, 3, *(image_size or (160, 160)))).shape == (1, 2)


def test_image_size_is_nothing_to_a_cnn() -> None:
    assert build_model("timm:test_resnet", image_size=(64, 96), num_classes=2)(torch.zeros(1, 3, 64, 96)).shape == (
        1,
        2,
    )


def test_only_what_a_signature_takes(write: Callable[..., str]) -> None:
    text = "def given(image_size=None):\n    m = nn.Identity()\n    m.got = image_size\n    return m"
    path = write("from torch import nn\n" + text)
    assert build_model(f"{path}:given", num_classes=9, image_size=(32, 32)).got == 32
    assert build_model(f"{path}:given", num_classes=9, image_size=(32, 48)).got == (32, 48)
    assert build_model(f"{path}:given", num_classes=9).got is None


def test_options_that_are_handed_on_are_dropped_where_they_end() -> None:
    def outer(**options: Any) -> Any:
        return inner(**options)

    def inner(num_classes: int = 1) -> int:
        return num_classes

    assert call(outer, "it", num_classes=4, image_size=32) == 4


def test_torchvision_takes_what_it_can() -> None:
    assert build_model("torchvision.models:squeezenet1_1", num_classes=5, image_size=(64, 64)).num_classes == 5
    assert build_model("torchvision.models:vit_b_16", num_classes=5, image_size=(32, 32)).image_size == 32


def test_callables_without_a_signature_get_nothing() -> None:
    assert call(dict, "it", num_classes=4) == {}


def test_parts_are_never_dropped_silently(parts: None) -> None:
    for model_id in (f"{TINY}+mixer_a", "plain+mixer_a", "torchvision.models:squeezenet1_1+mixer_a"):
        assert "has no slot for an attention" in refusal(model_id, UnknownName)
        with pytest.raises(UnknownName):
            check_model_id(model_id)


# What is refused


def test_unknown_names() -> None:
    assert "Did you mean 'timm:resnet18'" in refusal("timm:resnt18", UnknownName)
    assert "Did you mean 'agent'?" in refusal("vit_s16+agnt", UnknownName)
    assert "No model is named 'vit_s61'. Did you mean 'vit_s16'" in refusal("vit_s61", UnknownName)
    assert "no weights 'nope' of 'test_vit'. It has: r160_in1k." in refusal("timm:test_vit.nope", UnknownName)


@pytest.mark.parametrize("model_id", ["", ":", ":f", "a:", "timm:", "+agent", "vit_s16+", ".x:f", "no.such:f", "a b:c"])
def test_ids_that_name_nothing(model_id: str) -> None:
    refusal(model_id, UnknownName)
    with pytest.raises(UnknownName):
        check_model_id(model_id)


def test_two_attentions(parts: None) -> None:
    assert "two attentions, mixer_a and mixer_b" in refusal("carrier+mixer_a+mixer_b", UnknownName)
    with pytest.raises(UnknownName):
        check_model_id("carrier+mixer_a+mixer_b")


def test_missing_file_and_missing_callable(write: Callable[..., str], tmp_path: Path) -> None:
    assert f"There is no file '{tmp_path / 'no.py'}'" in refusal(f"{tmp_path / 'no.py'}:net", UnknownName)
    path = write(NETS + "\nclass Net(nn.Module): ...\n")
    message = refusal(f"{path}:nett", UnknownName)
    assert "no callable named 'nett'. Did you mean 'net'? It has: net, Net." in message
    assert "write " in refusal(path, UnknownName)


def test_missing_callable_of_a_large_module() -> None:
    message = refusal("torchvision.models:resnet19", UnknownName)
    assert "Did you mean 'resnet18'" in message
    assert len(refusal("torch:no_such_thing", UnknownName)) < 500


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("x = 1\ndef net(:\n", "SyntaxError: invalid syntax, nets.py:2"),
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency', nets.py:1"),
        ("\n\n1 / 0\n", "ZeroDivisionError: division by zero, nets.py:3"),
        ("raise SystemExit(3)", "SystemExit: 3, nets.py:1"),
        ("raise ValueError('one\\ntwo')", "ValueError: one, nets.py:1"),
    ],
)
def test_file_that_cannot_be_imported(text: str, cause: str, write: Callable[..., str]) -> None:
    for _ in range(2):
        assert f"cannot be imported ({cause})" in refusal(write(text) + ":net", ModelError)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('one\\ntwo')", "'nets.py:net' cannot be built (ValueError: one, nets.py:2)."),
        ("exit(3)", "'nets.py:net' cannot be built (SystemExit: 3, nets.py:2)."),
        ("return 3", "'nets.py:net' gave an object of type int, not a torch.nn.Module: return the module itself."),
        ("pass", "'nets.py:net' gave an object of type NoneType, not a torch.nn.Module: return the module itself."),
        ("return net()", "RecursionError"),
    ],
)
def test_callable_that_fails(body: str, message: str, write: Callable[..., str]) -> None:
    found = refusal(write(f"def net():\n    {body}\n") + ":net", ModelError)
    assert message in found
    assert str(Path(write("")).parent) not in found


def test_callable_that_needs_more(write: Callable[..., str]) -> None:
    assert "missing 1 required positional argument: 'depth'" in refusal(
        write("def net(depth): ...") + ":net", ModelError
    )


def test_module_already_built(write: Callable[..., str]) -> None:
    assert "already built" in refusal(write("from torch import nn\nnet = nn.Identity()") + ":net", ModelError)


def test_wrapper_that_returns_nothing(parts: None) -> None:
    assert "NoneType" in refusal("carrier+lose", ModelError)


# Identity


@pytest.mark.parametrize(
    ("model_id", "public"),
    [
        ("vit_s16+agent", "vit_s16+agent"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("mylab.nets:net", "mylab.nets:net"),
        ("../some where/nets.py:net+wrap", "nets.py:net+wrap"),
        ("/home/me/a+b/nets.py:net", "nets.py:net"),
    ],
)
def test_public_id_strips_folders(model_id: str, public: str) -> None:
    assert public_id(model_id) == public


def test_source_sha256(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("from torchvision.models import squeezenet1_1 as net\n")
    assert source_sha256(f"{path}:net+wrap") == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert (
        source_sha256("torch.nn:Identity") == hashlib.sha256(Path(nn.modules.linear.__file__).read_bytes()).hexdigest()
    )
    assert source_sha256("vit_s16") == source_sha256("timm:resnet18") == ""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(Path(path).parent)
    bound = write(
        "from functools import partial\nfrom torch import nn\nnet = partial(nn.Linear, 2, 2)\n", "bound_nets.py"
    )
    assert source_sha256("bound_nets:net") == hashlib.sha256(Path(bound).read_bytes()).hexdigest()
    with pytest.raises(UnknownName):
        source_sha256("no/such.py:net")


def test_names_are_checked_without_building(parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS.register("bomb")(lambda: 1 / 0)
    check_model_id("bomb")
    check_model_id("carrier+mixer_a+wrap")


# Pretrained weights


def test_pretrained_where_there_is_none(parts: None, write: Callable[..., str]) -> None:
    assert "'plain' has no pretrained weights to download. Give --weights" in refusal(
        "plain", WeightsError, pretrained=True
    )
    refusal(write("def net(**options): ...") + ":net", WeightsError, pretrained=True)
    untrained = "timm:vit_small_patch16_36x1_224"
    assert f"{untrained} has no pretrained weights" in refusal(untrained, WeightsError, pretrained=True)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_pretrained_while_asked_to_be_offline(empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.perf_counter()
    message = refusal("timm:test_resnet", WeightsError, pretrained=True)
    assert time.perf_counter() - started < 5
    assert "timm:test_resnet cannot be had (the hub cannot be reached" in message
    assert "--weights FILE" in message


def test_pretrained_without_a_network_does_not_wait(empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def unreachable(*_: Any, **__: Any) -> None:
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(factory.urllib.request, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = time.perf_counter()
    assert "the hub cannot be reached" in refusal("timm:test_resnet", WeightsError, pretrained=True)
    assert time.perf_counter() - started < 5
    assert constants.HF_HUB_OFFLINE is False


def test_pretrained_gets_what_the_hub_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    given: dict[str, Any] = {}

    def create(name: str, **options: Any) -> nn.Module:
        given.update(options, name=name)
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(factory, "_reachable", lambda _: True)
    build_model("timm:test_vit.r160_in1k", pretrained=True, image_size=(64, 64))
    assert given == {"name": "test_vit.r160_in1k", "pretrained": True, "img_size": 64}


@pytest.mark.parametrize("address", ["https://localhost:1", "http://no-such-host.invalid"])
def test_unreachable_addresses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory.urllib.request, "getproxies", dict)
    assert not factory._reachable(address)


def test_a_server_and_a_proxy_are_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory.urllib.request, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert factory._reachable(f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr(factory.urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert factory._reachable("https://no-such-host.invalid")
