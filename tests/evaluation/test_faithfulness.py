"""Every figure against its definition written out as a plain loop, on a model whose F is a sum."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import answered, make_encoder_decoder, make_loaded

from llmxai.evaluation import make_case, suite_rows
from llmxai.evaluation.measure import leave_one_out_scores
from llmxai.evaluation.metrics import (
    OWN_STREAM,
    aopc,
    as_shares,
    curves,
    histogram_entropy,
    infidelity,
    lds,
    max_sensitivity,
    randomisation,
    randomised,
    soft_faithfulness,
    top_k_drop,
)
from llmxai.evaluation.planted_models import build
from llmxai.generation import answer
from llmxai.methods import METHODS, gradient_x_input, span_target, token_targets
from llmxai.methods.features import baseline_embedding
from llmxai.methods.perturbation.removal import SetFunction, half_subsets
from llmxai.methods.perturbation.surrogates import random_masks
from llmxai.models import embed

LINEAR = build()


@pytest.fixture(scope="module")
def removal() -> SetFunction:
    (row,) = suite_rows("closed_form", limit=1, seed=9, options={"length": 8})
    case = make_case(LINEAR, row, answer(LINEAR, row.asked, response=row.response), target="first")
    return SetFunction(LINEAR, case.generation, case.target, case.features, "baseline")


@pytest.fixture(scope="module")
def scores() -> torch.Tensor:
    return torch.randn(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def embeddings(removal: SetFunction) -> torch.Tensor:
    return embed(LINEAR.model, removal.generation.ids)[: removal.target.last + 1].clone()


def p(removal: SetFunction, kept: set[int]) -> float:
    """sigmoid(F) with only `kept`, from a forward pass over embeddings put together by hand."""
    x = embeddings(removal)
    space = baseline_embedding(LINEAR, "space", seq=len(x))
    for i, place in enumerate(removal.features):
        if i not in kept:
            x[place] = space
    f = removal.loaded.model(inputs_embeds=x[None]).logits[0, removal.target.last]
    return float(torch.sigmoid(f[removal.target.ids[0]] - f[removal.target.foils[0]]).detach())


def test_aopc(removal: SetFunction, scores: torch.Tensor) -> None:
    order = sorted(range(8), key=lambda i: -float(scores[i]))
    everything, full = set(range(8)), p(removal, set(range(8)))
    tops = [set(order[: math.ceil(share * 8)]) for share in (0.01, 0.05, 0.1, 0.2, 0.5)]
    found = aopc(removal, scores)
    assert found["comprehensiveness"] == pytest.approx(
        np.mean([full - p(removal, everything - t) for t in tops]), abs=1e-6
    )
    assert found["sufficiency"] == pytest.approx(np.mean([full - p(removal, t) for t in tops]), abs=1e-6)


def test_top_k_drop(removal: SetFunction, scores: torch.Tensor) -> None:
    exact = leave_one_out_scores(removal)
    order = sorted(range(8), key=lambda i: -float(scores[i]))
    for k in (1, 3, 5):
        assert top_k_drop(removal, scores)[f"top_{k}_drop"] == pytest.approx(
            sum(float(exact[i]) for i in order[:k]), abs=1e-4
        )


def test_curves(removal: SetFunction, scores: torch.Tensor) -> None:
    order = sorted(range(8), key=lambda i: -float(scores[i]))
    heights = {"deletion_auc": [], "insertion_auc": []}
    for k in (0, 2, 4, 6, 8):
        heights["insertion_auc"].append(p(removal, set(order[:k])))
        heights["deletion_auc"].append(p(removal, set(order[k:])))
    found = curves(removal, scores, points=4)
    for name, h in heights.items():
        assert found[name] == pytest.approx(sum((a + b) / 2 for a, b in pairwise(h)) / 4, abs=1e-6)


def test_lds_and_infidelity_of_the_exact_scores(removal: SetFunction) -> None:
    exact = leave_one_out_scores(removal)
    assert lds(removal, exact, masks=30, seed=0)["lds"] == pytest.approx(1.0)
    assert infidelity(removal, exact, masks=30, seed=0)["infidelity"] == pytest.approx(0.0, abs=1e-8)
    assert infidelity(removal, 7 * exact, masks=30, seed=0)["infidelity"] == pytest.approx(0.0, abs=1e-8)


def test_lds_and_infidelity_against_their_definitions(removal: SetFunction, scores: torch.Tensor) -> None:
    halves, masks = half_subsets(8, 30, seed=4), random_masks(30, 8, seed=4 + OWN_STREAM)
    found = []
    for subsets in (halves, masks):
        f = [float(removal.values(mask[None])[0]) for mask in subsets]
        found.append((f, [sum(float(s) for s, keep in zip(scores, mask, strict=True) if keep) for mask in subsets]))
    f, predicted = found[0]
    assert lds(removal, scores, masks=30, seed=4)["lds"] == pytest.approx(stats.spearmanr(predicted, f).statistic)
    f, predicted = found[1]
    taken = np.array([float(scores.sum()) - x for x in predicted])
    fall = np.array([removal.full() - x for x in f])
    beta = (taken * fall).sum() / (taken**2).sum()
    value = infidelity(removal, scores, masks=30, seed=4)["infidelity"]
    assert value == pytest.approx(np.mean((beta * taken - fall) ** 2), rel=1e-5)


def test_constant_scores_have_no_lds(removal: SetFunction) -> None:
    for value in (0.0, 0.1):
        assert lds(removal, torch.full((8,), value, dtype=torch.float64), masks=10, seed=0) == {}
    assert infidelity(removal, torch.zeros(8, dtype=torch.float64), masks=10, seed=0) == {}


def test_soft_faithfulness_of_hard_scores(removal: SetFunction) -> None:
    """Half zeros and half ones leave nothing to chance: whole embeddings are zeroed, and the figure is a plain sum."""
    hard = torch.tensor([1, 0, 0, 1, 0, 1, 0, 1], dtype=torch.float64)

    def p_with(kept: torch.Tensor) -> float:
        x = embeddings(removal)
        x[list(removal.features)] *= kept[:, None]
        f = LINEAR.model(inputs_embeds=x[None]).logits[0, removal.target.last]
        return float(torch.sigmoid(f[removal.target.ids[0]] - f[removal.target.foils[0]]).detach())

    full, none = p_with(torch.ones(8)), p_with(torch.zeros(8))
    zero = 1 - max(0, full - none)
    found = soft_faithfulness(removal, hard, samples=3, seed=0)
    assert full > none, "else the figure is not defined, and another seed is needed"
    soft_ns = ((1 - max(0, full - p_with(hard.float()))) - zero) / (1 - zero)
    soft_nc = max(0, full - p_with(1 - hard.float())) / (1 - zero)
    assert found == {"soft_nc": pytest.approx(soft_nc, abs=1e-5), "soft_ns": pytest.approx(soft_ns, abs=1e-5)}


def test_shares() -> None:
    assert as_shares(torch.tensor([-2.0, 0.0, 2.0])).tolist() == [0, 0.5, 1]
    assert as_shares(torch.tensor([3.0, 3.0])).tolist() == [0.5, 0.5]
    assert as_shares(torch.tensor([0.0, 0.0, 0.0, 4.0])).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert as_shares(torch.tensor([0.0, 4.0, 4.0, 4.0])).tolist() == pytest.approx([0, 2 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize("seed", range(5))
def test_every_method_keeps_as_much(seed: int) -> None:
    """Linear in the scores, in [0, 1], with the mean 1/2, whatever the mean of the scores."""
    scores = torch.from_numpy(np.random.default_rng(seed).gamma(0.1 + seed, size=9))
    for given in (scores, -scores, 1000 * scores - 5):
        shares = as_shares(given)
        assert float(shares.mean()) == pytest.approx(0.5)
        assert 0 <= float(shares.min()) <= float(shares.max()) <= 1 + 1e-12
        assert abs(float(np.corrcoef(shares, given)[0, 1])) == pytest.approx(1)
        assert torch.equal(shares.argsort(), given.argsort())


def test_random_weights_keep_embeddings_and_lose_the_rest() -> None:
    loaded = make_loaded("llama", tie_word_embeddings=False)
    other = randomised(loaded, seed=0)
    same = {
        key for key, value in other.model.state_dict().items() if torch.equal(value, loaded.model.state_dict()[key])
    }
    assert same == {"model.embed_tokens.weight"} | {key for key in same if "norm" in key}
    weight = "model.layers.0.mlp.up_proj.weight"
    before, after = (m.model.state_dict()[weight] for m in (loaded, other))
    assert float(after.std()) == pytest.approx(float(before.std()), rel=0.1)
    again = randomised(loaded, seed=0).model.state_dict()[weight]
    assert torch.equal(again, after)


def test_randomisation_figures() -> None:
    ramp = torch.arange(0.5, 20.0, dtype=torch.float64)  # one in each of the 20 bins
    assert randomisation(ramp, -ramp)["randomised_spearman"] == pytest.approx(1.0)
    peak = torch.zeros(20, dtype=torch.float64)
    peak[3] = 1.0
    # one bin holds 19 features and one holds 1, against 20 bins of one each
    low = -(0.95 * math.log(0.95) + 0.05 * math.log(0.05))
    assert histogram_entropy(peak.numpy()) == pytest.approx(low)
    assert histogram_entropy(ramp.numpy()) == pytest.approx(math.log(20))
    assert randomisation(peak, ramp)["emprt"] == pytest.approx(histogram_entropy(ramp.numpy()) / low - 1)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        *(("llama", name) for name in ("attention_rollout", "context_cite", "gradient_x_input")),
        *(("t5", name) for name in ("attention_rollout", "gradient_x_input")),
    ],
)
def test_every_method_reads_the_noise(architecture: str, name: str) -> None:
    """Also one that reads the text only up to the first target's token; the largest noise changes most."""
    loaded = make_encoder_decoder("t5") if architecture == "t5" else make_loaded(architecture)
    generation = answered(loaded, prompt="The capital of France is", response=" Paris")

    def explain() -> torch.Tensor:
        return METHODS[name].function(loaded, generation, targets=token_targets(generation)[:1]).values[0]

    found = [
        max_sensitivity(loaded, generation, explain, radius=radius, samples=2, seed=0)["max_sensitivity"]
        for radius in (0.02, 0.5)
    ]
    assert 0 < found[0] < found[1]


