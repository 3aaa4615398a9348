"""The report as data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llmxai.names import SUPPLIED
from llmxai.report import ReportView, build_view, render_report
from llmxai.report.focus import in_words
from llmxai.report.removal import RemovalView, build_referee
from llmxai.report.tables import build_settings, signed
from llmxai.report.units import GRADIENT_SCALE, ROLLOUT_SCALE, TargetView, build_level
from llmxai.report.verdict import MainSource
from llmxai.report.visible import Piece, label, percent, plain, shorten, times, visible
from llmxai.settings import field_paths
from llmxai.store import upgraded
from tests.report.sample import (
    CHAT_ANSWER,
    CHAT_STATUSES,
    HOSTILE,
    REASON,
    Sample,
    chat,
    hostile,
    long,
    measured,
    newest,
    sample,
)


def texts(view: ReportView, *, level: str = "words") -> list[str]:
    return [plain(unit.text) for unit in view.levels[level].units]


def target_of(view: ReportView, number: int, *, level: str = "words") -> TargetView:
    return view.levels[level].targets[number]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("a\u202eb", "a[RLO]b"),
        ("\0", "[NUL]"),
        ("\x07\x1b", "[BEL][ESC]"),
        ("\x01", "[U+0001]"),
        ("\ud83d", "[U+D83D]"),
        ("\U000e0041", "[U+E0041]"),
        ("a\u200bb\xa0c", "a[ZWSP]b[NBSP]c"),
        ("\u3164\u2800", "[FILLER][BLANK]"),
        ("line\nbreak\ttab", "line[¶]\nbreak\ttab"),
        ("a\r\n\n", "a[CR][¶]\n[¶]\n"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("❤\ufe0f\u200d🔥", "❤\ufe0f\u200d🔥"),
        ("pass\u200dword", "pass[ZWJ]word"),
        ("\u200d", "[ZWJ]"),
        ("日本語 عربي", "日本語 عربي"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_named(text: str, shown: str) -> None:
    assert plain(visible(text)) == shown


def test_a_mark_is_not_the_same_letters_in_the_text() -> None:
    assert visible("\u202e") == (Piece("RLO", mark=True),)
    assert visible("[RLO]") == (Piece("[RLO]"),)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" Paris", "Paris"),
        (" ", "[space]"),
        ("  ", "[2 spaces]"),
        ("\n", "[¶]"),
        ("a\nb", "a[¶]b"),
        ("", "[part of a character]"),
        (" a b", "a b"),
        ("\t", "⇥"),
    ],
)
def test_a_label_is_one_line_and_never_empty(text: str, name: str) -> None:
    assert plain(label(text)) == name
    assert "\n" not in plain(label(text))


def test_shorten() -> None:
    assert shorten("abc", limit=3) == "abc"
    assert shorten("ab cdef", limit=4) == "ab…"


def test_the_small_example_in_full() -> None:
    """Everything a reader is told first, for the chat of every status."""
    view = build_view(*chat())
    verdict = view.verdict
    assert view.title == 'Where the answer “باريس is Paris. def f(): return "日"” came from'
    assert [(asked.role, plain(asked.text)) for asked in verdict.asked] == [
        ("system", "Answer briefly."),
        ("user", "Write Paris in Arabic, then code."),
    ]
    assert plain(verdict.answer) == 'باريس is Paris.[¶]\ndef f():[¶]\n    return "日"'
    assert [(count.sign, count.count, count.status) for count in verdict.counts] == [
        ("✓", 12, "agree"),
        ("~", 2, "diluted"),
        ("×", 2, "disagree"),
        ("!", 1, "unconverged"),
    ]
    assert verdict.sentences == (
        "The gradient values cannot be read for 1 of the 17 tokens: they could not be computed accurately enough. They "
        "are marked “!” and left out of the main sources.",
        "Attention says nothing useful about 2 of the 17 tokens: typically more than 99% of it ends on the very first "
        "token, or it spreads as it would for any text. Do not read the bars of attention rollout there.",
        "For 2 of the 17 tokens the two methods contradict each other: trust neither alone.",
        "For 12 of the 17 tokens both methods put the same sources first.",
        "The referee removed parts of the input and measured the effect. Of 17 tokens, this supports the gradients for "
        "12, attention for 2 and neither for 3.",
    )
    assert "not proof of faithfulness" in verdict.not_proof
    assert verdict.not_proof in view.limits
    assert [turn.name for turn in view.levels["words"].turns] == [
        "Start mark and chat template (added automatically)",
        "System instruction",
        "Start mark and chat template (added automatically)",
        "User",
        "Start mark and chat template (added automatically)",
        "Answer of the model",
    ]
    assert [row.flagged for row in view.rows].count(True) == 5


def test_documents_are_numbered_and_named_once() -> None:
    """A template puts marks between a document's title and its text, and between two documents."""
    prompt = ["<s>", "Kettle", ":", " hot", ".", "##", "Toaster", ":", " cold", " Which", "?"]
    d, t, u = "document", "template", "user"
    explanation, maps = sample(prompt, [" hot"], roles=["bos", d, t, d, d, t, d, t, d, u, u])
    explanation = upgraded(explanation)
    place = {"title": "", "share": 0.5, "effect": 1.0, "interval": [0.5, 1.5], "alone": 1.0, "deleted": True}
    explanation["documents"] = [
        {**place, "kind": "document", "tokens": tokens, "part": part, "divergence": 0.1}
        for part, tokens in enumerate(([1, 5], [6, 9]))
    ]
    turns = build_level(explanation, maps, groups=[(i, i + 1) for i in range(12)]).turns
    named = [(turn.name, turn.first, turn.end) for turn in turns if turn.role not in ("bos", "template")]
    assert named[:4] == [("Document 1", 1, 2), ("", 3, 5), ("Document 2", 6, 7), ("", 8, 9)]
    assert [name for name, *_ in named[4:]] == ["User", "Answer of the model"]
    explanation["documents"] = []
    turns = build_level(explanation, maps, groups=[(i, i + 1) for i in range(12)]).turns
    assert [turn.name for turn in turns if turn.role == "document"] == ["Document"] * 4, "before documents were listed"


