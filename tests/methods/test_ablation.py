"""Removal against a naive loop that calls the model once a mask, and worlds whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import answered, make_classifier, make_loaded, prompt_tokens
from transformers import PreTrainedModel

from llmxai.errors import NonFiniteError, OptionError
from llmxai.generation import encode_messages, force_response
from llmxai.methods import leave_one_out, measure_effects
from llmxai.methods.features import baseline_embedding
from llmxai.methods.perturbation.removal import MOST_UNITS, f_of_masks, half_subsets, prompt_units
from llmxai.methods.targets import token_targets
from llmxai.models import LoadedModel, embed
from llmxai.models.adapters import causal
from llmxai.models.memory import ChunkSize
from llmxai.settings import Removal
from llmxai.types import Generation, Role

CHAT = [{"role": "user", "content": "The capital of France is Paris, and the capital of Italy?"}]
TOLERANCE = 2e-4  # nats, float32; float64 is exact to 1e-9


def chat_answer(loaded: LoadedModel) -> Generation:
    return force_response(loaded, encode_messages(loaded, CHAT), response=" Rome, short")


def naive(
    loaded: LoadedModel,
    generation: Generation,
    units: Sequence[tuple[int, int]],
    kept: torch.Tensor,
    *,
    operator: str,
) -> torch.Tensor:
    """The model called once a mask on the whole sequence, the log-prob of every generated token read off."""
    rows = []
    for mask in kept:
        removed = {i for keep, (start, end) in zip(mask, units, strict=True) if not keep for i in range(start, end)}
        x = embed(loaded.model, generation.ids)
        if operator == "delete":
            stay = [i for i in range(len(generation.ids)) if i not in removed]
        else:
            stay = list(range(len(generation.ids)))
            name = "mean" if operator == "mean" else "space"
            for i in removed:
                x[i] = baseline_embedding(loaded, name, seq=len(x)).to(x)
        with torch.no_grad():
            logits = loaded.model(inputs_embeds=x[stay][None], use_cache=False).logits[0]
        row = []
        for t, token in enumerate(generation.generated_ids):
            at = stay.index(generation.prompt_len + t) - 1
            row.append(float(torch.log_softmax(logits[at].double(), dim=-1)[token]))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64).T


@pytest.mark.parametrize("operator", ["delete", "baseline", "mean"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "opt", "bloom", "falcon", "mixtral"])
def test_a_batch_is_the_naive_loop(architecture: str, operator: str) -> None:
    loaded = make_loaded(architecture)
    generation = chat_answer(loaded)
    found = measure_effects(loaded, generation, removal=Removal(operator=operator, subsets=8))
    masks = torch.cat([~torch.eye(len(found.units), dtype=torch.bool), found.kept])
    want = naive(loaded, generation, found.units, masks, operator=operator)
    got = torch.cat([found.f_without, found.f_masked], dim=1)
    assert torch.allclose(got, want, atol=TOLERANCE)
    whole = naive(loaded, generation, found.units, torch.ones(1, len(found.units), dtype=torch.bool), operator=operator)
    assert torch.allclose(found.f_full, whole[:, 0], atol=TOLERANCE)
    assert got.std() > 100 * TOLERANCE, "the masks must differ for the comparison to mean something"


@pytest.mark.parametrize("operator", ["delete", "baseline"])
def test_in_float64_the_batch_is_exact(gpt64: LoadedModel, operator: str) -> None:
    generation = answered(gpt64)
    found = measure_effects(gpt64, generation, removal=Removal(operator=operator, subsets=6, units="token"))
    want = naive(gpt64, generation, found.units, found.kept, operator=operator)
    assert torch.allclose(found.f_masked, want, atol=1e-9)


@pytest.mark.parametrize("chunk_tokens", [1, 30, 100_000])
def test_the_chunk_changes_nothing(gpt64: LoadedModel, chunk_tokens: int) -> None:
    generation = chat_answer(gpt64)
    want = measure_effects(gpt64, generation, removal=Removal(subsets=5))
    got = measure_effects(gpt64, generation, removal=Removal(subsets=5, chunk_tokens=chunk_tokens))
    assert torch.allclose(got.f_masked, want.f_masked, atol=1e-9)
    assert torch.allclose(got.f_without, want.f_without, atol=1e-9)


def test_memory_that_runs_out_halves_the_chunk(gpt64: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmxai.methods.perturbation import removal as _removal

    generation, forward, sizes = chat_answer(gpt64), _removal.forward_logits, []

    def limited(model: object, embeds: torch.Tensor, **options: object) -> torch.Tensor:
        sizes.append(len(embeds))
        if len(embeds) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(model, embeds, **options)  # type: ignore[arg-type]

    want = measure_effects(gpt64, generation, removal=Removal(operator="mean", subsets=9))
    monkeypatch.setattr(_removal, "forward_logits", limited)
    got = measure_effects(gpt64, generation, removal=Removal(operator="mean", subsets=9))
    assert max(sizes) > 2
    assert got.settings["chunk_halvings"] > 0
    assert torch.allclose(got.f_masked, want.f_masked, atol=1e-9)


def test_progress_reaches_the_number_of_masks(tiny_llama: LoadedModel) -> None:
    seen: list[tuple[int, int]] = []
    found = measure_effects(tiny_llama, chat_answer(tiny_llama), progress=lambda done, n: seen.append((done, n)))
    n = 1 + len(found.units) + len(found.kept)
    assert seen[-1] == (n, n)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_drop_is_the_difference(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    found = measure_effects(tiny_llama, generation, removal=Removal(subsets=0))
    assert found.kept.shape == (0, len(found.units))
    assert torch.equal(found.drop, found.f_full[:, None] - found.f_without)
    assert found.drop.abs().max() > 0
    scores = leave_one_out(tiny_llama, generation)
    for unit, (start, end) in enumerate(found.units):
        assert torch.allclose(scores.values[:, start:end].sum(dim=1), found.drop[:, unit], atol=1e-12)


# which units are removed


def test_template_bos_and_answer_belong_to_no_unit(tiny_llama: LoadedModel) -> None:
    generation = chat_answer(tiny_llama)
    for units in ("token", "word", "sentence", "auto"):
        covered = [i for start, end in prompt_units(generation, units=units)[0] for i in range(start, end)]
        assert covered == [i for i, role in enumerate(generation.roles) if role == Role.USER]


def test_words_are_the_units_of_a_short_prompt(tiny_llama: LoadedModel) -> None:
    generation = chat_answer(tiny_llama)
    units, kind = prompt_units(generation)
    assert kind == "word"
    assert ["".join(generation.texts[start:end]).strip() for start, end in units][:5] == [
        *("The", "capital", "of", "France", "is")
    ]


def long_prompt(sentences: int, words: int) -> Generation:
    n = sentences * words
    texts = [f" w{i}{'.' if i % words == words - 1 else ''}" for i in range(n)]
    return Generation(
        ids=tuple(range(n + 2)),
        prompt_len=n + 1,
        roles=(Role.BOS, *(Role.USER,) * n, Role.GENERATED),
        texts=("<s>", *texts, " a"),
        words=tuple((i, i + 1) for i in range(n + 2)),
        logprobs=None,
        stop="given",
        request={"prompt": "".join(texts)},
    )


@pytest.mark.parametrize(
    ("sentences", "words", "kind", "count"),
    [
        (8, 8, "word", 64),
        (20, 10, "sentence", 20),
        (3, 40, "run of words", 60),
        (200, 5, "run of sentences", 50),
        (1000, 2, "run of sentences", 63),
    ],
)
def test_long_prompts_are_taken_apart_in_larger_pieces(sentences: int, words: int, kind: str, count: int) -> None:
    units, got = prompt_units(long_prompt(sentences, words))
    assert (got, len(units)) == (kind, count)
    assert len(units) <= MOST_UNITS
    assert [i for start, end in units for i in range(start, end)] == list(range(1, sentences * words + 1))


def test_a_change_of_role_ends_a_sentence() -> None:
    generation = long_prompt(1, 10)
    roles = (Role.BOS, *(Role.SYSTEM,) * 4, *(Role.USER,) * 6, Role.GENERATED)
    units, _ = prompt_units(replace(generation, roles=roles), units="sentence")
    assert units == ((1, 5), (5, 11))


def test_a_raw_prompt_of_one_word_has_no_unit(tiny_llama: LoadedModel) -> None:
    generation = force_response(tiny_llama, prompt_tokens(tiny_llama, "Hello"), response=" there")
    found = measure_effects(tiny_llama, generation, removal=Removal(units="word"))
    assert found.units == ()
    assert found.f_without.shape == (generation.n_targets, 0)
    assert found.f_masked.shape == (generation.n_targets, 0)


def test_subsets_are_different_and_half_kept() -> None:
    kept = half_subsets(20, 64, seed=0)
    assert kept.shape == (64, 20)
    assert len({tuple(mask.tolist()) for mask in kept}) == 64
    assert (kept.sum(dim=1) == 10).all()
    assert torch.equal(kept, half_subsets(20, 64, seed=0))
    assert not torch.equal(kept, half_subsets(20, 64, seed=1))


@pytest.mark.parametrize("units", [20, 21])
def test_subsets_are_pairs_of_halves(units: int) -> None:
    kept = half_subsets(units, 64, seed=0)
    assert not (kept[::2] & kept[1::2]).any()
    assert ((kept[::2] | kept[1::2]).sum(dim=1) == 2 * (units // 2)).all()
    assert half_subsets(units, 63, seed=0).equal(kept[:63])


def test_what_two_units_do_together_cancels_in_pairs() -> None:
    signs = 2 * half_subsets(20, 64, seed=0).double() - 1
    together = signs[:, 3] * signs[:, 8]
    assert torch.equal(signs.T @ together, torch.zeros(20, dtype=torch.float64))


@pytest.mark.parametrize(("units", "count"), [(0, 0), (1, 0), (2, 2), (3, 3), (6, 20), (8, 64)])
def test_few_units_have_all_their_subsets(units: int, count: int) -> None:
    kept = half_subsets(units, 64, seed=0)
    assert kept.shape == (count, units)
    assert len({tuple(mask.tolist()) for mask in kept}) == count
    assert not kept.all(dim=1).any() if units else True
    assert kept.any(dim=1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operator": "burn"}, "removal operator 'burn' is unknown. Known: delete, baseline, mean"),
        ({"units": "page"}, "removal units 'page' is unknown. Known: auto, token, word, sentence"),
        ({"subsets": -1}, "subsets is -1"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        Removal(**options)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_nan_is_an_error_that_names_a_mend() -> None:
    loaded = make_loaded("llama")
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="--no-removal"):
        measure_effects(loaded, answered(loaded))


# worlds whose answer is known


def copy_model() -> LoadedModel:
    """Says again what stood two places after its first token: hand-built, one layer, one head, by position alone."""
    loaded = make_loaded("gpt2", dtype=torch.float64, n_layer=1, n_head=1, n_embd=512, resid_pdrop=0.0)
    model = loaded.model
    vocabulary, half = model.config.vocab_size, 448
    assert vocabulary <= half
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        block = model.transformer.h[0]
        for norm in (block.ln_1, block.ln_2, model.transformer.ln_f):
            norm.weight.fill_(1.0)
        model.transformer.wte.weight[:, :vocabulary] = 30 * torch.eye(vocabulary)
        model.transformer.wpe.weight[2, half] = 300.0
        block.attn.c_attn.bias[0] = 1.0  # every query asks for ...
        block.attn.c_attn.weight[half, 512] = 100.0  # ... the key of position 2
        block.attn.c_attn.weight[:vocabulary, 1024 : 1024 + vocabulary] = torch.eye(vocabulary)
        block.attn.c_proj.weight[:vocabulary, :vocabulary] = 100 * torch.eye(vocabulary)
    return loaded


def test_a_copy_model_loses_its_answer_with_its_source_only() -> None:
    loaded = copy_model()
    prompt = prompt_tokens(loaded, "a b c d e f")
    source = 2
    generation = replace(force_response(loaded, prompt, response="x"), ids=(*prompt.ids, prompt.ids[source]))
    found = measure_effects(loaded, generation, removal=Removal(units="token", operator="baseline", subsets=0))
    drop = found.drop[0]
    assert int(drop.argmax()) == source
    assert float(drop[source]) > 1.0
    others = [float(d) for i, d in enumerate(drop) if i != source]
    assert max(abs(d) for d in others) < 0.05 * float(drop[source])


def test_masks_of_units_are_what_they_say(gpt64: LoadedModel) -> None:
    """Removing two units at once is removing their union."""
    generation = chat_answer(gpt64)
    units = prompt_units(generation)[0][:3]
    joined = ((units[0][0], units[1][1]), units[2])
    options, targets = {"operator": "delete", "baseline": "space"}, token_targets(generation)
    two = f_of_masks(
        gpt64, generation, targets, units, torch.tensor([[False, False, True]]), size=ChunkSize(999), **options
    )
    one = f_of_masks(gpt64, generation, targets, joined, torch.tensor([[False, True]]), size=ChunkSize(999), **options)
    assert torch.allclose(one, two, atol=1e-12)


def test_leave_one_out_runs_the_model_only_for_the_units_that_it_scores(
    tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is hidden for values that it does not use; with an F that is known, one sequence a unit."""
    generation, counted = chat_answer(tiny_llama), []
    f = measure_effects(tiny_llama, generation, removal=Removal(subsets=0)).f_full
    plain = causal.logits

    def counting(model: PreTrainedModel, inputs_embeds: torch.Tensor, **options: Any) -> torch.Tensor:
        counted.append(len(inputs_embeds))
        return plain(model, inputs_embeds, **options)

    monkeypatch.setattr(causal, "logits", counting)
    leave_one_out(tiny_llama, generation, f_input=f)
    assert sum(counted) == len(prompt_units(generation)[0])


def test_a_baseline_that_the_vocabulary_does_not_have() -> None:
    """BERT's tokenizer would write its unknown token in its place."""
    loaded = make_classifier("bert")
    assert baseline_embedding(loaded, "token:The", seq=2).dim() == 1
    with pytest.raises(OptionError, match="has no such token"):
        baseline_embedding(loaded, "token:zzzzqq", seq=2)
