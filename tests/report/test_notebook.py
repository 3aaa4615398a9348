"""An explanation inside a notebook: the answer with its sources, and the report in a frame that can reach nothing."""

from __future__ import annotations

from html import unescape
from html.parser import HTMLParser

import pytest
from playwright.sync_api import expect

from llmxai import Explanation, explain
from llmxai.models import LoadedModel
from llmxai.report import build_view
from llmxai.report.export import MOST_WORDS, brief, framed, inline
from llmxai.report.render import render_report
from llmxai.store import to_maps
from tests.report.conftest import Open, assert_accessible, look
from tests.report.sample import HOSTILE, Sample, chat, hostile, newest, sample

PLAIN = {"div", "dl", "dt", "dd", "bdi", "abbr", "sup", "kbd", "br", "em"}
"""All that the first part is made of."""


class Read(HTMLParser):
    """Tags with their attributes, and the text, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def titles(self) -> list[str]:
        return [str(attributes["title"]) for tag, attributes in self.tags if tag == "abbr"]


def first_part(explanation: Sample) -> Read:
    return Read(str(brief(build_view(*explanation))))


@pytest.fixture(scope="module")
def explanation(tiny_llama: LoadedModel) -> Explanation:
    return explain(tiny_llama, '</iframe><script>parent.hacked=1</script>"', max_new_tokens=3)


def test_the_page_is_one_escaped_attribute(explanation: Explanation) -> None:
    opening, _, rest = framed(explanation.to_html()).partition(' srcdoc="')
    page, _, end = rest.partition('"')
    assert end == "></iframe>"
    assert "<" not in page
    assert unescape(page).startswith("<!doctype html>")
    assert 'sandbox="allow-scripts"' in opening
    assert "allow-same-origin" not in opening


def test_the_answer_comes_first_and_the_report_is_folded_in_its_frame(explanation: Explanation) -> None:
    html = explanation._repr_html_()
    assert type(html) is str  # a string that escapes what is added to it would spoil a notebook's page
    before, _, after = html.partition("<details>\n<summary>The whole report</summary>\n")
    assert after == f"{framed(explanation.to_html())}\n</details>\n</div>"
    assert before.startswith("<div>\n<dl>\n<dt>Asked</dt>")
    assert {tag for tag, _ in Read(before).tags} <= PLAIN
    assert Read(before).tags[0] == ("div", {})
    assert len(before) < 5_000
    assert html == inline(explanation.to_dict(), to_maps(explanation))


def test_question_answer_sources_and_statuses_in_this_order() -> None:
    document, maps = newest(chat())
    document["targets"][3]["foil"] = {"id": 7, "text": " روما"}
    read = first_part((document, maps))
    heads = (
        *("Asked", "Answered", "Contrast", "Main sources, by integrated gradients"),
        *("What mattered most when removed from the input", "Of the 17 tokens (pieces of words) in the answer"),
    )
    places = [read.text.index(head) for head in heads]
    assert places == sorted(places)
    for said in (
        *("system: Answer briefly.", "user: Write Paris in Arabic, then code.", "باريس is Paris!."),
        *("Why “Par” and not “روما”", "✓ 12 agree, ~ 2 diluted, × 2 disagree, ! 1 unconverged"),
    ):
        assert said in read.text
    main = build_view(document, maps).verdict.main_sources
    assert f"{main[0].text[0].text} {main[0].share}, {main[1].text[0].text} {main[1].share}" in read.text


def test_a_title_lists_the_first_three_sources_of_its_word() -> None:
    document, maps = sample(["<s>", " Par", "is", " now", " then", " so"], [" am", "azing"])
    maps["integrated_gradients"][:] = 0
    maps["integrated_gradients"][:, 1:6] = [[1, 0.5, -2, 0.25, 0.1], [0, 0.5, 0, 0.25, 0]]
    (title, *_) = first_part((document, maps)).titles
    assert title == "agree, p = 74.1%: “Paris” +2.000, “now” −2.000, “then” +0.500 (nats)"
    maps["integrated_gradients"][:] = 0
    assert first_part((document, maps)).titles[0] == "agree, p = 74.1%: no source"


def test_an_unconverged_word_has_no_sources_to_read() -> None:
    titles = first_part(chat()).titles
    assert [title for title in titles if title.startswith("unconverged")] == [
        "unconverged, p = 40.7%: its values are not to be read"
    ]


def test_without_removal_a_given_answer_and_no_source() -> None:
    document, maps = sample(["<s>", " a"], [" b"], referee=False, stop="given", statuses=["unconverged"])
    text = first_part((document, maps)).text
    assert "The answer that was given" in text
    assert "Main sources, by integrated gradientsnone that can be named" in text
    assert "mattered" not in text
    assert "Contrast" not in text


@pytest.mark.parametrize("explanation", [hostile(), newest(hostile())], ids=["schema 2", "schema 3"])
def test_hostile_text_stays_text(explanation: Sample) -> None:
    html = str(brief(build_view(*explanation)))
    read = Read(html)
    assert {tag for tag, _ in read.tags} <= PLAIN
    for tag, attributes in read.tags:
        assert attributes.keys() <= {"abbr": {"title"}, "div": {"dir"}}.get(tag, set())
    for text in HOSTILE:
        if text.isascii() and text.isprintable() and text:
            assert text in read.text
    for control in "\0\u202e\u202c\u2028\u2029\ufeff\u200b":
        assert control not in html
    html.encode("utf-8")  # no lone surrogate


def test_a_long_answer_is_cut_and_stays_small() -> None:
    """The report has the rest."""
    document, maps = sample(["<s>", *[f" w{i}" for i in range(700)]], [f" out{i}" for i in range(MOST_WORDS + 20)])
    html = str(brief(build_view(document, maps)))
    read = Read(html)
    assert "and 20 more words" in read.text
    assert sum("nats" in title for title in read.titles) == MOST_WORDS
    assert len(html) < 60_000


def test_a_long_page_stays_under_ten_megabytes(long_page: str) -> None:
    assert len(framed(long_page)) < 10_000_000


@pytest.mark.browser
def test_the_page_works_in_its_frame_and_reaches_nothing(open_page: Open, explanation: Explanation) -> None:
    page = open_page(f"<!doctype html><title>notebook</title><p>cell</p>{explanation._repr_html_()}")
    assert not page.locator("iframe").is_visible()
    page.get_by_text("The whole report").click()
    frame = page.frame_locator("iframe")
    frame.locator(".target").first.click()
    assert frame.locator(".target[aria-pressed=true]").count() == 1
    frame.locator(".target").first.press("ArrowRight")
    assert frame.locator("#panel ol.bars").count() >= 1
    frame.get_by_role("link", name="Read the limits").click()
    expect(frame.locator("#limits")).to_be_in_viewport()
    assert page.url.endswith(".html")
    assert page.evaluate("window.hacked") is None
    (inner,) = page.frames[1:]
    assert inner.evaluate("(() => { try { return parent.document.title } catch { return 'refused' } })()") == "refused"


NOTEBOOK = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>notebook</title>'
    "<main><h1>cell</h1><div id='out'>{}</div></main>"
)


@pytest.mark.browser
def test_the_first_part_is_small_and_keeps_lines(open_page: Open) -> None:
    page = open_page(NOTEBOOK.format(inline(*newest(chat()))), viewport={"width": 900, "height": 700})
    look(page, "notebook")
    assert page.locator("#out").bounding_box()["height"] < 450
    assert not page.locator("iframe").is_visible()
    lines = [line.bounding_box() for line in page.locator("dd:nth-of-type(2) > div").all()]
    assert [line["y"] for line in lines] == sorted({line["y"] for line in lines})
    assert len(lines) == 3
    word = {name: page.locator("abbr", has_text=name).first.bounding_box() for name in ("باريس", "is", "def", "return")}
    assert word["باريس"]["x"] > word["is"]["x"]  # from the right
    assert word["return"]["x"] > word["def"]["x"] + 5  # indented
    page.locator("iframe").evaluate("frame => frame.remove()")  # the page inside has tests of its own
    assert_accessible(page)
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.browser
def test_hostile_text_does_nothing_in_a_notebook(open_page: Open) -> None:
    page = open_page(NOTEBOOK.format(inline(*newest(hostile()))), viewport={"width": 900, "height": 700})
    look(page, "notebook-hostile")
    page.locator("summary").click()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#out img, #out script, #out style").count() == 0


def test_the_frame_holds_the_very_page() -> None:
    view = build_view(*newest(chat()))
    page = inline(*newest(chat())).partition(' srcdoc="')[2].partition('"')[0]
    assert unescape(page) == render_report(view)
