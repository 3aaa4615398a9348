"""Methods to compare with integrated gradients: equal to their closed forms on a linear model, and to naive code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import answered, make_loaded

from llmxai.errors import OptionError, UnsupportedModelError
from llmxai.evaluation import Case, make_case, suite_rows
from llmxai.evaluation.planted_models import build, contributions
from llmxai.generation import answer, encode_prompt, force_response
from llmxai.methods import (
    METHODS,
    context_cite,
    deep_lift,
    gradient_shap,
    gradient_x_input,
    kernel_shap,
    lime,
    mc_dropout,
    random_scores,
    recency,
    saliency,
    smoothgrad,
)
from llmxai.models import LoadedModel, embed
from llmxai.models.forward import frozen_eval
from llmxai.types import Scores

LINEAR = build()
EXACT = {
    "gradient_x_input": {},
    "gradient_shap": {"baseline": "zero", "features": "all"},
    "deep_lift": {"baseline": "zero", "features": "all"},
}
EXACT_AGAINST_SPACE = {
    "gradient_shap": {"baseline": "space", "features": "all"},
    "deep_lift": {"baseline": "space", "features": "all"},
    "kernel_shap": {"operator": "baseline", "samples": 200},
    "lime": {"operator": "baseline", "samples": 200, "alpha": 1e-6},
    "context_cite": {"operator": "baseline", "masks": 60, "alpha": 1e-6},
}
COMPARED = [*dict.fromkeys([*EXACT, *EXACT_AGAINST_SPACE]), "saliency", "smoothgrad", "mc_dropout", "random", "recency"]


@pytest.fixture(scope="module")
def case() -> Case:
    (row,) = suite_rows("closed_form", limit=1, seed=3, options={"length": 6})
    return make_case(LINEAR, row, answer(LINEAR, row.asked, response=row.response), target="first")


def exact(case: Case) -> torch.Tensor:
    words = "".join(case.generation.texts).split()
    tokens = LINEAR.tokenizer.convert_ids_to_tokens([*case.target.ids, *case.target.foils])
    return torch.tensor(contributions(LINEAR, words[:-1], answer=tokens[0].strip(), foil=tokens[1].strip()))


def scores(name: str, loaded: LoadedModel, case: Case, **options: object) -> torch.Tensor:
    result = METHODS[name].function(loaded, case.generation, targets=[case.target], **options)
    assert isinstance(result, Scores)
    assert result.method == name
    return result.values[0, list(case.features)]


@pytest.mark.parametrize("name", EXACT)
def test_on_a_linear_model_they_are_the_closed_form(name: str, case: Case) -> None:
    found = scores(name, LINEAR, case, **EXACT[name])
    torch.testing.assert_close(found, exact(case).double(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", EXACT_AGAINST_SPACE)
def test_against_the_space_token_they_are_the_closed_form(name: str, case: Case) -> None:
    head, table = LINEAR.model.head.weight, LINEAR.model.embeddings.weight
    space = float((head[case.target.ids[0]] - head[case.target.foils[0]]) @ table[1])
    found = scores(name, LINEAR, case, **EXACT_AGAINST_SPACE[name])
    torch.testing.assert_close(found, exact(case).double() - space, rtol=2e-3, atol=2e-3)


def test_the_gradients_length_on_a_linear_model(case: Case) -> None:
    head = LINEAR.model.head.weight
    length = (head[case.target.ids[0]] - head[case.target.foils[0]]).norm().double()
    for name in ("saliency", "smoothgrad"):
        torch.testing.assert_close(scores(name, LINEAR, case), length.expand(6), rtol=1e-5, atol=0)


def test_dropout_spread_on_a_linear_model(case: Case) -> None:
    """Each element w x is kept with probability 1 - p and scaled by 1 / (1 - p): variance p / (1 - p) sum (w x)^2."""
    head = LINEAR.model.head.weight
    direction = head[case.target.ids[0]] - head[case.target.foils[0]]
    x = embed(LINEAR.model, case.generation.ids)[list(case.features)]
    spread = (0.25 / 0.75 * (direction * x).square().sum(dim=1)).sqrt().double()
    torch.testing.assert_close(scores("mc_dropout", LINEAR, case, rate=0.25, samples=3000), spread, rtol=0.06, atol=0)


def test_gradient_methods_against_a_naive_loop(gpt64: LoadedModel) -> None:
    generation = answered(gpt64)
    with frozen_eval(gpt64.model):
        for t in range(generation.n_targets):
            x = embed(gpt64.model, generation.ids)[None].requires_grad_()
            logprob = gpt64.model(inputs_embeds=x).logits[0].log_softmax(dim=-1)
            value = logprob[generation.prompt_len + t - 1, generation.generated_ids[t]]
            (gradient,) = torch.autograd.grad(value, x)
            product, length = (gradient * x)[0].sum(dim=-1), gradient[0].norm(dim=-1)
            for found, naive in ((gradient_x_input, product), (saliency, length)):
                result = found(gpt64, generation)
                torch.testing.assert_close(result.values[t], naive.detach() * result.features[t], rtol=1e-9, atol=1e-11)


def test_smoothgrad_without_noise_is_saliency(gpt64: LoadedModel) -> None:
    generation = answered(gpt64)
    still = smoothgrad(gpt64, generation, samples=2, noise=0.0)
    torch.testing.assert_close(still.values, saliency(gpt64, generation).values)
    assert (smoothgrad(gpt64, generation, samples=2).values != still.values).any()


def test_features_end_where_the_target_is_predicted(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    found = recency(tiny_llama, generation)
    for t in range(generation.n_targets):
        last = generation.prompt_len + t
        assert found.values[t, :last].min() > 0
        assert found.values[t, last:].abs().sum() == 0
        assert found.values[t].argmax() == last - 1


def test_removals_leave_the_earlier_answer_tokens_in_place(tiny_llama: LoadedModel) -> None:
    found = context_cite(tiny_llama, answered(tiny_llama), masks=8)
    assert found.features[-1].sum() == answered(tiny_llama).n_targets - 1 + answered(tiny_llama).prompt_len


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("function", "few"), [(lime, {"samples": 32}), (context_cite, {"masks": 16})])
def test_a_lasso_converges_with_more_features_than_removals(
    function: Callable[..., Scores], few: dict[str, int]
) -> None:
    loaded = make_loaded("llama", initializer_range=1.0)
    prompt = encode_prompt(loaded, "The capital of France is Paris and the river is long. " * 6)
    generation = force_response(loaded, prompt, response=" Paris")
    scores = function(loaded, generation, alpha=1e-3, **few)
    assert scores.features[0].sum() > max(few.values())
    assert torch.isfinite(scores.values).all()


@pytest.mark.parametrize(
    "function", [smoothgrad, mc_dropout, gradient_shap, kernel_shap, lime, context_cite, random_scores]
)
def test_the_seed_decides_and_the_callers_state_stays(function: object, tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama, prompt="The capital of France", response=" Paris")
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (function(tiny_llama, generation, seed=s).values for s in (1, 1, 2))  # type: ignore[operator]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


@pytest.mark.parametrize("name", COMPARED)
def test_no_mark_is_left(name: str, case: Case) -> None:
    loaded = build()
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    METHODS[name].function(loaded, case.generation, targets=[case.target])
    assert all(torch.equal(value, before[key]) for key, value in loaded.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in loaded.model.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in loaded.model.parameters())


def test_deep_lift_refuses_what_captum_has_no_rule_for(tiny_llama: LoadedModel) -> None:
    with pytest.raises(UnsupportedModelError, match=r"LlamaAttention, for which Captum's DeepLIFT has no rule"):
        deep_lift(tiny_llama, answered(tiny_llama))


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (smoothgrad, {"samples": 0}, "samples is 0"),
        (mc_dropout, {"rate": 1.0}, "rate is 1.0"),
        (gradient_shap, {"noise": -1.0}, "noise is -1.0"),
        (kernel_shap, {"samples": 1}, "samples is 1"),
        (lime, {"alpha": -1.0}, "alpha is -1.0"),
        (context_cite, {"masks": 1}, "masks is 1"),
        (kernel_shap, {"operator": "erase"}, "operator 'erase' is unknown. Known: delete, baseline, mean"),
        (gradient_x_input, {"features": "words"}, "features 'words' is unknown"),
    ],
)
def test_options_out_of_range(function: object, options: dict[str, object], says: str, tiny_llama: LoadedModel) -> None:
    with pytest.raises(OptionError, match=says):
        function(tiny_llama, answered(tiny_llama), **options)  # type: ignore[operator]


def test_float16_weights_do_not_change_what_comes_out() -> None:
    half = make_loaded("llama", dtype=torch.bfloat16)
    assert gradient_x_input(half, answered(half)).values.dtype == torch.float64
