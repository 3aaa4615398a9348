"""Every fact in the table of families, on a tiny model of that family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kept import WIDE, estimated, kept_by_autograd, wide_model
from tiny import (
    ARCHITECTURES,
    CLASSIFIERS,
    ENCODER_DECODERS,
    HYBRIDS,
    SIZES,
    answered,
    make_classifier,
    make_encoder_decoder,
    make_loaded,
    make_model,
    make_tokenizer,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmxai.errors import UnsupportedModelError
from llmxai.methods import attention_rollout, layer_integrated_gradients
from llmxai.models import adapter_of, wrap
from llmxai.models.families import (
    FAMILIES,
    KEPT_BY_ACTIVATION,
    OUTPUT_PROJECTIONS,
    Family,
    family_of,
    kind_of,
    layers_without_softmax,
    residual_multiplier,
    rollout_refusal,
)

PER_LAYER: dict[str, Any] = {
    **{**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_size_per_layer_input": 8},
    **{"vocab_size_per_layer_input": len(make_tokenizer()), "num_kv_shared_layers": 0},
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}
OTHERS: dict[str, dict[str, Any]] = {
    "gemma3n_text": {**PER_LAYER, "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": {**PER_LAYER, "global_head_dim": 8, "sliding_window": 6},
    "glm4": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48},
}
"""Families of the table that no other test needs."""
GATED = ("silu", "swish", "gelu_pytorch_tanh")


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    if family in ARCHITECTURES:
        return make_model(family, **changes)
    size = len(make_tokenizer())
    own = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 4, **OTHERS[family], **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **own)).eval()


def model_of(architecture: str) -> PreTrainedModel:
    """Of any kind."""
    if architecture in CLASSIFIERS:
        return make_classifier(architecture).model
    if architecture in ENCODER_DECODERS:
        return make_encoder_decoder(architecture).model
    return tiny_model(architecture)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_reached_and_says_something(family: str) -> None:
    model = tiny_model(family)
    assert family_of(model.config) is FAMILIES[family]
    assert FAMILIES[family] != Family()
    generation = answered(loaded := wrap(model, make_tokenizer(), name=family))
    assert torch.isfinite(layer_integrated_gradients(loaded, generation, n_steps=2).values).all()


def test_a_picture_models_text_has_the_row_of_the_text() -> None:
    """Gemma 3 with pictures is `gemma3`, and its text `gemma3_text`: no row can have the outer name."""
    config = AutoConfig.for_model("gemma3")
    assert config.model_type == "gemma3"
    assert family_of(config) is FAMILIES["gemma3_text"]


KEPT = [name for name, row in FAMILIES.items() if (row.norms, row.experts_keep, row.own_maps) != (2, None, 0)]


@pytest.mark.parametrize("family", KEPT)
def test_what_a_row_says_is_kept_is_nearer_than_what_llama_keeps(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if family in ARCHITECTURES:
        model = wide_model(family, torch.float32)
    else:
        model = tiny_model(family, **WIDE, intermediate_size=384, head_dim=16, num_key_value_heads=4)
        model.requires_grad_(False)
    kept = kept_by_autograd(model)
    with_row = estimated(model)
    assert with_row == pytest.approx(kept, rel=0.3)
    monkeypatch.delitem(FAMILIES, family)
    assert abs(with_row - kept) < abs(estimated(model) - kept)


@pytest.mark.parametrize("family", ["olmo2", "olmo3"])
def test_norms_after_the_blocks_alone_are_two(family: str) -> None:
    """OLMo normalises what its blocks give and not what they get: two norms, as usual."""
    sizes = {**SIZES, **WIDE, "intermediate_size": 384, "vocab_size": 400, "num_key_value_heads": 4}
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2} if family == "olmo3" else {}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **sizes, **kinds, pad_token_id=0, eos_token_id=1)
    )
    assert estimated(model) == pytest.approx(kept_by_autograd(model.eval().requires_grad_(False)), rel=0.1)


@pytest.mark.parametrize("activation", [name for name in KEPT_BY_ACTIVATION if name not in GATED])
def test_activations_that_keep_every_step(activation: str) -> None:
    sizes = {"n_layer": 4, "n_embd": 128, "n_head": 8}
    model = make_model("gpt2", **sizes, activation_function=activation).requires_grad_(False)
    assert estimated(model) == pytest.approx(kept_by_autograd(model), rel=0.05)


@pytest.mark.parametrize("activation", GATED)
def test_activations_next_to_a_gate(activation: str) -> None:
    model = make_model("llama", **WIDE, intermediate_size=384, hidden_act=activation).requires_grad_(False)
    assert estimated(model) == pytest.approx(kept_by_autograd(model), rel=0.15)


def attentions(model: PreTrainedModel) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Every module with an output projection by name, and those projections."""
    for module in model.modules():
        found = [part for name in OUTPUT_PROJECTIONS if isinstance(part := getattr(module, name, None), nn.Module)]
        if found and any(mark in type(module).__name__ for mark in ("Attention", "SelfOutput")):
            yield module, found


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *CLASSIFIERS, "bart"])
def test_every_attention_has_one_output_projection(architecture: str) -> None:
    found = list(attentions(model_of(architecture)))
    assert len(found) >= 3
    assert all(len(projections) == 1 for _, projections in found)


def test_no_name_of_a_projection_is_unused() -> None:
    used = {
        name
        for architecture in (*ARCHITECTURES, *CLASSIFIERS, "bart")
        for module, _ in attentions(model_of(architecture))
        for name in OUTPUT_PROJECTIONS
        if hasattr(module, name)
    }
    assert used == set(OUTPUT_PROJECTIONS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_which_attention_adds_the_residual_itself(architecture: str) -> None:
    """With its projection at 0, attention gives 0, or the residual stream where it adds that."""
    model = make_model(architecture)
    module, (projection,) = next(attentions(model))
    outputs = []
    module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.zero_()
        model(torch.tensor([[5, 6, 7]]))
    assert bool(outputs[0].any()) == family_of(model.config).attention_adds_residual


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.recurrent])
def test_a_recurrent_family_has_no_rollout_and_no_cached_prefix(family: str) -> None:
    model = tiny_model(family)
    assert layers_without_softmax(model.config) == {"linear_attention": 3}
    assert not adapter_of(model).keeps_prefix(model)
    assert rollout_refusal(model.config) is not None
    loaded = wrap(model, make_tokenizer(), name=family)
    with pytest.raises(UnsupportedModelError, match="3 of its 3 layers have no softmax attention"):
        attention_rollout(loaded, answered(loaded))


def test_the_others_have_softmax_or_say_so_themselves() -> None:
    for architecture in (*ARCHITECTURES, *CLASSIFIERS, *ENCODER_DECODERS):
        assert rollout_refusal(model_of(architecture).config) is None
    for architecture in HYBRIDS:
        assert rollout_refusal(make_model(architecture).config) is not None


def test_kinds_and_the_multiplier_of_granite() -> None:
    assert kind_of(model_of("llama")) == "causal"
    assert kind_of(model_of("bert")) == "classifier"
    assert kind_of(model_of("t5")) == "encoder-decoder"
    assert residual_multiplier(AutoConfig.for_model("granite", residual_multiplier=0.22)) == 0.22
    assert residual_multiplier(make_loaded("llama").model.config) == 1
