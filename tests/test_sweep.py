"""`run_bench.py sweep`: the fit against SciPy's, the intervals, the figures, and records that are not made twice."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from harness import sweep_cli
from harness.errors import BenchError, SetupError
from harness.plot import THEMES, draw_curves
from harness.scaling import fit_power_law
from harness.statistics import t_quantile
from harness.sweep import Curve, Point, curve, parse_sides, points_table, slopes_table

MODELS = """
import torch
from torch import nn

class Square(nn.Module):
    '''Every pixel with every other: its MACs grow with the square of the pixels.'''
    def forward(self, images):
        if images.shape[-1] == 24:
            raise ValueError("24 is too odd")
        tokens = images.flatten(2)
        return tokens.transpose(1, 2) @ tokens

def square(image_size=16):
    model = Square()
    model.weight = nn.Parameter(torch.zeros(1))
    return model
"""


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("count", [3, 4, 7, 30])
def test_the_fit_is_that_of_scipy(count: int, noise: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(count)
    x = np.geomspace(100, 1e6, count)
    y = 3e-4 * x**1.5 * np.exp(noise * generator.standard_normal(count))
    law = fit_power_law(list(x), list(y))
    expected = stats.linregress(np.log(x), np.log(y))
    margin = expected.stderr * stats.t.ppf(0.975, count - 2)
    assert law.slope == pytest.approx(expected.slope)
    assert (law.low, law.high) == pytest.approx((expected.slope - margin, expected.slope + margin), abs=1e-6)
    assert law.factor == pytest.approx(math.exp(expected.intercept))
    assert law.at(x[1]) == pytest.approx(math.exp(expected.intercept + expected.slope * math.log(x[1])))


def test_the_quantile_of_t_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 12), 50, 199):
        for confidence in (0.5, 0.95, 0.999):
            assert t_quantile(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees))


def test_the_interval_of_the_slope_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    x = np.geomspace(100, 1e6, 5)
    laws = [fit_power_law(list(x), list(x**1.2 * np.exp(0.2 * generator.standard_normal(5)))) for _ in range(2000)]
    assert np.mean([law.low <= 1.2 <= law.high for law in laws]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("values", [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 0, 3])])
def test_what_has_no_slope_is_refused(values: tuple[list[float], list[float]]) -> None:
    with pytest.raises(BenchError, match="A slope needs three"):
        fit_power_law(*values)


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("128:1024", [128, 192, 256, 352, 512, 736, 1024]),
        ("224:448:112", [224, 336, 448]),
        ("64:100", [64, 100]),
        ("16:32", [16, 32]),
    ],
)
def test_sides_are_read(text: str, sides: list[int]) -> None:
    assert parse_sides(text) == sides


@pytest.mark.parametrize("text", ["128", "a:b", "256:128", "128:256:0", "128:256:-8", "1:2:3:4", "4:64", "64:9999", ""])
def test_what_are_no_sides_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match="--image-size is"):
        parse_sides(text)


def points(slope: float, model: str = "net") -> list[Point]:
    values = {side: side ** (2 * slope) for side in (32, 64, 128)}
    return [Point(model, "latency_b1", "ms", side, value, (0.9 * value, 1.2 * value)) for side, value in values.items()]


def test_a_curve_says_how_it_grows_and_what_failed() -> None:
    found = curve(points(0.75))
    assert found.law is not None
    assert found.law.slope == pytest.approx(0.75)
    missing = replace(points(1.0)[0], metric="latency", unit="", value=None, interval=None, reason="it burst")
    found = curve([missing, *points(1.0)[1:]])
    assert (found.metric, found.unit, found.law) == ("latency_b1", "ms", None)
    assert "there are 2" in found.reason
    assert slopes_table([found])[1] == [("net", "latency_b1", "ms", 2, None, None, None, found.reason)]
    assert [row[-1] for row in points_table([found])[1]] == ["it burst", "", ""]


@pytest.mark.parametrize("theme", THEMES)
def test_a_figure_is_the_same_each_time_and_tells_what_it_shows(theme: str) -> None:
    curves = [curve(points(1.0)), curve(points(0.5, "timm:other<&"))]
    drawn = draw_curves(curves, theme)
    assert drawn == draw_curves(curves, theme)
    text = drawn.decode()
    for expected in (
        "net: slope 1.00 [1.00, 1.00]",
        "timm:other&lt;&amp;",
        "latency_b1 (ms)",
        "64²",
        "pixels of the image",
    ):
        assert expected in text
    assert THEMES[theme]["page"] in text
    assert "<dc:date>" not in text


def test_error_bars_are_drawn_where_there_are_intervals() -> None:
    without = [curve([replace(point, interval=None) for point in points(1.0)])]
    # A bar that reaches further moves its caps, and the axis with them.
    assert draw_curves([curve(points(1.0))], "light") != draw_curves(without, "light")


def test_a_curve_without_points_can_be_drawn() -> None:
    empty = Curve("net", "gmacs", "G", (Point("net", "gmacs", "", 32, None, reason="it burst"),), None, "none")
    assert draw_curves([empty], "dark")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the command as a function that returns its exit code and what it printed."""
    path = tmp_path / "toys.py"
    path.write_text(MODELS)

    def run(*, results: Path = tmp_path / "results", **options: Any) -> tuple[int, str]:
        out, code = io.StringIO(), 0
        monkeypatch.setattr(sweep_cli, "own_stdout", lambda: out)
        try:
            sweep_cli.sweep([f"{path}:square"], results=results, executor="inline", device="cpu", **options)
        except typer.Exit as end:
            code = end.exit_code
        return code, out.getvalue()

    return run


