"""MACs against those that timm publishes for its models, where the published table is at hand."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

from harness.costs.macs import count_macs, macs
from harness.record import Setup

TABLE = Path(__file__).parents[2] / "shared" / "reference" / "timm.csv"
needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="timm's table (shared/reference/timm.csv) is not here")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The table's `gmacs` differ from a plain count for these families, whose first row says why.
REPARAMETERISED = "the table counted the model after merging its training-time branches; so counted, ours agrees"
EXCEPTIONS = {
    "fastvit": REPARAMETERISED,
    "ghostnetv3": REPARAMETERISED,
    "levit": REPARAMETERISED,
    "mobileone": REPARAMETERISED,
    "repghostnet": REPARAMETERISED,
    "repvgg": REPARAMETERISED,
    "repvit": REPARAMETERISED,
    "convmixer": "the table lacks convolutions with padding='same', for which fvcore has no handle",
    "sequencer2d": "the table lacks the LSTMs, for which fvcore has no handle",
}
EXAMPLES = (
    *("fastvit_sa12", "ghostnetv3_100", "levit_128s", "mobileone_s1", "repghostnet_150", "repvgg_a2", "repvit_m1"),
    *("convmixer_768_32", "sequencer2d_s"),
)
SPREAD = (
    *("beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "coatnet_0_rw_224", "convit_small", "convnext_tiny"),
    *("crossvit_15_240", "cspdarknet53", "deit_small_patch16_224", "densenet121", "dm_nfnet_f0", "edgenext_small"),
    *("efficientformer_l1", "efficientnet_b0", "efficientvit_b2", "eva02_tiny_patch14_336", "focalnet_tiny_srf"),
    *("gcvit_tiny", "hrnet_w18", "inception_v4", "maxvit_tiny_tf_224", "mixer_b16_224", "mobilenetv3_large_100"),
    *("mvitv2_tiny", "nest_tiny_jx", "nextvit_small", "pit_s_224", "poolformer_s12", "pvt_v2_b1", "regnety_032"),
    *("resmlp_12_224", "resnet50", "resnetv2_50x1_bit", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
    *("tiny_vit_5m_224", "tnt_s_patch16_224", "twins_svt_small", "vgg16", "visformer_small", "vit_base_patch16_224"),
    *("volo_d1_224", "xcit_small_12_p16_224"),
)


def table_rows() -> dict[tuple[str, int], tuple[str, float, float]]:
    """(architecture, image size) -> model with weights tag, GMACs, parameters in M; the first row of each pair."""
    rows: dict[tuple[str, int], tuple[str, float, float]] = {}
    if TABLE.is_file():
        with TABLE.open(newline="") as file:
            for row in csv.DictReader(file):
                key = (row["model"].split(".")[0], int(row["img"]))
                rows.setdefault(key, (row["model"], float(row["gmacs"]), float(row["params_m"])))
    return rows


def build_on_meta(name: str, image_size: int) -> nn.Module:
    with torch.device("meta"):
        return build(name, image_size)


def build(name: str, image_size: int) -> nn.Module:
    model: nn.Module
    try:
        model = timm.create_model(name, img_size=image_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        model = timm.create_model(name)
    return model


def plain_gmacs(name: str, image_size: int) -> float:
    count = count_macs(build_on_meta(name, image_size), torch.empty(1, 3, image_size, image_size, device="meta"))
    assert (count.uncounted, count.tensors) == ({}, "meta")
    return count.total / 1e9


def gmacs_as_in_the_table(name: str, image_size: int) -> float:
    """Return GMACs with what the exceptions say left out."""
    reason = next((reason for family, reason in EXCEPTIONS.items() if name.startswith(family)), "")
    if not reason:
        return plain_gmacs(name, image_size)
    if reason == REPARAMETERISED:
        model = reparameterize_model(build(name, image_size).eval())  # needs real weights
        return count_macs(model, torch.empty(1, 3, image_size, image_size)).total / 1e9
    model = build_on_meta(name, image_size)
    count = count_macs(model, torch.empty(1, 3, image_size, image_size, device="meta"))
    lost = [path for path, module in model.named_modules() if isinstance(module, nn.LSTM) or is_padded_to_same(module)]
    assert lost
    return (count.total - sum(count.by_module[path] for path in lost)) / 1e9


def is_padded_to_same(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.padding == "same"


def disagreement(gmacs: float, published: float) -> float:
    """How far a count is from the table, as a fraction, beyond the table's rounding to 0.01 G."""
    return max(abs(gmacs - published) - 0.00501, 0) / published


@needs_table
@pytest.mark.parametrize("architecture", SPREAD)
def test_spread_agrees_with_the_table(architecture: str) -> None:
    image_size, (name, published, _) = next(
        (key[1], row) for key, row in table_rows().items() if key[0] == architecture
    )
    assert disagreement(plain_gmacs(name, image_size), published) < 0.005


@needs_table
@pytest.mark.parametrize("architecture", EXAMPLES)
def test_exceptions_are_needed_and_true(architecture: str) -> None:
    image_size, (name, published, _) = next(
        (key[1], row) for key, row in table_rows().items() if key[0] == architecture
    )
    assert disagreement(plain_gmacs(name, image_size), published) > 0.005
    assert disagreement(gmacs_as_in_the_table(name, image_size), published) < 0.005


def test_every_exception_has_an_example() -> None:
    assert [name for name in EXAMPLES if not name.startswith(tuple(EXCEPTIONS))] == []
    assert [family for family in EXCEPTIONS if not any(name.startswith(family) for name in EXAMPLES)] == []


@needs_table
@pytest.mark.parametrize("architecture", ["resnet50", "swin_tiny_patch4_window7_224", "hiera_small_abswin_256"])
def test_both_counts_agree(architecture: str) -> None:
    image_size = next(size for name, size in table_rows() if name == architecture)
    images = torch.empty(1, 3, image_size, image_size, device="meta")
    measurements = macs(build_on_meta(architecture, image_size), images, Setup()).measurements
    found = {measurement.metric.name: measurement.value for measurement in measurements}
    assert found["gmacs_disagreement"] == pytest.approx(0, abs=0.01)


@needs_table
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_size", "published"),
    [(name, size, gmacs) for (_, size), (name, gmacs, parameters) in table_rows().items() if parameters <= 100],
)
def test_table(name: str, image_size: int, published: float) -> None:
    assert disagreement(gmacs_as_in_the_table(name, image_size), published) < 0.005
