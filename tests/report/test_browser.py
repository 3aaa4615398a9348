"""The page in a real browser, from a file, with no network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from tiny import make_loaded

from llmxai import explain
from llmxai.report import build_view, render_report
from llmxai.report.focus import rounded
from llmxai.report.visible import times
from llmxai.store import read_folder, to_json, to_maps
from tests.report.conftest import Open, assert_accessible, look, move
from tests.report.sample import Sample, chat, hostile, measured, newest, sample

pytestmark = pytest.mark.browser

GALLERY = Path(__file__).parents[2] / "reports" / "gallery"
STATUSES = ["agree", "disagree", "agree", "unconverged"]
CONTRAST = """selector => [...document.querySelectorAll(selector)].map(e => {
  const lum = s => { const [r, g, b] = s.match(/[\\d.]+/g).map(Number).map(c => (c /= 255) <= .04045 ? c / 12.92
    : ((c + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
  const style = getComputedStyle(e), pair = [lum(style.color), lum(style.backgroundColor)].sort((a, b) => a - b);
  return (pair[1] + .05) / (pair[0] + .05) })"""


def four() -> Sample:
    """Four words of the answer, the second and the fourth flagged."""
    return sample(["<s>", " Which", " city", "?"], [" It", " is", " Par", " end"], statuses=STATUSES)


def pinned(page: Page) -> list[str]:
    return page.locator(".target[aria-pressed=true]").all_inner_texts()


def answer(page: Page) -> list[str]:
    return page.locator(".target").all_inner_texts()


def headline(page: Page) -> str:
    """The word that the panel is about; empty while the page shows the whole answer."""
    head = page.locator("#panel-head")
    shown = head.inner_text() if head.count() else ""
    assert page.locator("#whole").is_visible() == (shown == "")
    assert page.locator("#panel").is_visible() == (shown != "")
    return shown


def views(page: Page) -> Page:
    """Unfold the switches."""
    page.locator("#views").evaluate("details => { details.open = true }")
    return page


def test_a_violation_of_the_policy_is_noticed(browser: Browser, tmp_path: Path) -> None:
    """The guard of `open_page` has teeth: what the policy refuses is said on the console."""
    html = render_report(build_view(*four()))
    (tmp_path / "bad.html").write_text(html.replace("<h1>", '<h1 style="color:red" onclick="1">'), encoding="utf-8")
    page, refused = browser.new_page(), []
    page.on("console", lambda message: refused.append("Content Security Policy" in message.text))
    with page.expect_console_message(lambda _: sum(refused) >= 2):
        page.goto((tmp_path / "bad.html").as_uri())
        page.locator("h1").click()
    page.close()


def test_a_click_pins_and_recolours(open_page: Open) -> None:
    page = open_page(four())
    word = page.get_by_role("button", name="is, disagree")
    word.click()
    assert pinned(page) == ["is"]
    assert headline(page) == "is × disagree"
    assert page.locator("#panel ol.bars").count() == 3  # gradients, removal, rollout
    page.locator("#panel details.variant summary").click()
    assert page.locator("#panel ol.bars").count() == 4  # and the variant, made when it is opened
    assert sorted(page.locator(".text .source").all_inner_texts()) == ["?", "It", "Which", "city"]
    assert "Pinned is: disagree. Top source:" in page.locator("#live").inner_text()
    expect(page).to_have_url(re.compile("#words-5$"))
    word.click()
    assert pinned(page) == []
    assert headline(page) == ""
    assert page.locator(".text .source").count() > 0  # those of the whole answer again


def test_sources_have_signs_and_flags_have_symbols(open_page: Open) -> None:
    page = open_page(chat())
    above = "e => getComputedStyle(e, '::before').content.split('/')[0].replaceAll('\"', '').replaceAll(' ', '')"
    lines = set()
    for status, symbol in (("agree", "none"), ("diluted", "~"), ("disagree", "×"), ("unconverged", "!")):
        flagged = page.locator(f"#answer .status-{status}").first
        assert flagged.evaluate(above) == symbol
        assert flagged.evaluate("e => getComputedStyle(e).textDecorationLine") == "underline"
        lines.add(flagged.evaluate("e => getComputedStyle(e).textDecorationStyle"))
    assert len(lines) == 4
    page.locator(".target").last.click()
    strokes = "e => getComputedStyle(e).backgroundImage.split('gradient').length - 1"  # a plus has two, a minus one
    assert set(page.locator(".unit.source.pos").evaluate_all(f"all => all.map({strokes})")) == {2}
    assert set(page.locator(".unit.source.neg").evaluate_all(f"all => all.map({strokes})")) == {1}
    assert set(page.locator(".target:not(.source)").evaluate_all(f"all => all.map({strokes})")) == {0}
    views(page).get_by_role("radio", name="attention rollout").check()  # shares have no sign
    assert set(page.locator(".unit.source").evaluate_all(f"all => all.map({strokes})")) == {0}


def test_choosing_a_word_moves_no_other_word(open_page: Open) -> None:
    """Signs take no room of their own; a text of thousands of words would be laid out anew otherwise."""
    page = open_page(chat(), viewport={"width": 600, "height": 900})
    places = """all => all.map(e => { const box = e.getBoundingClientRect();
      const said = e.closest('.said').getBoundingClientRect();
      return [box.left - said.left, box.bottom - said.top, said.height].map(Math.round) })"""
    before = page.locator(".text .unit").evaluate_all(places)
    page.locator(".target").nth(7).click()
    assert page.locator(".text .source").count() > 5
    assert page.locator(".text .unit").evaluate_all(places) == before


def test_keys(open_page: Open) -> None:
    page = open_page(four())
    steps = [
        ("ArrowRight", "It"),
        ("ArrowRight", "is"),
        ("n", "end"),
        ("n", "is"),
        ("p", "end"),
        ("ArrowLeft", "Par"),
    ]
    for key, expected in steps:
        page.keyboard.press(key)
        assert pinned(page) == [expected], key
    page.keyboard.press("Escape")
    assert pinned(page) == []
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    views(page).get_by_role("button", name="Keys").click()
    page.get_by_role("button", name="Close", exact=True).click()
    assert not page.locator("dialog").is_visible()


def test_enter_and_space_pin_and_tab_stops_once_in_the_answer(open_page: Open) -> None:
    page = open_page(four())
    assert page.locator(".target[tabindex='0']").count() == 1
    page.locator("#answer").focus()
    page.keyboard.press("Tab")
    assert pinned(page) == []
    assert headline(page) == "It ✓ agree"  # focus previews
    page.keyboard.press("Enter")
    assert pinned(page) == ["It"]
    page.keyboard.press("Enter")
    assert pinned(page) == []
    page.keyboard.press(" ")
    assert pinned(page) == ["It"]
    page.keyboard.press("Tab")
    assert (
        page.evaluate("document.activeElement.closest('section, #panel, details').id") == "text"
    )  # a term below the answer


def test_no_flagged_word_to_jump_to(open_page: Open) -> None:
    page = open_page(sample(["<s>", " a"], [" b"]))
    page.keyboard.press("n")
    assert pinned(page) == []
    assert "agree" in page.locator("#live").inner_text()


def test_units_switch_and_the_pin_follows(open_page: Open) -> None:
    page = open_page(sample(["<s>", " a"], [" x", " am", "azing"], statuses=["agree", "agree", "diluted"]))
    assert answer(page) == ["x", "amazing"]
    page.get_by_role("button", name="amazing, diluted").click()
    note = page.locator("#panel .note").first.inner_text()
    assert "These are 2 tokens" in note
    assert "summed over them" in note
    assert "averaged" in note
    assert "the token azing." in note
    views(page).get_by_role("radio", name="tokens").check()
    assert answer(page) == ["x", "am", "azing"]
    assert pinned(page) == ["am"]
    page.keyboard.press("n")
    assert pinned(page) == ["azing"]
    views(page).get_by_role("radio", name="words").check()
    assert pinned(page) == ["amazing"]


def test_methods_switch_the_colours_and_the_legend(open_page: Open) -> None:
    page = open_page(four())
    page.get_by_role("button", name="end, unconverged").click()
    keys = page.locator("#legend .key").all_inner_texts()
    numbers = [float(key.replace("−", "-")) for key in keys]
    assert numbers == [-number for number in reversed(numbers)]
    assert numbers[2] == 0
    views(page).get_by_role("radio", name="attention rollout").check()
    assert "of all attention" in page.locator("#legend").inner_text()
    assert page.locator(".text .pos, .text .neg").count() == 0
    assert "<s>" in page.locator(".text .source").all_inner_texts()  # start mark and template are shown, not hidden


def test_the_panel_traces_a_word_through_the_answer(open_page: Open) -> None:
    """Each source with both shares, and the path that carries the most, ends at the word."""
    explanation = explain(make_loaded("llama"), "The capital of France", response=" Paris, and the city is red")
    page = open_page((to_json(explanation), to_maps(explanation)))
    page.get_by_role("button", name=re.compile("^city, ")).click()
    panel = page.locator("#panel")
    panel.get_by_text("Traced through the answer").click()
    first = panel.locator("details.traced li").first.inner_text()
    source = explanation["city"].traced(1)[0]
    assert first.startswith(explanation.text(source.tokens).strip())
    assert f"{source.share:.1%} traced · {source.direct:.1%} directly" in first
    given, *own = [explanation.text(step.tokens).strip() for step in source.path]
    path = " → ".join([given, *(f"{step} in the answer" for step in own), "city"])
    assert " ".join(first.split()).endswith(path)


def test_the_panel_says_what_not_to_read(open_page: Open) -> None:
    page = open_page(chat())
    page.get_by_role("button", name="return, diluted").click()
    panel = page.locator("#panel")
    assert panel.locator(".doubt:visible").count() == 0, "bars that must not be read are folded"
    panel.get_by_text("Attention rollout: not to be read").click()
    assert panel.locator(".doubt").all_inner_texts() == ["~ diluted: do not read these bars"]
    assert "Start mark and template take" in panel.inner_text()
    page.get_by_text("All figures of this word").click()
    text = panel.inner_text()
    for expected in (
        *("Corrected p (decides the status)", "Rank-biased overlap", "Gradient weighted rollout: Spearman"),
        *("0.020 / 0.100 nats: within", "Score with the neutral text", "On the first token (sink)", "Evaluations"),
        *("Distance from the null", "Rank agreement (Spearman)", "Top 5 in common", "Values on start mark"),
    ):
        assert expected in text, expected
    page.keyboard.press("ArrowRight")
    assert page.locator("details.figures").get_attribute("open") is not None


def test_the_variant_stands_open_beside_a_diluted_rollout_only(open_page: Open) -> None:
    page = open_page(chat())
    page.get_by_role("button", name="return, diluted").click()
    beside = page.locator("section[aria-label='Sources by Gradient weighted rollout']")
    assert beside.locator("li").first.is_visible()
    assert "Another way to follow attention" in beside.inner_text()
    page.get_by_role("button", name="def, disagree").click()
    assert not beside.locator("li").first.is_visible()
    beside.locator("summary").first.click()
    page.get_by_role("button", name="f, agree").click()
    assert beside.locator("li").first.is_visible()  # what was unfolded stays so


def test_the_other_methods_are_folded_lists_with_their_sources(open_page: Open) -> None:
    page = open_page(newest(chat()))
    page.get_by_role("button", name="def, disagree").click()
    panel = page.locator("#panel")
    lime = panel.locator("section[aria-label='Sources by LIME']")
    assert lime.locator("summary").first.inner_text() == "LIME"
    assert panel.locator("details[class^=also]").count() == 5
    assert panel.locator("details[class^=also][open]").count() == 0
    assert lime.locator("li").count() == 0  # made when it is opened
    lime.locator("summary").first.click()
    assert lime.locator("li").first.is_visible()
    assert lime.locator("p").all_inner_texts() == ["Ribeiro et al. 2016", "value · share of all values"]
    values = [text.split(" · ") for text in lime.locator("li .num").all_inner_texts()]
    assert len(values) == 8
    assert {value[0] for value, _ in values} == {"+", "−"}
    sizes = [abs(float(value.replace("−", "-"))) for value, _ in values]
    assert sizes == sorted(sizes, reverse=True)
    assert all(share.endswith("%") for _, share in values)
    assert lime.locator(".bar.signed").count() == 8
    attention = panel.locator("section[aria-label='Sources by Max head rollout']")
    attention.locator("summary").first.click()
    assert attention.locator(".bar.signed").count() == 0
    assert "of its row · share of the words’ part" in attention.inner_text()
    assert attention.locator("li .num").first.inner_text().count("%") == 2
    refused = panel.locator("section[aria-label='Sources by Mean rollout']")
    assert refused.locator("summary").inner_text() == "Mean rollout: refused"
    refused.locator("summary").click()
    assert "Refused. mean_rollout is not defined for <b>linear attention</b>RLO." in refused.inner_text()
    page.get_by_role("button", name="f, agree").click()
    assert lime.locator("li").first.is_visible()  # what was unfolded stays so
    look(page, "explanation-other-methods")
    assert_accessible(page)


def test_removal_the_referee_and_the_curve(open_page: Open) -> None:
    page = open_page(chat())
    page.get_by_role("button", name="def, disagree").click()
    panel = page.locator("#panel")
    assert "Referee: Removing parts of the input supports attention:" in panel.inner_text()
    page.get_by_text("How well each method predicts it").click()
    scores = panel.locator("details.scores tbody tr")
    assert scores.nth(0).inner_text().split("\t") == ["Integrated gradients", "−0.10", "0.50"]
    assert scores.nth(3).inner_text().split("\t") == ["Removal of one part at a time", "0.90", "–"]
    page.get_by_text("All figures of this word").click()
    assert panel.locator("svg.curve polyline").count() == 2
    assert "at the end it holds" in panel.inner_text()
    page.get_by_text("The same as a table").click()
    assert panel.locator("details.layers tbody tr").count() == 6
    views(page).get_by_role("radio", name="removal").check()
    lit = page.locator("#given .source").all_inner_texts()
    assert {"Paris", "Arabic"} <= set(lit)
    assert "raises, in nats" in page.locator("#legend").inner_text()
    views(page).get_by_role("radio", name="tokens").check()
    assert {"Par", "is"} <= set(page.locator("#given .source").all_inner_texts())  # one part, two tokens


def test_a_word_against_another(open_page: Open) -> None:
    document, maps = chat()
    document["targets"][3]["foil"] = {"id": 7, "text": " روما"}
    page = open_page((document, maps))
    said = "The token “Par” is explained as a contrast with “روما”, its foil"
    quotes = "e => [...e.childNodes].map(n => n.className === 'quoted' ? `“${n.innerText}”` : n.textContent).join('')"
    assert page.title() == "Why Par and not روما?"
    assert page.locator("h1").inner_text() == "Why Par and not روما?"
    assert page.locator("#mattered").evaluate(quotes).startswith("“Par” leads ")
    assert " : 1" in page.locator("#whole").inner_text() or "1 : " in page.locator("#whole").inner_text()
    panel = page.locator("#panel")
    page.get_by_role("button", name="Paris, unconverged").click()  # the word that the token belongs to
    assert said in panel.locator("p.note", has_text="contrast").evaluate(quotes)
    assert "drop in the lead over the foil, in nats," in panel.inner_text()
    page.get_by_role("button", name="def, disagree").click()
    assert "contrast" not in panel.inner_text()
    assert "drop in the log-probability, in nats," in panel.inner_text()
    page.locator("#every summary").click()
    row = page.locator("#every table.wide tbody tr").nth(3)
    assert row.locator("th").inner_text() == "Par and not روما"
    look(page, "explanation-contrast")


def test_no_referee_no_bars_of_removal(open_page: Open) -> None:
    page = open_page(sample(["<s>", " a"], [" b"], referee=False))
    assert views(page).get_by_role("radio", name="removal").count() == 0
    page.locator(".target").click()
    assert "Referee: not asked." in page.locator("#panel").inner_text()
    assert page.locator("section[aria-label='Sources by removal']").count() == 0


def test_hover_previews_and_a_link_pins(open_page: Open) -> None:
    page = open_page(four())
    page.get_by_role("button", name="end, unconverged").hover()
    assert headline(page) == "end ! unconverged"
    assert pinned(page) == []
    page.locator("h1").hover()
    assert headline(page) == ""
    page.get_by_role("button", name="is, disagree").click()
    page.get_by_role("button", name="end, unconverged").hover()
    assert headline(page) == "is × disagree"
    linked = open_page(four(), fragment="#tokens-5")
    assert pinned(linked) == ["is"]
    assert views(linked).get_by_role("radio", name="tokens").is_checked()
    fresh = open_page(four())
    for wrong in ("#words-999", "#words-1", "#__proto__-1", "#constructor-1"):
        move(fresh, wrong)
        assert pinned(fresh) == []
    move(fresh, "#words-5")
    assert pinned(fresh) == ["is"]


@pytest.mark.parametrize("explanation", [hostile, lambda: newest(hostile())], ids=["schema 2", "schema 3"])
def test_hostile_text_does_nothing(open_page: Open, explanation: Callable[[], Sample]) -> None:
    page = open_page(explanation())
    for name in ("words", "tokens"):
        views(page).get_by_role("radio", name=name).check()
        for word in page.locator(".target").all():
            word.evaluate("word => word.click()")  # the middle of a word over two lines may lie beside it
            page.evaluate(
                "document.querySelectorAll('#panel details:not([open]) summary').forEach(each => each.click())"
            )
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, main script").count() == 0
    assert page.locator("section").first.is_visible()
    panel = page.locator("#panel").inner_text()
    assert "</script><script>window.hacked=1</script>" in panel
    assert "\u202e" not in page.content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_colour_has_contrast(open_page: Open, scheme: str) -> None:
    page = open_page(chat(), color_scheme=scheme)
    ratios = page.evaluate(CONTRAST, ".text .source, .legend .key.source")  # of the whole answer
    assert len(ratios) > 5
    assert min(ratios) >= 4.5
    page.locator(".target").last.click()
    for method in ("integrated gradients", "attention rollout", "gradient weighted rollout", "removal"):
        views(page).get_by_role("radio", name=method).check()
        ratios = page.evaluate(CONTRAST, ".text .source, .legend .key.source")
        assert len(ratios) > 12
        assert min(ratios) >= 4.5
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 60) == (scheme == "dark")


def test_right_to_left_and_code_keep_their_lines(open_page: Open) -> None:
    page = open_page(chat())
    boxes = [word.bounding_box() for word in page.locator(".target").all()]
    names = [name.split(",")[0] for name in
             page.locator(".target").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")]  # fmt: skip
    place = dict(zip(names, boxes, strict=True))
    assert place["باريس"]["x"] > place["Paris"]["x"] > place["is"]["x"]  # from the right, with “is Paris” from the left
    assert place["def"]["x"] < place["f"]["x"]  # the code below it runs from the left
    assert place["return"]["y"] > place["def"]["y"] > place["Paris"]["y"]
    assert place["return"]["x"] > place["def"]["x"] + 10  # indented


@pytest.mark.parametrize("explanation", [chat, hostile])
def test_320_pixels_without_sideways_scrolling(open_page: Open, explanation: Callable[[], Sample]) -> None:
    document, maps = explanation()
    document["tokens"][11]["text"] = " Donaudampfschifffahrtsgesellschaftskapitän" * 3
    page = open_page((document, maps), viewport={"width": 320, "height": 640})
    page.locator(".target").last.click()
    page.get_by_text("All figures of this word").click()
    for folded in page.locator("section.fold > details").all():
        folded.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def pages_of(page: Page, place: Path) -> int:
    page.pdf(path=place, format="A4")
    return len(re.findall(rb"/Type\s*/Page\b", place.read_bytes()))


def test_paper_has_a_coloured_summary_and_then_an_appendix(open_page: Open, tmp_path: Path) -> None:
    page = open_page(chat())
    page.locator(".target").last.click()
    screen = page.evaluate("getComputedStyle(document.querySelector('.text .source')).backgroundColor")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for name in ("#whole", "#trust", "#next", "#given", "#answer", "#mattered"):
        assert page.locator(name).is_visible(), name
    for name in ("#panel", "#views", "#review", "#cards", "#tip"):
        assert not page.locator(name).is_visible(), name
    coloured = page.locator("#given .source")
    assert coloured.count() > 3
    colours = coloured.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    assert all(colour != "rgba(0, 0, 0, 0)" for colour in colours)
    kept = coloured.evaluate_all("all => all.map(e => getComputedStyle(e).printColorAdjust)")
    assert set(kept) == {"exact"}
    symbols = page.locator(".target.status-unconverged").evaluate("e => getComputedStyle(e, '::before').content")
    assert "!" in symbols
    assert page.locator("#every tbody tr:visible").count() == 17
    assert page.locator(".more").evaluate("e => getComputedStyle(e).breakBefore") == "page"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.evaluate("getComputedStyle(document.querySelector('.text .source')).backgroundColor") == screen
    assert pages_of(page, tmp_path / "page.pdf") <= 6


@pytest.mark.parametrize(("tokens", "most"), [(8, 4), (150, 15)])
def test_pages_of_paper(open_page: Open, tmp_path: Path, tokens: int, most: int) -> None:
    """One coloured page, then the appendix, with the verdict of rule 4 and effects of many parts."""
    asked = ["<s>", *[f" word{i % 37}" for i in range(8 if tokens < 100 else 120)]]
    statuses = ["confirmed", "contradicted", "undecided", "unconverged"]
    answer = [f" out{i % 53}" for i in range(tokens)]
    explanation = measured(sample(asked, answer), statuses=[statuses[i % 4] for i in range(tokens)])
    assert pages_of(open_page(explanation), tmp_path / "page.pdf") <= most


@pytest.mark.parametrize("name", ["capital", "why-not-lyon"])
def test_pages_of_paper_of_a_real_answer(open_page: Open, tmp_path: Path, name: str) -> None:
    """With the settings, versions and digests of a real model: a made-up sample has few of them."""
    document, maps = read_folder(GALLERY / "records" / name)
    assert len(document["targets"]) <= 8
    page = open_page(render_report(build_view(document, maps)))
    assert pages_of(page, tmp_path / "page.pdf") <= 4


def test_without_scripts_the_tables_are_there_and_print(open_page: Open) -> None:
    page = open_page(chat(), java_script_enabled=False)
    assert page.locator("#given .source").count() > 3
    assert not page.locator("#panel").is_visible()
    assert not page.locator("#review").is_visible()
    assert page.locator("noscript").inner_text()
    assert page.locator("#answer .status-unconverged").count() == 1
    page.locator("#every summary").click()
    assert page.locator("#every tbody tr:visible").count() == 17
    page.locator("#cards summary").click()
    assert page.locator(".token-card:visible").count() == 17
    page.get_by_role("link", name="Read the limits").click()
    expect(page.locator("#limits")).to_be_in_viewport()


def test_a_long_one_answers_and_shows_its_strongest_source(open_page: Open, long_page: str) -> None:
    page = open_page(long_page)
    assert page.locator(".target").count() == 300
    page.locator(".target").nth(103).click()
    assert page.locator("#panel ol.bars").count() >= 2  # the rest, and the variant, are made when they are opened
    page.locator("#panel details.rest summary").first.click()
    assert page.locator("#panel ol.bars[start='9'] li").count() == 12
    assert 20 <= page.locator(".text .source").count() <= 21
    frame = page.locator("#given").bounding_box()
    boxes = [source.bounding_box() for source in page.locator("#given .source").all()]
    inside = [box for box in boxes if frame["y"] <= box["y"] <= frame["y"] + frame["height"]]
    assert inside  # its strongest source was scrolled into view
    assert (
        page.evaluate("document.querySelectorAll('*').length") < 60_000
    )  # never the map of 1.3 million values as elements


def test_an_unconverged_word_is_never_called_within(open_page: Open) -> None:
    """One token over its allowance among nine: the sums would fit, and the word is unconverged all the same."""
    tokens = [" a", *"bcdefghi"]
    explanation = sample(["<s>", " x"], tokens, statuses=["unconverged", *["agree"] * 8])
    page = open_page(explanation)
    page.locator(".target").click()
    page.get_by_text("All figures of this word").click()
    assert "0.760 / 0.900 nats: over, for one token at least" in page.locator("#panel").inner_text()


@pytest.mark.parametrize(
    ("state", "explanation", "options"),
    [
        ("explanation", chat, {}),
        ("explanation-dark", chat, {"color_scheme": "dark"}),
        ("explanation-hostile", hostile, {}),
        ("explanation-400-percent", chat, {"viewport": {"width": 320, "height": 256}}),
    ],
)
def test_no_fault_by_axe(open_page: Open, state: str, explanation: Callable[[], Sample], options: dict) -> None:
    """1280 pixels at 400 % zoom are 320 CSS pixels."""
    page = open_page(explanation(), **options)
    look(page, f"{state}-start")
    page.locator(".target").nth(7).click()
    page.get_by_text("All figures of this word").click()
    look(page, f"{state}-pinned")
    for folded in page.locator("section.fold > details").all():
        folded.locator("summary").first.click()
    page.evaluate("document.querySelectorAll('.token-card:nth-of-type(n + 4)').forEach(card => card.remove())")
    assert page.locator(".token-card:visible").count() == 3  # cards are all made alike, and rules take long
    assert_accessible(page)


def test_no_fault_in_the_dialog(open_page: Open) -> None:
    page = open_page(four())
    page.keyboard.press("?")
    look(page, "explanation-help")
    assert_accessible(page)


def test_a_status_in_the_address_pins_the_first_word_that_has_it(open_page: Open) -> None:
    assert pinned(open_page(four(), fragment="#unconverged")) == ["end"]
    assert pinned(open_page(four(), fragment="#diluted")) == []


def test_the_way_back_to_the_run_and_the_box_of_the_record(open_page: Open) -> None:
    box = {"record": "r-\u202e1", "verify": "llmxai verify runs/x --pubkey K", "digests": {"explanation.json": "00ff"}}
    page = open_page(render_report(build_view(*four(), home="../../index.html", provenance=box)))
    assert page.get_by_role("link", name="all records of the run").get_attribute("href") == "../../index.html"
    page.locator(".provenance summary").click()
    said = page.locator(".provenance").inner_text()
    for expected in (
        "RLO",
        "llmxai verify runs/x --pubkey K",
        "digests.explanation.json",
        "00ff",
        "not itself verified",
    ):
        assert expected in said
    assert "verify" not in open_page(four()).locator(".provenance dl").all_inner_texts()


def test_a_panel_opens_with_what_was_measured(open_page: Open) -> None:
    """Effects with probabilities, then contributions, then integrated gradients; attention folded where diluted."""
    statuses = ["confirmed", "contradicted", "undecided", "unconverged"]
    asked, answer = ["<s>", " Which", " city", " is", " it", "?"], [" The", " city", " of", " Rome"]
    document, maps = measured(sample(asked, answer), statuses=statuses)
    page = open_page((document, maps))
    assert page.locator("input[name=method]").first.is_checked()
    page.get_by_role("button", name="city, contradicted").click()
    assert headline(page) == "city × contradicted"
    heads = page.locator("#panel h4").all_inner_texts()
    assert heads[:2] == ["Measured effects", "Contributions (deletion path)"]
    assert "Attention rollout" not in heads
    summaries = page.locator("#panel summary").all_inner_texts()
    assert {"Integrated gradients", "Attention rollout: diluted, not to be read"} <= set(summaries)
    shown = page.get_by_role("region", name="Measured effects").inner_text()
    effects = document["effects"]
    row = effects["effect"][1]
    first = max((part for part, value in enumerate(row) if value is not None), key=lambda part: abs(row[part]))
    best = row[first]
    assert f"{'−' if best < 0 else '+'}{abs(best):.2f} nats" in shown
    page.get_by_role("region", name="Measured effects").locator("details").evaluate_all(
        "all => all.forEach(each => { each.open = true })"
    )
    page.wait_for_timeout(50)
    shown = page.get_by_role("region", name="Measured effects").inner_text()
    assert "earlier in the answer" in shown
    assert "all 2 mentions" in shown
    name = effects["units"][first]["text"].strip()
    before, after = effects["probability"][1], effects["probability_without"][1][first]
    averaged = effects["low"][1][first] != effects["high"][1][first]
    becomes = times(-best) if averaged else f"{rounded(before)} → {rounded(after)}"
    figures = page.get_by_role("region", name="Contributions").locator("li .num").all_inner_texts()
    assert figures
    assert all(re.fullmatch(r"[+−]\d\.\d{3} · \d+\.\d%", figure) for figure in figures), figures
    assert f"without {name} {becomes}" in " ".join(shown.split())
    assert page.locator("#given .source, #answer .source").count() > 0
    views(page).get_by_role("radio", name="contributions").check()
    assert "Pinned" in page.locator("#live").inner_text()
    page.keyboard.press("n")
    assert headline(page) == "of ? undecided"
    page.keyboard.press("n")
    assert headline(page) == "Rome ! unconverged"
    contributions = page.get_by_role("region", name="Contributions")
    assert contributions.inner_text() == "Contributions: not to be read"
    contributions.locator("summary").click()
    assert "do not read these bars" in contributions.inner_text()
    page.keyboard.press("n")
    assert headline(page) == "city × contradicted"
    page.get_by_role("button", name="The, confirmed").click()
    assert "Attention rollout" in page.locator("#panel h4").all_inner_texts()
    assert_accessible(page)
    look(page, "measured")


# ---- the first screen

WHOLE = ("confirmed", "undecided", "undecided", "undecided", "undecided", "contradicted")
WIDTHS = ((1440, 900), (1024, 768), (768, 1024), (390, 844))


def capital() -> Sample:
    """A short question and answer with a verdict of rule 4."""
    asked = ["<s>", " Which", " city", " is", " the", " capital", " of", " France", "?"]
    return measured(
        sample(asked, [" The", " capital", " of", " France", " is", " Paris"]), statuses=WHOLE, attention="diluted"
    )


@pytest.mark.parametrize("size", WIDTHS, ids=lambda size: f"{size[0]} px")
def test_the_first_screen_answers_three_questions(open_page: Open, size: tuple[int, int]) -> None:
    """What was asked and answered (coloured), whether to trust it, what next: in this order, without scrolling."""
    page = open_page(capital(), viewport={"width": size[0], "height": size[1]})
    look(page, f"first-{size[0]}")
    tops = []
    for name in ("#given", "#answer", "#mattered", "#trust p", "#next .steps"):
        box = page.locator(name).first.bounding_box()
        tops.append(box["y"])
        assert box["y"] + box["height"] <= size[1], name
    assert tops == sorted(tops)
    assert page.locator("#given .source").count() >= 3
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    words = page.evaluate("document.body.innerText.split(/\\s+/).filter(Boolean).length")
    assert 100 < words < 700
    assert_accessible(page)


def test_the_whole_answer_is_coloured_until_a_word_is_chosen_and_again_after(open_page: Open) -> None:
    page = open_page(capital())
    colours = "all => all.map(e => [e.innerText, e.className])"
    whole = page.locator("#given .unit").evaluate_all(colours)
    page.get_by_role("button", name="Paris, contradicted").click()
    assert page.locator("#given .unit").evaluate_all(colours) != whole
    page.get_by_role("button", name="Close, back to the whole answer").click()
    assert page.locator("#given .unit").evaluate_all(colours) == whole
    assert page.evaluate("document.activeElement.innerText") == "Paris"
    assert headline(page) == ""


def test_a_step_leads_to_the_word_that_it_names(open_page: Open) -> None:
    page = open_page(capital())
    page.get_by_role("link", name="Look at").click()
    assert pinned(page) == ["Paris"]
    page.get_by_role("link", name="Read the limits").click()
    expect(page.locator("#limits")).to_be_in_viewport()


def test_a_term_is_explained_in_a_tooltip_and_in_the_list(open_page: Open) -> None:
    page = open_page(capital())
    tip = page.locator("#tip")
    assert not tip.is_visible()
    term = page.get_by_role("link", name="How this is judged")
    term.hover()
    assert tip.is_visible()
    assert tip.inner_text().startswith("Two computations are held against each other")
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    term.focus()
    assert tip.is_visible()
    assert_accessible(page)
    page.keyboard.press("Enter")
    expect(page.locator("#term-verdict")).to_be_in_viewport()


def test_on_a_phone_the_panel_is_a_sheet_at_the_bottom(open_page: Open) -> None:
    page = open_page(capital(), viewport={"width": 390, "height": 844})
    assert not page.locator("#panel").is_visible()
    page.get_by_role("button", name="The, confirmed").click()
    box = page.locator("#panel").bounding_box()
    assert box["y"] + box["height"] == pytest.approx(844, abs=1)
    assert box["x"] == 0
    assert box["width"] == 390
    assert box["height"] <= 0.6 * 844
    word = page.locator(".target[aria-pressed=true]").bounding_box()
    assert word["y"] + word["height"] < box["y"], "the word is not behind the sheet"
    page.keyboard.press("ArrowRight")
    assert headline(page).startswith("capital")
    look(page, "sheet")
    assert_accessible(page)
    page.get_by_role("button", name="Close").click()
    assert not page.locator("#panel").is_visible()


BROKEN = """() => {
  const broken = [];
  for (const cell of document.querySelectorAll("table :is(td, th)")) {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) for (const found of walker.currentNode.data.matchAll(/[A-Za-z]{2,20}/g)) {
      const range = document.createRange();
      range.setStart(walker.currentNode, found.index);
      range.setEnd(walker.currentNode, found.index + found[0].length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(found[0]);
    }
  }
  return broken;
}"""


@pytest.mark.parametrize("explanation", [chat, capital])
def test_no_table_breaks_a_word_on_a_phone(open_page: Open, explanation: Callable[[], Sample]) -> None:
    page = open_page(explanation(), viewport={"width": 390, "height": 844})
    page.locator(".target").first.click()
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    page.wait_for_timeout(50)
    page.evaluate("document.querySelectorAll('.provenance details').forEach(each => { each.open = false })")  # digests
    assert page.locator("table td").count() > 50
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_can_be_pressed_is_at_least_24_pixels_high(open_page: Open) -> None:
    """Words and links in running text need no width of their own (WCAG 2.2, 2.5.8), but a line of that height."""
    page = open_page(capital(), viewport={"width": 390, "height": 844})
    page.locator(".target").first.click()
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    sizes = """all => all.filter(e => e.offsetParent).map(e => [e, e.getBoundingClientRect()])
      .map(([e, box]) => [e.innerText || e.id || e.value, box.width, box.height])"""
    pressed = page.locator("button, summary, label, textarea, input[type=text]").evaluate_all(sizes)
    assert len(pressed) > 20
    assert [each for each in pressed if each[1] < 24 or each[2] < 24] == []
    lines = page.locator(".target").evaluate_all("all => all.map(e => parseFloat(getComputedStyle(e).lineHeight))")
    assert min(lines) >= 24


def test_bars_that_must_not_be_read_are_folded(open_page: Open) -> None:
    statuses = ["unconverged"] * 6
    document, maps = capital()
    for target, status in zip(document["targets"], statuses, strict=True):
        target["status"] = target["verdict"]["sources"] = status
    page = open_page((document, maps))
    page.locator(".target").first.click()
    assert page.locator("#panel .doubtful .bar:visible").count() == 0
    assert page.locator("#panel .bar:visible").count() > 0, "the measured effects can be read"


# ---- the review


def test_marks_are_saved_as_a_file_without_a_network(open_page: Open, tmp_path: Path) -> None:
    box = {"record": "r-1", "verify": "llmxai verify x", "sha256": {"explanation.json": "00ff"}}
    page = open_page(render_report(build_view(*capital(), provenance=box)))
    page.locator("#review summary").click()
    page.locator("#review-whole [data-mark=agree]").click()
    page.get_by_role("button", name="Paris, contradicted").click()
    page.locator("#mark [data-mark=question]").click()
    page.get_by_role("textbox", name="Comment on Paris").fill("Why </script> so?")
    assert headline(page).startswith("Paris"), "typing is not walking"
    assert page.locator("#marks li").count() == 2
    page.get_by_role("button", name="Save review.json").click()
    assert page.evaluate("document.activeElement.id") == "reviewer", "a review has an author"
    page.locator("#reviewer").fill("r7")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save review.json").click()
    assert waiting.value.suggested_filename == "review.json"
    waiting.value.save_as(tmp_path / "review.json")
    saved = json.loads((tmp_path / "review.json").read_text(encoding="utf-8"))
    assert saved.pop("saved").endswith("Z")
    assert saved == {
        "schema": "llmxai.review/1",
        "record": "r-1",
        "explanation_sha256": "00ff",
        "page": "Where the answer “The capital of France is Paris” came from",
        "by": "r7",
        "marks": [
            {"tokens": None, "text": "", "mark": "agree", "comment": ""},
            {"tokens": [14, 15], "text": "Paris", "mark": "question", "comment": "Why </script> so?"},
        ],
    }
    look(page, "review")
    assert_accessible(page)
    page.get_by_role("button", name="Remove the mark on Paris").click()
    assert page.locator("#marks li").count() == 1
    page.locator("#mark [data-mark=comment]").click()
    page.locator("#mark [data-mark=comment]").click()
    assert page.locator("#marks li").count() == 1, "a mark that is taken back leaves nothing"


def test_marks_come_back_when_the_page_is_opened_again(open_page: Open) -> None:
    page = open_page(capital())
    page.locator("#review summary").click()
    page.locator("#review-whole [data-mark=question]").click()
    page.reload()
    page.locator("#review summary").click()
    assert page.locator("#review-whole [data-mark=question]").get_attribute("aria-pressed") == "true"
    assert page.locator("#marks li").count() == 1
    page.get_by_role("button", name="Remove the mark on the answer").click()
    assert page.locator("#review-count").inner_text() == ""
