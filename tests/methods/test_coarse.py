"""Removal from coarse to fine: the tree of units, the plan, and every figure against a slow loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmxai.generation import chat_inputs, encode_messages, encode_prompt, force_response
from llmxai.methods import measure_effects, token_targets
from llmxai.methods.features import CONTENT
from llmxai.methods.perturbation import coarse
from llmxai.methods.perturbation.coarse import disjoint, packs, reader_of, seen_by_copies, tree_of
from llmxai.methods.perturbation.removal import MOST_UNITS
from llmxai.methods.perturbation.tree import context_of, in_runs, paragraphs, pieces_of, roots_of
from llmxai.models import LoadedModel
from llmxai.models.forward import run
from llmxai.settings import Removal
from llmxai.stats import ridge_with_prior
from llmxai.types import Effects, Generation, Piece
from tests.tiny import make_loaded

TEXTS = (
    "The capital of Italy is Rome. A person asked. The answer was short.\n\nHello there, how are you today? Red blue.",
    "You are a helpful assistant. The answer was red. The city was green.",
    "Hello there. The capital of France is Paris. Blue content 1 2 3.\n\nA tool name. A model text.",
)
QUESTION = "Which city is the capital of France?"
CLOSE = {"atol": 1e-5, "rtol": 0.0}
"""Nats. Norms and softmax of this model are float32, and round otherwise in another batch or on another CPU."""


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return make_loaded("llama", dtype=torch.float64, attn_implementation="eager", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def asked(loaded: LoadedModel) -> Generation:
    """Three documents, the second without a title, and a question."""
    documents = [{"title": f"City {i}", "text": text} for i, text in enumerate(TEXTS)]
    documents[1].pop("title")
    prompt = encode_messages(loaded, [{"role": "user", "content": QUESTION}], chat_inputs(documents=documents))
    return force_response(loaded, prompt, response=" Paris, Rome")


def text_of(generation: Generation, piece: Piece) -> str:
    return "".join(generation.texts[slice(*piece.tokens)])


# the tree


def test_roots_are_documents_with_their_titles_and_turns(asked: Generation) -> None:
    roots = roots_of(asked)
    assert [root.kind for root in roots] == ["document", "document", "document", "turn"]
    texts = [text_of(asked, root).strip() for root in roots]
    assert texts == [f"City 0\n{TEXTS[0]}", TEXTS[1], f"City 2\n{TEXTS[2]}", QUESTION]
    assert [asked.parts[root.part].title for root in roots[:3]] == ["City 0", "Document 2", "City 2"]


def test_the_tree_goes_down_to_words(asked: Generation) -> None:
    first, second = roots_of(asked)[:2]
    parts = pieces_of(asked, first)
    assert [piece.kind for piece in parts] == ["paragraph", "paragraph"]
    inner = pieces_of(asked, parts[0])
    assert {piece.kind for piece in inner} == {"sentence"}
    assert [text_of(asked, piece).strip() for piece in inner][2:] == ["A person asked.", "The answer was short."]
    assert [piece.kind for piece in pieces_of(asked, second)] == ["sentence"] * 3, (
        "one paragraph: straight to sentences"
    )
    words = pieces_of(asked, inner[2])
    assert [text_of(asked, piece).strip() for piece in words] == ["A", "person", "asked", "."]
    assert pieces_of(asked, words[0]) == ()


def test_a_prompt_of_one_part_has_its_paragraphs_as_roots(loaded: LoadedModel) -> None:
    generation = force_response(loaded, encode_prompt(loaded, f"{TEXTS[0]}\n\n{TEXTS[1]}"), response=" Rome")
    assert len(roots_of(generation)) == 1
    assert [piece.kind for piece in tree_of(generation)] == ["paragraph"] * 3


def test_paragraphs_end_at_an_empty_line_however_it_is_cut_into_tokens() -> None:
    texts = ["one", " two", "\n", "\n", "three", "\n", "four", ".\n\n", "five", " \n \n", "six"]
    words = [(i, i + 1) for i in range(len(texts))]
    found = ["".join(texts[a:b]) for a, b in paragraphs(texts, words)]
    texts = ["  ", "one", " two", "\n\n", "three", "\n"]
    found_blank = paragraphs(texts, [(i, i + 1) for i in range(len(texts))])
    assert found_blank == [(0, 4), (4, 6)], "white space is no paragraph"
    assert found == ["one two\n\n", "three\nfour.\n\n", "five \n \n", "six"]


def test_too_many_pieces_are_joined_to_runs_that_keep_them() -> None:
    pieces = [Piece("document", (i, i + 1), i) for i in range(10)]
    runs = in_runs(pieces, 4)
    assert [run.tokens for run in runs] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert runs[0].kind == "run of documents"
    assert tuple(piece for run in runs for piece in run.inner) == tuple(pieces)
    assert in_runs(pieces, 10) == tuple(pieces)
    assert [run.kind for run in in_runs(runs, 2)] == ["run of documents"] * 2


def test_ranges_are_cut_where_another_begins() -> None:
    assert disjoint([[(0, 4)], [(2, 6)], [(8, 9)]]) == [(0, 2), (2, 4), (4, 6), (8, 9)]


def test_the_context_is_the_documents_else_all_but_the_last_turn(asked: Generation) -> None:
    assert context_of(asked, roots_of(asked)) == (0, 1, 2)
    turns = [Piece("turn", (i, i + 1), i) for i in range(3)]
    assert context_of(asked, turns) == (0, 1)
    assert context_of(asked, [replace(turn, kind="paragraph") for turn in turns]) == (), (
        "pieces of one turn are no context"
    )


# every figure against a loop


def logprobs(loaded: LoadedModel, ids: list[int], answer: int, mask: Tensor | None = None) -> Tensor:
    """[token, vocab] of the last `answer` tokens of `ids`."""
    with torch.no_grad():
        given = {} if mask is None else {"attention_mask": mask[None, None]}
        logits = loaded.model(torch.tensor([ids]), use_cache=False, **given).logits[0]
    return torch.log_softmax(logits[-answer - 1 : -1].double(), dim=-1)


def deleted(loaded: LoadedModel, generation: Generation, ranges: list[tuple[int, int]]) -> Tensor:
    gone = {i for start, end in ranges for i in range(start, end)}
    ids = [token for i, token in enumerate(generation.ids) if i not in gone]
    return logprobs(loaded, ids, generation.n_targets)


def hidden(loaded: LoadedModel, generation: Generation, ranges: list[tuple[int, int]], reader: int) -> Tensor:
    """The ranges are hidden from every token behind them that belongs to the reader."""
    n = len(generation.ids)
    mask = torch.zeros(n, n, dtype=torch.float64).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    for start, end in ranges:
        for i in range(start, end):
            mask[max(i + 1, reader) :, i] = -torch.inf
    return logprobs(loaded, list(generation.ids), generation.n_targets, mask)


def picked(generation: Generation, found: Tensor) -> Tensor:
    return found.gather(1, torch.tensor(generation.generated_ids)[:, None])[:, 0]


def check(loaded: LoadedModel, generation: Generation, found: Effects) -> None:
    context = found.context
    assert context is not None
    reader = reader_of(generation, context.pieces[: context.roots])

    def slow(ranges: list[tuple[int, int]]) -> Tensor:
        if context.how == "hide":
            return hidden(loaded, generation, ranges, reader)
        return deleted(loaded, generation, ranges)

    full = slow([])
    assert context.f_full == pytest.approx(float(picked(generation, full).sum()), abs=1e-5)
    for number, unit in enumerate(found.units):
        assert torch.allclose(found.f_without[:, number], picked(generation, slow([unit])), **CLOSE)
    for number, row in enumerate(found.kept.tolist()[:4]):
        want = picked(generation, slow([unit for unit, stays in zip(found.units, row, strict=True) if not stays]))
        assert torch.allclose(found.f_masked[:, number], want, **CLOSE)
        assert float(context.f_masked[number]) == pytest.approx(float(want.sum()), abs=1e-5)
    for number, piece in enumerate(context.pieces):
        changed = slow([piece.tokens])
        assert float(context.f_without[number]) == pytest.approx(float(picked(generation, changed).sum()), abs=1e-5)
        if number < context.roots:
            divergence = (full.exp() * (full - changed)).sum(dim=1)
            assert torch.allclose(context.divergence[:, number], divergence, **CLOSE)
            assert (divergence >= -1e-9).all()
    everything = slow([context.pieces[i].tokens for i in context.context])
    assert torch.allclose(context.divergence_all, (full.exp() * (full - everything)).sum(dim=1), **CLOSE)


def test_by_deletion(loaded: LoadedModel, asked: Generation) -> None:
    found = measure_effects(loaded, asked, removal=Removal(subsets=8))
    assert found.operator == "delete"
    check(loaded, asked, found)
    assert found.context is not None
    assert found.context.f_deleted.isnan().all()


def test_by_hiding_what_has_been_read(loaded: LoadedModel, asked: Generation) -> None:
    found = measure_effects(loaded, asked, removal=Removal(subsets=8, recomputed=900))
    assert found.operator == "hide"
    check(loaded, asked, found)
    check_deleted(loaded, asked, found)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_many_pieces_are_hidden_in_one_pass(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded(architecture, dtype=torch.float64, attn_implementation="sdpa", max_position_embeddings=1024)
    assert packs(loaded.model)
    prompt = encode_messages(loaded, [{"role": "user", "content": QUESTION}], chat_inputs(documents=list(TEXTS)))
    generation = force_response(loaded, prompt, response=" Paris, Rome")
    lengths: list[int] = []

    def watched(model: Any, **arguments: Any) -> Any:
        lengths.append(arguments["input_ids"].shape[1])
        return run(model, **arguments)

    monkeypatch.setattr(coarse, "run", watched)
    removal = Removal(subsets=8, recomputed=900, chunk_tokens=256)
    found = measure_effects(loaded, generation, removal=removal)
    assert found.operator == "hide"
    assert 2 * len(lengths) < found.context.forwards if found.context else False
    assert max(lengths) <= 256
    check(loaded, generation, found)
    check_deleted(loaded, generation, found)


def test_a_window_does_not_let_copies_share_a_pass() -> None:
    assert not packs(make_loaded("gemma3_text", attn_implementation="sdpa").model)
    assert not packs(make_loaded("llama", attn_implementation="eager").model)


def test_what_copies_see() -> None:
    seen = seen_by_copies([[(1, 2)], [(2, 4)]], start=3, n=2)
    want = [
        [1, 0, 1, 1, 0, 0, 0],  # the first copy does not see token 1
        [1, 0, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],  # the second neither sees token 2 nor, except from itself, token 3
        [1, 1, 0, 0, 0, 0, 1],
    ]
    assert torch.equal(seen, torch.tensor(want, dtype=torch.bool))


def test_the_beginning_of_an_answer_reads_the_context_together_with_the_question(loaded: LoadedModel) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    prompt = encode_messages(loaded, messages, chat_inputs(continue_final_message=True))
    generation = force_response(loaded, prompt, response=" Paris")
    roots = roots_of(generation)
    assert [text_of(generation, root).strip() for root in roots] == [message["content"] for message in messages]
    assert context_of(generation, roots) == (0,)
    assert reader_of(generation, roots) == roots[1].tokens[0]


def check_deleted(loaded: LoadedModel, asked: Generation, found: Effects) -> None:
    context = found.context
    assert context is not None
    fall = context.f_full - context.f_without
    enough = max(0.5, 0.3 * float(fall.max()))
    done = (~context.f_deleted.isnan()).nonzero()[:, 0].tolist()
    assert done, "what comes first is deleted as well"
    for number in done:
        want = picked(asked, deleted(loaded, asked, [context.pieces[number].tokens])).sum()
        assert float(context.f_deleted[number]) == pytest.approx(float(want), abs=1e-5)
        assert float(context.drop[number]) == pytest.approx(context.f_full - float(want), abs=1e-5)
    for several in ([i for i in done if i < context.roots], [i for i in done if i >= context.roots]):
        below = [i for i in several if float(fall[i]) < enough]
        assert len(below) <= 1, "only the first of them is deleted whatever its fall"


def test_nothing_is_deleted_where_no_token_may_be_recomputed(loaded: LoadedModel, asked: Generation) -> None:
    found = measure_effects(loaded, asked, removal=Removal(subsets=4, recomputed=0))
    assert found.context is not None
    assert found.context.f_deleted.isnan().all()


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text"])
def test_other_attention(architecture: str) -> None:
    """Learned positions shift with a deletion; windows do not keep all keys of a prefix."""
    loaded = make_loaded(architecture, dtype=torch.float64, attn_implementation="eager")
    documents = [{"text": "The capital of Italy is Rome. " * 3}, {"text": "Hello there. The answer was short. " * 3}]
    prompt = encode_messages(loaded, [{"role": "user", "content": QUESTION}], chat_inputs(documents=documents))
    generation = force_response(loaded, prompt, response=" Paris")
    for recomputed in (100_000, 200):
        found = measure_effects(loaded, generation, removal=Removal(subsets=4, recomputed=recomputed, units="word"))
        context = found.context
        assert context is not None
        for number, piece in enumerate(context.pieces):
            if not context.f_deleted[number].isnan() or context.how == "delete":
                want = picked(generation, deleted(loaded, generation, [piece.tokens])).sum()
                got = context.f_without if context.how == "delete" else context.f_deleted
                assert float(got[number]) == pytest.approx(float(want), abs=1e-5)


# the plan


def test_the_units_are_a_partition_of_the_roots(loaded: LoadedModel, asked: Generation) -> None:
    found = measure_effects(loaded, asked, removal=Removal(subsets=4))
    ends = [end for _, end in found.units]
    assert all(start >= end for (start, _), end in zip(found.units[1:], ends, strict=False))
    covered = {i for start, end in found.units for i in range(start, end)}
    content = {i for i in range(asked.prompt_len) if asked.roles[i] in CONTENT}
    assert content <= covered
    assert found.settings["kind"] == "piece"


@pytest.mark.parametrize("budget", [16, 40, 200])
def test_the_budget_is_kept(loaded: LoadedModel, asked: Generation, budget: int) -> None:
    found = measure_effects(loaded, asked, removal=Removal(budget=budget))
    assert found.context is not None
    assert found.context.forwards <= budget
    assert len(found.context.pieces) + len(found.kept) <= budget


def test_more_documents_than_the_budget_are_joined(loaded: LoadedModel) -> None:
    words = ["red", "blue", "green", "1", "2", "3", "short", "tool", "name", "text"]
    documents = [{"text": f"The answer was {word}."} for word in words * 2]
    prompt = encode_messages(loaded, [{"role": "user", "content": QUESTION}], chat_inputs(documents=documents))
    generation = force_response(loaded, prompt, response=" Paris")
    found = measure_effects(loaded, generation, removal=Removal(budget=20, subsets=4))
    assert found.context is not None
    kinds = {piece.kind for piece in found.context.pieces[: found.context.roots]}
    assert any(kind.startswith("run of ") for kind in kinds)
    assert found.context.forwards <= 20
    assert found.context.context, "runs of documents are the context"


def test_a_piece_that_was_not_taken_apart_is_bounded(loaded: LoadedModel, asked: Generation) -> None:
    context = measure_effects(loaded, asked, removal=Removal(budget=20, subsets=4)).context
    assert context is not None
    assert context.rest
    assert context.bound == pytest.approx(float(context.drop[list(context.rest)].abs().max()))
    if len(context.rest) > 1:
        ranges = [context.pieces[i].tokens for i in context.rest]
        assert context.f_rest == pytest.approx(float(picked(asked, deleted(loaded, asked, ranges)).sum()), abs=1e-5)


def test_short_prompts_keep_their_words_as_units(loaded: LoadedModel) -> None:
    one = [{"role": "user", "content": QUESTION}]
    generation = force_response(loaded, encode_messages(loaded, one), response=" Paris")
    assert measure_effects(loaded, generation).context is None, "one turn is no context"
    two = [{"role": "system", "content": "You are a helpful assistant."}, *one]
    generation = force_response(loaded, encode_messages(loaded, two), response=" Paris")
    found = measure_effects(loaded, generation)
    assert found.settings["kind"] == "word"
    assert len(found.units) <= MOST_UNITS
    assert found.context is not None
    assert [piece.kind for piece in found.context.pieces] == ["turn", "turn"]
    assert found.context.context == (0,)


def test_documents_of_few_words_are_opened_to_their_sentences(loaded: LoadedModel) -> None:
    documents = ["The answer was red. The city was green.\n\nHello there.", "The capital of France is Paris."]
    prompt = encode_messages(loaded, [{"role": "user", "content": QUESTION}], chat_inputs(documents=documents))
    generation = force_response(loaded, prompt, response=" Paris")
    found = measure_effects(loaded, generation, removal=Removal(subsets=4))
    assert found.settings["kind"] == "word"
    context = found.context
    assert context is not None
    inner = context.pieces[context.roots :]
    said = [text_of(generation, piece).strip() for piece in inner]
    assert said == ["The answer was red.", "The city was green.", "Hello there."], "a single sentence is its document"
    for number, piece in enumerate(inner, start=context.roots):
        want = float(picked(generation, deleted(loaded, generation, [piece.tokens])).sum())
        assert float(context.f_without[number]) == pytest.approx(want, abs=1e-5)
    assert context.rest == ()
    units = measure_effects(loaded, generation, removal=Removal(subsets=4, units="sentence"))
    assert units.context is not None
    assert len(units.context.pieces) == units.context.roots, "sentences that are units are not removed again"
    tight = measure_effects(loaded, generation, removal=Removal(subsets=4, budget=16)).context
    assert tight is not None
    assert tight.forwards <= 16


def test_the_effect_of_a_document_is_over_halves_of_the_others(loaded: LoadedModel, asked: Generation) -> None:
    context = measure_effects(loaded, asked, removal=Removal(subsets=8)).context
    assert context is not None
    rows, f = [], []
    for stays in ((1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        ranges = [context.pieces[i].tokens for i in range(3) if not stays[i]]
        rows.append(stays)
        f.append(float(picked(asked, deleted(loaded, asked, ranges)).sum()))
    fit = ridge_with_prior(np.array(rows, dtype=float), np.array(f), np.zeros(3))
    effect, low, high = context.estimates
    assert np.allclose(effect[:3].numpy(), fit.mean, atol=1e-5)
    for side, want in zip((low, high), fit.interval(0.9), strict=True):
        assert np.allclose(side[:3].numpy(), want, atol=1e-5)
    question = float(context.f_full - context.f_without[3])
    assert [float(side[3]) for side in (effect, low, high)] == [pytest.approx(question)] * 3
    without = measure_effects(loaded, asked, removal=Removal(subsets=0)).context
    assert without is not None
    assert torch.equal(without.estimates[0], without.drop[: without.roots])


def test_a_chosen_target_gets_the_same_effects(loaded: LoadedModel, asked: Generation) -> None:
    both = measure_effects(loaded, asked, removal=Removal(subsets=4, units="sentence"))
    first = measure_effects(
        loaded, asked, targets=token_targets(asked)[:1], removal=Removal(subsets=4, units="sentence")
    )
    assert torch.allclose(both.f_masked[0], first.f_masked[0], **CLOSE)
    assert both.context is not None
    assert first.context is not None
    assert both.context.f_full == pytest.approx(first.context.f_full, abs=1e-9)
