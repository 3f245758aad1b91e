"""The page in a real browser: sort, filter, budget, plot, details, themes, two thousand models; needs Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_records import LATENCY, PARAMETERS, TOP1, accuracy, cost
from msgspec.structs import replace

from harness.leaderboard import make_boards
from harness.metric import Measurement
from harness.page import to_html
from harness.record import Record

pytestmark = pytest.mark.browser


class Opened:
    """A page with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def models(self) -> list[str]:
        found: list[str] = self.page.locator("#table tbody td.model button").all_text_contents()
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "install Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def some_records() -> list[Record]:
    records: list[Record] = []
    for index, (model, top1, latency) in enumerate(
        [("vit_t16", 70, 12), ("vit_t16+agent", 72, 10), ("timm:swin_t", 80, 30)]
    ):
        measured = Measurement(TOP1, float(top1), interval=(top1 - 1.0, top1 + 1.0))
        records.append(replace(accuracy(model), measurements=(measured,)))
        record = cost(model, float(latency))
        records.append(
            replace(
                record, measurements=(Measurement(LATENCY, float(latency)), Measurement(PARAMETERS, 5.0 * (index + 1)))
            )
        )
    return [*records, accuracy("<b>bold</b>", error="it <i>broke</i>", measurements=())]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    path = tmp_path / "page.html"
    path.write_bytes(to_html(*make_boards(some_records())))
    found = Opened(browser, path)
    yield found
    assert found.said == []
    assert found.requests == [path.as_uri()]
    found.page.close()


def test_sorting_by_a_column_and_back(opened: Opened) -> None:
    opened.page.select_option("#task", "imagenet")
    assert opened.models() == ["timm:swin_t", "vit_t16+agent", "vit_t16"]
    head = opened.page.locator("th", has_text="parameters")
    head.locator("button").click()
    assert opened.models() == ["vit_t16", "vit_t16+agent", "timm:swin_t"]
    assert opened.page.locator("th[aria-sort=ascending]").count() == 1
    opened.page.locator("th[aria-sort=ascending] button").press("Enter")
    assert opened.models() == ["timm:swin_t", "vit_t16+agent", "vit_t16"]
    opened.page.locator("th button", has_text="#").click()
    assert opened.models()[0] == "timm:swin_t"


def test_filters_and_budget(opened: Opened) -> None:
    opened.page.select_option("#task", "imagenet")
    opened.page.fill("#text", "VIT")
    assert opened.models() == ["vit_t16+agent", "vit_t16"]
    opened.page.fill("#text", "")
    opened.page.select_option("#family", "swin")
    assert opened.models() == ["timm:swin_t"]
    opened.page.select_option("#family", "")
    opened.page.fill("#size", "6")
    assert opened.models() == ["vit_t16"]
    opened.page.fill("#size", "")
    opened.page.fill("#budget", "latency_b1<11")
    assert opened.models() == ["vit_t16+agent"]
    opened.page.fill("#budget", "latency<11")
    assert "No board has a metric" in opened.page.inner_text("#budget-error")


def test_the_plot_shows_the_front(opened: Opened) -> None:
    opened.page.select_option("#task", "imagenet")
    along = opened.page.locator("#x option", has_text="latency_b1").get_attribute("value")
    opened.page.select_option("#x", along)
    assert opened.page.locator("#plot .dot").count() == 3
    assert opened.page.locator("#plot .bar").count() == 3
    assert opened.page.locator("#plot .front").count() == 2  # vit_t16 is slower and worse than vit_t16+agent
    assert "top1" in (opened.page.locator("#plot svg").get_attribute("aria-label") or "")


def test_a_model_shows_its_records(opened: Opened) -> None:
    opened.page.locator("td.model button", has_text="vit_t16+agent").first.click()
    assert opened.page.locator("#details").is_visible()
    assert opened.page.locator("#details details").count() == 2
    assert "a processor" in opened.page.inner_html("#details-body")
    opened.page.keyboard.press("Escape")
    assert not opened.page.locator("#details").is_visible()


def test_what_was_left_out_is_listed_as_text(opened: Opened) -> None:
    assert "<b>bold</b> on imagenet" in opened.page.inner_text("#left-out")
    assert opened.page.locator("#left-out b, #left-out i").count() == 0


def test_light_and_dark(opened: Opened) -> None:
    def ground() -> str:
        return str(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = ground()
    opened.page.click("#theme")
    assert ground() != light
    opened.page.click("#theme")
    assert ground() == light
    opened.page.emulate_media(color_scheme="dark")


def test_on_a_phone_nothing_overflows(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(to_html(*make_boards(some_records())))
    found = Opened(browser, path, viewport={"width": 360, "height": 700})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 360
    found.page.close()


def test_two_thousand_models_paint_within_a_second(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    records = [record for number in range(2000) for record in
               (accuracy(f"net_{number}", number / 20), cost(f"net_{number}", 1.0 + number))]  # fmt: skip
    path.write_bytes(to_html(*make_boards(records)))
    found = Opened(browser, path)
    found.page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    painted = found.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 1000
    found.page.select_option("#task", "imagenet")
    found.page.locator("#table tbody tr").nth(1999).wait_for()
    found.page.fill("#text", "net_1999")
    assert found.models() == ["net_1999"]
    assert found.said == []
    found.page.close()
