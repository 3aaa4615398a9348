"""A real browser that opens pages from files, with no network; what it finds fault with fails the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from llmxai.report import build_view, render_report
from tests.report.sample import Sample, long

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ARTIFACTS = Path(__file__).parents[2] / ".ci-artifacts" / "report"
RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}
Open = Callable[..., Page]


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def new_page(browser: Browser) -> Iterator[Open]:
    """A page with these options. One context serves all that have the same; the pages keep nothing in it."""
    made: dict[str, BrowserContext] = {}

    def new(**options: object) -> Page:
        if repr(options) not in made:
            made[repr(options)] = browser.new_context(**options)
        return made[repr(options)].new_page()

    yield new
    for context in made.values():
        context.close()


@pytest.fixture
def open_page(new_page: Open, tmp_path: Path) -> Iterator[Open]:
    """Open a sample's report, a page's text or a file; a console message, an error or a request for anything but an
    HTML page of the test's own folder fails the test."""
    complaints: list[str] = []
    pages: list[Page] = []

    def open_one(what: Sample | str | Path, *, fragment: str = "", **options: object) -> Page:
        path = what if isinstance(what, Path) else tmp_path / f"page-{len(pages)}.html"
        if isinstance(what, tuple):
            what = render_report(build_view(*what))
        if isinstance(what, str):
            path.write_text(what, encoding="utf-8")
        page = new_page(**options)
        ours = tmp_path.as_uri() if path.is_relative_to(tmp_path) else path.parent.as_uri()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(ours) else None)
        page.goto(path.as_uri() + fragment)
        pages.append(page)
        return page

    yield open_one
    for page in pages:
        page.close()
    assert complaints == []


@pytest.fixture(scope="session")
def long_page() -> str:
    """300 generated and 4,000 input tokens, rendered once."""
    return render_report(build_view(*long()))


def move(page: Page, fragment: str) -> None:
    """Change the address after the `#`, and wait until the page has been told."""
    told = "addEventListener('hashchange', () => told(), { once: true })"
    page.evaluate(f"to => new Promise(told => {{ {told}; location.hash = to }})", fragment)


def look(page: Page, state: str) -> None:
    """Keep a screenshot of the page in this state (.ci-artifacts/report/STATE.png)."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{state}.png", full_page=True)


def assert_accessible(page: Page) -> None:
    """axe-core finds no fault with the page as it stands."""
    results = Axe().run(page, options=RULES)
    assert len(results.response["passes"]) > 10  # the rules did run
    assert results.violations_count == 0, results.generate_report()
