"""Every rollout variant against the same thing written naively over whole eager maps."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from test_attention_rollout import block, eager_copy, eager_heads, eager_maps, naive_rollout, uniform_maps
from tiny import ARCHITECTURES, SENTENCES, answered, lost_mass_of, make_classifier, make_loaded, null_of
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from llmxai.errors import OptionError, UnsupportedModelError
from llmxai.methods import METHODS, attention_rollout
from llmxai.models import LoadedModel
from llmxai.stats import jensen_shannon
from llmxai.types import Generation, Scores, predicting_position

__all__ = ["block"]

THROUGH_INTERFACE = sorted(set(ARCHITECTURES) - {"bloom", "falcon", "stablelm"})
PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense")


def question(loaded: LoadedModel) -> Generation:
    return answered(loaded, SENTENCES[0], " Hello there")


def rolled(name: str, loaded: LoadedModel, generation: Generation, **options: Any) -> Scores:
    return METHODS[name].function(loaded, generation, **options)


def positions(generation: Generation) -> list[int]:
    return [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]


def to_sum(rows: Tensor, total: Tensor | float = 1.0) -> Tensor:
    return rows / rows.sum(dim=-1, keepdim=True) * total


def value_norm_maps(loaded: LoadedModel, ids: tuple[int, ...]) -> list[Tensor]:
    """||sum over heads of weight x (value, projected)||: one vector a query and key, as eq. 4 says."""
    model, found = eager_copy(loaded), []

    def probe(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any) -> Any:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output, weights = eager(module, query, key, value, mask, **options)
        projection = next(getattr(module, name) for name in PROJECTIONS if hasattr(module, name))
        heads, n = weights.shape[1:3]
        shift = projection(torch.zeros(1, heads * value.shape[3], dtype=value.dtype))
        total = torch.zeros(n, n, shift.shape[1], dtype=torch.float64)
        for head in range(heads):
            alone = torch.zeros(n, heads, value.shape[3], dtype=value.dtype)
            alone[:, head] = value[0, head * value.shape[1] // heads]
            f = (projection(alone.flatten(1)) - shift).double()
            total += weights[0, head].double()[:, :, None] * f[None]
        found.append(to_sum(total.norm(dim=-1)))
        return output, weights

    AttentionInterface.register("probe", probe)
    AttentionMaskInterface.register("probe", eager_mask)
    try:
        model.set_attn_implementation("probe")
        with torch.no_grad():
            model(torch.tensor([ids]), use_cache=False)
    finally:
        AttentionInterface._global_mapping.pop("probe")
        AttentionMaskInterface._global_mapping.pop("probe")
    return found


@pytest.mark.parametrize("architecture", THROUGH_INTERFACE)
@pytest.mark.usefixtures("block")
def test_value_norms(architecture: str) -> None:
    dtype = torch.float32 if architecture in {"mixtral", "gpt_oss"} else torch.float64
    loaded = make_loaded(architecture, dtype=dtype)
    generation = question(loaded)
    maps = value_norm_maps(loaded, generation.ids)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-6
    got = rolled("value_norm_rollout", loaded, generation)
    assert (got.values - naive_rollout(maps, generation, residual=0.5)).abs().max() < tolerance
    assert (got.values.sum(dim=1) - 1).abs().max() < 1e-5
    mean = torch.stack(maps).mean(dim=0)[positions(generation)]
    flat = rolled("value_norm_attention", loaded, generation)
    assert (flat.values - mean).abs().max() < tolerance
    null = torch.stack(uniform_maps(loaded, len(generation.ids))).mean(dim=0)[positions(generation)]
    assert (null_of(flat) - null).abs().max() < 1e-12
    assert flat.curve is None


@pytest.mark.parametrize("architecture", ["bloom", "falcon", "stablelm"])
def test_values_out_of_reach_are_refused(architecture: str) -> None:
    loaded = make_loaded(architecture)
    with pytest.raises(UnsupportedModelError, match="reads only attention weights"):
        rolled("value_norm_rollout", loaded, question(loaded))


def test_a_gate_before_the_projection_is_refused() -> None:
    loaded = make_loaded("llama")
    attention = loaded.model.model.layers[1].self_attn
    hooks = len(attention.o_proj._forward_pre_hooks)
    gate = attention.o_proj.register_forward_pre_hook(lambda _m, args: (args[0] * 0.5,))
    with pytest.raises(UnsupportedModelError, match="1 layers change the output of attention"):
        rolled("value_norm_attention", loaded, question(loaded))
    gate.remove()
    assert len(attention.o_proj._forward_pre_hooks) == hooks


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "bloom", "gemma2"])
@pytest.mark.parametrize(("variant", "reduce"), [("max_head_rollout", torch.amax), ("min_head_rollout", torch.amin)])
@pytest.mark.usefixtures("block")
def test_head_fusions(architecture: str, variant: str, reduce: Any) -> None:
    loaded = make_loaded(architecture)
    generation = question(loaded)
    heads = eager_heads(loaded, generation.ids)
    maps = [to_sum(reduce(layer, dim=0), layer.mean(dim=0).sum(dim=1, keepdim=True)) for layer in heads]
    got = rolled(variant, loaded, generation)
    assert (got.values - naive_rollout(maps, generation, residual=0.5)).abs().max() < 1e-5
    assert (got.values.sum(dim=1) + lost_mass_of(got) - 1).abs().max() < 1e-5
    name = got.settings["head_fusion"]
    assert torch.equal(attention_rollout(loaded, generation, head_fusion=name).values, got.values)


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "mistral", "falcon"])
@pytest.mark.usefixtures("block")
def test_sink_removed(architecture: str) -> None:
    loaded = make_loaded(architecture)
    generation = question(loaded)

    def without(maps: list[Tensor]) -> list[Tensor]:
        for layer in maps:
            layer[1:, 0] = 0
        return [to_sum(layer) for layer in maps]

    got = rolled("sink_free_rollout", loaded, generation)
    want = naive_rollout(without(eager_maps(loaded, generation.ids)), generation, residual=0.5)
    assert (got.values - want).abs().max() < 1e-5
    null = naive_rollout(without(uniform_maps(loaded, len(generation.ids))), generation, residual=0.5)
    assert (null_of(got) - null).abs().max() < 1e-12
    assert (got.values[:, 0] == 0).all()
    assert (got.values.sum(dim=1) - 1).abs().max() < 1e-6


def test_a_sink_that_every_query_of_an_encoder_can_leave() -> None:
    """There the first token sees the others too, so nothing keeps position 0."""
    loaded = make_classifier("bert")
    generation = answered(loaded, prompt="The capital of France is Paris.", response="neutral")
    read = generation.ids[: generation.prompt_len]
    maps = eager_maps(loaded, read)
    want = torch.eye(len(read), dtype=maps[0].dtype)[0]  # the classifier reads the first token
    for layer in reversed(maps):
        layer[:, 0] = 0
        want = (want + want @ to_sum(layer)) / 2
    got = rolled("sink_free_rollout", loaded, generation).values[0]
    assert (got[: len(read)] - want).abs().max() < 1e-5


@pytest.mark.parametrize("last_layers", [1, 2, 3, 8])
def test_last_layers(tiny_llama: LoadedModel, last_layers: int) -> None:
    generation = question(tiny_llama)
    maps = eager_maps(tiny_llama, generation.ids)[-last_layers:]
    got = rolled("last_layers_rollout", tiny_llama, generation, last_layers=last_layers)
    assert (got.values - naive_rollout(maps, generation, residual=0.5)).abs().max() < 1e-5
    assert got.settings["layers"] == min(last_layers, 3)
    assert got.curve is not None
    assert got.curve.entropy.shape == (generation.n_targets, min(last_layers, 3))


def test_raw_attention_of_the_last_layer(tiny_llama: LoadedModel) -> None:
    generation = question(tiny_llama)
    got = rolled("last_layer_attention", tiny_llama, generation)
    assert (got.values - eager_maps(tiny_llama, generation.ids)[-1][positions(generation)]).abs().max() < 1e-6
    assert (null_of(got) - uniform_maps(tiny_llama, len(generation.ids))[-1][positions(generation)]).abs().max() < 1e-12
    assert got.curve is None


ADDED = {
    "llama": lambda layer: layer.self_attn.o_proj,
    "gemma2": lambda layer: layer.post_attention_layernorm,
    "olmo2": lambda layer: layer.post_attention_layernorm,
    "bloom": lambda layer: layer.self_attention.dense,
    "falcon": lambda layer: layer.self_attention.dense,
    "gpt_neox": lambda layer: layer.attention.dense,
    "gpt2": lambda layer: layer.attn.c_proj,
    "opt": lambda layer: layer.self_attn.out_proj,
}


@pytest.mark.parametrize("architecture", ADDED)
def test_measured_residual(architecture: str) -> None:
    """The module whose output the architecture adds to the stream is named by hand."""
    loaded = make_loaded(architecture)
    generation = question(loaded)
    model = eager_copy(loaded)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    added: list[Tensor] = []
    for layer in layers:
        ADDED[architecture](layer).register_forward_hook(lambda _m, _i, output: added.append(output))
    with torch.no_grad():
        output = model(
            torch.tensor([generation.ids]), use_cache=False, output_attentions=True, output_hidden_states=True
        )
    n = len(generation.ids)
    product = torch.eye(n, dtype=torch.float64)
    for weights, stream, plus in zip(output.attentions, output.hidden_states, added, strict=False):
        kept, moved = stream[0].double().norm(dim=1), plus[0].double().norm(dim=1)
        r = (kept / (kept + moved))[:, None]
        product = (r * torch.eye(n) + (1 - r) * weights[0].double().mean(dim=0)) @ product
    got = rolled("measured_residual_rollout", loaded, generation)
    assert (got.values - product[positions(generation)]).abs().max() < 1e-5
    assert all(0 < share < 1 for share in got.settings["residual"])


def test_the_curve_is_that_of_the_partial_products(tiny_llama: LoadedModel) -> None:
    """Entry k against the naive product of the top k + 1 layers and the cross-check's own figures."""
    generation = question(tiny_llama)
    seen = [p + 1 for p in positions(generation)]
    got = attention_rollout(tiny_llama, generation)
    assert got.curve is not None
    maps, uniform = eager_maps(tiny_llama, generation.ids), uniform_maps(tiny_llama, len(generation.ids))
    for k in range(3):
        rows = naive_rollout(maps[2 - k :], generation, residual=0.5)
        null = naive_rollout(uniform[2 - k :], generation, residual=0.5)
        for t, end in enumerate(seen):
            assert float(got.curve.sink_mass[t, k]) == pytest.approx(float(rows[t, 0]), abs=1e-6)
            spread = entropy(rows[t, :end].numpy()) / np.log(end)
            assert float(got.curve.entropy[t, k]) == pytest.approx(spread, abs=1e-5)
            divergence = jensen_shannon(rows[t, :end].numpy(), null[t, :end].numpy())
            assert float(got.curve.null_divergence[t, k]) == pytest.approx(divergence, abs=1e-5)
            cosines = [
                torch.cosine_similarity(rows[t, : min(end, other)], rows[s, : min(end, other)], dim=0)
                for s, other in enumerate(seen)
                if s != t
            ]
            assert float(got.curve.similarity[t, k]) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)


def test_the_similarity_of_a_single_target_is_one(tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama, "The capital of France is", " Paris")
    single = attention_rollout(tiny_llama, generation).curve
    assert single is not None
    if generation.n_targets == 1:
        assert (single.similarity == 1).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m, g: attention_rollout(m, g, head_fusion="median"),
            r"head_fusion 'median' is unknown\. Did you mean 'mean'\? Known: mean, max, min",
        ),
        (lambda m, g: rolled("last_layers_rollout", m, g, last_layers=0), "last_layers is 0"),
        (lambda m, g: rolled("sink_free_rollout", m, g, residual=1.0), "residual is 1.0"),
    ],
)
def test_bad_options(tiny_llama: LoadedModel, call: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        call(tiny_llama, question(tiny_llama))


def test_whole_maps_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("bloom")
    monkeypatch.setattr("llmxai.methods.attention.capture.EAGER_LIMIT", 8)
    for method in (attention_rollout, METHODS["gradient_weighted_rollout"].function):
        with pytest.raises(UnsupportedModelError, match=r"limited to 8 tokens; there are (17|16)\."):
            method(loaded, question(loaded))
