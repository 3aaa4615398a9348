"""What `targets=` names, what a span is, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import answered

from llmxai import IntegratedGradients, Settings, explain
from llmxai.errors import OptionError
from llmxai.generation import with_foil
from llmxai.methods import chosen_targets, deletion_path, measure_effects, span_target, token_targets
from llmxai.methods.perturbation.effects import f_of_hidden
from llmxai.methods.perturbation.removal import hidden_sets
from llmxai.models import LoadedModel
from llmxai.models.memory import ChunkSize
from llmxai.settings import DeletionPath, Removal
from llmxai.types import Generation, Role, Target

RESPONSE = " Paris, and the answer is Rome"
WORDS = (" The", " sky", " is", " blue", ".", " Is", " the", " sea", " so", " blue", "?", "<|im_end|>")


def spelled(*texts: str, stop: str = "eos") -> Generation:
    """One token per text, after a question of two."""
    texts = ("Why", "?", *texts)
    return Generation(
        ids=tuple(range(len(texts))),
        prompt_len=2,
        roles=(Role.USER, Role.USER, *[Role.GENERATED] * (len(texts) - 2)),
        texts=texts,
        words=tuple((i, i + 1) for i in range(len(texts))),
        logprobs=None,
        stop=stop,
        request={"prompt": "Why?"},
    )


SAID = spelled(*WORDS)


def ranges(*asked: str, of: Generation = SAID) -> list[tuple[int, int]]:
    return [tuple(place - of.prompt_len for place in one.tokens) for one in chosen_targets(of, asked)]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("token",), [(t, t + 1) for t in range(11)]),
        (("word",), [(t, t + 1) for t in range(11)]),
        (("answer",), [(0, 11)]),
        (("sentence",), [(0, 5), (5, 11)]),
        (("sky is",), [(1, 3)]),
        ((" blue",), [(3, 4), (9, 10)]),
        (("2:4",), [(2, 4)]),
        ((":3", "10:"), [(0, 3), (10, 12)]),
        (("-2:-1",), [(10, 11)]),
        (("<|im_end|>",), [(11, 12)]),
        (("answer", "0:11", "blue", "3:4"), [(0, 11), (3, 4), (9, 10)]),
    ],
)
def test_names_of_targets(asked: tuple[str, ...], expected: list[tuple[int, int]]) -> None:
    assert ranges(*asked) == expected


def test_the_default_is_every_token_but_the_end_mark() -> None:
    assert chosen_targets(SAID, None) == token_targets(SAID) == chosen_targets(SAID, "token")
    assert len(token_targets(SAID)) == 11
    assert len(token_targets(spelled(*WORDS[:-1], stop="length"))) == 11
    assert ranges("token", of=spelled("<|im_end|>")) == [(0, 1)], "an answer that is nothing else"


def test_a_quoted_text_is_never_a_name() -> None:
    said = spelled(" answer", " 1:2", " token")
    assert ranges('"answer"', of=said) == [(0, 1)]
    assert ranges('"1:2"', of=said) == [(1, 2)]
    assert ranges("answer", of=said) == [(0, 2)]


def test_a_span_is_one_target() -> None:
    (target,) = chosen_targets(SAID, "sky is")
    assert target == Target("logprob", (2, 3), (3, 4))
    assert target == span_target(SAID, first=1, end=3)
    assert chosen_targets(SAID, target) == (target,)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("the skys", "The target 'the skys' does not occur in the answer. Nearest is 'The sky', generated tokens 0:2."),
        ("Blue.", "Nearest is 'blue.', generated tokens 3:5."),
        ('"a very wide SEA, at night"', "Nearest is 'sea', generated tokens 7:8."),
        ("what is it about skyscrapers", "Nearest is 'is', generated tokens 2:3."),
        ("zzzz", "does not occur in the answer. Targets are token, word, sentence, answer, a range i:j"),
        ("", "The target '' does not occur"),
        ("3:3", "The target 3:3 holds no token, which has 12 generated tokens"),
        ("9:4", "The target 9:4 holds no token"),
        ("4:99", "The target 4:99 reaches beyond the answer"),
        ("-50:3", "reaches beyond the answer"),
    ],
)
def test_what_is_refused(asked: str, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        chosen_targets(SAID, asked)
    assert said in str(caught.value)


def test_targets_that_overlap_are_refused_and_nested_ones_are_not() -> None:
    with pytest.raises(OptionError, match="The targets 0:3 and 2:5 overlap"):
        chosen_targets(SAID, ["0:3", "2:5"])
    assert ranges("0:3", "0:5", "1:2") == [(0, 3), (0, 5), (1, 2)]
    with pytest.raises(OptionError, match="targets is empty"):
        chosen_targets(SAID, [])


def test_the_token_of_a_foil_must_be_a_target(tiny_llama: LoadedModel) -> None:
    generation = with_foil(tiny_llama, answered(tiny_llama, "The capital is", RESPONSE), foil=" Rome")
    assert generation.foil is not None
    t = generation.foil.t
    assert [one.kind for one in chosen_targets(generation, f"{t}:{t + 1}")] == ["contrast"]
    with pytest.raises(OptionError, match=f"no target is that token. Add {t}:{t + 1}"):
        chosen_targets(generation, "answer")


def test_a_span_has_the_sum_of_its_tokens(tiny_llama: LoadedModel) -> None:
    """F is linear in the targets and the path is the same: float32 sums of 8 nodes agree to 1e-4 of the largest."""
    generation = answered(tiny_llama, response=RESPONSE)
    tokens = deletion_path(tiny_llama, generation, n_steps=8).values
    spans = (span_target(generation), span_target(generation, first=1, end=4))
    found = deletion_path(tiny_llama, generation, targets=spans, n_steps=8).values
    expected = torch.stack([tokens.sum(dim=0), tokens[1:4].sum(dim=0)])
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_span_costs_one_backward_pass_a_node(tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = answered(tiny_llama, response=RESPONSE)
    counted = []
    plain = torch.autograd.grad

    def grad(*arguments: object, **options: object) -> object:
        counted.append(1)
        return plain(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.autograd, "grad", grad)

    def passes(*targets: Target) -> int:
        counted.clear()
        deletion_path(tiny_llama, generation, targets=targets, n_steps=4)
        return len(counted)

    alone = passes(span_target(generation, first=generation.n_targets - 1))
    assert passes(span_target(generation)) == alone <= 4 < passes(*token_targets(generation))


def test_effects_of_hidden_words_on_a_span_are_sums_over_what_follows(tiny_llama: LoadedModel) -> None:
    """Against the effects on single tokens: those inside a hidden word, or before it, count as unchanged."""
    generation = answered(tiny_llama, response=RESPONSE)
    sets = hidden_sets(generation)
    size = ChunkSize(1024)
    tokens, spans = token_targets(generation), (span_target(generation), span_target(generation, first=2))
    single = f_of_hidden(tiny_llama, generation, tokens, sets, size=size)
    found = f_of_hidden(tiny_llama, generation, spans, sets, size=size)
    assert single is not None
    assert found is not None
    full = measure_effects(tiny_llama, generation, targets=tokens, removal=Removal(subsets=0, answer=False)).f_full
    for row, first in enumerate((0, 2)):
        own = single[first:]
        drop = (full[first:, None] - own).nan_to_num(0.0).sum(dim=0)
        expected = torch.where(own.isnan().all(dim=0), torch.nan, full[first:].sum() - drop)
        torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=0, equal_nan=True)


def test_an_explanation_of_spans(tiny_llama: LoadedModel) -> None:
    quick = Settings(gradients=IntegratedGradients(n_steps=4), deletion=DeletionPath(n_steps=8))
    asked = explain(tiny_llama, "The capital of France is", max_new_tokens=6, settings=quick)
    found = explain(tiny_llama, "The capital of France is", max_new_tokens=6, targets=["answer", "2:5"], settings=quick)
    assert len(found) == len(found.checks) == 2
    assert found[0].tokens == (0, 6)
    assert found[1].logprob == pytest.approx(sum(asked.replay.logprobs[2:5]))
    assert found.effects is not None
    assert found.effects.f_full.tolist() == pytest.approx([sum(asked.replay.logprobs), found[1].logprob])
    # the rows of the answer's words, computed only to be followed, are the sums of their tokens' rows
    assert found.trace is not None
    assert asked.trace is not None
    torch.testing.assert_close(found.trace.steps, asked.trace.steps, atol=1e-4, rtol=0)
    exact = {"atol": 1e-3, "rtol": 0, "equal_nan": True}
    own, theirs, n = found.trace.effects, asked.trace.effects, found.trace.n_sources
    torch.testing.assert_close(own[:, n:], theirs[:, n:], **exact)
    torch.testing.assert_close(own[:2], theirs[:2], **exact)  # words of one token: fits to a sum are not sums of fits
    torch.testing.assert_close(found.trace.direct[0], asked.direct_shares(range(6)), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.trace.total.sum(dim=1) + found.trace.rest, torch.ones(2, dtype=torch.float64))


def test_a_text_that_no_target_makes_up_is_said(tiny_llama: LoadedModel) -> None:
    bare = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
    found = explain(tiny_llama, "The capital is", response=" Paris and Rome", targets=" Paris", settings=bare)
    assert found["Paris"].tokens == found[0].tokens
    assert "Rome" not in found
    with pytest.raises(KeyError, match="'Rome' is in the answer, but no targets make it up"):
        found["Rome"]
    with pytest.raises(IndexError, match="There is no target 1: there are 1"):
        found[1]


def test_an_end_mark_is_a_target_only_if_asked_for(tiny_llama: LoadedModel) -> None:
    generation = replace(answered(tiny_llama, "The capital is", RESPONSE), stop="eos")
    last = generation.n_targets - 1
    bare = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
    assert [view.tokens for view in explain(tiny_llama, generation, settings=bare)] == [(t, t + 1) for t in range(last)]
    assert explain(tiny_llama, generation, targets="answer", settings=bare)[0].tokens == (0, last)
    assert explain(tiny_llama, generation, targets=f"{last}:", settings=bare)[0].tokens == (last, last + 1)


def test_a_thought_is_no_target_but_is_traced_through(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama, response=RESPONSE)
    first, n = generation.prompt_len, generation.n_targets
    thinking = [Role.THINKING if t < 4 else Role.GENERATED for t in range(n)]
    generation = replace(generation, roles=(*generation.roles[:first], *thinking))
    assert generation.answer_tokens == tuple(range(4, n))
    assert chosen_targets(generation, None)[0].tokens == (first + 4, first + 5)
    assert chosen_targets(generation, "answer")[0].tokens == (first + 4, first + n)
    bare = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
    found = explain(tiny_llama, generation, targets="answer", settings=bare)
    assert found.trace is not None
    thought = [unit for unit in found.trace.units[found.trace.n_sources :] if unit[0] < first + 4]
    assert thought, "the words of the thought hand their shares on"
    rows = found.trace.steps[: len(thought)]
    assert float(rows.sum(dim=1).min()) > 0
    assert float(found.trace.total.sum()) == pytest.approx(1, abs=1e-6)


def test_an_answer_of_one_token_has_nothing_to_trace_through(tiny_llama: LoadedModel) -> None:
    bare = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
    found = explain(tiny_llama, "The capital is", response=" Paris", settings=bare)
    assert len(found) == 1
    assert found.trace is not None
    torch.testing.assert_close(found.trace.total, found.trace.direct[:, : found.trace.n_sources])
    assert {len(source.path) for source in found["Paris"].traced()} == {1}
    asked = explain(tiny_llama, "The capital is", response=" Paris", targets=["answer", "Paris", "0:1"], settings=bare)
    assert asked.targets == found.targets, "three names of one target"
