"""The page in a real browser, from a file, with no network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from llmxai.report import build_view, render_report
from tests.report.conftest import Open, assert_accessible, look, move
from tests.report.sample import Sample, chat, hostile, measured, newest, sample

pytestmark = pytest.mark.browser

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
    return page.locator("#panel-head").inner_text()


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
    assert page.locator("#panel ol.bars").count() == 3  # gradients, rollout, removal
    page.locator("#panel details.variant summary").click()
    assert page.locator("#panel ol.bars").count() == 4  # and the variant, made when it is opened
    assert sorted(page.locator(".source").all_inner_texts()) == ["?", "It", "Which", "city"]
    assert "Pinned is: disagree. Top source:" in page.locator("#live").inner_text()
    expect(page).to_have_url(re.compile("#words-5$"))
    word.click()
    assert pinned(page) == []
    assert page.locator(".source").count() == 0
    assert headline(page) == "No word chosen"


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
    assert set(page.locator(".source.pos").evaluate_all(f"all => all.map({strokes})")) == {2}
    assert set(page.locator(".source.neg").evaluate_all(f"all => all.map({strokes})")) == {1}
    assert set(page.locator(".target:not(.source)").evaluate_all(f"all => all.map({strokes})")) == {0}
    page.get_by_role("radio", name="attention rollout").check()  # shares have no sign
    assert set(page.locator(".source").evaluate_all(f"all => all.map({strokes})")) == {0}


def test_choosing_a_word_moves_no_other_word(open_page: Open) -> None:
    """Signs take no room of their own; a text of thousands of words would be laid out anew otherwise."""
    page = open_page(chat(), viewport={"width": 600, "height": 900})
    places = """all => all.map(e => { const box = e.getBoundingClientRect();
      const said = e.closest('.said').getBoundingClientRect();
      return [box.left - said.left, box.bottom - said.top, said.height].map(Math.round) })"""
    before = page.locator(".text .unit").evaluate_all(places)
    page.locator(".target").nth(7).click()
    assert page.locator(".source").count() > 5
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
    page.get_by_role("button", name="Keys").click()
    page.get_by_role("button", name="Close").click()
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
    assert page.evaluate("document.activeElement.id") == "panel"


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
    assert "the token azing," in note
    page.get_by_role("radio", name="tokens").check()
    assert answer(page) == ["x", "am", "azing"]
    assert pinned(page) == ["am"]
    page.keyboard.press("n")
    assert pinned(page) == ["azing"]
    page.get_by_role("radio", name="words").check()
    assert pinned(page) == ["amazing"]


def test_methods_switch_the_colours_and_the_legend(open_page: Open) -> None:
    page = open_page(four())
    page.get_by_role("button", name="end, unconverged").click()
    keys = page.locator("#legend .key").all_inner_texts()
    numbers = [float(key.replace("−", "-")) for key in keys]
    assert numbers == [-number for number in reversed(numbers)]
    assert numbers[2] == 0
    page.get_by_role("radio", name="attention rollout").check()
    assert "of all attention" in page.locator("#legend").inner_text()
    assert page.locator(".source.pos, .source.neg").count() == 0
    assert "<s>" in page.locator(".source").all_inner_texts()  # start mark and template are shown, not hidden


def test_the_panel_says_what_not_to_read(open_page: Open) -> None:
    page = open_page(chat())
    page.get_by_role("button", name="return, diluted").click()
    panel = page.locator("#panel")
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
    assert panel.locator("svg.curve polyline").count() == 2
    assert "at the end it holds" in panel.inner_text()
    page.get_by_text("The same as a table").click()
    assert panel.locator("details.layers tbody tr").count() == 6
    page.get_by_role("radio", name="removal").check()
    lit = page.locator("#given .source").all_inner_texts()
    assert {"Paris", "Arabic"} <= set(lit)
    assert "raises, in nats" in page.locator("#legend").inner_text()
    page.get_by_role("radio", name="tokens").check()
    assert {"Par", "is"} <= set(page.locator("#given .source").all_inner_texts())  # one part, two tokens


def test_a_word_against_another(open_page: Open) -> None:
    document, maps = chat()
    document["targets"][3]["foil"] = {"id": 7, "text": " روما"}
    page = open_page((document, maps))
    said = "The token “Par” is explained as a contrast with “روما”, its foil"
    quotes = "e => [...e.childNodes].map(n => n.className === 'quoted' ? `“${n.innerText}”` : n.textContent).join('')"
    assert said in page.locator("#verdict ~ p", has_text="contrast").evaluate(quotes)
    panel = page.locator("#panel")
    page.get_by_role("button", name="Paris, unconverged").click()  # the word that the token belongs to
    assert said in panel.locator("p.note", has_text="contrast").evaluate(quotes)
    assert "drop in the lead over the foil, in nats," in panel.inner_text()
    page.get_by_role("button", name="def, disagree").click()
    assert "contrast" not in panel.inner_text()
    assert "drop in the log-probability, in nats," in panel.inner_text()
    row = page.locator("#every table.wide tbody tr").nth(3)
    assert row.locator("th").inner_text() == "Par and not روما"
    look(page, "explanation-contrast")


def test_no_referee_no_bars_of_removal(open_page: Open) -> None:
    page = open_page(sample(["<s>", " a"], [" b"], referee=False))
    assert page.get_by_role("radio", name="removal").count() == 0
    page.locator(".target").click()
    assert "Referee: not asked." in page.locator("#panel").inner_text()
    assert page.locator("section[aria-label='Sources by removal']").count() == 0


def test_hover_previews_and_a_link_pins(open_page: Open) -> None:
    page = open_page(four())
    page.get_by_role("button", name="end, unconverged").hover()
    assert headline(page) == "end ! unconverged"
    assert pinned(page) == []
    page.locator("h1").hover()
    assert headline(page) == "No word chosen"
    page.get_by_role("button", name="is, disagree").click()
    page.get_by_role("button", name="end, unconverged").hover()
    assert headline(page) == "is × disagree"
    linked = open_page(four(), fragment="#tokens-5")
    assert pinned(linked) == ["is"]
    assert linked.get_by_role("radio", name="tokens").is_checked()
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
        page.get_by_role("radio", name=name).check()
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
    page.locator(".target").last.click()
    for method in ("integrated gradients", "attention rollout", "gradient weighted rollout", "removal"):
        page.get_by_role("radio", name=method).check()
        ratios = page.evaluate(CONTRAST, ".source, .legend .key")
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
    for folded in page.locator("details.cards").all():
        folded.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_print_lays_out_the_flagged_tokens(open_page: Open, tmp_path: Path) -> None:
    page = open_page(chat())
    page.locator(".target").last.click()
    assert not page.locator(".printed .token-card").first.is_visible()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    cards = page.locator(".token-card:visible")
    assert cards.count() == 5
    assert page.locator(".token-card:visible table").count() == 17  # three methods each, the variant for the diluted
    symbols = page.locator(".target.status-unconverged").evaluate("e => getComputedStyle(e, '::before').content")
    assert "!" in symbols
    assert not page.locator("#panel").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.pdf(path=tmp_path / "page.pdf")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())) >= 3


def test_without_scripts_the_tables_are_there_and_print(open_page: Open) -> None:
    page = open_page(chat(), java_script_enabled=False)
    assert page.locator("table.wide tbody tr").count() == 17
    assert not page.locator("#panel").is_visible()
    assert page.locator("noscript").inner_text()
    assert page.locator("#answer .status-unconverged").count() == 1
    page.emulate_media(media="print")
    assert page.locator(".token-card:visible").count() == 5


def test_a_long_one_answers_and_shows_its_strongest_source(open_page: Open, long_page: str) -> None:
    page = open_page(long_page)
    assert page.locator(".target").count() == 300
    page.locator(".target").nth(103).click()
    assert page.locator("#panel ol.bars").count() == 3  # the rest, and the variant, are made when they are opened
    page.locator("#panel details.rest summary").first.click()
    assert page.locator("#panel ol.bars[start='9'] li").count() == 12
    assert 20 <= page.locator(".source").count() <= 21
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
    page.locator("details.cards summary").first.click()
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
    assert heads[:3] == ["Measured effects", "Contributions (deletion path)", "Integrated gradients"]
    assert "Attention rollout" not in heads
    assert "Attention rollout: diluted, not to be read" in page.locator("#panel summary").all_inner_texts()
    shown = page.get_by_role("region", name="Measured effects").inner_text()
    effects = document["effects"]
    row = effects["effect"][1]
    first = max((part for part, value in enumerate(row) if value is not None), key=lambda part: abs(row[part]))
    best = row[first]
    assert f"{'−' if best < 0 else '+'}{abs(best):.3f}" in shown
    assert "earlier in the answer" in shown
    assert "all 2 mentions" in shown
    before, after = effects["probability"][1], effects["probability_without"][1][first]
    name = effects["units"][first]["text"].strip()
    assert f"{100 * before:.1f}% → {100 * after:.1f}% without {name}" in " ".join(shown.split())
    assert page.locator("#given .source, #answer .source").count() > 0
    page.get_by_role("radio", name="contributions").check()
    assert "Pinned" in page.locator("#live").inner_text()
    page.keyboard.press("n")
    assert headline(page) == "of ? undecided"
    page.keyboard.press("n")
    assert headline(page) == "Rome ! unconverged"
    assert "do not read these bars" in page.get_by_role("region", name="Contributions").inner_text()
    page.keyboard.press("n")
    assert headline(page) == "city × contradicted"
    page.get_by_role("button", name="The, confirmed").click()
    assert "Attention rollout" in page.locator("#panel h4").all_inner_texts()
    assert_accessible(page)
    look(page, "measured")
