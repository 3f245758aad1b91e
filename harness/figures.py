"""What the figures of published tables mean: listed, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.metric import Metric


@dataclass(frozen=True)
class Figure:
    """A column or key of published figures.

    Args:
        task: that the figure answers.
        metric: as that task reports it.
        scale: from the figure to the metric's unit.
        protocol: how it was made, where no task of this name is made so; then it never stands beside a measured value.
        only: what the name of the variant must hold, where one key is used for several data sets.
    """

    task: str
    metric: Metric
    scale: float = 1.0
    protocol: str = ""
    only: str = ""


PARAMETERS, GMACS = Metric("parameters", "M", False), Metric("gmacs", "G", False)
TOP1, TOP5, REAL = Metric("top1", "%", True), Metric("top5", "%", True), Metric("real_top1", "%", True)
FLOPS = "FLOPs as another tool prints them, of most models multiply-accumulates"

CARD: Mapping[str, Figure] = {
    "parameters": Figure("cost", PARAMETERS), "gmacs": Figure("cost", GMACS),
    "top1": Figure("imagenet", TOP1), "top5": Figure("imagenet", TOP5),
}  # fmt: skip
TIMM: Mapping[str, Figure] = {
    "params_m": Figure("cost", PARAMETERS), "gmacs": Figure("cost", GMACS), "top1": Figure("imagenet", TOP1),
    "top5": Figure("imagenet", TOP5), "real_top1": Figure("imagenet", REAL),
}  # fmt: skip


def _share(name: str) -> Metric:
    """A metric in 0..1, as dense tasks report it."""
    return Metric(name, "", higher_is_better=True, decimals=4)


def _coco(detector: str, schedule: str) -> dict[str, Figure]:
    """The keys of a detector's average precision, in per cent."""
    ours = {"maskrcnn": "mask_rcnn", "retinanet": "retinanet"}
    own = schedule == "_1x" and detector in ours
    task = f"coco:{ours[detector]},preset=1x" if own else "coco"
    protocol = "" if own else f"{detector}, {schedule.strip('_') or 'schedule as the source says'}"
    numbers = {f"coco_{kind}_ap": f"{kind}_ap" for kind in ("box", "mask")}
    found = {f"{key}_{detector}{schedule}": number for key, number in numbers.items()}
    return {key: Figure(task, _share(number), 0.01, protocol) for key, number in found.items()}


def _ade(ending: str, task: str = "ade20k", protocol: str = "") -> dict[str, Figure]:
    """The keys of a segmenter's intersection over union and accuracy, in per cent."""
    return {f"ade20k_{name}{ending}": Figure(task, _share(name), 0.01, protocol) for name in ("miou", "macc")}


def _fine_tuned(task: str) -> Figure:
    return Figure(f"{task}:fine_tune", TOP1, protocol="fine-tuned as the source says")


LINEAR = "linear probe as the source trains it, with random crops"
SYSTEM: Mapping[str, Figure] = {
    "params_m": Figure("cost", PARAMETERS), "flops_g": Figure("cost", GMACS), "imagenet_top1": Figure("imagenet", TOP1),
    "imagenet_top5": Figure("imagenet", TOP5), "imagenet_real": Figure("imagenet", REAL),
    "imagenet_linear_top1": Figure("imagenet:linear", TOP1, protocol=LINEAR),
    "imagenet_finetune_top1": _fine_tuned("imagenet"),
    "inat21_linear_top1": Figure("inat21:linear", TOP1, protocol=LINEAR),
    "clevr_count": Figure("clevr_count:linear", TOP1, protocol=LINEAR),
    "clevr_dist": Figure("clevr_dist:linear", TOP1, protocol=LINEAR),
    "cub_top1": _fine_tuned("cub"), "dogs": _fine_tuned("dogs"), "flowers": _fine_tuned("flowers"),
    "food": _fine_tuned("food101"), "nabirds": _fine_tuned("nabirds"), "pets": _fine_tuned("pets"),
    **_coco("maskrcnn", "_1x"), **_coco("retinanet", "_1x"), **_coco("maskrcnn", "_3x"), **_coco("cascade", "_1x"),
    **_coco("cascade", "_3x"), **_coco("maskrcnn", ""),
    "coco_box_ap50_1x": Figure("coco:mask_rcnn,preset=1x", _share("box_ap50"), 0.01),
    "coco_box_ap75_1x": Figure("coco:mask_rcnn,preset=1x", _share("box_ap75"), 0.01),
    "coco_box_ap_best_reported": Figure("coco", _share("box_ap"), 0.01, "the best that the source reports"),
    **{
        f"coco_htcpp_{way}_{kind}": Figure("coco", _share(f"{kind}_ap"), 0.01, f"HTC++, {way}")
        for way in ("3x", "6x", "mstest") for kind in ("box", "mask")
    },
    "ap": Figure("coco", _share("mask_ap"), 0.01, "instances of a panoptic segmenter", only="COCO"),
    "m2f_coco_instance_ap": Figure("coco", _share("mask_ap"), 0.01, "Mask2Former"),
    **_ade("_upernet", "ade20k:upernet,preset=160k"), **_ade("_upernet_ms", "ade20k:upernet,preset=160k,test=ms_whole"),
    **_ade("_upernet_640", protocol="UPerNet on crops of 640"),
    **_ade("_upernet_640_ms", protocol="UPerNet on crops of 640, several scales"),
    **_ade("_semantic_fpn", protocol="Semantic FPN as the source trains it"),
    **_ade("_semantic_fpn_40k", protocol="Semantic FPN, 40,000 steps"), **_ade("", protocol="as the source says"),
    "m2f_ade20k_miou_ms": Figure("ade20k", _share("miou"), 0.01, "Mask2Former, several scales"),
    "m2f_ade20k_pq": Figure("ade20k", _share("pq"), 0.01, "Mask2Former, panoptic"),
    "m2f_ade20k_instance_ap": Figure("ade20k", _share("mask_ap"), 0.01, "Mask2Former, instances"),
    **{
        key: Figure("coco_panoptic", _share(name), 0.01, only="COCO")
        for key, name in
        {"pq": "pq", "sq": "sq", "rq": "rq", "pq_th": "pq_things", "pq_st": "pq_stuff"}.items()
    },
    "m2f_coco_pq": Figure("coco_panoptic", _share("pq"), 0.01),
}  # fmt: skip

VTAB: Mapping[str, Figure] = {
    f"{answer}_{size}": Figure(f"clevr_{answer}:fine_tune,preset=vtab", TOP1, protocol=f"VTAB, fine-tuned on {words}")
    for answer in ("count", "dist")
    for size, words in {"1000": "1,000 examples", "full": "all training examples"}.items()
}

FAVOR: Mapping[str, Figure] = {
    "top-1 validation accuracy": Figure("imagenet", TOP1, 100),
    "top-5 validation accuracy": Figure("imagenet", TOP5, 100),
    "number of parameters": Figure("cost", PARAMETERS, 1e-6), "FLOPs": Figure("cost", GMACS, 1e-9, FLOPS),
    "throughput": Figure("cost", Metric("throughput", "images/s", True), 1, "A100, at its own batch"),
    **{
        f"inference VRAM @{batch}": Figure("cost", Metric(f"memory_b{batch}", "MiB", False), 2**-20, "A100, allocator")
        for batch in (1, 32, 64, 128)
    },
}  # fmt: skip
