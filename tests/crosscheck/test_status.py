"""The status rule by its figures, and the whole cross-check on rows made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from llmxai.crosscheck.status import TargetError
from tiny import null_of

from llmxai.crosscheck import RULE, cross_check, status_of
from llmxai.methods import token_targets
from llmxai.methods.perturbation.effects import half_subsets
from llmxai.stats import jensen_shannon
from llmxai.types import (
    Agreement,
    Certificate,
    CrossCheck,
    Dilution,
    Effects,
    Generation,
    RefereeVerdict,
    Role,
    Scores,
    Status,
    predicting_position,
)

ALIKE = Agreement(
    spearman=0.62,
    spearman_p=0.001,
    recency_p=0.004,
    adjusted_p=0.008,
    kendall=0.5,
    top_k=5,
    top_k_overlap=0.8,
    rank_biased_overlap=0.7,
    jensen_shannon=0.1,
)
UNLIKE = replace(ALIKE, spearman=-0.12, spearman_p=0.7, recency_p=0.6, adjusted_p=0.71)
UNDEFINED = replace(ALIKE, spearman=None, spearman_p=None, recency_p=None, adjusted_p=None)
CLEAR = Dilution(sink_mass=0.1, feature_mass=0.8, entropy=0.7, null_divergence=0.3, similarity=0.4)
SUNK = replace(CLEAR, sink_mass=0.996)
FINE = TargetError(converged=True, local_error=0.01, tolerance=0.02)
OFF = TargetError(converged=False, local_error=0.5, tolerance=0.02)
OPEN = RefereeVerdict(scores={}, better=None, difference=0.1, interval=(-0.2, 0.3), sources=(), missed={})
GRADIENTS = replace(OPEN, better="layer_integrated_gradients", difference=0.4, interval=(0.2, 0.6))
ATTENTION = replace(OPEN, better="attention_rollout", difference=-0.4, interval=(-0.6, -0.2))
FOUND = replace(OPEN, sources=(3, 7), missed={"layer_integrated_gradients": (), "attention_rollout": ()})
ROLLOUT_MISSED = replace(FOUND, missed={"layer_integrated_gradients": (), "attention_rollout": (7,)})
BOTH_MISSED = replace(FOUND, missed={"layer_integrated_gradients": (3,), "attention_rollout": (3, 7)})


@pytest.mark.parametrize(
    ("error", "agreement", "dilution", "variant", "verdict", "status", "words"),
    [
        (OFF, ALIKE, CLEAR, ALIKE, None, Status.UNCONVERGED, "off by 0.5 nats, and 0.02 is allowed"),
        (OFF, ALIKE, SUNK, ALIKE, None, Status.UNCONVERGED, "do not read it here"),
        (FINE, ALIKE, SUNK, ALIKE, None, Status.DILUTED, "99.6% of its mass on the first token"),
        (
            FINE,
            ALIKE,
            SUNK,
            ALIKE,
            None,
            Status.DILUTED,
            "rollout ranks the sources as the gradients do (Spearman 0.62",
        ),
        (FINE, ALIKE, SUNK, UNLIKE, None, Status.DILUTED, "does not rank the sources as the gradients do"),
        (FINE, ALIKE, SUNK, UNDEFINED, None, Status.DILUTED, "cannot be compared with the gradients either"),
        (FINE, ALIKE, CLEAR, UNLIKE, GRADIENTS, Status.AGREE, "Spearman 0.62, p = 0.008"),
        (FINE, UNLIKE, CLEAR, ALIKE, None, Status.DISAGREE, "Nothing was removed from the prompt to test"),
        (FINE, UNLIKE, CLEAR, ALIKE, GRADIENTS, Status.DISAGREE, "supports the gradients (difference of LDS 0.40"),
        (FINE, UNLIKE, CLEAR, ALIKE, ATTENTION, Status.DISAGREE, "supports attention rollout"),
        (FINE, UNLIKE, CLEAR, ALIKE, OPEN, Status.DISAGREE, "does not show which of them is right"),
        (FINE, UNDEFINED, CLEAR, ALIKE, OPEN, Status.DISAGREE, "Too few features"),
        (FINE, UNLIKE, CLEAR, ALIKE, FOUND, Status.AGREE, "the 2 parts of the prompt"),
        (FINE, ALIKE, CLEAR, ALIKE, ROLLOUT_MISSED, Status.DISAGREE, "attention rollout misses 1 of the 2 parts"),
        (FINE, UNDEFINED, CLEAR, ALIKE, BOTH_MISSED, Status.DISAGREE, "the gradients miss 1 and attention rollout"),
        (FINE, ALIKE, SUNK, ALIKE, FOUND, Status.DILUTED, "99.6%"),
        (OFF, ALIKE, CLEAR, ALIKE, FOUND, Status.UNCONVERGED, "do not read it here"),
    ],
)
def test_the_status_rule(
    error: TargetError,
    agreement: Agreement,
    dilution: Dilution,
    variant: Agreement,
    verdict: RefereeVerdict | None,
    status: Status,
    words: str,
) -> None:
    got, reason = status_of(
        error,
        agreement,
        dilution,
        variant=variant,
        variant_name="gradient_weighted_rollout",
        verdict=verdict,
    )
    assert got == status
    assert words in reason


# the whole cross-check

SEQ, PROMPT = 16, 14
POSITIONS = [predicting_position(PROMPT, t) for t in range(SEQ - PROMPT)]


def generation() -> Generation:
    return Generation(
        ids=tuple(range(SEQ)),
        prompt_len=PROMPT,
        roles=(Role.BOS, *(Role.USER,) * (PROMPT - 1), *(Role.GENERATED,) * (SEQ - PROMPT)),
        texts=("a",) * SEQ,
        words=tuple((i, i + 1) for i in range(SEQ)),
        logprobs=None,
        stop="given",
        request={"prompt": "a"},
    )


def features() -> torch.Tensor:
    seq = torch.arange(SEQ)
    return (seq >= 1) & (seq <= torch.tensor(POSITIONS)[:, None])


def scattered(seed: int) -> torch.Tensor:
    """[target, seq], no trend, over what each target sees."""
    drawn = torch.rand(len(POSITIONS), SEQ, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn + 0.1) * (torch.arange(SEQ) <= torch.tensor(POSITIONS)[:, None])


def gradients(values: torch.Tensor, *, converged: bool = True) -> Scores:
    one = torch.ones(len(values), dtype=torch.float64)
    certificate = Certificate(
        f_input=one,
        f_baseline=0 * one,
        gap=0.5 * one,
        local_error=0.5 * one,
        tolerance=0.02 * one,
        nodes=(4,) * len(values),
        converged=(converged,) * len(values),
    )
    return Scores(
        method="layer_integrated_gradients",
        values=values * features(),
        features=features(),
        signed=True,
        settings={},
        certificate=certificate,
    )


def rollout(rows: torch.Tensor, null: torch.Tensor, *, method: str = "attention_rollout") -> Scores:
    rows, null = (side / side.sum(dim=1, keepdim=True) for side in (rows, null))
    return Scores(
        method=method,
        values=rows,
        features=torch.arange(SEQ) <= torch.tensor(POSITIONS)[:, None],
        signed=False,
        settings={},
        null=null,
        lost_mass=torch.zeros(len(rows), dtype=torch.float64),
    )


def checked(own: Scores, plain: Scores, variant: Scores, effects: Effects | None = None) -> tuple[CrossCheck, ...]:
    answer = generation()
    return cross_check(answer, token_targets(answer), gradients=own, rollout=plain, variant=variant, effects=effects)


def sunk(rows: torch.Tensor) -> torch.Tensor:
    out = rows.clone()
    out[:, 0] = 300 * rows.sum(dim=1)
    return out


SAME, OTHER = scattered(1), scattered(2)
NULL = torch.ones_like(SAME) * (SAME > 0)


def test_equal_rankings_agree_and_the_sign_is_no_matter() -> None:
    checks = checked(gradients(-SAME), rollout(SAME**3, NULL), rollout(OTHER, NULL, method="max_head"))
    for check in checks:
        assert check.status == Status.AGREE
        assert check.agreement.spearman == pytest.approx(1)
        assert check.agreement.top_k_overlap == 1
        assert check.agreement.adjusted_p is not None
        assert check.agreement.adjusted_p <= RULE.significance
        assert check.variant_agreement.spearman != check.agreement.spearman
        assert check.verdict is None


def test_a_sunk_row_is_diluted_though_its_features_are_in_order() -> None:
    checks = checked(gradients(SAME), rollout(sunk(SAME), NULL), rollout(SAME, NULL, method="variant"))
    for t, check in enumerate(checks):
        assert check.status == Status.DILUTED
        assert "Variant ranks the sources as the gradients do" in check.reason
        assert check.dilution.sink_mass == pytest.approx(300 / (301 - float(SAME[t, 0] / SAME[t].sum())), abs=1e-6)
        assert check.variant_dilution.sink_mass == pytest.approx(float(SAME[t, 0] / SAME[t].sum()))


def test_unconverged_comes_first() -> None:
    checks = checked(
        gradients(SAME, converged=False),
        rollout(sunk(SAME), NULL),
        rollout(SAME, NULL, method="variant"),
    )
    assert {check.status for check in checks} == {Status.UNCONVERGED}


def test_the_figures_are_those_of_the_rows() -> None:
    plain = rollout(OTHER, NULL)
    check = checked(gradients(SAME), plain, rollout(SAME, NULL, method="variant"))[0]
    seen = POSITIONS[0] + 1
    assert check.dilution.feature_mass == pytest.approx(float(plain.values[0, 1:seen].sum()))
    want = jensen_shannon(plain.values[0, :seen].numpy(), null_of(plain)[0, :seen].numpy())
    assert check.dilution.null_divergence == pytest.approx(want)
    want = jensen_shannon(SAME[0, 1:seen].numpy(), OTHER[0, 1:seen].numpy())
    assert check.agreement.jensen_shannon == pytest.approx(want)
    assert check.agreement.top_k == RULE.top_k


def test_the_referee_reads_all_three_methods() -> None:
    units = tuple((i, i + 1) for i in range(1, PROMPT))
    true, kept = SAME[:, 1:PROMPT], half_subsets(len(units), 64, seed=0)
    full = true.sum(dim=1)
    world = Effects(
        operator="delete",
        units=units,
        kept=kept,
        f_full=full,
        f_masked=true @ kept.T.double(),
        f_without=full[:, None] - true,
        settings={},
    )
    checks = checked(gradients(SAME), rollout(OTHER, NULL), rollout(SAME, NULL, method="variant"), world)
    for check in checks:
        assert check.verdict is not None
        assert list(check.verdict.scores) == [
            *("layer_integrated_gradients", "attention_rollout", "variant", "leave_one_out")
        ]
        assert check.verdict.better == "layer_integrated_gradients"
        assert check.verdict.scores["variant"].lds == pytest.approx(1)
        assert check.verdict.missed["layer_integrated_gradients"] == check.verdict.missed["variant"] == ()
        if check.verdict.missed["attention_rollout"]:
            assert check.status == Status.DISAGREE
            assert "attention rollout misses" in check.reason
