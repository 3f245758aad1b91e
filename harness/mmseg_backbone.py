"""A backbone of the harness in a configuration of mmsegmentation, as `type='HarnessBackbone'`.

`custom_imports = dict(imports=['harness.mmseg_backbone'])` registers it, with every project that is built on mmengine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import MissingPackage, ModelError, SetupError
from harness.models import build_model
from harness.pyramid import Pyramid
from harness.record import Weights
from harness.weights import load_weights

try:
    from mmengine.registry import MODELS
except ImportError as error:
    raise MissingPackage("mmengine", "HarnessBackbone") from error

Size = int | tuple[int, int]


@MODELS.register_module()
class HarnessBackbone(nn.Module):
    """A model of the harness that gives maps at strides 4, 8, 16 and 32 to mmsegmentation's necks and heads.

    Args:
        model: a model id, as `run --model` takes it.
        weights: `random`, `pretrained`, or a file, which is read when mmengine initialises the weights: for training
            and not where a checkpoint of the whole segmentor is loaded.
        image_size: that the network is built for; None for its own.
        num_classes: of the classifier that the file of weights holds; it is not used. None for the model's own.
        channels: that the heads are configured for, to be told early where they differ; None for no such check.
        allow_partial: whether the file may lack some of the weights.
        frozen, layers, layout, norm_eval, native: see `harness.pyramid.Pyramid`.
        init_cfg: `dict(type='Pretrained', checkpoint=FILE)`, mmengine's way to write `weights=FILE`.

    Raises:
        BenchError: the model cannot be built, its channels are others, or the options contradict one another.
    """

    def __init__(
        self,
        model: str,
        weights: str = "random",
        *,
        image_size: Size | None = None,
        num_classes: int | None = None,
        channels: Sequence[int] | None = None,
        allow_partial: bool = False,
        frozen: bool = False,
        layers: Sequence[str] = (),
        layout: str = "auto",
        norm_eval: bool = False,
        native: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.allow_partial = model, allow_partial
        self.weights = _weights(weights, init_cfg)
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self._options: dict[str, Any] = {"num_classes": num_classes, "image_size": size, "any_size": True}
        self.pyramid = Pyramid(
            build_model(model, **self._options), tuple(layers), layout,
            size=size or (224, 224), frozen=frozen, norm_eval=norm_eval, native=native,
        )  # fmt: skip
        if channels is not None and tuple(channels) != self.channels:
            raise ModelError(
                f"The maps of {model!r} have {list(self.channels)} channels, and the configuration says "
                f"{list(channels)}: set in_channels of its heads, and channels, to what they have."
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map."""
        return self.pyramid.channels

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image along each side of a place in each map."""
        return tuple(self.pyramid.strides)

    def init_weights(self) -> None:
        """Give the backbone the weights that were asked for; mmengine calls this before a training.

        What is below keeps the values that it was built with: it is not handed on.
        """
        if self.weights == "pretrained":
            pretrained = build_model(self.model, **self._options, pretrained=True)
            self.pyramid.backbone.load_state_dict(pretrained.state_dict())
        elif self.weights != "random":
            requested = Weights(source="file", allow_partial=self.allow_partial)
            load_weights(self.pyramid.backbone, Path(self.weights), requested)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) of images (B, 3, H, W)."""
        found = tuple(self.pyramid.features(images))
        if self.training and isinstance(self.pyramid.own_losses, torch.Tensor):
            raise ModelError(
                f"{self.model!r} has a training loss of its own, which mmsegmentation has no place for. "
                "Train it with ade20k:upernet, or take frozen=True."
            )
        return found


def _weights(weights: str, init_cfg: Mapping[str, Any] | None) -> str:
    """The weights that two ways of asking for them mean."""
    if not init_cfg:
        return weights
    if weights != "random" or init_cfg.get("type") != "Pretrained" or "prefix" in init_cfg:
        raise SetupError(
            f"HarnessBackbone has weights={weights!r} and init_cfg={dict(init_cfg)!r}; expected one of them, and for "
            "init_cfg dict(type='Pretrained', checkpoint=FILE)."
        )
    return str(init_cfg["checkpoint"])
