"""The verdict of rule 6 by its branches, and the whole cross-check on rows made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import null_of

from llmxai.crosscheck import RULE, attention_verdict, cross_check, sources_verdict
from llmxai.crosscheck.verdict import Candidate, candidates, chance
from llmxai.methods import token_targets
from llmxai.methods.perturbation.removal import half_subsets
from llmxai.names import AttentionStatus, Status, Unit, joint_status
from llmxai.stats import jensen_shannon
from llmxai.types import (
    Certificate,
    CrossCheck,
    Dilution,
    Effects,
    Generation,
    Role,
    Scores,
    predicting_position,
)

# the rule, on a prompt of the words 1 to N and an answer of two words

N = 24
WORDS = tuple(f" w{i}" for i in range(N + 3))
CLEAR = Dilution(sink_mass=0.1, feature_mass=0.8, entropy=0.7, null_divergence=0.3, similarity=0.4)
TRUE = np.array([0.1 * (i % 5) for i in range(N)])
"""Small effects, in no order."""


def asked() -> Generation:
    return Generation(
        ids=tuple(range(N + 3)),
        prompt_len=N + 1,
        roles=(Role.BOS, *(Role.USER,) * N, *(Role.GENERATED,) * 2),
        texts=WORDS,
        words=tuple((i, i + 1) for i in range(N + 3)),
        logprobs=None,
        stop="given",
        request={"prompt": "".join(WORDS)},
    )


def given(scores: Mapping[int, float], *, error: float = 0.0, converged: bool = True) -> Scores:
    """Contributions of the target 1: those of `TRUE`, but for the positions in `scores`."""
    values = torch.zeros(2, N + 3, dtype=torch.float64)
    values[:, 1 : N + 1] = torch.from_numpy(TRUE)
    for place, score in scores.items():
        values[:, place] = score
    one = torch.ones(2, dtype=torch.float64)
    certificate = Certificate(one, 0 * one, 0 * one, error * one, 0.1 * one, (4, 4), (converged, converged))
    return Scores("deletion_path", values, values != 0, signed=True, settings={}, certificate=certificate)


def effects_of(
    falls: Mapping[int, float],
    *,
    width: float = 0.1,
    hidden: Sequence[tuple[tuple[Unit, ...], float]] = (),
    units: int = N,
) -> Effects:
    """Effects `TRUE`, but for the positions in `falls`, in an additive world with intervals of +- `width`."""
    true = torch.from_numpy(TRUE.copy())
    for place, fall in falls.items():
        true[place - 1] = fall
    true = true[:units].expand(2, -1)
    kept = half_subsets(units, 64, seed=0)
    return Effects(
        operator="delete",
        units=tuple((i, i + 1) for i in range(1, units + 1)),
        kept=kept,
        f_full=true.sum(dim=1),
        f_masked=true @ kept.double().T,
        f_without=true.sum(dim=1, keepdim=True) - true,
        settings={},
        hidden=tuple(ranges for ranges, _ in hidden),
        f_hidden=true.sum(dim=1, keepdim=True) - torch.tensor([[fall for _, fall in hidden]] * 2, dtype=torch.float64),
        effect=true,
        low=true - width,
        high=true + width,
    )


def judged(gradients: Scores, effects: Effects | None) -> tuple[Status, str]:
    return sources_verdict(asked(), gradients, effects, 1)


RIGHT = given({3: 4.0})


@pytest.mark.parametrize(
    ("gradients", "effects", "status", "words"),
    [
        pytest.param(RIGHT, effects_of({3: 4.0}), Status.CONFIRMED, "put 'w3' first, and without it the log", id="own"),
        pytest.param(
            given({3: 4.0}, error=1.0, converged=False),
            effects_of({3: 4.0}),
            Status.CONFIRMED,
            "'w3'",
            id="unconverged but rankable",
        ),
        pytest.param(
            given({3: 4.0, 9: 3.5}, error=1.0, converged=False),
            effects_of({3: 4.0}),
            Status.UNCONVERGED,
            "off by 1 nats",
            id="unconverged, and the first two could change places",
        ),
        pytest.param(
            given({3: 4.0, 9: 3.5}, error=1.0),
            effects_of({3: 4.0, 9: 3.5}),
            Status.CONFIRMED,
            "'w3'",
            id="within its tolerance, the same error is no matter",
        ),
        pytest.param(RIGHT, None, Status.UNDECIDED, "Nothing was removed", id="nothing removed"),
        pytest.param(
            given({3: 4.0}, error=1.0, converged=False),
            None,
            Status.UNDECIDED,
            "Nothing was removed",
            id="nothing removed, unconverged but rankable",
        ),
        pytest.param(
            given({3: 4.0}, error=3.0, converged=False),
            None,
            Status.UNCONVERGED,
            "off by 3 nats",
            id="nothing removed, too coarse to rank",
        ),
        pytest.param(RIGHT, effects_of({}, units=2), Status.UNDECIDED, "Only 2 parts", id="too few units"),
        pytest.param(RIGHT, effects_of({}), Status.UNDECIDED, "no one word is known to decide", id="no effect"),
        pytest.param(
            RIGHT,
            effects_of({3: 4.0}, width=3.9),
            Status.UNDECIDED,
            "no one word is known to decide",
            id="no certain effect",
        ),
        pytest.param(
            RIGHT,
            effects_of({3: 0.0}, hidden=[(((3, 4), (20, 21)), 5.0)]),
            Status.CONFIRMED,
            "all 2 mentions of 'w3'",
            id="all mentions",
        ),
        pytest.param(
            given({3: 1.0, N + 1: 4.0}),
            effects_of({3: 1.0}, hidden=[(((N + 1, N + 2),), 4.0)]),
            Status.CONFIRMED,
            f"'w{N + 1}'",
            id="a word of the answer",
        ),
        pytest.param(
            RIGHT, effects_of({3: 0.0, 9: 5.0}), Status.CONTRADICTED, "without 'w9' it falls by 5", id="contradicted"
        ),
        pytest.param(
            RIGHT,
            effects_of({3: 0.9, 9: 5.0}, width=0.8),
            Status.UNDECIDED,
            "(0.1 to 1.7) is too uncertain next to that of 'w9' (5)",
            id="uncertain interval",
        ),
        pytest.param(
            given(dict.fromkeys(range(4, N + 1), -3.0) | {1: 0.0, 2: 0.0, 3: 0.5}),
            effects_of(dict.fromkeys(range(4, N + 1), 2.0) | {1: 0.0, 2: 0.0, 3: 4.0}),
            Status.UNDECIDED,
            "of random orders match the removals as well",
            id="the first is right, the others are not",
        ),
        pytest.param(
            RIGHT,
            effects_of({3: 4.0}, hidden=[(((N + 1, N + 2),), float("nan")), (((3, 4), (20, 21)), float("nan"))]),
            Status.CONFIRMED,
            "put 'w3' first",
            id="undefined hidden words are left out",
        ),
    ],
)
def test_every_branch_of_the_rule(gradients: Scores, effects: Effects | None, status: Status, words: str) -> None:
    got, reason = judged(gradients, effects)
    assert (got, words in reason) == (status, True), reason


def test_one_certain_effect_is_enough_whichever_estimate_is_largest() -> None:
    """A hidden word of known effect decides, also beside an uncertain one whose estimate is a little larger."""
    effects = effects_of({3: 1.1, 9: 1.2})
    assert effects.low is not None
    low = effects.low.clone()
    low[:, 8] = 0.3
    assert judged(RIGHT, replace(effects, low=low))[0] is Status.CONFIRMED
    low[:, 2] = 0.4
    status, reason = judged(RIGHT, replace(effects, low=low))
    assert status is Status.UNDECIDED
    assert "No single removal certainly lowers the log-probability by 0.5 nats (the largest effect is 1.2)" in reason


def test_a_mean_over_random_halves_is_said_to_be_one() -> None:
    assert "falls by 4 nats on average." in judged(RIGHT, effects_of({3: 4.0}))[1]
    assert "only 0 nats on average; without 'w9'" in judged(RIGHT, effects_of({3: 0.0, 9: 5.0}))[1]
    hidden = effects_of({3: 0.0}, hidden=[(((3, 4), (20, 21)), 5.0)])
    assert "falls by 5 nats." in judged(RIGHT, hidden)[1]  # hidden once


def test_a_pair_is_named_where_no_single_word_decides() -> None:
    effects = replace(effects_of({}), pair=((0, 4), (2, 8)))
    assert judged(RIGHT, effects)[1].endswith("'w3' and 'w9' act together.")
    assert "act together" not in judged(RIGHT, replace(effects_of({3: 4.0}), pair=((0, 4), (2, 8))))[1]


def test_without_subsets_the_single_removals_are_judged() -> None:
    plain = replace(effects_of({3: 4.0}), effect=None, low=None, high=None)
    none = replace(plain, kept=plain.kept[:0], f_masked=plain.f_masked[:, :0])
    assert judged(RIGHT, none) == (
        Status.CONFIRMED,
        "The contributions put 'w3' first, and without it the log-probability falls by 4 nats.",
    )
    assert {one.low == one.effect == one.high for one in candidates(RIGHT, none, 1)} == {True}


def test_the_thresholds_are_those_of_the_rule() -> None:
    effects, gradients = effects_of({3: 4.0}), RIGHT
    for change in ({"least_effect": 4.0}, {"least_units": N + 1}, {"most_chance": 0.0}):
        rule = replace(RULE, **change)  # type: ignore[arg-type]
        assert sources_verdict(asked(), gradients, effects, 1, rule=rule)[0] == Status.UNDECIDED
    one = effects_of({3: 1.0, 9: 4.0})
    assert sources_verdict(asked(), gradients, one, 1, rule=replace(RULE, effect_share=0.2))[0] != Status.CONTRADICTED
    assert sources_verdict(asked(), gradients, one, 1, rule=replace(RULE, effect_share=0.4))[0] == Status.CONTRADICTED


def test_shuffled_contributions_are_seldom_confirmed() -> None:
    effects, rng = effects_of({3: 4.0, 9: 3.0, 15: 2.0}), np.random.default_rng(0)
    confirmed = 0
    for _ in range(200):
        row = rng.permutation([4.0, 3.0, 2.0, *TRUE[3:]])
        confirmed += judged(given({i + 1: float(score) for i, score in enumerate(row)}), effects)[0] == "confirmed"
    assert confirmed <= 14, "5 % of 200, and two standard deviations"


def test_chance_is_uniform_for_random_orders() -> None:
    rng, found = np.random.default_rng(1), []
    effects = effects_of({3: 4.0, 9: 3.0})
    for _ in range(200):
        row = rng.normal(size=N)
        found.append(chance(candidates(given({i + 1: float(x) for i, x in enumerate(row)}), effects, 1)))
    assert np.mean(np.array(found) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(found) <= 0.6


def test_that_the_answers_own_words_come_first_is_no_evidence() -> None:
    rng, found = np.random.default_rng(2), []
    for _ in range(200):
        scores = [*rng.normal(0, 0.3, size=8), *rng.uniform(2, 4, size=6)]
        falls = [*rng.normal(0, 0.3, size=8), *rng.uniform(2, 4, size=6)]
        words = [
            Candidate(((i, i + 1),), (score,), (i >= 8,), fall, fall, fall, fall)
            for i, (score, fall) in enumerate(zip(scores, falls, strict=True))
        ]
        found.append(chance(words))
    assert np.mean(np.array(found) <= 0.05) <= 0.09, "among all words at once, nearly every one would pass"
    assert 0.4 <= np.mean(found) <= 0.6


OWN, BOTH = ((N + 1, N + 2),), ((3, 4), (N + 1, N + 2))


def test_a_candidate_knows_which_of_its_units_are_of_the_answer() -> None:
    found = candidates(RIGHT, effects_of({}, hidden=[(OWN, 2.0)]), 1)
    assert [one.tokens for one in found if one.in_answer == (True,)] == [OWN]
    assert len(found) == N + 1


def test_mentions_that_do_more_together_are_one_candidate() -> None:
    given_to = given({3: 4.0, N + 1: 0.5})
    found = candidates(given_to, effects_of({}, hidden=[(OWN, 2.0), (BOTH, 5.0)]), 1)
    assert len(found) == N
    first = found[0]
    assert (first.tokens, first.scores, first.in_answer) == (BOTH, (4.0, 0.5), (False, True))
    assert first.score == 4.5
    assert first.effect == first.low == first.high == first.plain == pytest.approx(5.0)


def test_mentions_of_which_one_does_as_much_alone_stay_apart() -> None:
    found = candidates(RIGHT, effects_of({}, hidden=[(OWN, 2.0), (BOTH, 1.5)]), 1)
    assert len(found) == N + 1
    assert all(len(one.tokens) == 1 for one in found)


def test_a_repetition_is_no_source_of_its_own() -> None:
    """Contributions that put a mere repetition first do not pass by what all mentions do, if others have more."""
    repeated = ((3, 4), (5, 6), (7, 8))
    effects = effects_of({3: 4.0, 5: 0.0, 7: 0.0, 9: 3.0}, hidden=[(repeated, 4.5)])
    status, reason = judged(given({5: 1.0, 9: 3.0}), effects)
    assert status == Status.UNDECIDED or "'w9' first" in reason
    assert "mentions" not in reason


def test_the_chance_of_candidates_with_mentions_is_that_of_a_slow_loop() -> None:
    rng = np.random.default_rng(3)
    words = [
        Candidate(((0, 1),), (2.0,), (False,), 3.0, 3.0, 3.0, 3.0),
        Candidate(((1, 2), (2, 3), (8, 9)), (1.0, -0.5, 1.5), (False, False, True), 2.0, 2.0, 2.0, 2.0),
        *(Candidate(((i, i + 1),), (x,), (False,), y, y, y, y) for i, (x, y) in enumerate(rng.normal(size=(4, 2)), 3)),
        Candidate(((7, 8),), (0.2,), (True,), 0.1, 0.1, 0.1, 0.1),
    ]
    owner = [at for at, one in enumerate(words) for _ in one.scores]
    scores = [x for one in words for x in one.scores]
    sides = [side for one in words for side in one.in_answer]

    def match(order: Sequence[float]) -> float:
        sums = [sum(x for x, at in zip(order, owner, strict=True) if at == number) for number in range(len(words))]
        return sum(
            math.copysign(math.sqrt(abs(x * one.plain)), x * one.plain) for x, one in zip(sums, words, strict=True)
        )

    matched = 0
    for _ in range(4000):
        drawn = {
            side: iter(rng.permutation([x for x, s in zip(scores, sides, strict=True) if s == side]))
            for side in (True, False)
        }
        matched += match([float(next(drawn[side])) for side in sides]) >= match(scores) - 1e-9
    assert chance(words) == pytest.approx(matched / 4000, abs=0.03)


@pytest.mark.parametrize(
    ("dilution", "status", "words"),
    [
        (None, AttentionStatus.REFUSED, "not defined"),
        (CLEAR, AttentionStatus.READABLE, "differs"),
        (replace(CLEAR, sink_mass=0.996), AttentionStatus.DILUTED, "99.6% of its mass on the first token"),
        (replace(CLEAR, null_divergence=0.001), AttentionStatus.DILUTED, "0.001 bits"),
        (replace(CLEAR, sink_mass=0.55, null_divergence=0.007), AttentionStatus.READABLE, "differs"),
    ],
)
def test_attention(dilution: Dilution | None, status: AttentionStatus, words: str) -> None:
    got, reason = attention_verdict(dilution)
    assert got == status
    assert words in reason


YES, NO, OPEN, COARSE = Status.CONFIRMED, Status.CONTRADICTED, Status.UNDECIDED, Status.UNCONVERGED


@pytest.mark.parametrize(
    ("statuses", "whole"),
    [
        ([], OPEN),
        ([OPEN], OPEN),
        ([COARSE, COARSE], COARSE),
        ([COARSE, OPEN], OPEN),
        ([YES, OPEN, OPEN, COARSE], YES),
        ([YES, NO], NO),
        ([YES, YES, NO], YES),
        ([NO, OPEN], NO),
    ],
)
def test_a_word_and_the_whole_answer(statuses: list[Status], whole: Status) -> None:
    assert joint_status(statuses) == whole


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
        assert (check.status, check.attention) == (Status.UNDECIDED, AttentionStatus.READABLE)
        assert check.agreement.spearman == pytest.approx(1)
        assert check.agreement.top_k_overlap == 1
        assert check.agreement.adjusted_p is not None
        assert check.agreement.adjusted_p <= RULE.significance
        assert check.variant_agreement.spearman != check.agreement.spearman
        assert check.verdict is None


def test_a_sunk_row_is_diluted_though_its_features_are_in_order() -> None:
    checks = checked(gradients(SAME), rollout(sunk(SAME), NULL), rollout(SAME, NULL, method="variant"))
    for t, check in enumerate(checks):
        assert check.attention == AttentionStatus.DILUTED
        assert "of its mass on the first token" in check.attention_reason
        assert "Attention" not in check.reason
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
        assert check.status == Status.CONFIRMED, "attention does not matter to the verdict on the sources"


def test_the_sources_are_those_of_the_deletion_path_where_there_is_one() -> None:
    units = tuple((i, i + 1) for i in range(1, PROMPT))
    true, kept = SAME[:, 1:PROMPT], half_subsets(len(units), 64, seed=0)
    full = true.sum(dim=1)
    world = Effects("delete", units, kept, full, true @ kept.T.double(), full[:, None] - true, {})
    wrong, plain = gradients(-SAME), rollout(OTHER, NULL)
    path = replace(gradients(SAME), method="deletion_path")
    answer = generation()
    for deletion, status in ((path, Status.CONFIRMED), (replace(path, refused="no attention"), Status.CONTRADICTED)):
        checks = cross_check(
            answer,
            token_targets(answer),
            gradients=wrong,
            rollout=plain,
            variant=plain,
            deletion=deletion,
            effects=world,
        )
        assert checks[0].status == status
        assert checks[0].verdict is not None
        assert ("deletion_path" in checks[0].verdict.scores) == (deletion.refused is None)


def test_refused_rollout_says_so_and_the_sources_stay_judged() -> None:
    none = replace(rollout(OTHER, NULL), refused="no softmax attention")
    for check in checked(gradients(SAME), none, none):
        assert (check.attention, check.dilution) == (AttentionStatus.REFUSED, None)
        assert check.status == Status.UNDECIDED
