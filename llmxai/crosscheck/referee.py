"""The referee: which method better predicts the effect of removing parts of the prompt?

A method gives every unit of the prompt a score, the sum over its tokens. For a random subset of units its prediction is
the sum of the scores of the kept units; its linear datamodelling score (LDS) is the Spearman correlation of prediction
and F over the subsets (Park et al. 2023, https://arxiv.org/abs/2303.14186, eq. 5; for contexts Cohen-Wang et al. 2024,
https://arxiv.org/abs/2409.00729). All subsets keep the same number of units, so scores that are equal, or positive and
random, predict nothing. The interval of the difference of two LDS is a bootstrap over pairs of a subset and its
complement; both methods are scored on the same ones.

A source is a unit whose removal alone lowers F much. A method that does not have it among its first units misses
something that the answer depends on, however it ranks the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from llmxai.crosscheck.verdict import RULE, Rule
from llmxai.methods.perturbation.removal import unit_sums
from llmxai.stats import bootstrap_interval, disjoint_pairs, spearman, spearman_p, spearman_rows
from llmxai.types import Effects, RefereeVerdict, Score

RESAMPLES = 1000
CONFIDENCE = 0.95
LEAST_FALL = 1.0
"""Nats by which F falls at least when a source is removed alone."""
FALL_SHARE = 0.3
"""Share of the largest fall that a source reaches, too."""
CEILING = "leave_one_out"
"""The measured drops used as scores: the best that a sum of single effects can do."""
CONSTANT = 1e-9
"""Log-probs (nats) that differ by less count as equal."""


def verdicts(
    ablations: Effects, methods: Mapping[str, Float[Tensor, "target seq"]], *, rule: Rule = RULE, seed: int = 0
) -> tuple[RefereeVerdict, ...]:
    """A verdict on every target. The first of `methods` (by name) is compared with the second, if any; all get scores.

    `better` names the one with the larger LDS; it is None unless the bootstrap interval of the difference excludes 0.
    """
    first, *others = methods
    second = others[0] if others else None
    summed = {name: unit_sums(values, ablations.units) for name, values in methods.items()}
    kept = ablations.kept.numpy()
    pairs = disjoint_pairs(kept)
    found = []
    for t in range(len(ablations.f_full)):
        drop, f = ablations.drop[t].numpy(), ablations.f_masked[t].numpy()
        forecasts = {name: kept @ scores[t] for name, scores in summed.items()}
        scores = {
            name: Score(lds=_correlation(forecasts[name], f), leave_one_out=_correlation(summed[name][t], drop))
            for name in summed
        }
        scores[CEILING] = Score(lds=_correlation(kept @ drop, f), leave_one_out=None)
        one, two = scores[first].lds, scores[second].lds if second else None
        difference = one - two if one is not None and two is not None else None
        interval = None
        if difference is not None and second is not None:
            interval = difference_interval(forecasts[first], forecasts[second], f, pairs, seed=seed)
        better = None
        if interval is not None and (interval[0] > 0 or interval[1] < 0):
            better = first if interval[0] > 0 else second
        lds = {name: scores[name].lds for name in summed}
        sources = sources_of(drop)
        found.append(
            RefereeVerdict(
                scores=scores,
                better=better,
                difference=difference,
                interval=interval,
                sources=sources,
                missed={name: missed(summed[name][t], sources, rule=rule) for name in summed},
                read=methods_to_read(forecasts, f, lds, pairs, seed=seed),
            )
        )
    return tuple(found)


def methods_to_read(
    forecasts: Mapping[str, Float[np.ndarray, " mask"]],
    f: Float[np.ndarray, " mask"],
    lds: Mapping[str, float | None],
    pairs: Int[np.ndarray, "pair 2"],
    *,
    seed: int = 0,
) -> tuple[str, ...]:
    """The methods whose forecasts rank F of the subsets best, best first: those not certainly worse than the first.

    A method counts if its LDS is positive beyond chance (one-sided, 5 % over all methods), and as certainly worse if
    the bootstrap interval of the difference lies above 0. None counts where no sum of single effects predicts F.
    """
    beyond = {
        name: score
        for name, score in lds.items()
        if score is not None and spearman_p(forecasts[name], f, independent=len(pairs)) <= (1 - CONFIDENCE) / len(lds)
    }
    first, *others = sorted(beyond, key=lambda name: -beyond[name]) or [""]
    if not first:
        return ()
    intervals = {name: difference_interval(forecasts[first], forecasts[name], f, pairs, seed=seed) for name in others}
    return (first, *(name for name, interval in intervals.items() if interval is None or interval[0] <= 0))


def sources_of(drop: Float[np.ndarray, " unit"]) -> tuple[int, ...]:
    """The units whose removal lowers F by at least `LEAST_FALL` nats and `FALL_SHARE` of the largest drop."""
    largest = drop.max(initial=0.0)
    return tuple(np.flatnonzero(drop >= max(LEAST_FALL, FALL_SHARE * largest)).tolist())


def missed(scores: Float[np.ndarray, " unit"], sources: tuple[int, ...], *, rule: Rule = RULE) -> tuple[int, ...]:
    """The `sources` that are not among the first units by |score|; the earlier unit wins a tie.

    `rule.top_k` units count as first, but at most a quarter of all units, so that chance seldom finds a source, and at
    least as many as there are sources.
    """
    k = max(1, min(rule.top_k, len(scores) // 4), len(sources))
    first = set(np.argsort(-np.abs(scores), kind="stable")[:k].tolist())
    return tuple(unit for unit in sources if unit not in first)


def difference_interval(
    first: Float[np.ndarray, " mask"],
    second: Float[np.ndarray, " mask"],
    f: Float[np.ndarray, " mask"],
    pairs: Int[np.ndarray, "pair 2"],
    *,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % interval of Spearman(first, f) - Spearman(second, f) over the subsets; None if it is mostly undefined.

    `pairs` (`disjoint_pairs`) are resampled whole.
    """

    def difference(chosen: np.ndarray) -> np.ndarray:
        rows = pairs[chosen].reshape(*chosen.shape[:-1], -1)
        return np.asarray(spearman_rows(first[rows], f[rows]) - spearman_rows(second[rows], f[rows]))

    return bootstrap_interval(difference, len(pairs), resamples=RESAMPLES, confidence=CONFIDENCE, seed=seed)


def _correlation(a: Float[np.ndarray, " mask"], b: Float[np.ndarray, " mask"]) -> float | None:
    if len(a) and (np.ptp(a) <= CONSTANT * max(1.0, np.abs(a).max()) or np.ptp(b) <= CONSTANT):
        return None
    return spearman(a, b)
