"""The page in a real browser: sort, filter, budget, plot, details, themes, two thousand models; needs Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fake_records import ENVIRONMENT, LATENCY, PARAMETERS, SETUP, TOP1, accuracy, cost
from msgspec.structs import replace
from opened_page import Opened, wait

from harness.budget import parse, within
from harness.leaderboard import make_boards
from harness.metric import Measurement, Metric
from harness.page import to_html
from harness.published import published_record
from harness.record import Preprocessing, Record

pytestmark = pytest.mark.browser


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
        right = (Measurement(TOP1, float(top1), interval=(top1 - 1.0, top1 + 1.0)),)
        spent = (Measurement(LATENCY, float(latency)), Measurement(PARAMETERS, 5.0 * (index + 1)))
        records += [accuracy(model, measurements=right), cost(model, float(latency), measurements=spent)]
    return [*records, accuracy("<b>bold</b>", error="it <i>broke</i>", measurements=())]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    path = tmp_path / "page.html"
    path.write_bytes(to_html(*make_boards(some_records())))
    found = Opened(browser, path)
    yield found
    assert found.said == []
    assert {url.partition("#")[0] for url in found.requests} == {path.as_uri()}
    found.page.close()


def test_sorting_by_a_column_and_back(opened: Opened) -> None:
    opened.page.select_option("#task", "imagenet")
    assert opened.models() == ["timm:swin_t", "vit_t16+agent", "vit_t16"]
    head = opened.page.locator("th", has_text="parameters")
    head.locator("button").click()
    assert opened.models() == ["vit_t16", "vit_t16+agent", "timm:swin_t"]
    assert opened.page.locator("th[aria-sort=ascending]").all_text_contents() == ["parameters (M) ↓"]
    opened.page.keyboard.press("Enter")
    assert opened.models() == ["timm:swin_t", "vit_t16+agent", "vit_t16"]
    assert opened.page.locator("th[aria-sort=descending]").all_text_contents() == ["parameters (M) ↓"]
    opened.page.locator("th button", has_text="#").press("Space")
    assert opened.models()[0] == "timm:swin_t"


def test_missing_values_come_last_ties_by_rank_and_sizes_as_numbers(opened: Opened, tmp_path: Path) -> None:
    records = []
    sides, counts = (96, 1024, 224, 224), (3.0, None, 3.0, 1.0)
    for model, top1, side, count in zip(("n10", "n9", "b", "c"), (9.0, 8.0, 7.0, 6.0), sides, counts, strict=True):
        setup = replace(SETUP, preprocessing=Preprocessing(image_size=(side, side)))
        counted = (Measurement(LATENCY, 1.0), Measurement(PARAMETERS, count, reason="" if count else "uncounted"))
        records += [accuracy(model, top1, setup=setup), cost(model, 1.0, setup=setup, measurements=counted)]
    opened.show(records, tmp_path / "page.html")
    opened.page.select_option("#task", "imagenet")
    by = {name: opened.page.locator("#table th button", has_text=name) for name in ("parameters", "image", "model")}
    by["parameters"].click()
    assert opened.models() == ["c", "n10", "b", "n9"]
    by["parameters"].click()
    assert opened.models() == ["n10", "b", "c", "n9"]
    by["image"].click()
    assert opened.models() == ["n10", "b", "c", "n9"]
    by["model"].click()
    assert opened.models() == ["b", "c", "n9", "n10"]
    opened.page.fill("#size", "3")
    assert opened.models() == ["b", "c", "n10"]


def test_the_keyboard_alone_reaches_the_table_a_model_and_back(opened: Opened) -> None:
    def focused() -> str:
        return str(opened.page.evaluate("document.activeElement.id || document.activeElement.textContent"))

    keys = opened.page.keyboard
    keys.press("Tab")
    assert focused() == "skip"
    assert opened.page.locator("#skip").bounding_box()["x"] >= 0
    keys.press("Enter")
    assert focused() == "rows"
    for _ in range(opened.page.locator("#table th").count() + 1):
        keys.press("Tab")
    name = focused()
    assert name == opened.models()[0]
    keys.press("Enter")
    assert opened.page.inner_text("#details-title") == name
    assert focused() == "close"
    keys.press("Escape")
    opened.page.locator("#details").wait_for(state="hidden")
    assert focused() == name


def test_an_address_shows_the_same_again_and_back_what_was_before(opened: Opened) -> None:
    page = opened.page
    page.select_option("#task", "imagenet")
    page.locator("th button", has_text="parameters").click()
    page.fill("#text", "vit_t16")
    page.locator("#text").press("Enter")
    page.select_option("#x", label="top1 (%) ↑")
    page.uncheck("#log")
    address = page.url
    page.locator("td.model button", has_text="vit_t16+agent").click()
    page.reload()
    assert page.inner_text("#details-title") == "vit_t16+agent"
    page.click("#close")
    page.wait_for_url(lambda url: url == address)
    assert opened.models() == ["vit_t16", "vit_t16+agent"]
    assert page.locator("#x option:checked").text_content() == "top1 (%) ↑"
    assert not page.is_checked("#log")
    page.select_option("#task", "cost")
    page.go_back()
    wait(page, "document.querySelector('#task').value === 'imagenet'")
    assert (page.url, opened.models()) == (address, ["vit_t16", "vit_t16+agent"])
    page.goto(page.url.partition("#")[0] + "#board=gone&task=none&x=nothing&sort=-smell&model=nobody&%")
    assert len(opened.models()) == 3


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
    assert len(opened.models()) == 3


@pytest.mark.parametrize(
    "text", ["p50_ms<11", "latency_b1<=10, params>9", "latency_b1 > 12", "gmacs<1", "latency_b1>=+1.2e1,", "top1>70"]
)
def test_a_budget_keeps_what_the_command_keeps(opened: Opened, tmp_path: Path, text: str) -> None:
    away = replace(ENVIRONMENT, device="another")
    records = [*some_records(), cost("vit_t16", 1.0, environment=away), cost("vit_t16+agent", 99.0, environment=away)]
    opened.show(records, tmp_path / "page.html")
    boards, _ = make_boards(records)
    kept = within(boards, parse(text.strip(",")))
    opened.page.fill("#budget", text)
    for number, board in enumerate(boards):
        opened.page.select_option("#board", opened.page.evaluate(f"data.boards[{number}].id"))
        rows = [row.label[0] for one in kept if one.conditions == board.conditions for row in one.rows]
        assert opened.models() == rows


def test_boards_of_one_title_are_told_apart_and_no_board_is_said(opened: Opened, tmp_path: Path) -> None:
    away = cost("vit_t16", 1.0, environment=replace(ENVIRONMENT, device="another"))
    opened.show([*some_records(), away], tmp_path / "page.html")
    assert opened.page.locator("#board option").all_text_contents()[:2] == [
        "cost · device a processor · 3",
        "cost · device another · 1",
    ]
    opened.page.select_option("#task", "imagenet")
    assert opened.page.locator("#x option", has_text="latency_b1 (ms) ↓ · cost · device another").count() == 1
    opened.page.select_option("#hardware", "another")
    assert opened.page.inner_text("#board-title") == "No board has this task and this hardware."
    assert opened.models() == []


def test_the_plot_shows_the_front(opened: Opened) -> None:
    opened.page.select_option("#task", "imagenet")
    along = opened.page.locator("#x option", has_text="latency_b1").get_attribute("value")
    opened.page.select_option("#x", along)
    assert opened.page.locator("#plot .dot").count() == 3
    assert opened.page.locator("#plot .bar").count() == 3
    assert opened.page.locator("#plot .front").count() == 2  # vit_t16 is slower and worse than vit_t16+agent
    assert "top1" in (opened.page.locator("#plot svg").get_attribute("aria-label") or "")
    assert opened.page.locator("#front button").all_text_contents() == ["vit_t16+agent", "timm:swin_t"]
    opened.page.locator("#plot .dot").first.click()
    assert opened.page.inner_text("#details-title") == "timm:swin_t"


def test_the_front_and_the_intervals_are_those_of_the_records(opened: Opened, tmp_path: Path) -> None:
    numbers, records, known = Random(0), [], {}
    for index in range(60):
        latency = numbers.randrange(5, 25)
        top1 = min(numbers.randrange(20, 40), 20 + latency)
        wide, long = numbers.random(), numbers.random()
        right = Measurement(TOP1, top1, interval=(top1 - wide, top1 + wide))
        timed = Measurement(LATENCY, latency, interval=(latency - long, latency + long))
        records += [accuracy(f"n{index}", measurements=(right,)), cost(f"n{index}", 1.0, measurements=(timed,))]
        known[f"n{index}"] = (top1, -latency, wide, long)
    opened.show(records, tmp_path / "page.html")
    opened.page.select_option("#task", "imagenet")
    opened.page.select_option("#x", opened.page.locator("#x option", has_text="latency_b1").get_attribute("value"))
    expected = {
        name for name, (a, c, *_) in known.items()
        if not any(b >= a and d >= c and (b, d) != (a, c) for b, d, *_ in known.values())
    }  # fmt: skip
    assert set(opened.page.locator("#front button").all_text_contents()) == expected
    assert opened.page.locator("#plot .front").count() == len(expected) > 5
    titles = opened.page.locator("#plot .dot title").all_text_contents()
    assert set(titles) == {
        f"{name}: {a:.2f} [{a - wide:.2f}, {a + wide:.2f}] %, {-c:.2f} [{-c - long:.2f}, {-c + long:.2f}] ms"
        for name, (a, c, wide, long) in known.items()
    }
    measure = "all => all.map((bar) => +bar.getAttribute('y1') - +bar.getAttribute('y2'))"
    heights = opened.page.locator("#plot .bar").evaluate_all(measure)
    upright = [height for height in heights if height]
    drawn = [known[title.partition(":")[0]][2] for title in titles]
    assert len(heights) == 120
    assert [height / upright[0] for height in upright] == pytest.approx([wide / drawn[0] for wide in drawn])


def test_rows_of_one_model_are_plotted_apart(opened: Opened, tmp_path: Path) -> None:
    other = accuracy("a", 60.0, setup=replace(SETUP, batch_size=8))
    opened.show([accuracy("a", 70.0), other, cost("a", 1.0)], tmp_path / "page.html")
    opened.page.select_option("#task", "imagenet")
    titles = opened.page.locator("#plot .dot title").all_text_contents()
    assert [title.partition(": ")[2] for title in titles] == ["70.00 %, 5.00 M", "60.00 %, 5.00 M"]


def test_a_model_shows_its_records(opened: Opened) -> None:
    opened.page.locator("td.model button", has_text="vit_t16+agent").first.click()
    assert opened.page.locator("#details").is_visible()
    assert opened.page.locator("#details details").count() == 2
    assert "a processor" in opened.page.inner_html("#details-body")
    opened.page.keyboard.press("Escape")
    opened.page.locator("#details").wait_for(state="hidden")


def test_what_was_left_out_is_listed_as_text_and_opens(opened: Opened) -> None:
    opened.page.locator("#left-out li").wait_for()
    assert "<b>bold</b> on imagenet" in opened.page.inner_text("#left-out")
    assert "it <i>broke</i>" in opened.page.inner_text("#left-out")
    assert opened.page.locator("#left-out :is(b, i)").count() == 0
    opened.page.click("#left-out button")
    assert opened.page.inner_text("#details-title") == "<b>bold</b>"


def test_published_and_claimed_stand_beside_measured(opened: Opened, tmp_path: Path) -> None:
    others = [
        published_record("vit_t16", "imagenet", {TOP1: 71.0}, "a paper", 224),
        published_record("never run", "imagenet", {TOP1: 99.0}, "a claim", submission={}),
        published_record("elsewhere", "imagenet", {TOP1: 88.0}, "a table"),
    ]
    opened.show([*some_records(), *others], tmp_path / "page.html")
    opened.page.locator("#published tbody tr").nth(1).wait_for()
    rows = opened.page.locator("#published tbody tr").all()
    assert [row.locator("td").all_text_contents() for row in rows] == [
        ["vit_t16", "published", "imagenet", "224", "top1 (%)", "71.00", "70.00", "-1.00", "a paper"],
        ["never run", "claimed", "imagenet", "–", "top1 (%)", "99.00", "–", "–", "a claim"],
    ]
    assert opened.page.inner_text("#elsewhere").endswith("not measured here, and are not shown: 1.")
    rows[1].locator("button").click()
    assert "a claim" in opened.page.inner_text("#details-body")


HOSTILE = (
    "</script><img src=x onerror=alert(1)>", "<!--<script>", "__proto__", "{{data}}", "a\u202eb", "x" * 300,
    "<svg/onload=alert(1)>", "javascript:alert(1)", "a\u2028b", "日本語 " * 40, "'\"&lt;", "new\nline", "%s &amp; \\",
    "#model=1&x=2",
)  # fmt: skip


def test_hostile_text_runs_nothing_and_breaks_no_layout(browser: Any, tmp_path: Path) -> None:
    records: list[Record] = []
    for number, text in enumerate(HOSTILE):
        weights = replace(SETUP.weights, file=text)
        metric = Metric(text, text, True)
        records += [
            accuracy(text, float(number), details={"nominal": text}, setup=replace(SETUP, weights=weights)),
            accuracy(text, task=text, command=text, measurements=(Measurement(metric, 1.0),)),
            accuracy(text, task="broken", error=text, measurements=()),
            cost(text, 1.0 + number, environment=replace(ENVIRONMENT, device=text)),
            published_record(text, "imagenet", {TOP1: 1.0}, text),
        ]
    found = Opened(browser, Path("/dev/null"), viewport={"width": 360, "height": 700})
    found.page.add_init_script("window.alert = () => console.log('a script ran')")
    found.show(records, path := tmp_path / "page.html")
    found.page.locator("#left-out li").nth(len(HOSTILE) - 1).wait_for()
    found.page.select_option("#task", "imagenet")
    assert sorted(found.models()) == sorted(HOSTILE)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 360
    for text in HOSTILE:
        found.page.select_option("#task", text)
        found.page.locator("td.model button").click()
        assert found.page.text_content("#details-title") == text
        for box in ("document.documentElement", "document.querySelector('dialog')"):
            assert found.page.evaluate(f"{box}.scrollWidth - {box}.clientWidth") <= 0
        found.page.reload()
        assert found.page.text_content("#details-title") == text
        found.page.click("#close")
    assert found.page.locator("img, svg svg, script").count() == 2
    assert found.said == []
    assert {url.partition("#")[0] for url in found.requests[1:]} == {path.as_uri()}
    found.page.close()


def test_halves_are_rounded_as_on_the_other_boards(opened: Opened) -> None:
    numbers = Random(0)
    values = (
        [n / 8 for n in range(80)] + [numbers.uniform(-99, 99) for _ in range(500)] + [4.35, 8.345, 1.005, 0.5, 1e-9]
    )
    cases = [(value, decimals) for value in values for decimals in range(4)]
    found = opened.page.evaluate("all => all.map(([value, decimals]) => shown(value, { decimals }))", cases)
    assert found == [f"{value:.{decimals}f}" for value, decimals in cases]


def test_light_and_dark(opened: Opened) -> None:
    def ground() -> str:
        return str(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = ground()
    opened.page.click("#theme")
    assert ground() != light
    opened.page.click("#theme")
    assert ground() == light
    opened.page.emulate_media(color_scheme="dark")
    assert opened.page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"


def test_on_paper_the_whole_table_is_there_and_dark_on_light(opened: Opened) -> None:
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.evaluate("getComputedStyle(document.querySelector('#rows')).maxHeight") == "none"
    assert not opened.page.is_visible("#filters")


def test_on_a_phone_nothing_overflows_and_letters_keep_their_size(opened: Opened) -> None:
    opened.page.set_viewport_size({"width": 360, "height": 700})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    wait(opened.page, "document.querySelector('#plot svg').viewBox.baseVal.width < 360")


def painted(page: Any) -> float:
    """Milliseconds from the request of a page to its first paint."""
    page.reload()
    wait(page, "performance.getEntriesByName('first-contentful-paint').length > 0")
    return float(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))


def test_two_thousand_models_paint_within_a_second(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    records = [record for number in range(2000) for record in
               (accuracy(f"net_{number}", number / 20), cost(f"net_{number}", 1.0 + number))]  # fmt: skip
    path.write_bytes(to_html(*make_boards(records)))
    found = Opened(browser, path)
    # The least of three, since other work on the machine only ever delays.
    assert min(painted(found.page) for _ in range(3)) < 1000
    found.page.select_option("#task", "imagenet")
    found.page.locator("#table tbody tr").nth(1999).wait_for()
    found.page.fill("#text", "net_1999")
    assert found.models() == ["net_1999"]
    assert found.said == []
    found.page.close()
