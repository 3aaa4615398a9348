"""Passages as targets, and the trace, on the page and in the tables."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from tiny import make_loaded

from llmxai import Explanation, IntegratedGradients, Settings, explain, load_explanation
from llmxai.report import ReportView, build_view, render_report
from llmxai.report.export import export
from llmxai.report.focus import came_from, in_words
from llmxai.report.removal import Effects, Part
from llmxai.report.visible import label, plain
from llmxai.store import to_json, to_maps
from tests.report.sample import newest, sample

PROMPT = "The capital of France"
RESPONSE = " Paris, and the city is red. Rome is blue"


def asked(*targets: str) -> Explanation:
    settings = Settings(gradients=IntegratedGradients(max_nodes=8))
    return explain(make_loaded("llama"), PROMPT, response=RESPONSE, targets=targets or None, settings=settings)


def viewed(explanation: Explanation) -> ReportView:
    return build_view(to_json(explanation), to_maps(explanation))


def answered(view: ReportView, level: str) -> list[str]:
    """The units of the answer that have a target."""
    return [plain(view.levels[level].units[target.unit].text) for target in view.levels[level].targets]


def test_the_page_traces_the_answer_then_its_sentences_then_its_words() -> None:
    explanation = asked()
    view = viewed(explanation)
    assert view.trace is not None
    kinds = [passage.kind for passage in view.trace.passages]
    assert kinds == ["answer", "sentence", "sentence", *["word"] * (len(kinds) - 3)]
    assert [plain(passage.text).strip() for passage in view.trace.passages[1:3]] == [
        "Paris, and the city is red.",
        "Rome is blue",
    ]
    first = view.trace.passages[0].traced[0]
    found = explanation[:].traced(1)[0]
    assert plain(first.text).strip() == explanation.text(found.tokens).strip()
    assert (first.share, first.direct) == (f"{found.share:.0%}", f"{found.direct:.0%}")
    assert len(first.path) == len(found.path)
    page = render_report(view)
    assert 'id="traced"' in page
    assert page.count("<caption>Sentence: ") == 2


def test_the_panel_of_a_word_has_its_traced_and_direct_shares() -> None:
    explanation = asked()
    view = viewed(explanation)
    assert view.trace is not None
    level = view.levels["words"]
    for target in level.targets:
        unit = level.units[target.unit]
        sources = explanation[unit.start - explanation.generation.prompt_len].traced(3)
        if target.joined > 1:
            continue  # a word of several tokens has the shares of their sum
        assert [(one.share, one.direct) for one in target.traced[:3]] == [
            (round(1000 * source.share), round(1000 * source.direct)) for source in sources
        ]
        for one, source in zip(target.traced, sources, strict=False):
            assert [plain(view.trace.parts[part][0]) for part in one.path] == [
                explanation.text(step.tokens).strip() for step in source.path
            ]
            assert [view.trace.parts[part][1] for part in one.path] == [False, *[True] * (len(one.path) - 1)]


def test_the_shares_of_a_word_of_several_tokens_are_those_of_the_passage() -> None:
    explanation = explain(make_loaded("llama"), PROMPT, response=" red, Parisian")
    (told,) = (one["traced"] for one in to_json(explanation)["trace"]["passages"] if one["text"] == " Parisian")
    *_, target = viewed(explanation).levels["words"].targets
    assert target.joined == 3
    assert told
    assert [one.share for one in target.traced] == [
        round(1000 * source["share"]) for source in told[: len(target.traced)]
    ]
    assert [one.direct for one in target.traced][:2] == [round(1000 * source["direct"]) for source in told[:2]]


FRANCE, IS, CITY = (
    Part(label(text), note, ranges)
    for text, note, ranges in (
        (" France", "all 2 mentions", ((1, 2), (5, 6))),
        (" is", "earlier in the answer", ((6, 7),)),
        (" city", "", ((2, 3),)),
    )
)


@pytest.mark.parametrize(
    ("parts", "falls", "sure", "said"),
    [
        ((IS, FRANCE, CITY), (2.0, 1.7, 0.3), True, "“France” (all 2 mentions): without it, it is 18% likely instead"),
        ((CITY, FRANCE), (0.3, -1.7), True, "“city”: without it, it is 73% likely instead"),
        ((IS, CITY), (2.0, -0.3), True, ""),
        ((FRANCE,), (1.7,), False, ""),
    ],
    ids=["not the answer's own words", "what lowers it", "nothing does", "within the error"],
)
def test_where_a_word_came_from_is_the_part_whose_removal_costs_the_most(
    parts: tuple[Part, ...], falls: tuple[float, ...], sure: bool, said: str
) -> None:
    value = np.array([falls])
    effects = Effects(
        parts=parts,
        operator="removed",
        confidence="90%",
        value=value,
        low=value - (0.0 if sure else 2.0),
        high=value + (0.0 if sure else 2.0),
        logprobs=np.log([0.98]),
        contrasted=np.array([False]),
    )
    sentence = came_from(effects, [0], before=float(np.log(0.98)), prompt_len=4, contrast=False)
    assert in_words(sentence) == (f"It depends most on {said} of 98%." if said else "")


@pytest.mark.parametrize(
    ("contrast", "said"),
    [(False, "it is 5.5 times less likely on average"), (True, "its odds are 5.5 times smaller on average")],
)
def test_where_a_word_came_from_by_a_mean(contrast: bool, said: str) -> None:
    """Of random halves: no probability of any text, but a ratio."""
    value = np.array([[1.7]])
    effects = Effects(
        parts=(FRANCE,),
        operator="removed",
        confidence="90%",
        value=value,
        low=value - 0.5,
        high=value + 0.5,
        logprobs=np.log([0.98]),
        contrasted=np.array([contrast]),
    )
    sentence = came_from(effects, [0], before=2.0 if contrast else float(np.log(0.98)), prompt_len=4, contrast=contrast)
    assert in_words(sentence) == f"It depends most on “France” (all 2 mentions): without it, {said}."


def test_an_explanation_without_a_trace_has_a_page() -> None:
    view = build_view(*newest(sample(["<s>", " a"], [" b"])))
    assert view.trace is None
    assert 'id="traced"' not in render_report(view)


@pytest.mark.parametrize("level", ["words", "tokens"])
def test_a_passage_is_one_unit_on_every_level(level: str) -> None:
    view = viewed(asked("sentence"))
    assert [text.strip() for text in answered(view, level)] == ["Paris, and the city is red.", "Rome is blue"]
    assert view.verdict.counted == "Of the 2 passages explained"
    assert len(view.rows) == 2


def test_passages_inside_others_have_a_level_of_their_own() -> None:
    view = viewed(asked("answer", "city is"))
    assert [text.strip() for text in answered(view, "words")] == ["city is"]
    assert [text.strip() for text in answered(view, "passages")] == [RESPONSE.strip()]
    assert view.trace is not None
    assert [passage.kind for passage in view.trace.passages] == ["answer", "target"]
    render_report(view)


def test_the_table_of_traced_shares(tmp_path: Path) -> None:
    explanation = asked("answer", "Rome")
    folder = explanation.save(tmp_path / "one")
    assert export(folder, tmp_path / "traced.csv", table="traced") > 0
    with (tmp_path / "traced.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    sources = explanation["Rome"].traced()
    own = [row for row in rows if row["passage"].strip() == "Rome"]
    assert [float(row["share"]) for row in own] == pytest.approx([source.share for source in sources], abs=1e-6)
    assert [float(row["direct"]) for row in own] == pytest.approx([source.direct for source in sources], abs=1e-6)
    assert all(row["path"].endswith("-> Rome") for row in own)
    assert [len(row["path"].split(" -> ")) - 1 for row in own] == [len(source.path) for source in sources]


def test_a_folder_with_passages_is_read_back_whole(tmp_path: Path) -> None:
    explanation = asked("answer", "sentence", "Rome", "0:2")
    found = load_explanation(explanation.save(tmp_path / "one"))
    assert found == explanation
    assert found.targets == explanation.targets
    assert found["Rome"].traced() == explanation["Rome"].traced()