def test_one_status_for_all_and_a_single_token() -> None:
    said, agreed, _ = build_view(*sample(["<s>", " a", " b"], [" x", " y"])).verdict.sentences
    assert said.startswith("The gradient values can be read for all 2 tokens")
    assert agreed == "For all 2 tokens both methods put the same sources first."
    assert "the only token" in build_view(*sample(["<s>", " a"], [" x"])).verdict.sentences[0]


def test_units_are_words_or_tokens_and_cover_the_text() -> None:
    document, maps = chat()
    view = build_view(document, maps)
    assert "باريس" in texts(view)
    assert " Paris" in texts(view)
    assert [unit.start for unit in view.levels["words"].units] == [a for a, _ in document["words"]]
    said = "".join(token["text"] for token in document["tokens"]).replace("\n", "[¶]\n")
    assert "".join(texts(view)) == "".join(texts(view, level="tokens")) == said
    assert list(view.levels) == ["words", "tokens"]


def test_half_characters_are_one_unit_among_tokens() -> None:
    view = build_view(*sample(["<s>", "", "日", " x"], [" y", "", "本"]))
    assert texts(view, level="tokens") == ["<s>", "日", " x", " y", "本"]
    assert target_of(view, 1, level="tokens").joined == 2
    assert [plain(row.text) for row in view.rows] == ["y", "[part of a character]", "本"]


def test_words_add_gradients_and_average_rollout() -> None:
    document, maps = sample(["<s>", "un", "believ", " you"], [" am", "azing", " yes"])
    view = build_view(document, maps)
    assert texts(view) == ["<s>", "unbeliev", " you", " amazing", " yes"]
    word = target_of(view, 0)
    assert (word.unit, word.joined) == (3, 2)
    gradients, rollout = maps["integrated_gradients"].astype(float), maps["rollout"].astype(float)
    both = dict(word.gradients)
    assert both[1] == round(gradients[:2, 1:3].sum() * GRADIENT_SCALE)
    assert both[3] == round(gradients[:2, 4:6].sum() * GRADIENT_SCALE)
    joined = [gradients[:2, 1:3].sum(), gradients[:2, 3].sum(), gradients[:2, 4:6].sum()]
    assert word.gradients_total == pytest.approx(np.abs(joined).sum())
    assert dict(word.rollout)[2] == round(rollout[:2, 3].mean() * ROLLOUT_SCALE)
    assert word.rollout_content == pytest.approx(rollout[:2, 1:].sum() / 2)
    assert dict(word.rollout_structure) == {0: round(rollout[:2, 0].mean() * ROLLOUT_SCALE)}


def test_figures_of_a_word_add_up_to_its_values() -> None:
    """Sum of the values = F(real) - F(neutral) + gap, for words of several tokens too."""
    view = build_view(*sample(["<s>", " a", "b", " c"], [" d", "e", " f"], statuses=["agree", "unconverged", "agree"]))
    assert [target.joined for target in view.levels["words"].targets] == [2, 1]
    for target in (*view.levels["words"].targets, *view.levels["tokens"].targets):
        total = sum(value for _, value in target.gradients) / GRADIENT_SCALE
        assert total == pytest.approx(target.f_input - target.f_baseline + target.gap, abs=1e-3)
        assert abs(target.gap) <= target.local_error


def test_a_word_has_the_summed_logprob_and_the_mean_rollout_figures() -> None:
    document, maps = sample(["<s>", " a"], [" am", "azing"], statuses=["agree", "diluted"])
    one, two = document["targets"]
    word = target_of(build_view(document, maps), 0)
    assert word.logprob == pytest.approx(one["replayed_logprob"] + two["replayed_logprob"])
    assert word.recorded == word.logprob
    assert word.probability == pytest.approx(np.exp(word.logprob))
    assert word.rank == max(one["rank"], two["rank"])
    assert word.sink_mass == pytest.approx((one["rollout"]["sink_mass"] + two["rollout"]["sink_mass"]) / 2)
    one["logprob"] = None
    assert target_of(build_view(document, maps), 0).recorded is None


