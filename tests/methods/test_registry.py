"""What every method of the table promises, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from tiny import answered, null_of

from llmxai.errors import OptionError, UnsupportedModelError
from llmxai.evaluation.planted_models import build
from llmxai.explain import variant_names
from llmxai.methods import (
    METHODS,
    Target,
    contrast_target,
    gradient_weighted_rollout,
    span_target,
    token_targets,
)
from llmxai.methods.attention.rollout import VARIANTS
from llmxai.methods.registry import require_method
from llmxai.models import LoadedModel
from llmxai.settings import AttentionRollout, DeletionPath, IntegratedGradients, Removal, Settings
from llmxai.types import Generation, Scores

NO_RULE = "deep_lift"
"""Captum has no rule for a transformer's attention."""
PRODUCTS = ("attention_rollout", *(variant.name for variant in VARIANTS))
"""Attention methods whose matrices are the same for every target, so that rows are linear in what they start from."""


def one_of_each(generation: Generation) -> tuple[Target, ...]:
    """A token, a span that holds it, and a contrast."""
    foil = (generation.generated_ids[1] + 1) % 80
    return (
        token_targets(generation)[0],
        span_target(generation, end=2),
        contrast_target(generation, t=1, foil=foil),
    )


def require_scores(scores: Scores, name: str, generation: Generation, targets: Sequence[Target]) -> None:
    shape = (len(targets), len(generation.ids))
    assert scores.method == name
    assert scores.values.shape == scores.features.shape == shape
    assert scores.values.dtype == torch.float64
    assert torch.isfinite(scores.values).all()
    assert (scores.values[~scores.features] == 0).all()
    assert scores.values.any(dim=1).all(), "every target has a score"
    for row, target in zip(scores.features, targets, strict=True):
        assert not row[target.last + 1 :].any(), "tokens after the target are not features"
    if not scores.signed:
        assert (scores.values >= 0).all()
    if scores.null is not None:
        assert scores.null.shape == shape
    if scores.lost_mass is not None:
        assert torch.allclose(scores.values.sum(dim=1) + scores.lost_mass, torch.ones(len(targets)).double(), atol=1e-6)
    if (certificate := scores.certificate) is not None:
        net = certificate.f_input - certificate.f_baseline
        assert torch.allclose(scores.values.sum(dim=1), net + certificate.gap, atol=1e-9)
        assert len(certificate.nodes) == len(certificate.converged) == len(targets)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {NO_RULE}))
def test_every_method_scores_a_token_a_span_and_a_contrast(name: str, tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    assert generation.n_targets > 2
    targets = one_of_each(generation)
    require_scores(METHODS[name].function(tiny_llama, generation, targets=targets), name, generation, targets)


def test_a_method_without_rules_for_a_transformer_scores_a_linear_model(tiny_llama: LoadedModel) -> None:
    function = METHODS[NO_RULE].function
    with pytest.raises(UnsupportedModelError, match="no rule"):
        function(tiny_llama, answered(tiny_llama), targets=one_of_each(answered(tiny_llama)))
    loaded = build()
    generation = answered(loaded, prompt="w1 w2 w3 w4", response=" w5 w6 w7")
    assert generation.n_targets > 2
    targets = one_of_each(generation)
    require_scores(function(loaded, generation, targets=targets), NO_RULE, generation, targets)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_targets_are_the_generated_tokens_where_none_are_given(name: str, tiny_llama: LoadedModel) -> None:
    loaded, generation = tiny_llama, answered(tiny_llama)
    if name == NO_RULE:
        loaded = build()
        generation = answered(loaded, prompt="w1 w2 w3 w4", response=" w5 w6 w7")
    function = METHODS[name].function
    found, want = function(loaded, generation), function(loaded, generation, targets=token_targets(generation))
    assert torch.equal(found.values, want.values)
    assert torch.equal(found.features, want.features)
    assert len(found.values) == generation.n_targets


# spans and several targets of attention


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_row_of_a_span_is_the_mean_of_the_rows_of_its_tokens(name: str, tiny_llama: LoadedModel) -> None:
    generation = answered(tiny_llama)
    function = METHODS[name].function
    tokens = function(tiny_llama, generation)
    for first, end in ((0, 2), (1, None)):
        span = function(tiny_llama, generation, targets=[span_target(generation, first=first, end=end)])
        assert (span.values[0] - tokens.values[first:end].mean(dim=0)).abs().max() < 1e-12
        assert (null_of(span)[0] - null_of(tokens)[first:end].mean(dim=0)).abs().max() < 1e-12


def test_all_variants_but_the_gradient_weighted_are_products() -> None:
    assert {"attention_rollout", *variant_names()} == {*PRODUCTS, "gradient_weighted_rollout"}


@pytest.mark.parametrize("overlapping", [False, True])
def test_gradient_weighted_rows_together_are_those_of_each_target_alone(gpt64: LoadedModel, overlapping: bool) -> None:
    generation = answered(gpt64)
    first, second, third = token_targets(generation)[:3]
    targets = [first, second, third]
    if overlapping:
        targets = [first, span_target(generation, end=2), contrast_target(generation, t=1, foil=9), third]
    together = gradient_weighted_rollout(gpt64, generation, targets=targets)
    for t, target in enumerate(targets):
        alone = gradient_weighted_rollout(gpt64, generation, targets=[target])
        assert (together.values[t] - alone.values[0]).abs().max() < 1e-10
        assert (null_of(together)[t] - null_of(alone)[0]).abs().max() < 1e-10
    assert (together.values[0] - together.values[1]).abs().max() > 1e-3


# defaults


@pytest.mark.parametrize(
    ("name", "spec", "elsewhere"),
    [
        ("layer_integrated_gradients", IntegratedGradients(), set()),
        ("deletion_path", DeletionPath(), set()),
        ("attention_rollout", AttentionRollout(), {"variant"}),
        ("leave_one_out", Removal(), {"subsets", "seed", "chunk_tokens", "answer", "budget", "recomputed"}),
    ],
)
def test_the_defaults_of_a_method_are_those_of_its_settings(name: str, spec: Any, elsewhere: set[str]) -> None:
    """`elsewhere`: fields that are not the method's own."""
    options = dict(METHODS[name].options)
    assert options.pop("features", Settings().features) == Settings().features
    assert options == {each.name: getattr(spec, each.name) for each in fields(spec) if each.name not in elsewhere}


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if "seed" in entry.options])
@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes(name: str, seed: int, tiny_llama: LoadedModel) -> None:
    with pytest.raises(OptionError, match="seed is"):
        require_method(name, {"seed": seed})
    with pytest.raises(OptionError, match="seed is"):
        METHODS[name].function(tiny_llama, answered(tiny_llama), seed=seed)
    assert require_method(name, {"seed": 2**63 - 1}) == {"seed": 2**63 - 1}
