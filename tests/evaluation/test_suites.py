"""Generated questions: the same from a seed, the sources where they are said to be, and tokens found for them."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from tiny import make_loaded

from llmxai.errors import PromptError, RecipeError
from llmxai.evaluation import SUITES, Case, Row, locate, make_case, require_suite, suite_rows, token_positions
from llmxai.evaluation.metrics import source_ranks
from llmxai.evaluation.planted_models import build, contributions
from llmxai.generation import answer, chat_inputs, encode_messages, force_response
from llmxai.models import LoadedModel
from llmxai.types import Generation


def answered(loaded: LoadedModel, row: Row) -> Generation:
    return answer(loaded, row.asked, response=row.response)


def explained(case: Case) -> tuple[int, ...]:
    """The generated tokens that the target is about."""
    return tuple(position - case.generation.prompt_len + 1 for position in case.target.positions)


def rows(name: str, *, limit: int = 30, seed: int = 0, **options: object) -> list[Row]:
    return list(suite_rows(name, limit=limit, seed=seed, options=options))


@pytest.mark.parametrize("name", SUITES)
def test_a_seed_gives_the_same_rows_and_another_seed_others(name: str) -> None:
    assert rows(name, limit=6) == rows(name, limit=6) == rows(name, limit=12)[:6]
    assert rows(name, limit=6) != rows(name, limit=6, seed=1)
    assert len({row.id for row in rows(name)}) == 30


@pytest.mark.parametrize("name", SUITES)
def test_every_row_has_an_answer_and_sources_inside_its_text(name: str) -> None:
    for row in rows(name):
        assert row.response
        assert row.spans or row.document_spans
        assert all(0 <= start < end <= len(row.documents[i]["text"]) for i, start, end in row.document_spans)
        assert all(0 <= start < end <= len(row.text) for start, end in row.spans)
        assert row.foil != row.response


@pytest.mark.parametrize("name", ["needle", "key_value", "context_memory", "indirect_object", "induction"])
def test_the_source_is_the_answer_itself(name: str) -> None:
    for row in rows(name):
        (span,) = row.spans
        assert row.text[slice(*span)].lower() == (row.response or "").strip().lower()


def test_needles_lie_at_their_depths() -> None:
    for row in rows("needle", lengths=[10], depths=[0.0, 0.5, 1.0], distractors=2, limit=9):
        fact = str(row.fields["fact"])
        before = row.text[: row.text.index(fact)].count(".")
        assert before == {0.0: 0, 0.5: 6, 1.0: 12}[float(row.fields["depth"])]
        assert row.text.count(" is ") - row.text.count("the weather is") >= 3


def test_the_answer_stands_in_one_sentence_of_one_document() -> None:
    for row in rows("rag", limit=12):
        ((number, start, end),) = row.document_spans
        fact = row.documents[number]["text"][start:end]
        assert row.response is not None
        assert fact.endswith(f" is {row.response.lower()}.")
        assert fact[: -len(f" is {row.response}.")].replace("The ", "the ") in row.text
        assert sum(fact in document["text"] for document in row.documents) == 1
        assert len(row.documents) == row.fields["documents"]


@pytest.mark.parametrize("distractors", [0, 9])
def test_the_beginning_of_a_fact_asks_for_its_end(distractors: int) -> None:
    found = list(rows("long", limit=12, distractors=distractors))
    assert len({str(row.documents) for row in found}) == 3, "documents are asked about four times"
    for row in found:
        ((number, start, end),) = row.document_spans
        fact = row.documents[number]["text"][start:end]
        assert row.messages is not None
        assert row.given["continue_final_message"]
        assert fact.startswith(row.text + str(row.response))
        assert sum(document["text"].count(row.text + " ") for document in row.documents) == 1
        assert len(row.documents) == row.fields["documents"]


def test_long_contexts_have_about_as_many_words_as_asked_for() -> None:
    for row in rows("long", limit=3):
        words = sum(len(document["text"].split()) for document in row.documents)
        assert 0.55 * float(row.fields["tokens"]) < words + 4 * len(row.documents) < 0.95 * float(row.fields["tokens"])


def test_an_injected_instruction_names_the_answer() -> None:
    for row in rows("injection"):
        (span,) = row.spans
        assert row.messages is not None
        assert [turn["role"] for turn in row.messages] == ["user", "tool"]
        assert str(row.response) in row.text[slice(*span)]


def test_a_story_may_be_a_document() -> None:
    for plain, apart in zip(rows("context_memory"), rows("context_memory", document=True), strict=True):
        assert f"{apart.documents[0]['text']} {apart.text}" == plain.text
        ((number, start, end),) = apart.document_spans
        assert apart.documents[number]["text"][start:end] == plain.response


def test_sources_in_documents_become_tokens() -> None:
    loaded = make_loaded("llama", max_position_embeddings=2048)
    (row,) = rows("rag", limit=1)
    prompt = encode_messages(loaded, list(row.messages or ()), chat_inputs(**row.given))
    case = make_case(loaded, row, force_response(loaded, prompt, response=row.response or ""), target="answer")
    assert case.truth is not None
    marked = [case.features[i] for i in case.truth.nonzero()[:, 0].tolist()]
    ((number, start, end),) = row.document_spans
    assert row.documents[number]["text"][start:end] in "".join(case.generation.texts[i] for i in marked)
    assert marked == list(range(marked[0], marked[-1] + 1))


def test_a_begun_answer_is_a_case() -> None:
    loaded = make_loaded("llama", max_position_embeddings=4096)
    (row,) = rows("long", limit=1, tokens=[100], documents=4)
    prompt = encode_messages(loaded, list(row.messages or ()), chat_inputs(**row.given))
    generation = force_response(loaded, prompt, response=row.response or "")
    case = make_case(loaded, row, generation, target="answer")
    assert case.truth is not None
    scores = torch.zeros(len(case.features), dtype=torch.float64)
    last = int(case.truth.nonzero()[-1])
    for value, sentence in ((1.0, 1.0), (-1.0, 0.0)):
        scores[last] = value
        found = source_ranks(scores, case.truth, case.features, generation)
        assert (found["mrr_sentence"] == 1.0) == bool(sentence)
        assert found["mrr_document"] == (1.0 if sentence else 1 / 4)


def test_multi_hop_needs_both_facts() -> None:
    for row in rows("multi_hop"):
        person, place = (row.text[slice(*span)] for span in row.spans)
        thing = row.text.rsplit("Where is the ", 1)[1].split("?")[0]
        assert f"{person} has the {thing}." in row.text
        assert f"{person} is in the {place}." in row.text
        assert place.capitalize() == row.response


def test_agreement() -> None:
    for row in rows("agreement"):
        subject = row.text[slice(*row.spans[0])]
        plural = subject.endswith("s")
        assert (row.response in (" are", " were", " have")) == plural
        assert row.text.count(" the ") == row.fields["attractors"]


def test_the_marker_points_at_the_answer() -> None:
    for row in rows("marker"):
        marker, word = (row.text[slice(*span)] for span in row.spans)
        assert (marker, f" {word}") == ("*", row.response)


def test_the_closed_form_source_contributes_most() -> None:
    for row in rows("closed_form", limit=5):
        words = row.text.split()
        scores = contributions(build(), words, answer=(row.response or "").strip(), foil=(row.foil or "").strip())
        assert row.text[slice(*row.spans[0])] == words[scores.index(max(scores))]


OWN = ("marker", "trace", "closed_form", "rag", "long")
"""Suites whose sources have tests of their own."""


@pytest.mark.parametrize("name", [name for name in SUITES if name not in OWN])
def test_sources_are_found_among_the_tokens(name: str, tiny_llama: LoadedModel) -> None:
    """On a byte-level tokenizer, in a chat or raw: what the chosen tokens spell is the source."""
    for row in rows(name, limit=3):
        case = make_case(tiny_llama, row, answered(tiny_llama, row), target="first")
        positions = sorted(token_positions(case.generation, row.text, row.spans))
        spelt = "".join(case.generation.texts[i] for i in positions)
        wanted = "".join(row.text[slice(*span)] for span in sorted(row.spans))
        assert spelt.replace(" ", "") == wanted.replace(" ", "")
        assert case.truth is not None
        assert [case.features[i] for i in case.truth.nonzero()[:, 0].tolist()] == positions
        assert (case.target.kind == "contrast") == (row.foil is not None)


def test_what_was_asked_twice_is_found_in_the_last_message(tiny_llama: LoadedModel) -> None:
    messages = [{"role": "system", "content": "red blue"}, {"role": "user", "content": "red blue"}]
    generation = force_response(tiny_llama, encode_messages(tiny_llama, messages), response=" red")
    found = token_positions(generation, "red blue", [(4, 8)])
    assert min(found) > generation.texts.index("user")


def test_the_foil_is_where_the_answers_part(tiny_llama: LoadedModel) -> None:
    row = Row(id="a", source="s", prompt="The capital is", response=" Paris, Rome", foil=" Paris, red")
    case = make_case(tiny_llama, row, answered(tiny_llama, row), target="answer")
    assert explained(case)[0] > 0
    same = Row(id="a", source="s", prompt="The capital is", response=" Paris", foil=" Paris")
    with pytest.raises(PromptError, match="does not differ"):
        make_case(tiny_llama, same, answered(tiny_llama, same), target="first")


def test_targets(tiny_llama: LoadedModel) -> None:
    row = Row(id="a", source="s", prompt="The capital is", response=" Paris, Rome")
    generation = answered(tiny_llama, row)
    assert explained(make_case(tiny_llama, row, generation, target="first")) == (0,)
    whole = make_case(tiny_llama, row, generation, target="answer")
    assert explained(whole) == tuple(range(generation.n_targets))
    assert make_case(tiny_llama, row, generation, target="first").truth is None
    own = make_case(tiny_llama, replace(row, target="1:2"), generation, target="first")
    assert explained(own) == (1,)
    with pytest.raises(
        PromptError, match=rf"'token' gives {generation.n_targets} targets, and an evaluation scores one"
    ):
        make_case(tiny_llama, replace(row, target="token"), generation, target="first")


def test_unknown_names_and_options() -> None:
    with pytest.raises(RecipeError, match=r"unknown suite 'needles'. Did you mean 'needle'\?"):
        require_suite("needles", {}, where="r.yaml")
    with pytest.raises(RecipeError, match=r"no option 'depth'. Did you mean 'depths'\? It has: lengths, depths"):
        require_suite("needle", {"depth": 1}, where="r.yaml")
    with pytest.raises(RecipeError, match="suite 'needle' with"):
        list(suite_rows("needle", options={"distractors": 99}))
    assert len(list(islice(suite_rows("needle", options=None), 20))) == 10


def test_a_snippet_must_occur_once() -> None:
    assert locate("red or blue", "blue") == (7, 11)
    for snippet, count in (("green", 0), ("red", 2), ("", 0)):
        with pytest.raises(ValueError, match=f"occurs {count} times"):
            locate("red red", snippet)


def test_gpt2_too() -> None:
    loaded = make_loaded("gpt2")
    row = rows("induction", limit=1)[0]
    assert make_case(loaded, row, answered(loaded, row), target="first").truth is not None
