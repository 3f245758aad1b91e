"""mmsegmentation beside the harness: our backbones in its models, its models in our tasks, and the same numbers."""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import harness
from baselines.heads.upernet import UPerHead
from harness.costs.counter import count_macs
from harness.errors import BenchError
from harness.models import build_model
from harness.pyramid import Pyramid

pytestmark = [pytest.mark.mmseg, pytest.mark.filterwarnings("ignore")]

IMPORTS = {"imports": ["harness.mmseg_backbone"]}
WHOLE = {"mode": "whole"}
SLIDE = {"mode": "slide", "crop_size": (96, 96), "stride": (64, 64)}
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
USERS = """
from torch import nn

class Mine(nn.Module):
    channels, strides = (8,), (16,)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 16, 16)

    def features(self, images):
        return [self.stem(images)]
"""


@pytest.fixture(autouse=True)
def packages() -> Any:
    """Import what the tests need, or skip."""
    for name in ("mmcv.ops", "mmseg.models", "mmseg.datasets", "mmseg.evaluation"):
        pytest.importorskip(name, reason="mmsegmentation with a compiled mmcv is absent", exc_type=ImportError)
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    import harness.mmseg_backbone

    init_default_scope("mmseg")
    yield harness.mmseg_backbone
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    MMLogger._instance_dict.clear()


def network(backbone: dict[str, Any], channels: tuple[int, ...], test: dict[str, Any] = WHOLE) -> dict[str, Any]:
    """Settings of UPerNet with the auxiliary head."""
    head = {
        "num_classes": 150, "channels": 16, "norm_cfg": {"type": "BN"}, "align_corners": False, "dropout_ratio": 0.1,
    }  # fmt: skip
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor", "mean": MEAN, "std": STD, "bgr_to_rgb": True, "size": (96, 96),
            "pad_val": 0, "seg_pad_val": 255,
        },
        "backbone": backbone,
        "decode_head": {
            **head, "type": "UPerHead", "in_channels": list(channels), "in_index": [0, 1, 2, 3],
            "pool_scales": (1, 2, 3, 6), "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
        },
        "auxiliary_head": {
            **head, "type": "FCNHead", "in_channels": channels[2], "in_index": 2, "num_convs": 1,
            "concat_input": False, "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4},
        },
        "train_cfg": {},
        "test_cfg": test,
    }  # fmt: skip


RESNET = ({"type": "HarnessBackbone", "model": "timm:resnet18"}, (64, 128, 256, 512))
VIT = ({"type": "HarnessBackbone", "model": "timm:vit_tiny_patch16_224", "image_size": 64}, (48, 96, 192, 192))
MMSEG = (
    {"type": "MixVisionTransformer", "embed_dims": 16, "num_stages": 4, "num_layers": [1, 1, 1, 1],
     "num_heads": [1, 2, 4, 8], "init_cfg": {"type": "Pretrained", "checkpoint": "nowhere.pth"}},
    (16, 32, 64, 128),
)  # fmt: skip


def settings(model: dict[str, Any], root: Path, work: Path) -> dict[str, Any]:
    """A whole configuration on the embedded ADE20K."""
    read, labels = {"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "reduce_zero_label": True}
    pack = {"type": "PackSegInputs"}
    train = [read, labels, {"type": "Resize", "scale": (512, 128), "keep_ratio": True},
             {"type": "RandomCrop", "crop_size": (96, 96)}, {"type": "RandomFlip", "prob": 0.5}, pack]  # fmt: skip
    test = [read, {"type": "Resize", "scale": (512, 128), "keep_ratio": True}, labels, pack]

    def loader(split: str, steps: list[Any], batch: int, sampler: dict[str, Any]) -> dict[str, Any]:
        data = {
            "type": "ADE20KDataset", "data_root": str(root / "ADEChallengeData2016"), "pipeline": steps,
            "data_prefix": {"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
        }  # fmt: skip
        return {"batch_size": batch, "num_workers": 0, "dataset": data, "sampler": sampler}

    return {
        "custom_imports": IMPORTS,
        "default_scope": "mmseg",
        "model": model,
        "train_dataloader": loader("training", train, 2, {"type": "InfiniteSampler"}),
        "test_dataloader": loader("validation", test, 1, {"type": "DefaultSampler", "shuffle": False}),
        "test_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 3},
        "test_cfg": {"type": "TestLoop"},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 1e-3}},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 3}},
        "custom_hooks": [{"type": "EMAHook"}],
        "work_dir": str(work),
        "log_level": "WARNING",
        "randomness": {"seed": 0},
    }


def written(config: dict[str, Any], path: Path) -> str:
    """Write a configuration as a file, and return its model id."""
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in config.items()))
    return f"mmseg:{path}"


def built(model: dict[str, Any]) -> Any:
    from mmengine.config import ConfigDict
    from mmseg.registry import MODELS

    return MODELS.build(ConfigDict(model))