def test_surrogates_are_judged_on_other_subsets_than_they_were_fitted_on() -> None:
    judged, fitted = random_masks(32, 15, seed=OWN_STREAM), random_masks(64, 15, seed=0)
    assert len({*map(tuple, judged.tolist())} & {*map(tuple, fitted.tolist())}) <= 2


def test_max_sensitivity_is_the_largest_relative_change() -> None:
    """gradient x input on the linear model changes by the gradient times the noise, which stays within the radius."""
    generation = answered(LINEAR, prompt="w1 w2 w3 w4", response=" w5")
    target = span_target(generation, end=1)
    weight = LINEAR.model.head.weight.detach()

    def explain() -> torch.Tensor:
        return gradient_x_input(LINEAR, generation, targets=[target], features="all").values[0, :4]

    before = explain()
    found = max_sensitivity(LINEAR, generation, explain, samples=4, seed=0)["max_sensitivity"]
    assert torch.equal(explain(), before), "the noise is gone afterwards"
    radius = 0.02 * float(LINEAR.model.embeddings.weight[list(generation.ids)].std())
    most = radius * float(weight.abs().max()) * 2 * weight.shape[1] * 2 / float(before.norm())
    assert 0 < found < most
    none = max_sensitivity(LINEAR, generation, lambda: torch.ones(4, dtype=torch.float64), samples=2, seed=0)
    assert none == {"max_sensitivity": 0.0}
