"""Some rows of `make matrix-all`: classes that take more from ids than embeddings, or embed them in their own way."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from matrix_all import TOLERANCE, Row, build, classes, examine, from_ids, given_answer, sequences, tokenizer

from llmxai.errors import UnsupportedModelError
from llmxai.generation import replay
from llmxai.models import wrap

CASES = {(str(case[0]), case[2].__name__): case for case in classes()}
NEED_IDS = [
    ("causal", "Gemma3nForCausalLM"),  # embeddings for every layer
    ("causal", "DeepseekV4ForCausalLM"),  # experts by id
    ("classifier", "LlamaForSequenceClassification"),  # reads the last token that is not padding
    ("classifier", "RobertaForSequenceClassification"),  # positions count what is not padding
    ("classifier", "EsmForSequenceClassification"),  # scales by the share of masked tokens
]
"""Where embeddings alone are another model, on plain text or on text with padding."""
OTHERWISE = [
    ("causal", "CTRLLMHeadModel"),  # writes into its embeddings
    ("causal", "MptForCausalLM"),
    ("causal", "OpenAIGPTLMHeadModel"),  # no cache
    ("causal", "BartForCausalLM"),
    ("causal", "RobertaForCausalLM"),  # counts positions from the padding id
    ("classifier", "XLNetForSequenceClassification"),  # turns ids
    ("classifier", "LongformerForSequenceClassification"),  # pads ids to its window
    ("classifier", "IBertForSequenceClassification"),  # its table gives a tuple
    ("classifier", "FunnelForSequenceClassification"),
    ("classifier", "SqueezeBertForSequenceClassification"),
    ("classifier", "BioGptForSequenceClassification"),  # no output head
    ("encoder-decoder", "MarianMTModel"),  # scales what its table gives
]


def row_of(name: tuple[str, str]) -> Row:
    with torch.random.fork_rng(devices=[]):
        return examine(*CASES[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEED_IDS, ids=lambda name: name[1])
def test_what_a_model_takes_from_its_ids(name: tuple[str, str]) -> None:
    """The control: embeddings without ids give other log-probs, or none at all."""
    row = row_of(name)
    assert row.outcome == "same", row
    assert row.alone is None or row.alone > 100 * TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERWISE, ids=lambda name: name[1])
def test_what_embeds_in_its_own_way(name: tuple[str, str]) -> None:
    row = row_of(name)
    assert row.outcome == "same", row


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["BartForSequenceClassification", "T5ForSequenceClassification"])
def test_a_classifier_with_two_stacks_says_what_it_is(name: str) -> None:
    row = row_of(("classifier", name))
    assert row.outcome == "refused"
    assert "is a classifier with an encoder and a decoder" in row.why


@pytest.mark.filterwarnings("ignore")
def test_a_pass_that_is_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings that are not those of the ids: the comparison sees it."""
    kind, config, model_class = CASES["causal", "LlamaForCausalLM"]
    made = tokenizer()
    with torch.random.fork_rng(devices=[]):
        loaded = wrap(build(kind, config, model_class, made), made, name="x")
    prompt, answer = sequences(kind, made)[0], [30, 40]
    generation = replace(given_answer(loaded, prompt, list(made(" A person is Rome")["input_ids"])), logprobs=None)
    want = from_ids(loaded.model, prompt, list(generation.generated_ids), answer)
    assert replay(loaded, generation).logprobs == pytest.approx(want, abs=TOLERANCE)
    module = sys.modules["llmxai.generation.replay"]  # the package's name for it is the function
    plain = module.embed
    monkeypatch.setattr(module, "embed", lambda *given, **more: plain(*given, **more) * 1.01)
    with pytest.raises(UnsupportedModelError, match="explain another model"):
        replay(loaded, generation)
