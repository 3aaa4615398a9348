"""The first screen says one thing: over many combinations of verdicts, no sentence contradicts another."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from llmxai.names import SUPPLIED
from llmxai.report import ReportView, build_view, render_report
from llmxai.report.focus import in_words, odds, rounded
from llmxai.report.visible import plain, times
from tests.report.sample import Sample, chat, measured, newest, sample

KINDS = ("confirmed", "contradicted", "undecided", "unconverged")
ANSWER = (" Rome", " is", " it")


def made(statuses: tuple[str, ...], *, attention: str, stop: str, foil: bool, removed: bool) -> Sample:
    """Three words with these statuses, and an end mark if the answer has one."""
    answer = [*ANSWER[: len(statuses)], *(["<end>"] if stop == "eos" else [])]
    each = [*statuses, *(["undecided"] if stop == "eos" else [])]
    document, maps = sample(["<s>", " Which", " city", " is", " it", "?"], answer, stop=stop)
    if foil:
        document["targets"][0]["foil"] = {"id": 9, "text": " Lima"}
    document, maps = measured((document, maps), statuses=each, attention=attention)
    if stop == "given":
        document["warnings"] = [SUPPLIED]
    if not removed:
        document["effects"] = document["ablations"] = None
        maps.pop("leave_one_out")
        for target in document["targets"]:
            target["referee"] = None
            target["sources"]["leave_one_out"] = []
    return document, maps


def number(pattern: str, text: str) -> int:
    """The number that a sentence gives; 0 if it does not say so."""
    found = re.findall(pattern, text)
    assert len(found) <= 1, text
    return int(found[0]) if found else 0


def accurate(text: str, n: int) -> int:
    said = re.search(r"Computed accurately: (no word|the only word|all (\d+) words|(\d+) of the (\d+) words)", text)
    assert said, text
    if said[1] == "no word":
        return 0
    if said[3]:
        assert int(said[4]) == n
        return int(said[3])
    assert said[1] == "the only word" if n == 1 else int(said[2]) == n
    return n


LEADS = {
    "Yes, as far as taking words away can show.": lambda c, n: c["confirmed"] == n,
    "For the most part.": lambda c, n: n / 2 < c["confirmed"] < n,
    "In part.": lambda c, n: 0 < c["confirmed"] <= n / 2,
    "Hardly.": lambda c, n: not c["confirmed"] and 0 < c["contradicted"] < n,
    "Not the contributions.": lambda c, n: c["contradicted"] == n,
    "Undecided.": lambda c, n: not c["confirmed"] and not c["contradicted"] and c["unconverged"] < n,
    "No.": lambda c, n: c["unconverged"] == n,
    "Not checked.": lambda c, n: c["unconverged"] < n,
}
CASES = [
    (statuses, attention, stop, foil, removed)
    for n in (1, 2, 3)
    for statuses in itertools.product(KINDS, repeat=n)
    for attention, stop, foil, removed in (
        ("diluted", "eos", False, True),
        ("readable", "given", False, True),
        ("refused", "length", True, True),
        ("diluted", "given", True, False),
    )
    if removed or not {"confirmed", "contradicted"} & set(statuses)  # nothing is either without removal
]


def check(view: ReportView, statuses: tuple[str, ...], *, attention: str, stop: str, foil: bool, removed: bool) -> None:
    """The counts add up, and what is said at one place is said nowhere else in another way."""
    summary, n, count = view.summary, len(statuses), Counter(statuses)
    told = [in_words(said) for said in summary.trust.sentences]
    text = " ".join((summary.trust.lead, *told))
    led = Counter(statuses[:1]) if foil else count  # the first word has it
    assert LEADS[summary.trust.lead](led, led.total()), text
    assert (summary.trust.lead == "Not checked.") == (not removed and led["unconverged"] < led.total())
    assert text.startswith(f"{summary.trust.lead} “Rome” against “Lima”: ") == foil
    if foil:
        one = "not computed accurately" if led["unconverged"] else statuses[0] if removed else "nothing was taken away"
        assert one in told[0]
    assert accurate(text, n) == n - count["unconverged"]
    if removed:
        assert number(r"onfirmed by taking words away: (\d+)", text) == count["confirmed"]
        assert number(r"ontradicted(?: by taking words away)?: (\d+)", text) == count["contradicted"]
        assert number(r"ndecided: (\d+)", text) == count["undecided"]
    else:
        assert "Nothing was taken away" in text
        assert "onfirmed by" not in text
    assert not re.search(r": 0\b", text), "zero counts are not shown"
    assert ("cannot be read" in text) == (attention != "readable")
    assert ("can be read for" in text) == (attention == "readable")
    # the title, the first lines and the steps
    said = in_words(summary.came)
    assert ("supplied" in said) == (stop == "given")
    assert view.title.endswith("came from") == (stop != "given" and not foil)
    assert (view.title == "Why Rome and not Lima?") == foil
    assert not [warning for warning in view.warnings if "supplied" in plain(warning)]
    steps = [in_words(step.said) for step in summary.steps]
    assert any("measured effects count" in step for step in steps) == (count["contradicted"] > 0)
    assert any("Have the two compared" in step for step in steps) == (not foil)
    # what mattered: the sentence, the list and the colours are about the same parts
    focus = summary.focus
    assert (focus.contrast is not None) == foil
    assert ("nothing was removed" in in_words(focus.sentence)) == (not removed and bool(focus.sources))
    shown = [plain(source.text) for source in focus.sources]
    quoted = [plain(part) for part in focus.sentence if not isinstance(part, str)]
    assert [name for name in quoted if name not in ("Rome", "Lima")] == shown[:3] or foil
    assert bool(view.levels["words"].focus) == bool(focus.sources)
    signs = {round(value, 4) > 0 for _, value in view.levels["words"].focus[:1]}
    assert signs == {source.value > 0 for source in focus.sources[:1]}
    if focus.sources and removed and not foil:
        first = focus.sources[0]
        assert ("less likely" in first.change or rises(first.change) is False) == (first.value > 0)
    page = " ".join(re.sub(r"<[^>]+>", " ", render_report(view).split("<script")[0].split("</style>")[1]).split())
    assert page.count("Computed accurately: ") == 1
    assert ("says nothing" in page) is False


def rises(change: str) -> bool | None:
    """Whether `a → b` rises; None without an arrow."""
    if "→" not in change:
        return None
    before, after = (float(side.strip().rstrip("%").replace("under ", "")) for side in change.split("→"))
    return after >= before


@pytest.mark.parametrize("part", range(4))
def test_no_sentence_contradicts_another(part: int) -> None:
    assert len(CASES) > 250
    for statuses, attention, stop, foil, removed in CASES[part::4]:
        options = {"attention": attention, "stop": stop, "foil": foil, "removed": removed}
        view = build_view(*made(statuses, **options))
        try:
            check(view, statuses, **options)
        except AssertionError as error:
            error.add_note(f"{statuses} {options}")
            raise


def test_the_probability_of_a_long_answer_is_small_and_not_zero() -> None:
    document, maps = measured(sample(["<s>", " Why", "?"], [" so"] * 200, stop="given"), statuses=["undecided"] * 200)
    for target in document["targets"]:
        target["replayed_logprob"] = -9.0
    summary = build_view(document, maps).summary
    assert "Probability of the answer: under 0.001%" in in_words(summary.came)
    assert summary.focus.likely == "under 0.001%"


def test_an_earlier_page_that_says_not_to_read_attention_does_not_say_that_it_is_supported() -> None:
    """Every token is diluted, and removal supports attention for one of them."""
    document, maps = sample(["<s>", " a", " b"], [" x", " y"], statuses=["diluted", "diluted"])
    referee = document["targets"][0]["referee"]
    referee["better"] = "attention_rollout"
    said = build_view(document, maps).verdict.sentences
    assert any(sentence.startswith("Attention says nothing useful about all 2 tokens") for sentence in said)
    assert any("Of 2 tokens, this supports neither for 2." in sentence for sentence in said)
    assert not any("attention for 1" in sentence for sentence in said)


def test_effects_on_the_whole_answer_are_the_sums_over_its_tokens() -> None:
    """By hand, for every part of the prompt: exp of the summed log-probs, with and without."""
    document, maps = measured(
        sample(["<s>", " Which", " city", " is", " it"], [" Rome", " is", "<end>"], stop="eos"),
        statuses=["confirmed", "undecided", "contradicted"],
    )
    effects, own = document["effects"], range(2)  # without the end mark
    for name in ("effect", "low", "high"):
        effects[name][2] = [100.0 for _ in effects[name][2]]
    before = sum(document["targets"][t]["replayed_logprob"] for t in own)
    focus = build_view(document, maps).summary.focus
    assert focus.likely == rounded(np.exp(before))
    expected = {
        unit["text"].strip(): sum(effects["effect"][t][part] for t in own)
        for part, unit in enumerate(effects["units"])
        if unit["kind"] == "prompt"
    }
    assert {plain(source.text) for source in focus.sources} <= set(expected)
    assert focus.sources
    for source in focus.sources:
        assert source.value == pytest.approx(expected[plain(source.text)], abs=1e-5)
        assert source.note == "", "a word of the answer is no source of the whole answer"
        assert source.interval
        assert source.change == times(-source.value), "a mean is not what becomes of the whole text"
    assert focus.by.endswith("on average over random halves of the rest")
    assert in_words(focus.sentence).count(" on average") == 1
    sizes = [abs(source.value) for source in focus.sources]
    assert sizes == sorted(sizes, reverse=True)
    assert max(source.length for source in focus.sources) == 1


def test_an_effect_of_one_removal_is_said_as_probabilities() -> None:
    document, maps = measured(
        sample(["<s>", " Which", " city", " is"], [" Rome", " is"], stop="given"), statuses=["confirmed", "undecided"]
    )
    effects = document["effects"]
    effects["low"] = effects["high"] = effects["effect"]
    before = sum(target["replayed_logprob"] for target in document["targets"])
    focus = build_view(document, maps).summary.focus
    assert focus.sources
    for source in focus.sources:
        assert source.interval == ""
        assert source.change == f"{rounded(np.exp(before))} → {rounded(min(1.0, np.exp(before - source.value)))}"
    assert "average" not in focus.by + in_words(focus.sentence)


def test_without_removal_the_whole_answer_has_the_summed_contributions() -> None:
    document, maps = newest(sample(["<s>", " a", " b", " c"], [" x", " y"], referee=False))
    focus = build_view(document, maps).summary.focus
    sums = maps["integrated_gradients"].astype(float).sum(axis=0)
    assert focus.method == "gradients"
    names = {"a": 1, "b": 2, "c": 3}
    for source in focus.sources:
        assert source.value == pytest.approx(sums[names[plain(source.text)]])
        assert source.change == "", "an estimate is not said as a probability"
    assert dict(build_view(document, maps).levels["words"].focus) == pytest.approx(
        {i: sums[i] for i in (1, 2, 3) if abs(sums[i]) >= 0.05 * np.abs(sums[1:4]).max()}, abs=1e-4
    )


def test_an_earlier_explanation_is_coloured_by_what_was_removed() -> None:
    document, maps = chat()
    view = build_view(document, maps)
    drops = maps["leave_one_out"][:-1].astype(float).sum(axis=0)  # the end mark is no part of the answer
    first = view.summary.focus.sources[0]
    best = int(np.abs(drops).argmax())
    assert view.summary.focus.method == "removal"
    assert first.value == pytest.approx(drops[best])
    assert plain(first.text) == plain(view.removal.parts[best])


@pytest.mark.parametrize(
    ("difference", "said"),
    [(-0.02, "about as likely"), (-np.log(3.04), "3.0 times less likely"), (np.log(24), "24 times more likely"),
     (-np.log(4900), "4,900 times less likely"), (-40.0, "over a million times less likely")],
)  # fmt: skip
def test_ratios_in_words(difference: float, said: str) -> None:
    assert times(float(difference)) == said


@pytest.mark.parametrize(
    ("difference", "said"),
    [(0.02, "odds about the same"), (-np.log(3.04), "odds 3.0 times smaller"), (np.log(24), "odds 24 times larger")],
)
def test_ratios_of_odds_in_words(difference: float, said: str) -> None:
    assert times(float(difference), what="odds") == said


@pytest.mark.parametrize(
    ("lead", "said"),
    [(0.0, "1.0 : 1"), (np.log(6900), "6,900 : 1"), (-np.log(3), "1 : 3.0"), (99.0, "over a million : 1")],
)
def test_odds(lead: float, said: str) -> None:
    assert odds(float(lead)) == said


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.574, "57%"), (0.058, "5.8%"), (0.9851, "98.5%"), (0.984, "98%"), (0.0001, "0.010%"), (1.0, "100.0%")],
)
def test_probabilities_as_people_say_them(p: float, said: str) -> None:
    assert rounded(p) == said


@pytest.mark.parametrize(
    ("largest", "said"),
    [
        ([0.2, 0.3, 0.1], "Undecided: 3, no single word decides them."),
        ([2.0, 3.0, 1.0], "Undecided: 3, since the order of the sources may be chance."),
        ([2.0, 0.3, 1.0], "Undecided: 3 (no single word decides 1; for 2 the order of the sources may be chance)."),
    ],
)
def test_why_words_are_undecided(largest: list[float], said: str) -> None:
    """By the threshold that the verdict was made with, on the strongest part alone."""
    document, maps = made(("undecided",) * 3, attention="diluted", stop="length", foil=False, removed=True)
    document["computed"]["crosscheck"] = {"least_effect": 0.5}
    for t, value in enumerate(largest):
        for name in ("effect", "low", "high"):
            document["effects"][name][t] = [None if x is None else 0.0 for x in document["effects"][name][t]]
            document["effects"][name][t][1] = value
    assert said in " ".join(map(in_words, build_view(document, maps).summary.trust.sentences))


def spans(parts: list[list[int]]) -> ReportView:
    """Three words with the targets `parts`, given as ranges of the answer's tokens."""
    document, maps = made(("confirmed",) * 3, attention="diluted", stop="length", foil=False, removed=True)
    first, chosen = document["generation"]["prompt_len"], []
    for a, b in parts:
        own = document["targets"][a:b]
        target = {**own[0], "position": first + a, "tokens": [first + a, first + b]}
        target["replayed_logprob"] = sum(one["replayed_logprob"] for one in own)
        target["text"] = "".join(one["text"] for one in own)
        chosen.append(target)
    n = len(parts)
    document["targets"] = chosen
    for name in ("effect", "low", "high", "probability", "probability_without", "explained", "together"):
        document["effects"][name] = document["effects"][name][:n]
    return build_view(document, {name: values[:n] for name, values in maps.items()})


def test_targets_that_are_passages_are_not_called_words() -> None:
    view = spans([[0, 2], [2, 3]])
    assert view.summary.focus.whole
    assert "all 2 passages" in " ".join(map(in_words, view.summary.trust.sentences))
    assert "The whole answer" in render_report(view)
    assert spans([[0, 3], [0, 1], [1, 2]]).summary.focus.likely == view.summary.focus.likely, "the largest make it up"


def test_only_a_part_of_the_answer_explained_is_not_called_the_whole() -> None:
    view = spans([[0, 1], [1, 2]])
    assert not view.summary.focus.whole
    page = render_report(view).split("<script")[0].split("</style>")[1]
    assert "The passages explained" in page
    assert "Probability of the whole answer" not in page
    assert "this answer is" not in in_words(view.summary.focus.sentence)
