"""Parameters and MACs against those that timm publishes for its models, where the published table is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.costs.macs import macs
from harness.record import Setup
from harness.reference import (
    EXCEPTIONS,
    MACS_TOLERANCE,
    Published,
    build_on_meta,
    compare,
    disagreement,
    gmacs_as_published,
    plain_costs,
    read_table,
)

TABLE = Path(__file__).parents[2] / "shared" / "reference" / "timm.csv"
needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="timm's table (shared/reference/timm.csv) is not here")


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


def first_rows() -> dict[tuple[str, int], Published]:
    """(architecture, image size) -> the first row of each pair."""
    rows: dict[tuple[str, int], Published] = {}
    for row in read_table(TABLE) if TABLE.is_file() else ():
        rows.setdefault((row.architecture, row.image_size), row)
    return rows


def row_of(architecture: str) -> Published:
    return next(row for row in first_rows().values() if row.architecture == architecture)


@needs_table
@pytest.mark.parametrize("architecture", SPREAD)
def test_spread_agrees_with_the_table(architecture: str) -> None:
    assert compare(row_of(architecture)).verdict == "agrees"


@needs_table
@pytest.mark.parametrize("architecture", EXAMPLES)
def test_exceptions_are_needed_and_true(architecture: str) -> None:
    row = row_of(architecture)
    assert disagreement(row, plain_costs(build_on_meta(row), row.image_size)[1]) > MACS_TOLERANCE
    assert disagreement(row, gmacs_as_published(row)) < MACS_TOLERANCE


def test_every_exception_has_an_example() -> None:
    assert [name for name in EXAMPLES if not name.startswith(tuple(EXCEPTIONS))] == []
    assert [family for family in EXCEPTIONS if not any(name.startswith(family) for name in EXAMPLES)] == []


@needs_table
@pytest.mark.parametrize("architecture", ["resnet50", "swin_tiny_patch4_window7_224", "hiera_small_abswin_256"])
def test_both_counts_agree(architecture: str) -> None:
    row = row_of(architecture)
    images = torch.empty(1, 3, row.image_size, row.image_size, device="meta")
    measurements = macs(build_on_meta(row), images, Setup()).measurements
    found = {measurement.metric.name: measurement.value for measurement in measurements}
    assert found["gmacs_disagreement"] == pytest.approx(0, abs=0.01)


@needs_table
@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [row for row in first_rows().values() if row.parameters <= 100],
    ids=lambda row: f"{row.model}-{row.image_size}",
)
def test_table(row: Published) -> None:
    assert compare(row).verdict in ("agrees", "explained")