def batch(size: int = 96) -> dict[str, Any]:
    """Two annotated images, as a data loader of mmsegmentation gives them."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    shape = {"img_shape": (size, size), "ori_shape": (size, size)}
    samples = [SegDataSample(metainfo=shape) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, size, size), generator=generator))
    pixels = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    return {"inputs": list(pixels), "data_samples": samples}


# Our backbones in its models


@pytest.mark.parametrize(
    ("name", "channels"),
    [("timm:resnet18", RESNET[1]), ("vit_t16+agent", (48, 96, 192, 192)), ("users", (2, 4, 8, 8))],
)
def test_its_heads_train_and_predict_on_our_backbones(name: str, channels: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USERS)
    model = f"{tmp_path / 'mine.py'}:Mine" if name == "users" else name
    segmentor = built(network({"type": "HarnessBackbone", "model": model, "channels": channels}, channels))
    assert segmentor.backbone.strides == (4, 8, 16, 32)
    data = segmentor.data_preprocessor(batch(), training=True)
    losses = segmentor.train()(**data, mode="loss")
    assert {"decode.loss_ce", "aux.loss_ce"} < losses.keys()
    (losses["decode.loss_ce"] + losses["aux.loss_ce"]).backward()
    trained = [parameter for parameter in segmentor.parameters() if parameter.requires_grad]
    assert all(one.grad is not None and one.grad.isfinite().all() for one in trained)
    assert sum(bool(p.grad.any()) for p in segmentor.backbone.parameters() if p.grad is not None) > 1
    (found, _) = segmentor.eval().test_step(batch(80))
    assert found.pred_sem_seg.data.shape == (1, 80, 80)


def test_a_frozen_backbone_gets_no_gradient_and_stays_in_eval_mode() -> None:
    segmentor = built(network({**RESNET[0], "frozen": True}, RESNET[1])).train()
    before = deepcopy(segmentor.backbone.state_dict())
    sum(loss.sum() for loss in segmentor(**segmentor.data_preprocessor(batch(), True), mode="loss").values()).backward()
    assert all(parameter.grad is None for parameter in segmentor.backbone.pyramid.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in segmentor.backbone.state_dict().items())


@pytest.mark.parametrize("way", ["weights", "init_cfg"])
def test_weights_are_there_when_a_training_begins(way: str, tmp_path: Path) -> None:
    """timm's networks have an `init_weights` of their own, which must not be called after that."""
    torch.manual_seed(1)
    given = build_model(VIT[0]["model"], image_size=(64, 64)).state_dict()
    torch.save(given, path := tmp_path / "vit.pth")
    asked = (
        {"weights": str(path)} if way == "weights" else {"init_cfg": {"type": "Pretrained", "checkpoint": str(path)}}
    )
    segmentor = built(network({**VIT[0], **asked}, VIT[1]))
    assert not torch.equal(segmentor.backbone.pyramid.backbone.state_dict()["cls_token"], given["cls_token"])
    segmentor.init_weights()
    state = segmentor.backbone.pyramid.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in given.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (1, 2, 3, 4)}, r"have \[64, 128, 256, 512\] channels, and the configuration says \[1, 2, 3, 4\]"),
        ({"weights": "a.pth", "init_cfg": {"type": "Pretrained", "checkpoint": "b.pth"}}, "expected one of them"),
        ({"init_cfg": {"type": "Kaiming"}}, "expected one of them"),
        ({"model": "timm:resnet81"}, "Did you mean"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        built({**RESNET[0], **options})


def test_weights_that_run_code_do_not(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "args": argparse.Namespace()}, path := tmp_path / "evil.pth")
    with pytest.raises(BenchError, match="may run any code"):
        built(network({**RESNET[0], "weights": str(path)}, RESNET[1])).init_weights()


def test_a_loss_of_the_backbones_own_is_not_lost_in_silence() -> None:
    backbone = built({**RESNET[0]}).train()
    backbone.pyramid.taps = deepcopy(backbone.pyramid.taps)
    read = backbone.pyramid.taps.read

    def leaving(images: Any, context: Any) -> Any:
        context.auxiliary["balance_loss"] = torch.ones(())
        return read(images, context)

    object.__setattr__(backbone.pyramid.taps, "read", leaving)
    with pytest.raises(BenchError, match="has a training loss of its own"):
        backbone(torch.zeros(2, 3, 64, 64))
    backbone.eval()(torch.zeros(2, 3, 64, 64))


# Its models in our tasks


def areas(loop: Any) -> list[Any]:
    """Sums of what mmsegmentation's metric counted, before it rounds: right, union, predicted, annotated by class."""
    return [sum(part).double().numpy() for part in zip(*loop.evaluator.metrics[0].seen, strict=True)]