@pytest.mark.parametrize(
    ("statuses", "status", "judged"),
    [
        (["confirmed", "undecided", "undecided"], "confirmed", " c"),
        (["undecided", "confirmed", "contradicted"], "contradicted", "e"),
        (["confirmed", "contradicted", "confirmed"], "confirmed", " c"),
        (["undecided", "unconverged", "undecided"], "undecided", " c"),
    ],
)
def test_a_word_has_the_status_of_most_of_its_decided_tokens(statuses: list[str], status: str, judged: str) -> None:
    document, maps = measured(sample(["<s>", " a", " b"], [" c", "d", "e"]), statuses=statuses)
    view = build_view(document, maps)
    word = target_of(view, 0)
    assert (word.status, plain(word.judged)) == (status, judged.strip())
    assert [(count.status, count.count) for count in view.verdict.counts] == [(status, 1)]


def test_in_an_old_record_a_word_has_the_most_careful_status_and_names_its_token() -> None:
    document, maps = sample(["<s>", " a", " b"], [" c", "d", "e"], statuses=["agree", "unconverged", "diluted"])
    word = target_of(build_view(document, maps), 0)
    assert (word.status, plain(word.judged)) == ("unconverged", "d")
    assert word.reason == document["targets"][1]["reason"]
    assert word.spearman == document["targets"][1]["agreement"]["spearman"]


def test_template_cannot_crowd_words_out_of_the_rollout_list() -> None:
    """30 template tokens above every word: the words are listed all the same, and the template's mass is stated."""
    prompt, roles = [f"<t{i}>" for i in range(30)] + [" a", " b"], ["bos", *["template"] * 29, "user", "user"]
    document, maps = sample(prompt, [" x"], roles=roles)
    maps["rollout"][0, :30], maps["rollout"][0, 30:32] = 0.999 / 30, [0.0007, 0.0003]
    target = target_of(build_view(document, maps), 0)
    assert target.rollout == ((30, 700_000), (31, 300_000))
    assert target.rollout_content == pytest.approx(0.001)
    assert len(target.rollout_structure) == 5


def test_main_sources_leave_out_unconverged_targets_and_the_answer() -> None:
    document, maps = sample(["<s>", " first", " second"], [" x", " y"], statuses=["agree", "unconverged"])
    maps["integrated_gradients"][:] = 0
    maps["integrated_gradients"][0, 1:3] = [3.0, -1.0]
    maps["integrated_gradients"][1, 2] = 100.0
    sources = build_view(document, maps).verdict.main_sources
    assert sources == (MainSource(label("first"), "75%"), MainSource(label("second"), "25%"))
    document["targets"][0]["converged"] = False
    assert build_view(document, maps).verdict.main_sources == ()


def test_the_end_mark_is_no_part_of_the_answer() -> None:
    assert plain(build_view(*sample(["<s>", " a"], [" Paris", "<end>"])).verdict.answer) == "Paris<end>"
    assert plain(build_view(*sample(["<s>", " a"], [" Paris", "<end>"], stop="eos")).verdict.answer) == "Paris"
    assert plain(build_view(*sample(["<s>", " a"], ["<end>"], stop="eos")).verdict.answer) == "(nothing)"


def test_a_long_text_is_quoted_short_and_offers_sentences() -> None:
    document, maps = long(given=900, generated=4)
    view = build_view(document, maps)
    assert len(plain(view.verdict.asked[0].text)) <= 600
    assert list(view.levels) == ["words", "tokens", "sentences"]
    sentences = texts(view, level="sentences")
    assert sentences[0] == "<s>"
    assert sentences[1] == " word0."
    assert sentences[2].startswith(" word1 word2")
    assert sentences[2].endswith("word17.")
    assert "".join(sentences) == "".join(texts(view))
    assert len(view.levels["sentences"].targets) == 1
    assert all(len(target.gradients) == 20 for target in view.levels["words"].targets)


def test_only_the_largest_sources_travel() -> None:
    document, maps = sample(["<s>", *[f" w{i}" for i in range(100)]], [" x"])
    target = target_of(build_view(document, maps), 0, level="tokens")
    best = np.argsort(-np.abs(maps["integrated_gradients"][0]))[:20]
    assert [unit for unit, _ in target.gradients] == best.tolist()


def test_a_target_without_features() -> None:
    view = build_view(*sample(["<s>"], [" x", " y"]))
    first = target_of(view, 0)
    assert (first.gradients, first.gradients_total, first.rollout_content) == ((), 0.0, 0.0)
    assert view.rows[0].gradient_sources == ()


