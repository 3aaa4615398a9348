"""An explanation in Python: what a notebook shows, tokens by number and by text, tables, copies and folders."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import CLASSES, answered, make_classifier, make_encoder_decoder, make_loaded

import llmxai
from llmxai import Explanation, Settings, Source, TokenView, explain, explain_many, load_explanation
from llmxai.errors import OptionError
from llmxai.explanation import DELETION, GRADIENTS, LONGEST_REPR, ROLLOUT
from llmxai.models import LoadedModel
from llmxai.names import CURRENT, AttentionStatus, Role, joint_status
from llmxai.settings import DeletionPath, IntegratedGradients
from llmxai.tables import LONG_COLUMNS
from llmxai.text import character_units, places, quoted
from llmxai.types import Generation

CHAT = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "The capital of France? Then of Italy."},
]
RESPONSE = "Paris is the capital. Rome and Paris"
QUICK = Settings(gradients=IntegratedGradients(max_nodes=8))
BARE = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
ALSO = Settings(gradients=IntegratedGradients(max_nodes=8), also=("saliency", "max_head_rollout", "deep_lift"))


@pytest.fixture(scope="module")
def explained(tiny_llama: LoadedModel) -> Explanation:
    return explain(tiny_llama, CHAT, response=RESPONSE, settings=ALSO)


@pytest.fixture(scope="module")
def contrast(tiny_llama: LoadedModel) -> Explanation:
    return explain(tiny_llama, "The capital of France is", response=" Paris", foil=" Rome", settings=QUICK)


@pytest.fixture(scope="module")
def spelt(tiny_llama: LoadedModel) -> Callable[[str], Explanation]:
    """What is explained of a response, with little work."""
    return lambda response: explain(tiny_llama, "The capital", response=response, settings=BARE)


def computed(explanation: Explanation) -> list[str]:
    return [name for name, scores in explanation.scores.items() if scores.refused is None]


# reprs


def test_repr_has_one_line_a_token(explained: Explanation) -> None:
    first, *lines = repr(explained).splitlines()
    assert first == f"Explanation of {RESPONSE!r} by tiny llama, {len(explained)} tokens"
    assert len(lines) == len(explained)
    for number, (line, view) in enumerate(zip(lines, explained, strict=True)):
        assert line == f"{number:4} {view!r}"
        for shown in (repr(view.text), view.status, "p = "):
            assert shown in line


def test_repr_of_a_long_answer_is_bounded(spelt: Callable[[str], Explanation]) -> None:
    explanation = spelt(" ".join(["Paris"] * 20) + " " + "x" * 60)
    lines = repr(explanation).splitlines()
    assert len(lines) == LONGEST_REPR + 2
    assert lines[-1].strip() == f"... {len(explanation) - LONGEST_REPR} more"
    assert max(map(len, lines)) < 200
    assert len(repr(explanation[:])) < 200
    assert len(repr(explanation["x" * 60])) < 200
    assert max(map(len, explanation.summary().splitlines())) < 300


@pytest.mark.parametrize(
    "text", ["a\nb\r\nc", "a\tb", "😀 👩‍🚀", "שלום \u202eabc\u202c", "\u2028\x85\x0b", "日本", "\x00"]
)
def test_odd_texts_stay_on_one_line(spelt: Callable[[str], Explanation], text: str) -> None:
    explanation = spelt(text)
    assert len(repr(explanation).splitlines()) == min(len(explanation), LONGEST_REPR + 1) + 1
    views = [*explanation, explanation[:], explanation[text]]
    shown = [repr(view) for view in views] + [repr(source) for source in explanation[:].sources(by="token")]
    assert all(len(one.splitlines()) == 1 and one.isprintable() for one in shown)
    assert [line.split(":")[0] for line in explanation.summary().splitlines()] == [
        *("asked", "answered", "status", "sources")
    ]


def test_reprs_print_no_tensors(explained: Explanation) -> None:
    parts = [*explained.scores.values(), explained.effects, explained.generation]
    parts += [explained.gradients.certificate, explained.rollout.curve]
    for part in parts:
        assert "tensor" not in repr(part)
        assert len(repr(part)) < 250
        assert len(repr(part).splitlines()) == 1
    shape = f"{len(explained)} targets x {len(explained.generation.ids)} tokens"
    assert repr(explained.gradients).startswith(f"Scores(layer_integrated_gradients, {shape}, signed; target 0: token ")
    assert f"Scores(attention_rollout, {shape}, unsigned" in repr(explained.rollout)
    assert repr(explained.scores["deep_lift"]).startswith("Scores(deep_lift, refused: ")
    assert f"Effects(delete, {len(explained.effects.units)} units, 128 random subsets, 9 targets" in repr(
        explained.effects
    )
    assert f"{explained.generation.prompt_len} + {len(explained)} tokens, given)" in repr(explained.generation)


def test_a_source_and_an_effect_are_short(explained: Explanation) -> None:
    source = explained["Paris"].top(1)[0]
    assert repr(source) == f"Source({source.text!r}, {source.value:+.3g}, {source.share:.0%})"
    (effect,) = explained["Paris"].effects(1) or []
    assert repr(effect).startswith(f"Effect({effect.text!r}, drop {effect.drop:+.3g} nats, p ")


@pytest.mark.parametrize(("text", "limit"), [("a" * 50, 10), ("\n" * 50, 10), ("'\"" * 20, 12), ("", 4), ("abc", 5)])
def test_quoted_keeps_to_its_limit(text: str, limit: int) -> None:
    assert len(quoted(text, limit)) <= limit
    assert quoted(text, 1000) == repr(text)


# equality


def test_equality_is_a_bool(explained: Explanation, contrast: Explanation) -> None:
    again = copy.deepcopy(explained)
    assert (explained == again) is True
    assert (explained == contrast) is False
    assert (explained != contrast) is True
    assert (explained == "something else") is False
    assert hash(explained) == hash(again)
    assert len({explained, again, contrast}) == 2
    assert (explained.gradients == again.gradients) is False  # of tensors: never elementwise, never by value
    assert explained[0] == explained[0] != explained[1]
    assert explained.find("Paris")[0] == explained["Paris"]


def test_another_number_makes_another_explanation(explained: Explanation) -> None:
    changed = copy.deepcopy(explained)
    changed.gradients.values[0, 5] += 1e-3
    assert changed != explained
    changed = copy.deepcopy(explained)
    object.__setattr__(changed, "created", "1970-01-01T00:00:00+00:00")
    assert changed != explained


# choosing tokens


def test_by_number(explained: Explanation) -> None:
    n = len(explained)
    assert [view.tokens for view in explained] == [(t, t + 1) for t in range(n)]
    assert explained[-1] == explained[n - 1] == list(explained)[-1] == next(reversed(explained))
    assert explained[np.int64(2)] == explained[torch.tensor(2)] == explained[2]
    assert explained[2:5].tokens == (2, 5)
    assert explained[:].tokens == (0, n)
    assert explained[-3:].tokens == (n - 3, n)
    assert explained[2 : n + 100].tokens == (2, n)
    assert explained[np.int64(1) : np.int64(3)].text == explained[1].text + explained[2].text


@pytest.mark.parametrize("key", [99, -99, slice(3, 3), slice(50, 60), slice(None, None, 2), slice(None, None, -1)])
def test_numbers_that_are_not_there(explained: Explanation, key: Any) -> None:
    with pytest.raises(IndexError) as caught:
        explained[key]
    assert str(caught.value).endswith(("numbered from 0.", ".", "instead."))


@pytest.mark.parametrize("key", [True, False, np.True_, 1.0, None, (0, 1), b"Paris"])
def test_what_chooses_no_token(explained: Explanation, key: Any) -> None:
    with pytest.raises(TypeError):
        explained[key]


@pytest.mark.parametrize("text", ["Paris", " Paris", "Paris ", "\nParis\t"])
def test_by_word_the_first_of_several(explained: Explanation, text: str) -> None:
    found = explained.find(text)
    assert [view.text for view in found] == ["Paris", " Paris"]
    assert explained[text] == found[0]
    assert found[1].tokens[1] == len(explained)


def test_by_phrase(explained: Explanation) -> None:
    view = explained["the capital"]
    assert view.text == " the capital"
    assert view.tokens == (explained["the"].tokens[0], explained["capital"].tokens[1])
    assert explained["capital."].text == " capital."
    assert explained[RESPONSE] == explained[:]
    assert explained.find("is the capital. Rome")[0].text == " is the capital. Rome"


def test_words_come_before_parts_of_words(explained: Explanation) -> None:
    """`is` is a word of the answer, and how `Paris` ends too; `Pa` and `ris` are tokens alone."""
    assert [view.text for view in explained.find("is")] == [" is"]
    first = explained[0]
    assert first.text == "Pa"
    assert explained["Pa"] == first
    assert "ri" not in explained


def test_the_text_of_the_prompt_is_not_in_the_answer(explained: Explanation) -> None:
    assert "France" not in explained
    assert "Rome" in explained
    assert 3 not in explained
    with pytest.raises(KeyError) as caught:
        explained["Paros"]
    assert caught.value.args == ("'Paros' is not in the answer. Near words: 'Paris'.",)
    with pytest.raises(KeyError) as caught:
        explained["Berlin"]
    assert caught.value.args == (f"'Berlin' is not in the answer. The answer is: {RESPONSE}",)
    for text in ("", "  "):
        assert explained.find(text) == []
        with pytest.raises(KeyError, match="is not in the answer"):
            explained[text]
    with pytest.raises(KeyError) as caught:
        explained["x" * 10_000]
    assert len(caught.value.args[0]) < 400


def test_characters_of_several_tokens_and_white_space(spelt: Callable[[str], Explanation]) -> None:
    explanation = spelt("😀\n\nok 😀 日本")
    smiles = explanation.find("😀")
    assert [view.text.strip() for view in smiles] == ["😀", "😀"]
    assert smiles[0].tokens[1] - smiles[0].tokens[0] > 1
    assert "\n" in explanation or "\n\n" in explanation
    assert explanation["日本"].tokens[1] == len(explanation)


def test_places_and_character_units() -> None:
    texts = ("a", " b", "", "é", " ", "a", " b", "\n")
    units = character_units(texts)
    assert units == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    assert character_units(texts, first=3) == [(3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    assert places(texts, units, "a b") == [(0, 2), (5, 7)]
    assert places(texts, units, "é a") == [(2, 6)]
    assert places(texts, units, "\n") == [(7, 8)]
    assert places(texts, units, " ") == [(4, 5)]
    assert places(texts, units, "c") == []
    assert places(("a", "a", "a"), [(0, 1), (1, 2), (2, 3)], "aa") == [(0, 2)]


# what a view says


def test_a_view_of_one_token(explained: Explanation) -> None:
    for t, view in enumerate(explained):
        check = explained.checks[t]
        assert (view.status, view.reason, view.checks) == (check.status, check.reason, (check,))
        assert view.logprob == explained.replay.logprobs[t]
        assert view.probability == math.exp(view.logprob)
        assert view.rank == explained.replay.ranks[t]
        assert view.foil is None
        assert torch.equal(view.values(), explained.deletion.values[t])
        assert torch.equal(view.values(GRADIENTS), explained.gradients.values[t])


def test_a_view_of_a_run(explained: Explanation) -> None:
    view, parts = explained[1:5], list(explained)[1:5]
    assert view.text == "".join(part.text for part in parts)
    assert view.logprob == pytest.approx(sum(part.logprob for part in parts))
    assert view.probability == pytest.approx(math.prod(part.probability for part in parts))
    assert view.rank == max(part.rank for part in parts)
    assert view.status == joint_status([part.status for part in parts])
    assert view.reason in [part.reason for part in parts if part.status == view.status]
    stacked = torch.stack([part.values() for part in parts])
    assert torch.allclose(view.values(), stacked.sum(dim=0))
    rollouts = torch.stack([part.values(ROLLOUT) for part in parts])
    assert torch.allclose(view.values(ROLLOUT), rollouts.mean(dim=0))
    assert float(view.values(ROLLOUT).sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("key", [0, -1, "Paris", "the capital", slice(None)])
def test_sources_add_up(explained: Explanation, key: Any) -> None:
    view = explained[key]
    for method in computed(explained):
        total = float(view.values(method).sum())
        for by in ("token", "word", "sentence"):
            sources = view.sources(by=by, method=method)
            assert sum(source.value for source in sources) == pytest.approx(total, abs=1e-9)
            assert sum(source.share for source in sources) == pytest.approx(1)
            assert [abs(s.value) for s in sources] == sorted((abs(s.value) for s in sources), reverse=True)
            assert view.top(2, by=by, method=method) == sources[:2]
            covered = sorted(source.tokens for source in sources)
            assert all(end <= start for (_, end), (start, _) in pairwise(covered))
            texts = explained.generation.texts
            assert all(source.text == "".join(texts[slice(*source.tokens)]) for source in sources)


def test_top(explained: Explanation) -> None:
    view = explained["Rome"]
    assert len(view.top()) == 3
    assert view.top(0) == []
    assert view.top(10_000) == view.sources()
    assert {source.text.strip() for source in view.sources(by="sentence")} >= {
        "The capital of France?",
        "Then of Italy.",
    }
    assert {source.role for source in view.sources()} == {Role.SYSTEM, Role.USER, Role.GENERATED}
    assert all(isinstance(source, Source) for source in view.top())
    with pytest.raises(OptionError, match="n is -1; expected at least 0"):
        view.top(-1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "words"}, "by 'words' is unknown. Did you mean 'word'? Known: token, word, sentence."),
        ({"method": "lime"}, "method 'lime' was not computed for this answer. Computed: layer_integrated_gradients,"),
        ({"method": "attention_rolout"}, "Did you mean 'attention_rollout'?"),
        ({"method": "lime"}, "explain with Settings(also=(...,))"),
        ({"method": "deep_lift"}, "method 'deep_lift' is refused for this model: deep_lift: tiny llama computes"),
    ],
)
def test_sources_that_there_are_not(explained: Explanation, options: dict[str, str], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        explained[0].top(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refused_rollout(tmp_path: Path) -> None:
    explanation = explain(make_loaded("lfm2", initializer_range=0.1), "The capital", response=" Paris", settings=QUICK)
    with pytest.raises(OptionError, match=r"method 'attention_rollout' is refused for this model: .*Computed: layer_i"):
        explanation[0].top(method=ROLLOUT)
    assert set(explanation.to_frame()["method"]) == {GRADIENTS}
    with pytest.raises(OptionError, match="refused"):
        explanation.to_frame("wide", method=ROLLOUT)
    with pytest.raises(OptionError, match="refused"):
        explanation.to_frame(method=ROLLOUT)
    assert {check.attention for check in explanation.checks} == {AttentionStatus.REFUSED}
    assert {check.status for check in explanation.checks} <= set(CURRENT)
    assert load_explanation(explanation.save(tmp_path / "out")) == explanation


# effects


def test_effects_of_a_token(explained: Explanation) -> None:
    effects = explained.effects
    assert effects is not None
    for t, view in enumerate(explained):
        found = view.effects()
        assert found is not None
        assert sorted(effect.tokens for effect in found) == sorted(effects.units)
        drops = {effect.tokens: effect.drop for effect in found}
        assert drops == pytest.approx(dict(zip(effects.units, effects.drop[t].tolist(), strict=True)))
        assert [abs(e.drop) for e in found] == sorted((abs(e.drop) for e in found), reverse=True)
        for effect in found:
            assert effect.probability == pytest.approx(view.probability, rel=1e-4)
            assert math.log(effect.probability / effect.without) == pytest.approx(effect.drop, abs=1e-9)
            assert effect.role in (Role.SYSTEM, Role.USER)
        assert view.effects(2) == found[:2]


def test_effects_of_a_run_are_the_sums(explained: Explanation) -> None:
    run = {effect.tokens: effect.drop for effect in explained[1:4].effects() or []}
    for unit, drop in run.items():
        alone = [
            effect.drop for view in list(explained)[1:4] for effect in view.effects() or [] if effect.tokens == unit
        ]
        assert drop == pytest.approx(sum(alone))


def test_effects_where_nothing_was_removed(spelt: Callable[[str], Explanation]) -> None:
    explanation = spelt(" Paris")
    assert explanation.effects is None
    assert explanation[0].effects() is None
    assert "undecided (nothing was removed to check it)" in explanation.summary()
    assert "\nremoval:" not in explanation.summary()
    with pytest.raises(OptionError, match="n is -2"):
        explanation[0].effects(-2)


def test_a_contrast(contrast: Explanation) -> None:
    foil = contrast.generation.foil
    assert foil is not None
    view = contrast[foil.t]
    assert view.foil == foil.text
    assert contrast[:].foil == foil.text
    assert f"rather than {foil.text!r}" in repr(view)
    others = [other for other in contrast if other.tokens[0] != foil.t]
    assert all(other.foil is None for other in others)
    (effect,) = view.effects(1) or []
    assert (effect.probability, effect.without) == (None, None)
    assert "p " not in repr(effect).split("nats")[1]
    summary = contrast.summary()
    assert f"\nfoil:     {view.text!r} rather than {foil.text!r}\n" in summary
    assert "removal:  each alone: lead over the foil " in summary


# tables


def test_the_long_table(explained: Explanation) -> None:
    frame = explained.to_frame()
    assert frame.dtypes.astype(str).to_dict() == LONG_COLUMNS
    assert list(frame["method"].unique()) == computed(explained)
    for name in computed(explained):
        scores, part = explained.scores[name], frame[frame["method"] == name]
        assert len(part) == int(scores.features.sum())
        values = np.zeros(scores.values.shape)
        values[part["target"], part["token"]] = part["value"]
        assert (values == scores.values.numpy()).all()
        assert part.reset_index(drop=True).equals(explained.to_frame(method=name))
    texts, first = explained.generation.texts, explained.generation.prompt_len
    assert list(frame["text"]) == [texts[i] for i in frame["token"]]
    assert list(frame["target_text"]) == [texts[first + t] for t in frame["target"]]
    assert list(frame["role"]) == [str(explained.generation.roles[i]) for i in frame["token"]]
    assert list(frame["status"]) == [str(explained.checks[t].status) for t in frame["target"]]
    assert list(frame.index) == list(range(len(frame)))
    sums = frame[frame["method"] == GRADIENTS].groupby("target")["value"].sum()
    assert list(sums) == pytest.approx(explained.gradients.values.sum(dim=1).tolist())


def test_the_wide_table(explained: Explanation) -> None:
    """Texts repeat; their numbers do not, so that every line and column can be looked up."""
    frame = explained.to_frame("wide", method=GRADIENTS)
    assert explained.to_frame("wide").equals(explained.to_frame("wide", method=DELETION))
    texts, first = list(explained.generation.texts), explained.generation.prompt_len
    assert frame.shape == explained.gradients.values.shape
    assert set(map(str, frame.dtypes)) == {"float64"}
    assert len(set(texts)) < len(texts)
    assert frame.index.is_unique
    assert frame.columns.is_unique
    assert list(frame.index.get_level_values("target_text")) == texts[first:]
    assert list(frame.columns.get_level_values("text")) == texts
    token = texts.index(" capital")
    assert frame.loc[(0, texts[first]), (token, " capital")] == float(explained.gradients.values[0, token])
    assert frame.xs(" capital", axis=1, level="text").shape[1] == texts.count(" capital")
    assert (frame.notna().to_numpy() == explained.gradients.features.numpy()).all()
    rollout = explained.to_frame("wide", method=ROLLOUT)
    assert rollout.sum(axis=1).to_numpy() == pytest.approx(1 - explained.rollout.lost_mass.numpy())
    long = explained.to_frame(method=GRADIENTS)
    pivoted = long.pivot(index="target", columns="token", values="value").reindex(columns=range(len(texts)))
    assert np.array_equal(pivoted.to_numpy(), frame.to_numpy(), equal_nan=True)


def test_tables_that_there_are_not(explained: Explanation) -> None:
    with pytest.raises(OptionError, match=r"form 'tall' is unknown. Known: long, wide"):
        explained.to_frame("tall")
    for form in ("long", "wide"):
        with pytest.raises(OptionError, match="'lime' was not computed"):
            explained.to_frame(form, method="lime")


def test_a_table_of_sources_and_of_effects(explained: Explanation) -> None:
    sources = pd.DataFrame(explained["Paris"].sources())
    assert list(sources.columns) == ["text", "value", "share", "role", "tokens"]
    assert sources["share"].sum() == pytest.approx(1)
    assert list(pd.DataFrame(explained["Paris"].effects())) == [
        *("text", "drop", "probability", "without", "role", "tokens")
    ]


# summaries


def summary(explanation: Explanation) -> dict[str, str]:
    return {name: line.strip() for name, line in (row.split(":", 1) for row in explanation.summary().splitlines())}


def test_the_summary_of_a_chat(explained: Explanation) -> None:
    said = summary(explained)
    assert list(said) == ["asked", "answered", "status", "sources", "removal"]
    assert said["asked"] == "The capital of France? Then of Italy.  (a chat of 2 messages)"
    assert said["answered"] == f"{RESPONSE}  (given)"
    counts = [int(part.split()[0]) for part in said["status"].split("; ")]
    assert sum(counts) == len(explained.answer_words())
    assert len(said["sources"].split("), ")) == 5
    first = next(s for s in explained[:].sources() if s.role != Role.GENERATED)
    assert said["sources"].startswith(f"{first.text.strip()!r} {first.value:+.2f} nats ({first.share:.0%})")
    (effect,) = explained[:].effects(1) or []
    assert said["removal"].startswith(f"each alone: log-prob {-effect.drop:+.2f} nats without {effect.text.strip()!r}")


def test_the_summary_says_what_was_asked(tiny_llama: LoadedModel) -> None:
    raw = explain(tiny_llama, "The capital\nof  France", max_new_tokens=2, settings=BARE)
    assert summary(raw)["asked"] == "The capital of France"
    assert summary(raw)["answered"].endswith("(cut here)")
    ids = tiny_llama.tokenizer("The capital of France")["input_ids"]
    assert summary(explain(tiny_llama, ids, max_new_tokens=2, settings=BARE))["asked"] == "The capital of France"
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    turns += [{"role": "user", "content": "Which city?"}, {"role": "tool", "content": "Rome"}]
    chat = explain(tiny_llama, turns, max_new_tokens=2, settings=BARE)
    assert summary(chat)["asked"] == "Which city?  (a chat of 4 messages)"
    only = explain(tiny_llama, [{"role": "system", "content": "Speak"}], max_new_tokens=2, settings=BARE)
    assert summary(only)["asked"] == "Speak"
    special = explain(
        tiny_llama,
        tiny_llama.tokenizer("<s>")["input_ids"],
        response=" a",
        settings=Settings(features="all", removal=None),
    )
    assert summary(special)["asked"] == "<s>"


def test_a_classifier(tmp_path: Path) -> None:
    explanation = explain(make_classifier(), "The answer was short.", settings=QUICK)
    assert len(explanation) == 1
    said = summary(explanation)
    assert explanation.answer in CLASSES.values()
    assert said["asked"] == "The answer was short."
    probability = f"{explanation[0].probability:.2g}"
    assert said["answered"] == f"{explanation.answer}  (one of 3 classes, p = {probability})"
    assert explanation[explanation.answer] == explanation[0] == explanation[:]
    assert {source.text.strip() for source in explanation[0].sources()} <= {"the", "The", "answer", "was", "short", "."}
    assert explanation.to_frame("wide").shape == (1, len(explanation.generation.ids))
    assert load_explanation(explanation.save(tmp_path / "out")) == explanation


def test_an_encoder_decoder(tmp_path: Path) -> None:
    loaded = make_encoder_decoder()
    explanation = explain(loaded, "The capital of France", response="Paris, Rome", settings=QUICK)
    said = summary(explanation)
    assert said["asked"] == "The capital of France"
    assert said["answered"] == "Paris, Rome  (given)"
    assert explanation["Rome"].text.strip() == "Rome"
    assert {source.role for source in explanation["Rome"].sources()} == {Role.USER, Role.GENERATED}
    assert load_explanation(explanation.save(tmp_path / "out")) == explanation


# copies and folders


def test_pickle_and_copies(explained: Explanation, contrast: Explanation) -> None:
    for explanation in (explained, contrast):
        for again in (pickle.loads(pickle.dumps(explanation)), copy.copy(explanation), copy.deepcopy(explanation)):
            assert again == explanation
            assert repr(again) == repr(explanation)
            assert again.summary() == explanation.summary()
            assert again[0].top() == explanation[0].top()
    view = pickle.loads(pickle.dumps(explained["Rome"]))
    assert isinstance(view, TokenView)
    assert view == explained["Rome"]


def test_the_round_trip_through_a_folder(explained: Explanation, contrast: Explanation, tmp_path: Path) -> None:
    for number, explanation in enumerate((explained, contrast)):
        folder = explanation.save(tmp_path / str(number))
        again = load_explanation(folder)
        assert again == explanation
        assert again.to_dict() == llmxai.load_explanation(str(folder)).to_dict()
        assert again.to_html() == explanation.to_html()
        assert again.summary() == explanation.summary()
        assert repr(again) == repr(explanation)
        assert again.settings == explanation.settings
        assert again.to_frame().drop(columns="value").equals(explanation.to_frame().drop(columns="value"))
        assert np.allclose(again.to_frame()["value"], explanation.to_frame()["value"], rtol=1e-6, atol=1e-9)
        assert [e.text for e in again[0].effects() or []] == [e.text for e in explanation[0].effects() or []]
        assert load_explanation(again.save(tmp_path / f"{number} again")) == explanation


def test_the_page_and_the_notebook(explained: Explanation) -> None:
    page = explained.to_html()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "<iframe" in explained._repr_html_()
    document = explained.to_dict()
    assert document["schema"].startswith("llmxai.explanation/")
    assert len(document["targets"]) == len(explained)


def test_the_mark_that_ends_an_answer_is_no_part_of_it(tiny_llama: LoadedModel) -> None:
    generation: Generation = answered(tiny_llama, "The capital", " Paris<|im_end|>")
    explanation = explain(tiny_llama, generation, settings=BARE)
    assert explanation.answer == " Paris<|im_end|>"
    object.__setattr__(generation, "stop", "eos")
    assert explain(tiny_llama, generation, settings=BARE).answer == " Paris"


def with_few_nodes(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, settings: Settings | None = None, **options: Any) -> Any:
        few = replace(
            settings or Settings(), gradients=IntegratedGradients(max_nodes=8), deletion=DeletionPath(max_nodes=8)
        )
        return function(*arguments, settings=few, **options)

    return called


@pytest.mark.slow
def test_the_page_about_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|text)\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "python.md", "exec", dont_inherit=True), names)
            # the numbers that the page shows come from its first block; all others are computed with few nodes
            names |= {"explain": with_few_nodes(explain), "explain_many": with_few_nodes(explain_many)}
    shown = [block for kind, block in blocks if kind == "text"]
    assert shown[0].splitlines()[:2] == names["explanation"].summary().splitlines()[:2]
    for line, found in zip(shown[1].splitlines(), (names["paris"].top(3), names["paris"].effects(3)), strict=True):
        assert re.findall("'(.*?)'", line) == [each.text for each in found]
        values, expected = (re.findall(r"[+-]\d+\.\d+", text) for text in (line, repr(found)))
        assert list(map(float, values)) == pytest.approx(list(map(float, expected)), rel=0.02)
