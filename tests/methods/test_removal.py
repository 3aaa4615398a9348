"""F with tokens removed, against plain forward passes over the ids that are left."""

from __future__ import annotations

import pytest
import torch
from tiny import CHATML, answered, make_loaded

from llmxai.errors import OptionError
from llmxai.generation import encode_messages, force_response
from llmxai.methods import contrast_target, span_target
from llmxai.methods.features import baseline_token
from llmxai.methods.perturbation.removal import SetFunction
from llmxai.models import LoadedModel
from llmxai.types import Generation, Role


@torch.no_grad()
def naive(loaded: LoadedModel, ids: list[int], n_answer: int) -> float:
    """Log-prob of the last `n_answer` ids after those before them."""
    logits = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    first = len(ids) - n_answer
    return float(sum(logits[i - 1, ids[i]] for i in range(first, len(ids))))


def chat(loaded: LoadedModel) -> Generation:
    prompt = encode_messages(loaded, [{"role": "user", "content": "Which city is the capital?"}])
    return force_response(loaded, prompt, response=" Paris, Rome")


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    return torch.rand(12, 5, generator=torch.Generator().manual_seed(0)) < 0.6


def test_deletion_is_a_forward_pass_over_what_is_left(llama64: LoadedModel, masks: torch.Tensor) -> None:
    generation = chat(llama64)
    places = tuple(i for i, role in enumerate(generation.roles) if role is Role.USER)[:5]
    removal = SetFunction(llama64, generation, span_target(generation), places)
    expected = []
    for mask in masks:
        gone = {place for place, keep in zip(places, mask, strict=True) if not keep}
        ids = [token for i, token in enumerate(generation.ids) if i not in gone]
        expected.append(naive(llama64, ids, generation.n_targets))
    torch.testing.assert_close(removal.values(masks), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_neutral_token_in_place(architecture: str, masks: torch.Tensor) -> None:
    loaded = make_loaded(architecture, dtype=torch.float64)
    generation = answered(loaded)
    removal = SetFunction(loaded, generation, span_target(generation, end=1), tuple(range(5)), "baseline")
    space = baseline_token(loaded, "space")
    for mask, found in zip(masks, removal.values(masks), strict=True):
        ids = [t if i >= 5 or mask[i] else space for i, t in enumerate(generation.ids[: generation.prompt_len + 1])]
        assert float(found) == pytest.approx(naive(loaded, ids, 1), rel=1e-5, abs=1e-5)


def test_a_raw_prompt_may_lose_everything(llama64: LoadedModel) -> None:
    """Then the neutral token stands alone before the answer."""
    generation = answered(llama64)
    removal = SetFunction(llama64, generation, span_target(generation), tuple(range(generation.prompt_len)))
    none = torch.zeros(1, generation.prompt_len, dtype=torch.bool)
    ids = [baseline_token(llama64, "space"), *generation.generated_ids]
    assert float(removal.values(none)[0]) == pytest.approx(naive(llama64, ids, generation.n_targets), abs=1e-5)


def test_a_chat_may_lose_everything(llama64: LoadedModel) -> None:
    generation = chat(llama64)
    places = tuple(i for i, role in enumerate(generation.roles) if role is Role.USER)
    removal = SetFunction(llama64, generation, span_target(generation), places)
    ids = [token for i, token in enumerate(generation.ids) if i not in places]
    none = torch.zeros(1, len(places), dtype=torch.bool)
    assert float(removal.values(none)[0]) == pytest.approx(naive(llama64, ids, generation.n_targets), abs=1e-5)


def test_a_held_token_alone_before_the_features() -> None:
    """BOS stays, and when all else goes the answer is predicted from it."""
    loaded = make_loaded("llama", dtype=torch.float64)
    generation = chat(loaded)
    places = tuple(range(1, generation.prompt_len))
    removal = SetFunction(loaded, generation, span_target(generation), places)
    none = torch.zeros(1, len(places), dtype=torch.bool)
    ids = [generation.ids[0], *generation.generated_ids]
    assert float(removal.values(none)[0]) == pytest.approx(naive(loaded, ids, generation.n_targets), abs=1e-5)
    assert CHATML  # the template begins with a held token


def test_every_set_is_computed_once(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    removal = SetFunction(tiny_llama, generation, contrast_target(generation, t=0, foil=5), (0, 1, 2))
    masks = torch.tensor([[True, True, False], [True, True, True], [True, True, False]])
    first = removal.values(masks)
    assert removal.forwards == 2
    assert torch.equal(removal.values(masks), first)
    assert removal.full() == float(first[1])
    assert removal.forwards == 2
    assert first[0] == first[2] != first[1]


def test_what_cannot_be_removed(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    with pytest.raises(OptionError, match="none after the first predicting position"):
        SetFunction(tiny_llama, generation, span_target(generation), (generation.prompt_len,))
    with pytest.raises(OptionError, match="expected at least one"):
        SetFunction(tiny_llama, generation, span_target(generation), ())