def test_settings_are_named_in_words_and_keep_their_keys() -> None:
    rows = build_settings({"held": [0, 1, 2, 5], "rollout": {"residual": 0.5}, "odd_one": None, "flag": True})
    assert [(row.name, row.key, plain(row.value)) for row in rows] == [
        ("Held tokens (positions)", "held", "0–2, 5"),
        ("Rollout: weight of a token's own state", "rollout.residual", "0.5"),
        ("odd_one", "odd_one", "none"),
        ("flag", "flag", "yes"),
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "50.0%"), (0.0004, "0.040%"), (3e-6, "under 0.001%"), (0.0, "0.0%"), (1.0, "100.0%")]
)
def test_percent(value: float, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.5, "+1.500"), (-0.25, "−0.250"), (-0.0001, "0.000"), (0.0, "0.000")])
def test_signed(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize("build", [chat, lambda: sample(["<s>", " a", "b"], [" c", "d"])])
def test_the_samples_are_consistent(build: Callable[[], Sample]) -> None:
    """The fixtures keep the contract of docs/explanation-folder.md."""
    document, maps = build()
    for t, target in enumerate(document["targets"]):
        values = maps["integrated_gradients"][t]
        features = [token["index"] for token in document["tokens"] if token["index"] < target["position"]]
        features = [i for i in features if i not in document["settings"]["held"]]
        assert values.sum(dtype=float) == pytest.approx(target["net"] + target["gap"], abs=1e-4)
        assert target["net"] == pytest.approx(target["f_input"] - target["f_baseline"])
        assert target["converged"] == (target["local_error"] <= target["tolerance"])
        assert abs(target["gap"]) <= target["local_error"]
        assert maps["rollout"][t].sum() == pytest.approx(1, abs=1e-4)
        for kind in ("integrated_gradients", "rollout", "rollout_variant"):
            sources = target["sources"][kind]
            everything = np.abs(maps[kind][t][features]).sum(dtype=float)
            assert len(sources) == min(20, len(features))
            listed = sum(abs(source["value"]) for source in sources)
            assert sum(source["share"] for source in sources) == pytest.approx(listed / everything, abs=1e-4)


def test_the_chat_has_a_status_for_each_token() -> None:
    document, _ = chat()
    assert len(document["targets"]) == len(CHAT_ANSWER) == len(CHAT_STATUSES)


def test_the_referee_in_plain_words() -> None:
    view = build_view(*chat())
    said = {target.status: target.referee.said for target in view.levels["tokens"].targets}
    first, second = (plain(part) for part in view.removal.parts[:2])
    assert said["agree"] == (
        "Removing parts of the input supports the gradients: integrated gradients predict the effect with 0.70, "
        "attention rollout with 0.10 (difference 0.60, 95% interval 0.25 to 0.95). "
        f"Parts that matter when removed: “{first}”, “{second}”. "
        "Integrated gradients has all of them among its first sources. "
        f"Attention rollout misses “{second}”. Gradient weighted rollout has all of them among its first sources."
    )
    assert said["disagree"].startswith("Removing parts of the input supports attention: ")
    assert "with −0.10" in said["disagree"]
    assert said["diluted"].startswith("Removing parts of the input does not show which method is right: ")
    assert "the effects cannot be ranked here. Parts that matter" in said["unconverged"]
    worthless = {
        "better": "attention_rollout",
        "difference": -0.3,
        "interval": [-0.5, -0.1],
        "scores": {
            "layer_integrated_gradients": {"lds": -0.5, "leave_one_out": None},
            "attention_rollout": {"lds": -0.2, "leave_one_out": None},
        },
    }
    removal = RemovalView(parts=tuple(label(f"part {n}") for n in range(7)), ranges=(), operator="", masks=1)
    said_of = build_referee(worthless, removal)  # a record of rule 2 names no sources
    assert said_of.said.endswith("But even the better one predicts nothing: trust neither.")
    many = {**worthless, "sources": list(range(7)), "missed": {"attention_rollout": [6]}}
    assert build_referee(many, removal).said.endswith(
        "Parts that matter when removed: “part 0”, “part 1”, “part 2”, “part 3”, “part 4” and 2 more. "
        "Attention rollout misses “part 6”."
    )
    assert build_referee(None, removal) is None
    assert said_of.read == ""  # earlier versions did not say it
    none = build_referee({**worthless, "read": []}, removal)
    assert none.read == "No method predicts what removal does to this token: read the measured effects only."
    both = build_referee({**worthless, "read": ["attention_rollout", "layer_integrated_gradients"]}, removal)
    assert both.read == (
        "Best at predicting what removal does to this token: Attention rollout (-0.20); "
        "not certainly worse: Integrated gradients (-0.50)."
    )


def test_without_a_referee_the_page_says_so() -> None:
    view = build_view(*sample(["<s>", " a", " b"], [" x", " y"], referee=False))
    assert view.removal is None
    assert view.verdict.removed_sources == ()
    assert view.verdict.sentences[-1].startswith("No referee was asked")
    assert view.levels["words"].parts == ()
    assert (target_of(view, 0).removal, target_of(view, 0).referee) == ((), None)
    assert (view.rows[0].removal_sources, view.rows[0].referee) == ((), "")


def test_removal_adds_up_over_the_tokens_of_a_word_and_names_its_parts() -> None:
    document, maps = sample(["<s>", " Par", "is", " now"], [" am", "azing"])
    maps["leave_one_out"][:] = [[1.0, -0.5], [2.0, 0.25]]
    view = build_view(document, maps)
    assert [plain(part) for part in view.removal.parts] == ["Paris", "now"]
    word = target_of(view, 0)
    assert word.removal == ((0, 3 * GRADIENT_SCALE), (1, -GRADIENT_SCALE // 4))
    assert word.removal_total == pytest.approx(3.25)
    assert view.levels["words"].parts == ((1, 2), (2, 3))
    assert view.levels["tokens"].parts == ((1, 3), (3, 4))
    assert [source.share for source in view.verdict.removed_sources] == ["80%", "20%"]


def test_the_variant_is_scaled_to_shares_and_averaged() -> None:
    document, maps = sample(["<s>", " a", " b"], [" am", "azing"])
    maps["rollout_variant"][:] = [[2, 1, 1, 0, 0], [0, 0, 8, 0, 0]]
    word = target_of(build_view(document, maps), 0)
    assert dict(word.variant) == {1: ROLLOUT_SCALE // 8, 2: ROLLOUT_SCALE * 5 // 8}
    assert dict(word.variant_structure) == {0: ROLLOUT_SCALE // 4}
    assert word.variant_content == pytest.approx(0.75)
    maps["rollout_variant"][:] = 0
    assert target_of(build_view(document, maps), 0).variant == ()


def test_the_curve_of_a_word_is_the_mean_of_its_tokens() -> None:
    document, maps = sample(["<s>", " a"], [" am", "azing"])
    for target, sink in zip(document["targets"], ([0.1, 0.2], [0.3, 0.8]), strict=True):
        target["curve"] = {"sink_mass": sink, "entropy": [1, 1], "null_divergence": [0, 0], "similarity": [1, 1]}
    assert target_of(build_view(document, maps), 0).curve["sink_mass"] == (200, 500)
    document["targets"][0]["curve"] = None
    assert target_of(build_view(document, maps), 0).curve["sink_mass"] == (300, 800)
    document["targets"][1]["curve"] = None
    assert target_of(build_view(document, maps), 0).curve == {}


def test_an_explanation_of_schema_1_has_a_page_without_what_it_lacks() -> None:
    document, maps = sample(["<s>", " a", " b"], [" x", " y"])
    for name in ("rollout_variant", "leave_one_out"):
        del maps[name]
    for name in ("ablations", "variant"):
        del document[name]
    for target in document["targets"]:
        for name in ("agreement_variant", "rollout_variant", "curve", "referee"):
            del target[name]
        for name in ("recency_p", "adjusted_p", "kendall", "rank_biased_overlap", "jensen_shannon"):
            del target["agreement"][name]
        del target["rollout"]["similarity"], target["sources"]["rollout_variant"], target["sources"]["leave_one_out"]
    view = build_view(document, maps)
    assert (view.variant, view.removal) == (None, None)
    target = target_of(view, 0)
    assert (target.variant, target.removal, target.referee, target.curve) == ((), (), None, {})
    assert (target.kendall, target.similarity, target.spearman) == (None, None, 0.62)
    assert "radio" in render_report(view)
    assert 'value="variant"' not in render_report(view)


def test_the_other_methods_are_ranked_for_every_unit() -> None:
    document, maps = newest(sample(["<s>", " Par", "is", " now"], [" am", "azing", " yes"]))
    view = build_view(document, maps)
    assert [(also.name, also.signed, also.attention) for also in view.also] == [
        ("LIME", True, False),
        ("Leave-one-out, spread over the tokens", True, False),
        ("Saliency", False, False),
        ("Max head rollout", False, True),
        ("Mean rollout", False, False),
    ]
    assert plain(view.also[0].source) == "Ribeiro et al. 2016"
    assert plain(view.also[-1].refused) == REASON.replace("\u202e", "[RLO]")
    assert not any(also.refused for also in view.also[:-1])
    lime, effects, _, attention, refused = target_of(view, 0).also
    added = maps["lime"].astype(float)[:2]  # two tokens: contributions add up over both, and over those of a source
    expected = {1: added[:, 1:3].sum(), 2: added[:, 3].sum(), 3: added[:, 4:6].sum()}
    assert dict(lime.pairs) == pytest.approx(expected, rel=1e-3)
    assert [abs(value) for _, value in lime.pairs] == sorted((abs(value) for _, value in lime.pairs), reverse=True)
    assert lime.total == pytest.approx(sum(map(abs, expected.values())), rel=1e-3)
    assert dict(effects.pairs)[2] == pytest.approx(maps["leave_one_out.tokens"][:2, 3].sum(), rel=1e-3)
    rows = maps["max_head_rollout"].astype(float)[:2]
    shares = (rows / rows.sum(axis=1, keepdims=True)).mean(axis=0)
    assert dict(attention.pairs)[1] == pytest.approx(shares[1:3].sum(), rel=1e-3)
    assert 0 not in dict(attention.pairs)  # the start mark takes its part of the row, and is not listed
    assert attention.total == pytest.approx(shares[1:].sum(), rel=1e-3)
    assert (refused.pairs, refused.total) == ((), 0.0)


def test_the_tables_list_the_other_methods_with_their_signs() -> None:
    document, maps = newest(chat())
    view = build_view(document, maps)
    row, sources = view.rows[0], document["targets"][0]["sources"]
    assert [name for name, _ in row.also_sources] == [also.name for also in view.also[:-1]]
    (_, lime), _, (_, saliency), _ = row.also_sources
    assert len(lime) == 5
    assert [source.value[0] for source in lime] == ["+" if one["value"] > 0 else "−" for one in sources["lime"][:5]]
    assert float(saliency[0].value) == pytest.approx(sources["saliency"][0]["value"], rel=1e-2)
    assert lime[0].share == f"{sources['lime'][0]['share']:.0%}"
    page = render_report(view)
    assert page.count("<caption>LIME</caption>") == len(view.rows)
    assert page.count("<caption>Mean rollout</caption>") == 0
    assert "Source: Ribeiro et al. 2016" in page
    assert "mean_rollout is not defined for &lt;b&gt;linear attention&lt;/b&gt;" in page
    assert "<b>linear" not in page


def test_only_the_largest_sources_of_other_methods_travel() -> None:
    document, maps = newest(long(given=900, generated=4))
    for level in build_view(document, maps).levels.values():
        for target in level.targets:
            assert all(len(ranked.pairs) <= 20 for ranked in target.also)


def test_what_was_asked_and_what_it_came_to_stand_once() -> None:
    document, maps = newest(chat())
    document["settings"]["gradients"]["n_steps"] = 7
    document["computed"]["n_steps"] = 7
    view = build_view(document, maps)
    asked = {row.key: (plain(row.value), plain(row.became)) for row in view.asked}
    assert list(asked) == list(field_paths())
    assert asked["gradients.n_steps"] == ("7", "")
    assert asked["gradients.baseline"] == ("space", "")
    assert asked["gradients.tolerance.absolute"] == ("0.02", "0.05")
    assert asked["compute.chunk_tokens"] == ("none", "512")
    assert asked["removal.operator"] == ("delete", "")
    assert asked["also"] == ("lime, leave_one_out, saliency, max_head_rollout, mean_rollout", "")
    other = {row.key: plain(row.value) for row in view.settings}
    assert not {
        "n_steps",
        "baseline",
        "tolerance.relative",
        "chunk_tokens",
        "referee.operator",
        "variant.method",
    } & set(other)
    assert (other["held"], other["referee.parts"], other["lime.samples"]) == ("0–2, 6–10, 20–25", "11", "128")
    assert "lime.target" not in other  # the same as that of all
    assert not asked.keys() & other.keys()
    page = render_report(view)
    assert "As requested" in page
    assert page.count('<code class="soft">gradients.n_steps</code>') == 1
    assert '0.02</bdi> <span class="soft">(came to: <bdi>0.05</bdi>)' in page


def test_without_removal_the_settings_say_so_once() -> None:
    document, maps = newest(sample(["<s>", " a", " b"], [" x"], referee=False))
    document["settings"]["removal"] = None
    view = build_view(document, maps)
    assert {row.key: plain(row.value) for row in view.asked}["removal"] == "none"
    assert not [row.key for row in view.settings if row.key.startswith("referee")]


def test_an_older_explanation_shows_its_settings_in_one_table() -> None:
    view = build_view(*chat())
    assert (view.asked, view.also) == ((), ())
    assert {"baseline", "referee.operator", "variant.method"} <= {row.key for row in view.settings}
    assert "As requested" not in render_report(view)


def test_attention_of_an_unconverged_token_may_be_diluted_too() -> None:
    """The status says the worse of the two; the bars of attention must not be read all the same."""
    document, maps = sample(["<s>", " a", " b"], [" x", " y", " z"], statuses=["unconverged", "unconverged", "agree"])
    document["settings"]["crosscheck"] = {"most_sink": 0.55, "least_divergence": 0.007}
    document["targets"][0]["rollout"]["sink_mass"] = 0.99
    view = build_view(document, maps)
    assert [row.diluted for row in view.rows] == [True, False, False]
    assert [target.diluted for target in view.levels["tokens"].targets] == [True, False, False]
    assert any(
        said.startswith("Attention says nothing useful about 1 of the 3 tokens") for said in view.verdict.sentences
    )
    page = render_report(view)
    assert page.count('<span class="soft">not to be read</span>') == 3
    assert page.split("<script")[0].count("Attention rollout: not to be read") == 1
    del document["settings"]["crosscheck"]  # before thresholds were kept, the status was all there is
    assert not any(row.diluted for row in build_view(document, maps).rows)


def test_an_answer_that_was_given_is_called_so() -> None:
    document, maps = sample(["<s>", " a"], [" x", " y", " z"], stop="given")
    document["warnings"] = [SUPPLIED, "Another note."]
    view = build_view(document, maps)
    chance = percent(np.exp(sum(target["replayed_logprob"] for target in document["targets"])))
    assert view.title == "What speaks for the answer “x y z”"
    assert in_words(view.summary.came) == (
        "The model did not write this answer: it was supplied, and the model would have said something else. "
        f"Probability of the answer: {view.summary.focus.likely}; “y” is the model’s choice number 2."
    )
    assert float(view.summary.focus.likely.rstrip("%")) == pytest.approx(float(chance.rstrip("%")), abs=0.5)
    assert [plain(warning) for warning in view.warnings] == ["Another note."], "said in the first lines already"
    assert "The answer that was supplied" in render_report(view)
    for target in document["targets"]:
        target["rank"] = 1
    assert "the model would have given the same" in in_words(build_view(document, maps).summary.came)
    document["generation"] |= {"stop": "length", "decoding": {"do_sample": True}}
    document["targets"][0]["rank"] = 2
    view = build_view(document, maps)
    assert in_words(view.summary.came) == "The answer was sampled: 2 of its 3 tokens were the model’s first choice."
    assert "supplied" not in render_report(view).split("<script")[0].split("</style>")[1]


STATUSES = ("confirmed", "confirmed", "contradicted", "undecided", "unconverged", "confirmed")


def trust(view: ReportView) -> str:
    """The lead and the sentences on trust, as text."""
    told = view.summary.trust
    return " ".join(filter(None, (told.lead, *map(in_words, told.sentences))))


def capital(*, attention: str | None = None, stop: str = "length") -> Sample:
    """Five words and a full stop with a verdict of rule 4; the first word has two tokens."""
    asked = ["<s>", " Which", " city", " is", " the", " capital", "?"]
    answer = [" Par", "is", " is", " the", " city", "."]
    return measured(sample(asked, answer, stop=stop), statuses=STATUSES, attention=attention)


def test_the_verdict_comes_first_and_counts_words() -> None:
    view = build_view(*capital())
    assert view.verdict.measured
    assert view.verdict.counted == "Of the 4 words in the answer"
    assert [(count.sign, count.count, count.status) for count in view.verdict.counts] == [
        ("✓", 1, "confirmed"),
        ("×", 1, "contradicted"),
        ("?", 1, "undecided"),
        ("!", 1, "unconverged"),
    ]
    assert view.verdict.sentences == ()
    assert trust(view) == (
        "In part. Computed accurately: 3 of the 4 words (not “city”). Confirmed by taking words away: 1 (“Paris”); "
        "contradicted: 1 (“is”); undecided: 1, too uncertain to say. Attention can be read for 2 of the 4 words."
    )
    assert view.statuses == ("confirmed", "contradicted", "undecided", "unconverged")
    assert [row.flagged for row in view.rows] == [False, False, True, True, True, False]
    page = render_report(view)
    order = [
        page.index(said) for said in ("Asked</h2>", "Answered</h2>", "Can I trust this?", "What next?", "Every token")
    ]
    assert order == sorted(order)
    for word in ("agree</", "disagree", "<b>Referee", "The referee removed", "diluted</li>"):
        assert word not in page.split("</style>")[1].split("<script")[0]


def test_a_status_that_no_word_has_is_not_counted() -> None:
    document, maps = measured(sample(["<s>", " a", " b", " c"], [" x", " y"]), statuses=["confirmed"] * 2)
    verdict = build_view(document, maps).verdict
    assert [(count.status, count.count) for count in verdict.counts] == [("confirmed", 2)]
    assert trust(build_view(document, maps)).startswith(
        "Yes, as far as taking words away can show. Computed accurately: all 2 words. Confirmed by taking words "
        "away: 2. "
    )
    document["effects"] = document["ablations"] = None
    for target in document["targets"]:
        target["status"] = target["verdict"]["sources"] = "undecided"
    bare = build_view(document, maps)
    assert bare.effects is None
    assert trust(bare).startswith(
        "Not checked. Computed accurately: all 2 words. Nothing was taken away, so no word could be confirmed or "
        "contradicted. "
    )
    assert render_report(bare)


def test_an_answer_of_punctuation_and_its_end_mark_are_words_all_the_same() -> None:
    document, maps = measured(sample(["<s>", " a", " b"], ["!", "<end>"], stop="eos"), statuses=["undecided"] * 2)
    assert build_view(document, maps).verdict.counted == "Of the 2 words in the answer"
    document["tokens"][3]["text"] = document["targets"][0]["text"] = " yes"
    assert build_view(document, maps).verdict.counted == "Of the only word in the answer"


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("readable", "Attention can be read for all 4 words."),
        ("diluted", "Attention cannot be read on this model."),
        ("refused", "Attention cannot be read on this model: rollout is not defined for it."),
        (None, "Attention can be read for 2 of the 4 words."),
    ],
)
def test_attention_has_one_line(attention: str | None, said: str) -> None:
    view = build_view(*capital(attention=attention))
    assert in_words(view.summary.trust.sentences[1]) == said
    assert len(view.summary.trust.sentences) == 2
    unread = [target.attention != "readable" for target in view.levels["tokens"].targets]
    assert [bool(row.unreadable) for row in view.rows] == unread
    assert render_report(view).split("<script")[0].count("<caption>Attention rollout") == unread.count(False)


def test_the_main_sources_are_the_largest_effects_on_a_word() -> None:
    document, maps = capital()
    effects = document["effects"]
    kinds = [unit["kind"] for unit in effects["units"]]
    for name, width in (("effect", 0.0), ("low", -0.1), ("high", 0.1)):
        effects[name] = [[None if x is None else width for x in row] for row in effects[name]]
    for t, value in ((0, 0.5), (1, 1.0), (3, 1.2)):  # the first word has two tokens: 1.5
        for name, width in (("effect", 0.0), ("low", -0.1), ("high", 0.1)):
            effects[name][t][1] = value + width
    effects["effect"][2][kinds.index("answer")] = effects["low"][2][kinds.index("answer")] = 9.0
    (found,) = build_view(document, maps).verdict.main_effects
    assert (plain(found.text), found.note, found.nats, plain(found.on)) == ("city", "", "1.50 nats", "Paris")
    logprob = sum(target["replayed_logprob"] for target in document["targets"][:2])
    assert found.change == times(-1.5)
    for t in (0, 1):
        for name in ("low", "high"):
            effects[name][t][1] = effects["effect"][t][1]
    (found,) = build_view(document, maps).verdict.main_effects
    assert found.change == f"{percent(np.exp(logprob))} → {percent(np.exp(logprob - 1.5))}"
    mentions = kinds.index("mentions")
    for name in ("effect", "low", "high"):
        effects[name][3][mentions], effects[name][3][0] = 3.0, 2.0
    first, second = build_view(document, maps).verdict.main_effects
    assert (plain(first.text), first.note, plain(second.text)) == ("Which", "all 2 mentions", "city")
    assert [source.share for source in build_view(document, maps).verdict.main_sources]
    assert build_view(document, maps).verdict.by == "contributions (deletion path)"


def test_a_word_has_its_effects_with_interval_and_probability() -> None:
    document, maps = capital()
    view = build_view(document, maps)
    word, told = target_of(view, 0), document["effects"]
    assert [abs(effect.value) for effect in word.effects] == sorted((abs(e.value) for e in word.effects), reverse=True)
    found = {effect.part: effect for effect in word.effects}
    kinds = [unit["kind"] for unit in told["units"]]
    assert set(found) == {part for part in range(len(kinds)) if kinds[part] != "answer"}
    for part, effect in found.items():
        for name, value in (("effect", effect.value), ("low", effect.low), ("high", effect.high)):
            assert value == pytest.approx(told[name][0][part] + told[name][1][part], abs=1e-5)
        assert effect.averaged == (kinds[part] != "mentions")
        if effect.averaged:
            assert effect.without is None, "a mean is the fall of no single text"
        else:
            assert effect.without == pytest.approx(min(1.0, np.exp(word.logprob - effect.value)), rel=1e-4)
    one = target_of(view, 2, level="tokens")
    measured_once = {effect.part: effect.without for effect in one.effects if not effect.averaged}
    assert measured_once
    assert measured_once == pytest.approx(
        {part: told["probability_without"][2][part] for part in measured_once}, rel=1e-4
    )
    notes = [part.note for part in view.effects.parts]
    assert notes == ["" if kind == "prompt" else "earlier in the answer" for kind in kinds[:-1]] + ["all 2 mentions"]
    assert view.levels["words"].measured[-1] == ((1, 2), (7, 8))
    assert view.levels["tokens"].measured[-1] == ((1, 2), (7, 9))
    assert word.deletion_error == pytest.approx(0.04)
    assert dict(word.deletion)[1] == round(maps["deletion_path"][:2, 1].astype(float).sum() * GRADIENT_SCALE)
    last = target_of(view, 3)
    assert (last.status, last.deletion_converged, last.converged) == ("unconverged", False, True)
    row = view.rows[4]
    assert (row.local_error, row.tolerance, row.converged) == ("0.400", "0.100", True)
    assert "Contributions (deletion path): not to be read" in render_report(view)


def test_a_part_that_the_prompt_repeats_says_which_it_is() -> None:
    asked = ["<s>", " the", " cup", " the", " pot", " the", " pot", " cup", " lid", " the"]
    document, maps = measured(sample(asked, [" x"]), statuses=["confirmed"])
    spans = [("document", "A\u202ebc", 1, 3), ("document", "B", 3, 7), ("turn", "user", 7, 10)]
    document["parts"] = [
        {"kind": kind, "source": number, "title": title, "text": "", "first": first, "last": last, "spans": []}
        for number, (kind, title, first, last) in enumerate(spans)
    ]
    effects = build_view(document, maps).effects
    assert effects is not None
    found = {part.ranges: (plain(part.text), part.note) for part in effects.parts}
    title = plain(label("A\u202ebc"))
    assert "\u202e" not in title
    assert found[((1, 2),)] == ("the", f"in “{title}”")
    assert [found[((i, i + 1),)][1] for i in (3, 5)] == ["mention 2 of 4", "mention 3 of 4"], "both in document B"
    assert found[((2, 3),)][1] == f"in “{title}”"
    assert (found[((7, 8),)][1], found[((9, 10),)][1]) == ("in turn 3", "in turn 3")
    assert [found[((i, i + 1),)][1] for i in (4, 6)] == ["mention 1 of 2", "mention 2 of 2"]
    assert found[((8, 9),)] == ("lid", "")
    document["parts"] = []
    unplaced = build_view(document, maps).effects
    assert unplaced is not None
    assert {part.note for part in unplaced.parts if plain(part.text) == "cup"} == {"mention 1 of 2", "mention 2 of 2"}


def test_a_foil_has_effects_and_no_probabilities() -> None:
    document, maps = capital()
    document["targets"][2]["foil"] = {"id": 0, "text": " was"}
    view = build_view(document, maps)
    assert {effect.without for effect in target_of(view, 2, level="tokens").effects} == {None}
    assert {row.change for row in view.rows[2].effects} == {""}
    assert any(effect.without is not None for effect in target_of(view, 0).effects)
    assert not any(effect.contrast for effect in target_of(view, 0).effects)


def test_what_is_measured_has_hostile_texts() -> None:
    document, maps = measured(hostile(), statuses=["confirmed"] * len(HOSTILE))
    for unit in document["effects"]["units"]:
        unit["text"] = HOSTILE[0]
    document["targets"][2]["verdict"]["attention_reason"] = HOSTILE[0]
    page = render_report(build_view(document, maps))
    assert HOSTILE[0] not in page
    assert HOSTILE[4] not in page
    assert "\u202e" not in page
    assert page.count("</script>") == 2


def test_earlier_explanations_keep_their_statuses() -> None:
    view = build_view(*chat())
    assert (view.effects, view.deletion, view.verdict.measured) == (None, False, False)
    assert view.verdict.counted == "Of the 17 tokens (pieces of words) in the answer"
    assert view.verdict.by == "integrated gradients"
    page = render_report(view)
    assert 'value="effects"' not in page
    assert 'value="deletion"' not in page
    assert "confirmed" not in page.split("<script")[0].split("</style>")[1].replace("confirmation", "")