def kept(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mmsegmentation's metric keep what it counts of each image."""
    compute = metric.compute_metrics
    monkeypatch.setattr(metric, "compute_metrics", lambda results: setattr(metric, "seen", results) or compute(results))


@pytest.mark.parametrize(
    ("backbone", "test"), [(RESNET, WHOLE), (RESNET, SLIDE), (MMSEG, WHOLE), (MMSEG, SLIDE)],
    ids=["ours-whole", "ours-slide", "mit-whole", "mit-slide"],
)  # fmt: skip
def test_a_model_that_it_trained_scores_the_same_here_and_there(
    backbone: Any, test: dict[str, Any], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmengine.config import Config
    from mmengine.runner import Runner

    config = settings(network(*deepcopy(backbone), test), scenes, tmp_path / "work")
    model = written(config, tmp_path / "net.py")
    config["model"]["backbone"].pop("init_cfg", None)
    runner = Runner.from_cfg(Config(config))
    runner.train()
    checkpoint = tmp_path / "work" / "iter_3.pth"
    # mmengine's own loading asks torch for its own log, which torch refuses. Averaged weights are what it tests with.
    runner.model.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
    kept(runner.test_loop.evaluator.metrics[0], monkeypatch)
    runner.test()
    right, union, _, annotated = areas(runner.test_loop)
    (record,) = harness.run(
        [model], ["ade20k"], data=scenes, results=tmp_path / "results", weights=checkpoint, device="cpu",
        executor="inline", batch_size=2,
    )  # fmt: skip
    assert record.error is None
    with np.errstate(invalid="ignore"):
        assert record.values()["miou"] == np.nanmean(right / union)
        assert record.values()["macc"] == np.nanmean(right / annotated)
    assert record.values()["aacc"] == right.sum() / annotated.sum()
    assert 0 < record.values()["aacc"] < 1
    assert record.details["test"]["mode"] == test["mode"]


def test_what_it_costs_is_what_the_same_network_costs_here(tmp_path: Path) -> None:
    """The auxiliary head is not run."""
    model = written({"custom_imports": IMPORTS, "model": network(*RESNET)}, tmp_path / "net.py")
    (found,) = harness.run(
        [model], ["cost:macs"], results=tmp_path, device="cpu", executor="inline", batch_size=1, image_size=128
    )
    assert found.error is None
    assert found.values()["gmacs_disagreement"] == pytest.approx(0, abs=0.1)
    ours = nn.Sequential(Pyramid(build_model("timm:resnet18")), UPerHead(RESNET[1], 150, 16)).eval()
    counted = count_macs(ours, torch.zeros(1, 3, 128, 128)).by_operator
    theirs = found.details["macs"]["by_operator"]
    assert theirs["aten::convolution"] == counted["aten::convolution"]
    # Ours resizes its first level to the size that it has.
    assert counted["aten::upsample_bilinear2d"] - theirs["aten::upsample_bilinear2d"] == 4 * 16 * 32 * 32


def test_a_checkpoint_that_runs_code_is_refused(scenes: Path, tmp_path: Path) -> None:
    model = written(settings(network(*RESNET), scenes, tmp_path), tmp_path / "net.py")
    torch.save({"state_dict": {}, "args": argparse.Namespace()}, path := tmp_path / "evil.pth")
    (record,) = harness.run(
        [model], ["ade20k"], data=scenes, results=tmp_path, weights=path, device="cpu", executor="inline"
    )
    assert "evil.pth holds more than tensors and was not read: it calls for argparse.Namespace" in record.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "has no `model`"),
        ({"model": {"type": "UPerHead"}}, "'UPerHead', which is no segmentor"),
        ({"model": {"type": "Nothing"}}, "'Nothing', which is no segmentor"),
    ],
)
def test_a_configuration_of_something_else_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {**settings(network(*RESNET), tmp_path, tmp_path), **change}
    with pytest.raises(BenchError, match=message):
        build_model(written(config, tmp_path / "net.py"))


@pytest.mark.parametrize("steps", [[], [{"type": "PackSegInputs"}]])
def test_a_test_pipeline_that_reads_no_files_is_refused(steps: list[Any], tmp_path: Path) -> None:
    config = {**settings(network(*RESNET), tmp_path, tmp_path), "test_dataloader": {"dataset": {"pipeline": steps}}}
    model: Any = build_model(written(config, tmp_path / "net.py"))
    with pytest.raises(BenchError, match="does not begin with LoadImageFromFile"):
        model.segment([])


def test_its_own_configurations_are_found_by_name() -> None:
    model: Any = build_model("mmseg:segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py")
    assert model.preprocessing["input_size"] == (3, 512, 512)
    assert model.preprocessing["mean"] == pytest.approx((0.485, 0.456, 0.406))
    # SegFormer-B0 has 3.8 M parameters (arXiv:2105.15203, table 1).
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(3.8, abs=0.06)
