"""The verdict of one generated token: can its sources be trusted, and can attention be read? (docs/crosscheck.md)

Rule 6. The gradients' first unit is held against what was measured by removal. The thresholds come from `make
calibrate`, which also gives the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np

from llmxai.names import AttentionStatus, Status, Unit
from llmxai.stats import ridge_with_prior
from llmxai.types import Certificate, Dilution, Effects, Generation, Scores, Target


@dataclass(frozen=True)
class Rule:
    """Thresholds of the verdict."""

    version: int = 7
    most_sink: float = 0.55
    """Share of the row on position 0, above which rollout is diluted."""
    least_divergence: float = 0.007
    """Bits from the uniform-causal null, below which rollout is diluted."""
    significance: float = 0.05
    """Corrected p-value of the rank correlation of rollout and gradients, up to which they are said to agree."""
    top_k: int = 5
    least_effect: float = 0.5
    """Nats by which F falls at least without a unit that matters."""
    effect_share: float = 0.3
    """Share of the largest effect that a unit reaches which matters; under it, a unit is said not to matter."""
    most_chance: float = 0.025
    """Share of random orders of the contributions, at most, that match the removals as well as they do."""
    least_units: int = 3
    """Units that could be removed, at least, for a verdict on their order."""


RULE = Rule()
ORDERS = 9999
"""Random orders of the contributions: enough that a share near 2.5 % is known to within half a point."""


@dataclass(frozen=True)
class Candidate:
    """What a target could depend on: a unit, or a word with all its mentions where hiding all of them does more."""

    tokens: tuple[Unit, ...]
    """The unit, or all mentions of the word."""
    scores: tuple[float, ...]
    """Sums of the gradient contributions (nats): of the unit, or of every mention that is a unit."""
    in_answer: tuple[bool, ...]
    """Of each of these units: whether it is an earlier word of the answer."""
    effect: float
    """Fall of F (nats) when it is removed, or when all mentions are hidden."""
    low: float
    high: float
    """90 % interval of `effect`; equal to it where it was measured by one removal."""
    plain: float
    """Fall of F by removals alone: the estimate of `effect` uses the contributions as a prior, this does not."""

    @property
    def score(self) -> float:
        """What the gradients give it (nats)."""
        return sum(self.scores)


def candidates(gradients: Scores, effects: Effects, t: int) -> list[Candidate]:
    """Everything that target `t` could depend on, by the gradients' order, largest contribution first.

    Mentions that do more together than each of them alone are one candidate: otherwise every repetition of the word
    would count as its source.
    """
    row = gradients.values[t]
    hidden = dict(zip(effects.hidden, effects.hidden_drop[t].tolist(), strict=True))
    figures = [side[t].tolist() for side in effects.estimates] + [_plain(effects, t)]
    alone: dict[Unit, tuple[float, ...]] = dict(zip(effects.units, zip(*figures, strict=True), strict=True))
    alone |= {one[0]: (drop,) * 4 for one, drop in hidden.items() if len(one) == 1 and not math.isnan(drop)}

    def candidate(tokens: tuple[Unit, ...], units: Sequence[Unit], figures: Sequence[float]) -> Candidate:
        scores = tuple(float(row[start:end].sum()) for start, end in units)
        return Candidate(tokens, scores, tuple((unit,) in hidden for unit in units), *figures)

    found = []
    for mentions, joint in hidden.items():
        units = [unit for unit in mentions if unit in alone]
        if len(mentions) > 1 and units and joint > max(alone[unit][0] for unit in units):
            found.append(candidate(mentions, units, (joint,) * 4))
            alone = {unit: figures for unit, figures in alone.items() if unit not in units}
    found += [candidate((unit,), (unit,), figures) for unit, figures in alone.items()]
    return sorted(found, key=lambda one: -one.score)


def _plain(effects: Effects, t: int) -> list[float]:
    """Of each unit, the mean of its single removal and of its effect over random halves, estimated without a prior.

    The single removal alone where there are no random halves.
    """
    drop = effects.drop[t]
    if not len(effects.kept):
        return drop.tolist()
    x, f = (side.double().numpy() for side in effects.subsets)
    over_halves = ridge_with_prior(x, f[t], np.zeros(x.shape[1])).mean
    return ((over_halves + drop.numpy()) / 2).tolist()  # type: ignore[no-any-return]


def chance(found: Sequence[Candidate], *, seed: int = 0) -> float:
    """Share of random orders of the contributions that match the removals as well as their own order does.

    The match is the sum of the products of both, under square roots so that one large value does not decide alone.
    Words of the prompt change places among themselves, and so do those of the answer: that the answer's own words come
    first is true of many tokens, so it is no evidence about this one.
    """
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    scores = np.array([score for one in found for score in one.scores])
    in_answer = np.array([side for one in found for side in one.in_answer], dtype=bool)
    orders = np.tile(scores, (1 + ORDERS, 1))  # the first is their own
    for side in (in_answer, ~in_answer):
        orders[1:, side] = rng.permuted(orders[1:, side], axis=1)
    sums = orders @ (owner[:, None] == np.arange(len(found)))
    matches = _roots(sums) @ _roots(np.array([one.plain for one in found]))
    return float(np.mean(matches >= matches[0] - 1e-9 * abs(matches[0])))


def _roots(values: np.ndarray) -> np.ndarray:
    return np.copysign(np.sqrt(np.abs(values)), values)  # type: ignore[no-any-return]


def is_coarse(certificate: Certificate, t: int, scores: Sequence[float]) -> bool:
    """Whether the first two of `scores`, largest first, could change places within the integral's error."""
    margin = scores[0] - scores[1] if len(scores) > 1 else 0.0
    return not certificate.converged[t] and float(certificate.local_error[t]) > margin / 2


