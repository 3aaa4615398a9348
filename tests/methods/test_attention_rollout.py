"""Attention rollout against the naive product of whole eager maps, for every kind of attention that decoders have."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, SENTENCES, SIZES, WINDOW, answered, lost_mass_of, make_loaded, null_of
from torch import Tensor
from transformers import PreTrainedModel

from llmxai.errors import OptionError, UnsupportedModelError
from llmxai.methods import attention_rollout
from llmxai.models import LoadedModel
from llmxai.types import Generation, predicting_position

WINDOWED = {"gemma2", "gemma3_text", "mistral", "gpt_oss"}


@pytest.fixture(params=[300, 2**24], ids=["blocks of a few queries", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(importlib.import_module("llmxai.methods.attention.capture"), "BLOCK_NUMBERS", request.param)
    return int(request.param)


def eager_copy(loaded: LoadedModel) -> PreTrainedModel:
    """The same weights in a model that was built with eager attention."""
    config = copy.deepcopy(loaded.model.config)
    model = type(loaded.model)._from_config(config, attn_implementation="eager", dtype=loaded.dtype)
    model.load_state_dict(loaded.model.state_dict())
    return model.eval()


def eager_heads(loaded: LoadedModel, ids: tuple[int, ...]) -> list[Tensor]:
    """[head, query, key] of every layer."""
    with torch.no_grad():
        maps = eager_copy(loaded)(torch.tensor([ids]), use_cache=False, output_attentions=True).attentions
    return [layer[0].double() for layer in maps]


def eager_maps(loaded: LoadedModel, ids: tuple[int, ...]) -> list[Tensor]:
    """[query, key], head mean, of every layer."""
    return [layer.mean(dim=0) for layer in eager_heads(loaded, ids)]


def naive_rollout(maps: list[Tensor], generation: Generation, *, residual: float) -> Tensor:
    """[target, seq]: whole maps multiplied, then the rows of the predicting positions."""
    identity = torch.eye(len(generation.ids), dtype=torch.float64)
    product = identity
    for layer in maps:
        product = (residual * identity + (1 - residual) * layer) @ product
    return product[[predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]]


def uniform_maps(loaded: LoadedModel, n: int) -> list[Tensor]:
    """Uniform over what each layer's mask allows, from its configuration and not from the code under test."""
    config = loaded.model.config
    distance = torch.arange(n)[:, None] - torch.arange(n)
    maps = []
    for kind in getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers:
        windowed = kind == "sliding_attention" or config.model_type == "mistral"
        allowed = (distance >= 0) & (distance < (config.sliding_window if windowed else n))
        maps.append(allowed.double() / allowed.double().sum(dim=1, keepdim=True))
    return maps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("block")
def test_equals_the_naive_product_of_eager_maps(architecture: str) -> None:
    loaded = make_loaded(architecture)
    generation = answered(loaded, SENTENCES[0], " Hello there")
    assert len(generation.ids) > 2 * WINDOW
    maps = eager_maps(loaded, generation.ids)
    assert all((layer.triu(1) == 0).all() for layer in maps)
    got = attention_rollout(loaded, generation)
    assert (got.values - naive_rollout(maps, generation, residual=0.5)).abs().max() < 1e-5
    assert (got.values >= 0).all()
    assert (got.values.sum(dim=1) + lost_mass_of(got) - 1).abs().max() < 1e-6
    null = naive_rollout(uniform_maps(loaded, len(generation.ids)), generation, residual=0.5)
    assert (null_of(got) - null).abs().max() < 1e-6
    if architecture == "gpt_oss":
        assert (lost_mass_of(got) > 1e-3).all()
    else:
        assert (lost_mass_of(got) < 1e-6).all()


@pytest.mark.parametrize("architecture", sorted(WINDOWED))
def test_the_window_is_seen(architecture: str) -> None:
    """Without it the null, which knows only the masks, would be another one."""
    loaded, wide = make_loaded(architecture), make_loaded(architecture, sliding_window=256)
    rows = [null_of(attention_rollout(m, answered(m, SENTENCES[0], " Hello"))) for m in (loaded, wide)]
    assert (rows[0] - rows[1]).abs().max() > 1e-3


@pytest.mark.parametrize("residual", [0.0, 0.25, 0.9])
def test_residual(tiny_llama: LoadedModel, residual: float) -> None:
    generation = answered(tiny_llama)
    got = attention_rollout(tiny_llama, generation, residual=residual)
    want = naive_rollout(eager_maps(tiny_llama, generation.ids), generation, residual=residual)
    assert (got.values - want).abs().max() < 1e-5
    assert got.settings["residual"] == residual


@pytest.mark.parametrize("residual", [-0.1, 1.0, 2.0, float("nan")])
def test_a_residual_outside_its_range(tiny_llama: LoadedModel, residual: float) -> None:
    with pytest.raises(OptionError, match="residual"):
        attention_rollout(tiny_llama, answered(tiny_llama), residual=residual)


def test_tokens_after_the_predicting_position_get_exactly_zero(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    rollout = attention_rollout(tiny_llama, generation)
    for t in range(generation.n_targets):
        seen = predicting_position(generation.prompt_len, t) + 1
        assert (rollout.values[t, seen:] == 0).all()
        assert (null_of(rollout)[t, seen:] == 0).all()
        assert (rollout.values[t, :seen] > 0).all()
    assert rollout.values.shape == (generation.n_targets, len(generation.ids))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    loaded = make_loaded("llama", dtype=dtype)
    generation = answered(loaded)
    got = attention_rollout(loaded, generation)
    want = naive_rollout(
        eager_maps(make_loaded("llama", dtype=torch.float32), generation.ids), generation, residual=0.5
    )
    assert (got.values - want).abs().max() < (1e-5 if dtype == torch.float64 else 0.05)
    assert (got.values.sum(dim=1) + lost_mass_of(got) - 1).abs().max() < 0.01


HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        **{**SIZES, "num_key_value_heads": 2, "head_dim": 8},
        **{"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_experts": 0},
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
        **{"linear_value_head_dim": 8, "mlp_only_layers": [0, 1, 2]},
    },
    "lfm2": {
        **{**SIZES, "num_key_value_heads": 2},
        "layer_types": ["conv", "full_attention", "conv"],
    },
}


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_layers_without_softmax_attention_are_refused(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, architecture, HYBRIDS[architecture])
    loaded = make_loaded(architecture)
    with pytest.raises(UnsupportedModelError, match=r"2 of its 3 layers have no softmax attention"):
        attention_rollout(loaded, answered(loaded))


@pytest.mark.slow
def test_equals_the_naive_product_on_the_real_model(smollm2: LoadedModel) -> None:
    generation = answered(smollm2, "The capital of France is", " Paris.")
    got = attention_rollout(smollm2, generation)
    want = naive_rollout(eager_maps(smollm2, generation.ids), generation, residual=0.5)
    assert (got.values - want).abs().max() < 1e-5