def test_a_sweep_measures_fits_and_writes(sweep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = sweep(image_size="8:32:8", metric=["macs"])
    assert code == 1, "24 pixels fail"
    assert "toys.py:square at 24: ModelError" not in printed
    assert "24 is too odd" in capsys.readouterr().err
    files = {path.name for path in (tmp_path / "results" / "sweeps").iterdir()}
    assert files == {"sweep_points.csv", "sweep_slopes.csv", "sweep_gmacs_light.svg", "sweep_gmacs_dark.svg"}
    folder = tmp_path / "results" / "sweeps"
    (row,) = csv.DictReader((folder / "sweep_slopes.csv").read_text().splitlines())
    assert (row["metric"], row["points"], float(row["slope"])) == ("gmacs", "3", pytest.approx(2))
    values = [line["value"] for line in csv.DictReader((folder / "sweep_points.csv").read_text().splitlines())]
    assert [value and float(value) for value in values] == [3 * 64**2 / 1e9, 3 * 256**2 / 1e9, "", 3 * 1024**2 / 1e9]


def test_a_sweep_goes_on_where_it_stopped(sweep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(image_size="8:16:8", metric=["macs"], quiet=False)[0] == 0
    records = sorted((tmp_path / "results" / "records").iterdir())
    before = [path.stat().st_mtime_ns for path in records]
    _, printed = sweep(image_size="8:40:16", metric=["macs"], json=True)
    assert "1 of 3 were measured before" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in records] == before
    content = json.loads(printed)
    assert [point["side"] for point in content["points"]] == [8, 24, 40]
    assert content["slopes"][0]["slope"] is None


def test_latency_and_memory_are_read_from_their_records(sweep: Any) -> None:
    _, printed = sweep(image_size="8:40:8", metric=["latency", "memory"], json=True)
    points = json.loads(printed)["points"]
    assert {point["metric"] for point in points} == {"latency_b1", "resident_b1"}
    timed = [point for point in points if point["metric"] == "latency_b1" and point["value"]]
    assert len(timed) == 4
    assert all(point["low"] <= point["value"] <= point["high"] for point in timed)


def test_an_unknown_metric_is_refused(sweep: Any) -> None:
    with pytest.raises(SetupError, match="--metric is 'speed'"):
        sweep(metric=["speed"])