Why = Literal["few", "small", "chance", "confirmed", "contradicted", "wide"]


def judged(found: Sequence[Candidate], luck: Callable[[], float], rule: Rule = RULE) -> tuple[Status, Why]:
    """The status of sources that are not too coarse, and which case it is; `luck` gives their `chance`, if asked."""
    if len(found) < rule.least_units:
        return Status.UNDECIDED, "few"
    first, strongest = found[0], max(found, key=lambda one: one.effect)
    if max(one.low for one in found) < rule.least_effect:
        return Status.UNDECIDED, "small"
    share = rule.effect_share * strongest.effect
    if first.low >= max(rule.least_effect, share):
        return (Status.CONFIRMED, "confirmed") if luck() <= rule.most_chance else (Status.UNDECIDED, "chance")
    return (Status.CONTRADICTED, "contradicted") if first.high < share else (Status.UNDECIDED, "wide")


def sources_verdict(
    generation: Generation,
    gradients: Scores,
    effects: Effects | None,
    t: int,
    *,
    target: Target | None = None,
    rule: Rule = RULE,
) -> tuple[Status, str]:
    """Whether the sources of target `t` can be trusted, and one plain sentence that says why.

    `target`: by default, generated token `t`.
    """
    certificate = gradients.certificate
    assert certificate is not None
    contrast = generation.foil_of(t) is not None if target is None else target.kind == "contrast"
    falls = "lead over the foil" if contrast else "log-probability"
    what = "token" if target is None or len(target.positions) == 1 else "passage"
    found = [] if effects is None else candidates(gradients, effects, t)
    if is_coarse(certificate, t, [one.score for one in found] or _word_scores(generation, gradients, t)):
        return Status.UNCONVERGED, (
            f"The contributions may be off by {float(certificate.local_error[t]):.2g} nats, which is too much to say "
            f"which source comes first.{_jumps(certificate, t)}"
        )
    if effects is None:
        return Status.UNDECIDED, "Nothing was removed, so the contributions were not checked."
    luck = cache(partial(chance, found))
    status, why = judged(found, luck, rule)
    if why == "few":
        return status, f"Only {len(found)} parts of the text could be removed: too few to compare."
    first, strongest = found[0], max(found, key=lambda one: one.effect)
    largest, together = strongest.effect, _together(generation, effects, t)
    if why == "small":
        return status, (
            f"No single removal certainly lowers the {falls} by {rule.least_effect:g} nats (the largest effect is "
            f"{largest:.2g}): no one word is known to decide this {what}.{together}"
        )
    named, other = _named(generation, first), _named(generation, strongest)
    matters = f"The contributions put {named} first, and without it the {falls} falls by {_told(first)}"
    if why == "chance":
        return status, f"{matters}, but {luck():.0%} of random orders match the removals as well."
    if why == "confirmed":
        return status, f"{matters}."
    if why == "contradicted":
        return status, (
            f"The contributions put {named} first, but removing it changes the {falls} by only {_told(first)}; "
            f"without {other} it falls by {largest:.2g}."
        )
    return status, (
        f"The contributions put {named} first; its effect of {first.effect:.2g} nats ({first.low:.2g} to "
        f"{first.high:.2g}) is too uncertain next to that of {other} ({largest:.2g}).{together}"
    )


def _told(candidate: Candidate) -> str:
    """Its effect, which is a mean unless it was measured by one removal."""
    return f"{candidate.effect:.2g} nats{' on average' if candidate.low != candidate.high else ''}"


def _word_scores(generation: Generation, gradients: Scores, t: int) -> list[float]:
    """The sum of the contributions of every word that has any, largest first."""
    words = [slice(start, end) for start, end in generation.words if gradients.features[t, start:end].any()]
    return sorted((float(gradients.values[t, word].sum()) for word in words), reverse=True)


def attention_verdict(dilution: Dilution | None, *, rule: Rule = RULE) -> tuple[AttentionStatus, str]:
    """Whether plain attention rollout can be read for a target, and why not."""
    if dilution is None:
        return AttentionStatus.REFUSED, "Attention rollout is not defined for this model."
    if why := why_diluted(dilution, rule):
        return AttentionStatus.DILUTED, f"{why}: do not read attention here."
    return AttentionStatus.READABLE, "Attention rollout differs from what the mask and the depth alone would give."


def why_diluted(dilution: Dilution, rule: Rule = RULE) -> str | None:
    """The reason why a rollout row counts as diluted, or None."""
    if dilution.sink_mass > rule.most_sink:
        return f"Attention rollout puts {dilution.sink_mass:.1%} of its mass on the first token"
    if dilution.null_divergence < rule.least_divergence:
        return (
            f"Attention rollout is {dilution.null_divergence:.3f} bits from what the mask and the depth alone would "
            f"give ({rule.least_divergence:g} is needed)"
        )
    return None


def _jumps(certificate: Certificate, t: int) -> str:
    if certificate.floor is None:
        return ""
    return (
        f" The model rounds its activations, so its own score jumps by about {float(certificate.floor[t]):.2g} nats "
        f"between almost equal inputs. Compute in float32 (compute.precision, the default) for a closer look."
    )


def _named(generation: Generation, candidate: Candidate) -> str:
    start, end = candidate.tokens[0]
    text = "".join(generation.texts[start:end]).strip()
    return f"{text!r}" if len(candidate.tokens) == 1 else f"all {len(candidate.tokens)} mentions of {text!r}"


def _together(generation: Generation, effects: Effects, t: int) -> str:
    pair = effects.pair[t] if effects.pair else None
    if pair is None:
        return ""
    one, two = ("".join(generation.texts[slice(*effects.units[unit])]).strip() for unit in pair)
    return f" {one!r} and {two!r} act together."
