"""Gradient-weighted rollout against autograd through whole eager maps."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_attention_rollout import HYBRIDS, block, eager_copy, naive_rollout, uniform_maps
from tiny import ARCHITECTURES, SENTENCES, answered, lost_mass_of, make_loaded, null_of
from torch import Tensor

from llmxai.errors import NonFiniteError, UnsupportedModelError
from llmxai.methods import attention_rollout, gradient_weighted_rollout
from llmxai.models import LoadedModel
from llmxai.types import Generation, predicting_position

__all__ = ["block"]


def naive(loaded: LoadedModel, generation: Generation) -> list[Tensor]:
    """R - I of every target after the top 1, 2, ... layers, [target, seq], not yet scaled: eq. 5 and 6 as written."""
    model = eager_copy(loaded)
    output = model(torch.tensor([generation.ids]), use_cache=False, output_attentions=True)
    n, rows = len(generation.ids), []
    for t, token in enumerate(generation.generated_ids):
        position = predicting_position(generation.prompt_len, t)
        f = output.logits[0, position].double().log_softmax(dim=-1)[token]
        gradients = torch.autograd.grad(f, output.attentions, retain_graph=True)
        maps = [
            (g[0].double() * a[0].double()).clamp(min=0).mean(dim=0).detach()
            for g, a in zip(gradients, output.attentions, strict=True)
        ]
        partial = []
        for k in range(len(maps)):
            relevance = torch.eye(n, dtype=torch.float64)
            for layer in maps[len(maps) - 1 - k :]:
                relevance = relevance + layer @ relevance
            partial.append((relevance - torch.eye(n, dtype=torch.float64))[position])
        rows.append(torch.stack(partial))
    return list(torch.stack(rows, dim=1))


def scaled(rows: Tensor) -> Tensor:
    return rows / rows.sum(dim=1, keepdim=True)


SINGLE = {"mixtral", "gpt_oss"}
"""Their experts multiply in float32 at most."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("block")
def test_equals_autograd_through_eager_maps(architecture: str) -> None:
    loaded = make_loaded(architecture, dtype=torch.float32 if architecture in SINGLE else torch.float64)
    generation = answered(loaded, SENTENCES[0], " Hello there")
    partial = naive(loaded, generation)
    got = gradient_weighted_rollout(loaded, generation)
    assert (got.values - scaled(partial[-1])).abs().max() < (1e-4 if architecture in SINGLE else 1e-6)
    assert (got.values.sum(dim=1) - 1).abs().max() < 1e-9
    assert (lost_mass_of(got) == 0).all()
    assert got.curve is not None
    sinks = torch.stack([scaled(rows)[:, 0] for rows in partial], dim=1)
    assert (got.curve.sink_mass - sinks).abs().max() < (1e-4 if architecture in SINGLE else 1e-6)


def test_float64_throughout_to_rounding(gpt64: LoadedModel) -> None:
    generation = answered(gpt64, SENTENCES[0], " Hello there")
    got = gradient_weighted_rollout(gpt64, generation)
    assert (got.values - scaled(naive(gpt64, generation)[-1])).abs().max() < 1e-12


def test_the_null_is_the_recursion_of_uniform_maps(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama, SENTENCES[0], " Hello there")
    doubled = naive_rollout(uniform_maps(tiny_llama, len(generation.ids)), generation, residual=0.5) * 2**3
    positions = [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]
    want = scaled(doubled - torch.eye(len(generation.ids), dtype=torch.float64)[positions])
    assert (null_of(gradient_weighted_rollout(tiny_llama, generation)) - want).abs().max() < 1e-12


def test_groups_of_targets_change_nothing(gpt64: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = answered(gpt64, SENTENCES[0], " Hello there, Paris")
    assert generation.n_targets > 2
    whole = gradient_weighted_rollout(gpt64, generation)
    module = importlib.import_module("llmxai.methods.attention.attention_gradients")
    monkeypatch.setattr(module, "GROUP_NUMBERS", 2 * 32 * (len(generation.ids) - 1))
    steps: list[tuple[int, int]] = []
    grouped = gradient_weighted_rollout(gpt64, generation, progress=lambda done, n: steps.append((done, n)))
    assert torch.allclose(grouped.values, whole.values, atol=1e-12)
    assert whole.curve is not None
    assert grouped.curve is not None
    assert torch.allclose(grouped.curve.similarity, whole.curve.similarity, atol=1e-12)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1] == (3 * generation.n_targets, 3 * generation.n_targets)


def test_tokens_after_the_predicting_position_get_exactly_zero(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    rollout = gradient_weighted_rollout(tiny_llama, generation)
    assert rollout.values.shape == null_of(rollout).shape == (generation.n_targets, len(generation.ids))
    for t in range(generation.n_targets):
        seen = predicting_position(generation.prompt_len, t) + 1
        assert (rollout.values[t, seen:] == 0).all()
        assert (null_of(rollout)[t, seen:] == 0).all()


def test_without_a_positive_weight_the_row_is_the_identity() -> None:
    """Values of zero: no attention weight changes anything."""
    loaded = make_loaded("llama")
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            layer.self_attn.v_proj.weight.zero_()
    generation = answered(loaded)
    rows = gradient_weighted_rollout(loaded, generation).values
    for t in range(generation.n_targets):
        assert rows[t, predicting_position(generation.prompt_len, t)] == 1
    assert (rows.sum(dim=1) == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(gpt64: LoadedModel, dtype: torch.dtype) -> None:
    loaded = make_loaded("gpt2", dtype=dtype)
    generation = answered(loaded)
    want = gradient_weighted_rollout(gpt64, generation).values
    got = gradient_weighted_rollout(loaded, generation).values
    assert (got - want).abs().max() < (1e-3 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_layers_without_softmax_attention_are_refused(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, architecture, HYBRIDS[architecture])
    loaded = make_loaded(architecture)
    with pytest.raises(UnsupportedModelError, match=r"2 of its 3 layers have no softmax attention"):
        gradient_weighted_rollout(loaded, answered(loaded))


def test_a_model_whose_layers_are_no_list() -> None:
    loaded = make_loaded("llama")
    loaded.model.model.layers = torch.nn.Sequential(*loaded.model.model.layers)
    with pytest.raises(UnsupportedModelError, match="no list of 3 layers"):
        gradient_weighted_rollout(loaded, answered(loaded))


def test_nan_is_an_error() -> None:
    loaded = make_loaded("llama")
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        gradient_weighted_rollout(loaded, answered(loaded))


@pytest.mark.slow
def test_equals_autograd_on_the_real_model(smollm2: LoadedModel) -> None:
    generation = answered(smollm2, "The capital of France is", " Paris.")
    got = gradient_weighted_rollout(smollm2, generation)
    assert (got.values - scaled(naive(smollm2, generation)[-1])).abs().max() < 1e-5


def test_plain_and_weighted_differ(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    plain, weighted = attention_rollout(tiny_llama, generation), gradient_weighted_rollout(tiny_llama, generation)
    assert (plain.values - weighted.values).abs().max() > 0.05
