"""One embedding an image from any classifier, and images decoded alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.features import embedder

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


class Net(nn.Module):
    """A trunk and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 6, 32)
        self.head = nn.Linear(6, 4)

    def before(self, images: Tensor) -> Tensor:
        return self.trunk(images).flatten(1)

    def forward(self, images: Tensor) -> Any:
        return self.head(self.before(images))


def embeddings(module: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return embedder(module.eval())(images)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_vit2"])
def test_timm_models(name: str) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=5, **({"img_size": 32} if "vit" in name else {})).eval()
    found = embeddings(module)
    assert found.shape == (2, module.head_hidden_size)
    with torch.no_grad():
        assert torch.allclose(module.get_classifier()(found), module(IMAGES), atol=1e-5)


def test_own_method_comes_first() -> None:
    class Own(Net):
        def embed(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    assert torch.equal(embeddings(Own()), IMAGES.mean((2, 3)))


@pytest.mark.parametrize("name", ["embed", "forward_features", "forward_head"])
def test_a_layer_of_that_name_is_no_method(name: str) -> None:
    module = Net()
    setattr(module, name, nn.Conv2d(3, 5, 1))
    assert torch.equal(embeddings(module), module.before(IMAGES))


def test_features_without_timms_head() -> None:
    class Others(Net):
        def forward_features(self, images: Tensor) -> Tensor:
            return images

        def forward_head(self, maps: Tensor) -> Tensor:
            return maps

    module = Others()
    assert torch.equal(embeddings(module), module.before(IMAGES))


def test_input_of_the_last_linear_layer() -> None:
    torch.manual_seed(0)
    parts = [nn.Flatten(), nn.Linear(3 * 32 * 32, 7), nn.ReLU(), nn.Dropout(0.9), nn.Linear(7, 5)]
    module = nn.Sequential(*parts, nn.Identity()).eval()
    assert torch.equal(embeddings(module), nn.Sequential(*parts[:4])(IMAGES))


def test_a_layer_that_runs_beside_the_head_is_not_taken() -> None:
    class Auxiliary(Net):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Linear(6, 9)

        def forward(self, images: Tensor) -> Any:
            logits = super().forward(images)
            self.aside(logits.new_zeros(2, 6))
            return logits

    module = Auxiliary()
    assert torch.equal(embeddings(module), module.before(IMAGES))


def test_linear_layer_called_by_name_and_output_with_logits() -> None:
    class Named(Net):
        def forward(self, images: Tensor) -> Any:
            return SimpleNamespace(logits=self.head(input=self.before(images)))

    module = Named()
    assert torch.equal(embeddings(module), module.before(IMAGES))


def test_no_hook_stays_behind() -> None:
    class Failing(Net):
        def forward(self, images: Tensor) -> Any:
            super().forward(images)
            raise ValueError("no")

    for module in (Net(), Failing()):
        try:
            embeddings(module)
        except ValueError:
            assert isinstance(module, Failing)
        assert not module.head._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_are_single_precision(dtype: torch.dtype) -> None:
    class Half(Net):
        def embed(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)).to(dtype)

    assert embeddings(Half()).dtype == torch.float32


@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten()), nn.Sequential(Net(), nn.Softmax(1))]
)
def test_without_any_embedding(module: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"Sequential has no embedding that can be found: .*method embed\(images\)"):
        embeddings(module)


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        (lambda images: images, r"\(2, 3, 32, 32\)"),
        (lambda images: images.mean((1, 2, 3)), r"\(2,\)"),
        (lambda images: images[:1].mean((2, 3)), r"\(1, 3\)"),
        (lambda images: [images], "list"),
        (lambda images: None, "NoneType"),
    ],
)
def test_embeddings_of_the_wrong_shape(wrong: Any, shape: str) -> None:
    module = Net()
    module.embed = wrong
    with pytest.raises(ModelError, match=rf"The embedding of 2 images is {shape}; expected \(2, D\)\. Give"):
        embeddings(module)


def test_a_compiled_model() -> None:
    module = Net().eval()
    expected = embeddings(module)
    module.compile(backend="eager")
    assert torch.equal(embeddings(module), expected)
