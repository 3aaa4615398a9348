"""The three adapters have the same functions, and each gives what the model itself gives."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    CLASSES,
    CLASSIFIERS,
    ENCODER_DECODERS,
    HYBRIDS,
    SENTENCES,
    answered,
    make_classifier,
    make_encoder_decoder,
    make_loaded,
    make_tokenizer,
    prompt_tokens,
)
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from llmxai.errors import NonFiniteError, PromptError, UnsupportedModelError
from llmxai.generation import encode_prompt, force_response, generate
from llmxai.models import (
    LoadedModel,
    ModelKind,
    adapter_of,
    adapters,
    embed,
    forward_logits,
    layer_stacks,
    prefix_cache,
)
from llmxai.models.adapters import ADAPTERS, Adapter, causal, classifier, encoder_decoder
from llmxai.models.forward import keys_and_values
from llmxai.settings import Decoding
from llmxai.types import Generation

FUNCTIONS = [name for name in vars(Adapter) if not name.startswith("_")]
SHORT = Decoding(max_new_tokens=4)
SAMPLES = {
    **dict.fromkeys(("llama", "gpt2", "bloom", "gemma2"), make_loaded),
    **dict.fromkeys(CLASSIFIERS, make_classifier),
}
SAMPLES |= dict.fromkeys(ENCODER_DECODERS, make_encoder_decoder)


# the protocol


@pytest.mark.parametrize("module", ADAPTERS.values(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_module_fits_the_protocol(module: ModuleType) -> None:
    """By names, parameters, kinds of parameters and annotations."""
    assert isinstance(module, Adapter)
    for name in FUNCTIONS:
        wanted = inspect.signature(getattr(Adapter, name))
        own = list(wanted.parameters.values())[1:]  # without self
        assert inspect.signature(getattr(module, name)) == wanted.replace(parameters=own), name


def test_every_kind_has_one_and_every_function_is_told() -> None:
    assert set(ADAPTERS) == set(ModelKind)
    told = re.findall(r"^\| `(\w+)\(", adapters.__doc__ or "", flags=re.MULTILINE)
    assert told == FUNCTIONS
    assert adapter_of(make_loaded("llama").model) is causal
    assert adapter_of(make_classifier("bert").model) is classifier
    assert adapter_of(make_encoder_decoder("t5").model) is encoder_decoder


# logits


def ids_of(loaded: LoadedModel) -> list[int]:
    return list(loaded.tokenizer(SENTENCES[0])["input_ids"])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "gemma2"])
def test_logits_of_a_causal_model(architecture: str) -> None:
    model, ids = make_loaded(architecture).model, ids_of(make_loaded(architecture))
    positions = [3, len(ids) - 1, 5]  # in any order
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[:, positions]
        embeds = embed(model, ids)[None]
        row = torch.tensor([ids])
        got = causal.logits(model, embeds, ids=row, positions=positions, prefix=None, source=0)
        prefix = keys_and_values(model, embeds[:, :2], row[:, :2])
        later = [position - 2 for position in positions]
        three = row[:, 2:].expand(3, -1)
        rest = causal.logits(
            model, embeds[:, 2:].expand(3, -1, -1), ids=three, positions=later, prefix=prefix, source=0
        )
    assert got.shape == (1, 3, model.config.vocab_size)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert (rest - want).abs().max() < 1e-5 * want.abs().max()
    assert prefix.get_seq_length() == 2


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_logits_of_a_classifier(architecture: str) -> None:
    """One row for the whole text, whatever the position."""
    loaded = make_classifier(architecture)
    ids = ids_of(loaded)
    with torch.no_grad():
        want = loaded.model(torch.tensor([ids])).logits
        got = classifier.logits(
            loaded.model,
            embed(loaded.model, ids)[None],
            ids=torch.tensor([ids]),
            positions=[1, len(ids) - 1],
            prefix=None,
            source=0,
        )
    assert got.shape == (1, 2, len(CLASSES))
    assert torch.equal(got[:, 0], got[:, 1])
    assert (got[:, 0] - want).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_logits_of_an_encoder_decoder(architecture: str) -> None:
    """Positions count along source and answer together."""
    loaded = make_encoder_decoder(architecture)
    source, answer = ids_of(loaded), [loaded.model.config.decoder_start_token_id, 30, 40, 50]
    n = len(source)
    with torch.no_grad():
        want = loaded.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([answer])).logits[
            :, [3, 0]
        ]
        embeds = embed(loaded.model, [*source, *answer])[None]
        ids = torch.tensor([[*source, *answer]])
        got = encoder_decoder.logits(loaded.model, embeds, ids=ids, positions=[n + 3, n], prefix=None, source=n)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("architecture", SAMPLES)
def test_logits_are_differentiable_in_the_embeddings(architecture: str) -> None:
    loaded = SAMPLES[architecture](architecture)
    generation = answered(loaded, response="positive" if architecture in CLASSIFIERS else " Paris")
    seen = generation.ids[: generation.prompt_len]
    embeds = embed(loaded.model, seen)[None].clone().requires_grad_()
    source = generation.source_len
    found = forward_logits(loaded.model, embeds, ids=seen, positions=[len(seen) - 1], source=source)
    (gradient,) = torch.autograd.grad(found.float().square().sum(), embeds)
    assert torch.isfinite(gradient).all()
    assert (gradient[0].abs().amax(dim=-1) > 0).all()  # every token that the position sees


# stacks and cached beginnings


def test_stacks() -> None:
    llama, bert = make_loaded("llama").model, make_classifier("bert").model
    t5, bart = make_encoder_decoder("t5").model, make_encoder_decoder("bart").model
    assert layer_stacks(llama) == [llama.model.layers]
    assert layer_stacks(bert) == [bert.bert.encoder.layer]
    assert layer_stacks(t5) == [t5.encoder.block, t5.decoder.block]
    assert layer_stacks(bart) == [bart.model.encoder.layers, bart.model.decoder.layers]
    assert [len(stack) for stack in layer_stacks(t5)] == [3, 2]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *HYBRIDS, *CLASSIFIERS, *ENCODER_DECODERS])
def test_who_keeps_a_beginning(architecture: str) -> None:
    if architecture in CLASSIFIERS:
        model = make_classifier(architecture).model
    elif architecture in ENCODER_DECODERS:
        model = make_encoder_decoder(architecture).model
    else:
        model = make_loaded(architecture).model
    assert adapter_of(model).keeps_prefix(model) == (architecture in ARCHITECTURES)
    assert (prefix_cache(model, embed(model, [5, 6])[None], [5, 6]) is not None) == (architecture in ARCHITECTURES)


# where a rollout starts


@pytest.mark.parametrize("module", [causal, encoder_decoder], ids=["causal", "encoder-decoder"])
def test_a_rollout_starts_at_the_predicting_positions(module: Any, tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    rows = module.initial_rows(tiny_llama.model, name="x", generation=generation, positions=[[2], [1, 3, 4, 0]])
    assert rows.dtype == torch.float64
    assert rows.tolist() == [[0, 0, 1, 0, 0], [0.25, 0.25, 0, 0.25, 0.25]]


def classified(architecture: str) -> tuple[LoadedModel, Generation]:
    loaded = make_classifier(architecture)
    return loaded, generate(loaded, encode_prompt(loaded, SENTENCES[1]))


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_rollout_starts_at_what_a_classifiers_head_reads(architecture: str) -> None:
    loaded, generation = classified(architecture)
    last = generation.prompt_len - 1
    rows = classifier.initial_rows(loaded.model, name="x", generation=generation, positions=[[last], [last]])
    read = range(generation.prompt_len) if architecture == "modernbert" else [0]  # the mean of all, or [CLS]
    assert generation.read_at == tuple(read)
    want = torch.zeros(generation.prompt_len, dtype=torch.float64)
    want[list(read)] = 1 / len(read)
    assert torch.equal(rows, want.expand(2, -1))


def test_a_head_that_reads_nobody_knows_what_is_refused(tiny_llama: LoadedModel) -> None:
    with pytest.raises(UnsupportedModelError, match="the position that its classifier reads is unknown"):
        classifier.initial_rows(tiny_llama.model, name="x", generation=answered(tiny_llama), positions=[[0]])


# answers


def naive_greedy(
    model: PreTrainedModel, fixed: dict[str, Any], begin: list[int], name: str
) -> tuple[list[int], list[float]]:
    """One token after the other from a fresh forward pass each, up to the end mark."""
    ids, logprobs = list(begin), []
    while len(logprobs) < SHORT.max_new_tokens and (not logprobs or ids[-1] != model.config.eos_token_id):
        with torch.no_grad():
            row = model(**fixed, **{name: torch.tensor([ids])}, use_cache=False).logits[0, -1].double().log_softmax(-1)
        ids.append(int(row.argmax()))
        logprobs.append(float(row.max()))
    return ids[len(begin) :], logprobs


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "gemma2"])
def test_answers_of_a_causal_model(architecture: str) -> None:
    loaded = make_loaded(architecture)
    prompts = [prompt_tokens(loaded, text) for text in ("Hello", "The capital of France is")]
    found = causal.answers(loaded.model, name="x", prompts=prompts, decoding=SHORT, room=4, tokenizer=loaded.tokenizer)
    for prompt, answer in zip(prompts, found, strict=True):
        ids, logprobs = naive_greedy(loaded.model, {}, list(prompt.ids), "input_ids")
        assert list(answer.ids) == ids
        assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)
        stop = "eos" if ids[-1] == loaded.tokenizer.eos_token_id else "length"
        assert (answer.stop, answer.classes, answer.read_at) == (stop, (), ())


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_answers_of_an_encoder_decoder(architecture: str) -> None:
    loaded = make_encoder_decoder(architecture)
    prompt = prompt_tokens(loaded)
    (answer,) = encoder_decoder.answers(
        loaded.model, name="x", prompts=[prompt], decoding=SHORT, room=4, tokenizer=loaded.tokenizer
    )
    source, begin = prompt.ids[: prompt.source_len], list(prompt.ids[prompt.source_len :])
    ids, logprobs = naive_greedy(loaded.model, {"input_ids": torch.tensor([source])}, begin, "decoder_input_ids")
    assert list(answer.ids) == ids
    assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_answers_of_a_classifier(architecture: str) -> None:
    loaded = make_classifier(architecture)
    prompts = [prompt_tokens(loaded, text) for text in SENTENCES]
    found = classifier.answers(
        loaded.model, name="x", prompts=prompts, decoding=SHORT, room=4, tokenizer=loaded.tokenizer
    )
    for prompt, answer in zip(prompts, found, strict=True):
        with torch.no_grad():
            row = loaded.model(torch.tensor([prompt.ids])).logits[0].double().log_softmax(-1)
        assert answer.ids == (int(row.argmax()),)
        assert answer.logprobs == pytest.approx((float(row.max()),), abs=1e-6)
        assert (answer.stop, answer.classes) == ("class", tuple(CLASSES.values()))


def test_a_class_by_name_or_number() -> None:
    names = list(CLASSES.values())
    assert [classifier.class_number(names, label, name="x") for label in ("neutral", "1", "2")] == [1, 1, 2]
    for label in ("blue", "3", "-1", ""):
        with pytest.raises(
            PromptError, match=r"x has no class .* Known: 'negative', 'neutral', 'positive', or a number"
        ):
            classifier.class_number(names, label, name="x")
    loaded = make_classifier("bert")
    given = force_response(loaded, encode_prompt(loaded, SENTENCES[0]), response="neutral")
    assert (given.generated_ids, given.logprobs, given.stop) == ((1,), None, "given")


@pytest.mark.parametrize("make", [make_loaded, make_classifier, make_encoder_decoder])
def test_answers_of_numbers_that_are_none(make: Any) -> None:
    loaded = make({make_loaded: "llama", make_classifier: "bert", make_encoder_decoder: "t5"}[make])
    prompt = prompt_tokens(loaded)
    with torch.no_grad():
        list(loaded.model.parameters())[-1].fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="x: the logits"):
        adapter_of(loaded.model).answers(
            loaded.model, name="x", prompts=[prompt], decoding=SHORT, room=4, tokenizer=loaded.tokenizer
        )


# what cannot be explained


def test_what_is_refused() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", vocab_size=len(make_tokenizer()), initializer_range=0.5, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = AutoModelForMaskedLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM is not a causal language model"):
        causal.require_explainable(encoder, name="x")
    config.num_labels = 1
    with pytest.raises(UnsupportedModelError, match="its 1 outputs are not mutually exclusive classes"):
        classifier.require_explainable(AutoModelForSequenceClassification.from_config(config), name="x")


def test_a_decoder_without_a_start_is_refused() -> None:
    loaded = make_encoder_decoder("t5")
    loaded.model.config.decoder_start_token_id = loaded.model.generation_config.decoder_start_token_id = None
    with pytest.raises(UnsupportedModelError, match="name a decoder_start_token_id"):
        prompt_tokens(loaded)
