"""The page in a real browser, from a file, with no network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from llmxai.report import build_view, render_report
from tests.report.sample import hostile, sample

pytestmark = pytest.mark.browser

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
STATUSES = ["agree", "disagree", "agree", "unconverged"]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("LLMXAI_REQUIRE_BROWSER") == "1":
            pytest.fail("LLMXAI_REQUIRE_BROWSER=1 and no Chromium: run `make browser`")
        pytest.skip("no Chromium here: run `make browser`")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open a report; any console message, error or request but the page itself fails the test."""
    complaints: list[str] = []
    pages: list[Page] = []

    def open_one(document_and_maps: tuple, *, fragment: str = "", **options: object) -> Page:
        path = tmp_path / f"report-{len(pages)}.html"
        path.write_text(render_report(build_view(*document_and_maps)), encoding="utf-8")
        page = browser.new_page(**options)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if "report-" not in request.url else None)
        page.goto(path.as_uri() + fragment)
        pages.append(page)
        return page

    yield open_one
    for page in pages:
        page.close()
    assert complaints == []


def explanation() -> tuple:
    return sample(["<s>", " Which", " city", "?"], [" It", " is", " Par", " end"], statuses=STATUSES)


def pinned(page: Page) -> list[str]:
    return page.locator("button.unit[aria-pressed=true]").all_inner_texts()


def test_a_click_pins_and_recolours(open_page: Open) -> None:
    page = open_page(explanation())
    page.get_by_role("button", name="is, disagree").click()
    assert pinned(page) == [" is"]
    assert "disagree" in page.locator("#panel-head").inner_text()
    assert page.locator("#panel .bars").count() == 2
    assert page.locator(".unit.pos, .unit.neg").count() == 3  # Which, city?, It
    assert "Pinned is" in page.locator("#live").inner_text()
    page.get_by_role("button", name="is, disagree").click()
    assert pinned(page) == []
    assert page.locator(".unit.pos, .unit.neg").count() == 0


def test_keys(open_page: Open) -> None:
    page = open_page(explanation())
    steps = [
        ("ArrowRight", " It"),
        ("ArrowRight", " is"),
        ("n", " end"),
        ("n", " is"),
        ("p", " end"),
        ("ArrowLeft", " Par"),
    ]
    for key, expected in steps:
        page.keyboard.press(key)
        assert pinned(page) == [expected], key
    page.keyboard.press("Enter")
    assert pinned(page) == []
    page.keyboard.press("Enter")
    assert pinned(page) == [" Par"]
    page.keyboard.press("Escape")
    assert pinned(page) == []
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_methods_and_tokens_switch(open_page: Open) -> None:
    page = open_page(sample(["<s>", " a"], [" am", "azing"], statuses=["agree", "diluted"]))
    assert page.locator("button.unit").all_inner_texts() == [" amazing"]
    page.get_by_role("radio", name="tokens").check()
    assert page.locator("button.unit").all_inner_texts() == [" am", "azing"]
    page.get_by_role("button", name="azing, diluted").click()
    before = page.locator("#legend").inner_text()
    page.get_by_label("attention rollout").check()
    assert "attention mass" in page.locator("#legend").inner_text() != before
    assert page.locator(".unit.pos, .unit.neg").count() == 0


def test_hover_previews_and_a_link_pins(open_page: Open) -> None:
    page = open_page(explanation())
    page.get_by_role("button", name="end, unconverged").hover()
    assert "end" in page.locator("#panel-head").inner_text()
    assert pinned(page) == []
    assert pinned(open_page(explanation(), fragment="#words-4")) == [" is"]


def test_hostile_text_does_nothing(open_page: Open) -> None:
    page = open_page(hostile())
    for button in page.locator("button.unit").all():
        button.click()
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_colour_has_contrast(open_page: Open, scheme: str) -> None:
    page = open_page(explanation(), color_scheme=scheme)
    page.get_by_role("button", name="end, unconverged").click()
    ratios = page.evaluate(
        """() => [...document.querySelectorAll('.unit.pos, .unit.neg, .legend span')].map(e => {
          const lum = s => { const [r, g, b] = s.match(/[\\d.]+/g).map(Number).map(c => (c /= 255) <= .04045 ? c / 12.92
            : ((c + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
          const style = getComputedStyle(e), pair = [lum(style.color), lum(style.backgroundColor)].sort();
          return (pair[1] + .05) / (pair[0] + .05) })"""
    )
    assert len(ratios) > 5
    assert min(ratios) >= 4.5


def test_narrow_and_print(open_page: Open, tmp_path: Path) -> None:
    document, maps = explanation()
    document["tokens"][1]["text"] = " Donaudampfschifffahrtsgesellschaftskapitän" * 3
    page = open_page((document, maps), viewport={"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 10_000


def test_without_scripts_the_tables_are_there(open_page: Open) -> None:
    page = open_page(explanation(), java_script_enabled=False)
    assert page.locator("table.wide tbody tr").count() == 4
    assert not page.locator("#panel").is_visible()
    assert page.locator("noscript").inner_text()
