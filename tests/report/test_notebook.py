"""The report inside a notebook: one frame, which can reach nothing outside of it."""

from __future__ import annotations

from html import unescape

import pytest
from playwright.sync_api import expect

from llmxai import Decoding, Explanation, explain
from llmxai.models import LoadedModel
from tests.report.conftest import Open


@pytest.fixture(scope="module")
def explanation(tiny_llama: LoadedModel) -> Explanation:
    return explain(tiny_llama, '</iframe><script>parent.hacked=1</script>"', decoding=Decoding(max_new_tokens=3))


def test_the_page_is_one_escaped_attribute(explanation: Explanation) -> None:
    opening, _, rest = explanation._repr_html_().partition(' srcdoc="')
    page, _, end = rest.partition('"')
    assert end == "></iframe>"
    assert "<" not in page
    assert unescape(page).startswith("<!doctype html>")
    assert 'sandbox="allow-scripts"' in opening
    assert "allow-same-origin" not in opening


@pytest.mark.browser
def test_the_page_works_in_its_frame_and_reaches_nothing(open_page: Open, explanation: Explanation) -> None:
    page = open_page(f"<!doctype html><title>notebook</title><p>cell</p>{explanation._repr_html_()}")
    frame = page.frame_locator("iframe")
    frame.locator(".target").first.click()
    assert frame.locator(".target[aria-pressed=true]").count() == 1
    frame.locator(".target").first.press("ArrowRight")
    assert frame.locator("#panel ol.bars").count() >= 1
    frame.get_by_role("link", name="All limits").click()
    expect(frame.locator("#limits")).to_be_in_viewport()
    assert page.url.endswith(".html")
    assert page.evaluate("window.hacked") is None
    (inner,) = page.frames[1:]
    assert inner.evaluate("(() => { try { return parent.document.title } catch { return 'refused' } })()") == "refused"
