"""An mmsegmentation configuration as a model that segments pictures as its own test settings say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import MissingPackage, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

CROP = (512, 512)  # where a configuration names no size
PACKAGES = ("mmsegmentation", "mmengine", "mmcv")


class Segments:
    """What the harness adds to a model of mmsegmentation.

    Attributes:
        preprocessing: mean, standard deviation and usual size of its input, in the harness's units.
        segmentation: its test settings, for records.
        make_pipeline: gives the function from `{"img": array (H, W, 3) in BGR}` to one sample.
    """

    preprocessing: dict[str, Any]
    segmentation: dict[str, Any]
    make_pipeline: Callable[[], Any]
    test_step: Any

    def segment(self, pictures: Sequence[Any]) -> list[Tensor]:
        """Return the logits (classes, H, W) of PIL pictures at their own sizes, one after the other as when testing."""
        pipeline = self.make_pipeline()
        return [self._logits(picture, pipeline) for picture in pictures]

    def _logits(self, picture: Any, pipeline: Any) -> Tensor:
        import numpy as np

        sample = pipeline({"img": np.ascontiguousarray(np.asarray(picture)[..., ::-1])})
        found = self.test_step({"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]})[0]
        logits: Tensor = found.seg_logits.data
        return logits


def build_segmentor(file: Path) -> nn.Module:
    """Build the model of a configuration, which is executed; weights are initial, and nothing is downloaded.

    Called with normalised images (B, 3, H, W), it returns the logits of its decode head, at that head's stride.

    Raises:
        MissingPackage: mmsegmentation or a compiled mmcv is absent.
        ModelError: the configuration is none of a segmentation model.
    """
    _check_packages()
    from mmengine.config import Config, ConfigDict
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmseg.models.segmentors import BaseSegmentor
    from mmseg.registry import MODELS

    config = Config.fromfile(str(file))
    if not config.get("model"):
        raise ModelError(f"The configuration {file.name!r} has no `model`: give one of a segmentation model.")
    # It would list every parameter, on standard output, where records go.
    with redirect_stdout(sys.stderr):
        MMLogger.get_instance("backbone_bench", log_level="WARNING")
    init_default_scope("mmseg")
    options = ConfigDict(_without_pretrained(config.model.to_dict()))
    name = options.pop("type")
    kind = name if isinstance(name, type) else MODELS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, BaseSegmentor)):
        raise ModelError(f"The configuration {file.name!r} has a model of type {name!r}, which is no segmentor.")
    # A subclass and no wrapper, so that parameters keep the names that checkpoints have.
    model: Any = type(kind.__name__, (Segments, kind), {"__module__": __name__})(**options)
    model.init_weights()
    model.make_pipeline = partial(_pipeline, _steps(config), file.name)
    model.preprocessing = _declared(config)
    model.segmentation = _details(config)
    built: nn.Module = model
    return built


def _check_packages() -> None:
    """Say what to install, where importing says no more than that something is missing."""
    try:
        import mmcv.ops  # noqa: F401
        import mmseg.models  # noqa: F401
    except ImportError as error:
        missing = error.name if error.name in ("mmcv", "mmseg") or not error.name else error.name.partition(".")[0]
        raise MissingPackage(
            "mmsegmentation with a compiled mmcv", f"A model of mmsegmentation ({missing} cannot be imported)"
        ) from error


def _without_pretrained(found: Any) -> Any:
    """Settings without the weights that they would download: a checkpoint is given by --weights."""
    if isinstance(found, dict):
        kept = {key: _without_pretrained(value) for key, value in found.items() if key != "pretrained"}
        return {key: value for key, value in kept.items() if not (key == "init_cfg" and _is_pretrained(value))}
    return [_without_pretrained(value) for value in found] if isinstance(found, list) else found


def _is_pretrained(init: Any) -> bool:
    return isinstance(init, dict) and "Pretrained" in str(init.get("type"))


def _pipeline(steps: Sequence[Any], name: str) -> Any:
    """The test pipeline for pictures that are already read, and without their annotations."""
    from mmengine.dataset import Compose

    steps = [dict(step) for step in steps if step["type"] != "LoadAnnotations"]
    if not steps or steps[0]["type"] != "LoadImageFromFile":
        raise ModelError(f"The test pipeline of {name!r} does not begin with LoadImageFromFile, as it must here.")
    first = {"type": "LoadImageFromNDArray", "to_float32": steps[0].get("to_float32", False)}
    return Compose([first, *steps[1:]])


def _steps(config: Any) -> Sequence[Any]:
    loader = config.get("test_dataloader") or {}
    steps: Sequence[Any] = loader.get("dataset", {}).get("pipeline") or config.get("test_pipeline") or []
    return steps


def _declared(config: Any) -> dict[str, Any]:
    """What the model's own data preprocessor does, in the harness's terms."""
    own = config.model.get("data_preprocessor") or {}
    size = config.model.get("test_cfg", {}).get("crop_size") or own.get("size") or config.get("crop_size") or CROP
    declared: dict[str, Any] = {"input_size": (3, *size)}
    if len(own.get("mean") or ()) == 3:
        declared |= {name: tuple(value / 255 for value in own[name]) for name in ("mean", "std")}
    return declared


def _details(config: Any) -> dict[str, Any]:
    """What records say of the test settings."""
    found = {
        "framework": {name: version(name) for name in PACKAGES},
        "test": dict(config.model.get("test_cfg") or {}),
        "test_pipeline": [dict(step) for step in _steps(config)],
        "data_preprocessor": dict(config.model.get("data_preprocessor") or {}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain
