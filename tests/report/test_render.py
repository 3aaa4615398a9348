"""The page as HTML text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from llmxai.report import build_view, render_report
from llmxai.report.render import page_data
from tests.report.sample import HOSTILE, chat, hostile, long, newest


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text outside of style and script, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("style", "script") else self.inside

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        self.text += "" if self.inside else data


@pytest.fixture(scope="module", params=[hostile, lambda: newest(hostile())], ids=["schema 2", "schema 3"])
def page(request: pytest.FixtureRequest) -> str:
    return render_report(build_view(*request.param()))


def inner(page: str, opening: str) -> str:
    tag = opening.strip("<").split()[0].rstrip(">")
    (found,) = re.findall(re.escape(opening) + f"(.*?)</{tag}>", page, flags=re.DOTALL)
    return str(found)


def test_hostile_text_stays_text(page: str) -> None:
    tags = [tag for tag, _ in Tags(page).tags]
    assert tags.count("script") == 2
    assert tags.count("style") == 1
    assert "img" not in tags
    assert "{{ 7*7 }}{% raw %}" in page


def test_nothing_invisible_is_left_in_the_page(page: str) -> None:
    for control in "\0\u202e\u202c\u2028\u2029\ufeff\u200b":
        assert control not in page
    page.encode("utf-8")  # no lone surrogate
    for name in ("RLO", "PDF", "NUL", "LSEP", "PSEP", "BOM", "ZWSP", "ZWJ", "U+D83D"):
        assert f'<span class="mark">{name}</span>' in page


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isascii() and text.isprintable() and text])
def test_every_hostile_text_is_shown_as_it_is(page: str, text: str) -> None:
    assert text in Tags(page).text


def test_the_data_reads_back_equal(page: str) -> None:
    text = inner(page, '<script type="application/json" id="data">')
    assert not set("<>&\u2028\u2029") & set(text)
    made = [page_data(build_view(*explanation)) for explanation in (hostile(), newest(hostile()))]
    assert json.loads(text) in json.loads(json.dumps(made))


def test_nothing_inline_and_nothing_from_outside(page: str) -> None:
    for tag, attributes in Tags(page).tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        assert not {"src", "srcset", "data", "action"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#")
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "url("):
        assert name not in inner(page, "<script>") + inner(page, "<style>")


def test_the_plain_patterns_of_inline_code_are_absent() -> None:
    page = render_report(build_view(*chat()))
    markup = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    assert 'style="' not in markup
    assert not re.search(r" on\w+=", markup)


def test_the_policy_names_style_and_script_by_hash(page: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    policy = unescape(policy)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for directive, opening in (("style-src", "<style>"), ("script-src", "<script>")):
        digest = base64.b64encode(hashlib.sha256(inner(page, opening).encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_what_the_page_says_of_itself() -> None:
    text = " ".join(Tags(render_report(build_view(*chat()))).text.split())
    assert "This page is not itself verified." in text
    assert "The agreement of two methods is not proof of faithfulness" in text
    for heading in (
        *("Asked", "Answered", "Can I trust this?", "What next?", "Every token of the answer", "Method and settings"),
        *("What may be concluded, and what not", "How to read the figures", "Where this page comes from"),
    ):
        assert heading in text


def test_bars_that_must_not_be_read_are_not_named_as_top_source() -> None:
    rows = re.findall(r"<tr><td class=\"num\" data-name=\"token\">.*?</tr>", render_report(build_view(*chat())))
    unread = [row.count("not to be read") for row in rows]
    assert unread == [1 if ("diluted" in row or "unconverged" in row) else 0 for row in rows]
    assert sum(unread) == 3


def test_a_page_is_the_same_every_time() -> None:
    assert render_report(build_view(*chat())) == render_report(build_view(*chat()))


def test_ids_are_unique(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Tags(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_long_one_stays_small(long_page: str) -> None:
    assert len(long_page.encode()) < 5_000_000
    four_more = render_report(build_view(*newest(long())))
    assert len(four_more.encode()) - len(long_page.encode()) < 4 * 500_000
