"""The tables of calibrate.py, from its samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from llmxai.crosscheck import RULE, Rule
from llmxai.crosscheck.verdict import Candidate, candidates, chance, is_coarse, judged
from llmxai.methods import estimated
from llmxai.methods.perturbation.removal import half_subsets
from llmxai.names import Status, Unit
from llmxai.settings import Removal
from llmxai.stats import ridge_with_prior, spearman
from llmxai.types import Certificate, Effects, Scores

FORWARDS = (8, 16, 32, 64, 128, 256)
"""Random halves that an estimate is fitted on."""
DEFAULT = Removal.subsets
LEAST_TESTED = 40
"""Held-out halves, at least, that an LDS is computed over."""
LEAST_CAUSE = 0.25
"""Nats by which F falls on average without a true cause."""
CERTAIN = float(stats.norm.ppf(0.995))
SHUFFLES, OTHERS = 6, 4
"""Wrong contributions of each sample: its own in another order, and those of tokens of other questions."""
CONTROLS = ("shuffled", "another token", "random weights")
EFFECTS, SHARES, CHANCES = (0.25, 0.5, 1.0), (0.2, 0.3, 0.5), (0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 1.0)
"""Thresholds that are tried."""
PRECISION, FALSE = 0.95, 0.05
"""So often, at least, a confirmed first source is a true cause, and a contradicted one has under half of the largest
effect; of wrong contributions, at most that many pass."""


@dataclass(frozen=True)
class Sample:
    """One question's first token: what the verdict sees, and what it is checked against."""

    model: str
    suite: str
    number: int
    """Of the question in its suite."""
    target: int
    """The generated token."""
    texts: tuple[str, ...]
    prompt_len: int
    f: float
    row: tuple[float, ...]
    """The deletion path, and below that of the model with random weights."""
    random_row: tuple[float, ...]
    features: tuple[int, ...]
    local_error: float
    converged: bool
    units: tuple[Unit, ...]
    planted: tuple[int, ...]
    """Positions of the known source."""
    kept: tuple[tuple[int, ...], ...]
    f_masked: tuple[float, ...]
    drop: tuple[float, ...]
    hidden: tuple[tuple[Unit, ...], ...]
    """Earlier words of the answer, and all mentions of a word."""
    hidden_drop: tuple[float, ...]
    true_hidden: tuple[float, ...]
    """Fall of F (nats) with the mean embedding in place of each hidden set."""
    more: tuple[float, ...]
    """F on the three kinds of `fresh_masks`."""
    tested: tuple[float, ...]
    free: tuple[float, ...]

    @property
    def question(self) -> tuple[str, str, int]:
        return self.model, self.suite, self.number

    @cached_property
    def masks(self) -> np.ndarray:
        """[mask, unit]: `kept` as truth values."""
        found = np.zeros((len(self.kept), len(self.units)), dtype=bool)
        for mask, chosen in enumerate(self.kept):
            found[mask, list(chosen)] = True
        return found

    @cached_property
    def fresh(self) -> list[np.ndarray]:
        """The masks of `more`, `tested` and `free`."""
        return fresh_masks(self.masks, more=len(self.more), tested=len(self.tested), free=len(self.free))

    @cached_property
    def true_effect(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each unit, by least squares on the fresh subsets; and its standard error."""
        return least_squares(np.concatenate(self.fresh), np.array([*self.more, *self.tested, *self.free]))

    def fresh_effect(self, tokens: tuple[Unit, ...]) -> float:
        """The effect of a candidate by removals that the verdict has not seen."""
        if tokens in self.hidden:
            return self.true_hidden[self.hidden.index(tokens)]
        return float(self.true_effect[0][self.units.index(tokens[0])])

    def is_cause(self, tokens: tuple[Unit, ...]) -> bool:
        """Whether one of the units is the known source, or fresh removals show that the target depends on them."""
        if any(place in self.planted for start, end in tokens for place in range(start, end)):
            return True
        if tokens in self.hidden and self.true_hidden[self.hidden.index(tokens)] >= LEAST_CAUSE:
            return True
        effects, errors = self.true_effect
        places = [self.units.index(one) for one in tokens if one in self.units]
        return any(effects[place] >= max(LEAST_CAUSE, CERTAIN * errors[place]) for place in places)


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a linear fit with an intercept, and their standard errors."""
    design = np.column_stack([np.ones(len(x)), x])
    weights, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = float(np.sum((y - design @ weights) ** 2)) / max(1, len(y) - design.shape[1])
    errors = np.sqrt(variance * np.diag(np.linalg.pinv(design.T @ design)))
    return weights[1:], errors[1:]


def fresh_masks(kept: np.ndarray, *, more: int, tested: int, free: int) -> list[np.ndarray]:
    """Random halves of the units that are not among `kept`, in two parts, and subsets of any size.

    Fewer where there are no more; the halves of the second part come first.
    """
    units = kept.shape[1]
    known = {mask.tobytes() for mask in kept}
    halves = half_subsets(units, len(kept) + more + tested, seed=101).numpy()
    halves = np.random.default_rng(101).permutation(halves)
    new = np.array([mask for mask in halves if mask.tobytes() not in known], dtype=bool).reshape(-1, units)
    return [new[tested : tested + more], new[:tested], np.random.default_rng(303).random((free, units)) < 0.5]


def samples_in(path: Path) -> list[Sample]:
    """The samples written so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Sample(**_tuples(json.loads(line))) for line in lines]


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, eq=False)
class Case:
    """What the rule sees of one sample, with the sample's own contributions or with wrong ones."""

    sample: Sample
    control: str
    """Empty, or one of `CONTROLS`."""
    effects: Effects
    found: list[Candidate]
    coarse: bool

    @cached_property
    def luck(self) -> float:
        return chance(self.found)

    def verdict(self, rule: Rule) -> Status:
        return Status.UNCONVERGED if self.coarse else judged(self.found, lambda: self.luck, rule)[0]

    def first_is_weak(self) -> bool:
        """Whether the first source has less than half of the largest effect, by fresh removals."""
        fresh = [self.sample.fresh_effect(one.tokens) for one in self.found]
        return fresh[0] < 0.5 * max(fresh)

    def first_is_a_cause(self) -> bool:
        """Whether fresh removals show that the target depends on the first source."""
        return self.sample.is_cause(self.found[0].tokens)


def case_of(sample: Sample, row: Sequence[float], control: str = "") -> Case:
    """The rule's input with `row` as contributions, which are the prior of the estimate, too."""
    n = len(sample.texts)
    f, zero = torch.tensor([sample.f], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    features = torch.zeros(1, n, dtype=torch.bool)
    features[0, list(sample.features)] = True
    error = torch.tensor([sample.local_error], dtype=torch.float64)
    certificate = Certificate(f, zero, zero, error, zero, (0,), (sample.converged or bool(control),))
    path = Scores("deletion_path", torch.tensor([row], dtype=torch.float64), features, True, {}, certificate)
    effects = Effects(
        operator="delete",
        units=sample.units,
        kept=torch.from_numpy(sample.masks),
        f_full=f,
        f_masked=torch.tensor([sample.f_masked], dtype=torch.float64),
        f_without=f[:, None] - torch.tensor([sample.drop], dtype=torch.float64),
        settings={},
        hidden=sample.hidden,
        f_hidden=f[:, None] - torch.tensor([sample.hidden_drop], dtype=torch.float64),
    )
    effects = estimated(effects, path)
    found = candidates(path, effects, 0)
    return Case(sample, control, effects, found, is_coarse(certificate, 0, [one.score for one in found]))


def wrong_cases(samples: Sequence[Sample]) -> Iterator[Case]:
    """The same samples with contributions that cannot be right."""
    for sample in samples:
        rng = np.random.default_rng([sample.number, sample.target])
        places, own = np.array(sample.features), np.array(sample.row)
        for _ in range(SHUFFLES):
            row = own.copy()
            row[places] = own[rng.permutation(places)]
            yield case_of(sample, row.tolist(), "shuffled")
        others = [one for one in samples if one.model == sample.model and one.question != sample.question]
        for chosen in rng.choice(len(others), min(OTHERS, len(others)), replace=False):
            there = np.array(others[chosen].row)[list(others[chosen].features)]
            row = np.zeros_like(own)
            row[places] = there[np.linspace(0, len(there) - 1, len(places)).round().astype(int)]
            yield case_of(sample, row.tolist(), "another token")
        yield case_of(sample, sample.random_row, "random weights")


def exact(right: int, n: int) -> str:
    """A share with its 90 % interval of Clopper and Pearson."""
    if not n:
        return "-"
    found = stats.binomtest(right, n).proportion_ci(0.9, method="exact")
    return f"{right} of {n}: {right / n:.2f} [{found.low:.2f}, {found.high:.2f}]"


def rates(cases: Sequence[Case], wrong: Sequence[Case], rule: Rule) -> dict[str, tuple[int, int]]:
    """Counts of decided, of confirmed first sources that are causes, and of wrong contributions that are confirmed."""
    verdicts = [case.verdict(rule) for case in cases]
    confirmed = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict == Status.CONFIRMED]
    denied = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict == Status.CONTRADICTED]
    found = {
        "decided": (len(confirmed) + len(denied), len(cases)),
        "right": (sum(case.first_is_a_cause() for case in confirmed), len(confirmed)),
        "weak": (sum(case.first_is_weak() for case in denied), len(denied)),
    }
    for control in CONTROLS:
        mine = [case for case in wrong if case.control == control]
        found[control] = (sum(case.verdict(rule) == Status.CONFIRMED for case in mine), len(mine))
    return found


def fitted(cases: Sequence[Case], wrong: Sequence[Case], grid: Sequence[Rule]) -> Rule | None:
    """The rule that decides the most of those that keep the error rates; of equals, that of the largest effect."""

    def share(counts: tuple[int, int]) -> float:
        return counts[0] / max(1, counts[1])

    good = []
    for rule in grid:
        found = rates(cases, wrong, rule)
        right = all(share(found[side]) >= PRECISION for side in ("right", "weak"))
        if right and all(share(found[control]) <= FALSE for control in CONTROLS):
            good.append((share(found["decided"]), rule))
    return max(good, key=lambda one: (one[0], one[1].least_effect))[1] if good else None


def grid_table(cases: Sequence[Case], wrong: Sequence[Case], grid: Sequence[Rule]) -> list[str]:
    rows = [
        f"| least effect | share | chance | decided | a cause, of confirmed | weak, of contradicted "
        f"| {' | '.join(CONTROLS)} |",
        "| --- | --- | --- | --- | --- | --- |" + " --- |" * len(CONTROLS),
    ]
    for rule in grid:
        found = rates(cases, wrong, rule)
        shown = [f"{a / max(1, n):.2f}" for a, n in found.values()]
        rows.append(f"| {rule.least_effect} | {rule.effect_share} | {rule.most_chance} | {' | '.join(shown)} |")
    return rows


def rule_table(groups: dict[str, tuple[list[Case], list[Case]]], rule: Rule) -> list[str]:
    heads = ["questions", "confirmed", "contradicted", "undecided", "unconverged"]
    heads += ["confirmed: first source is a cause [90 %]", "contradicted: it has under half of the largest effect"]
    heads += [f"{control}: confirmed" for control in CONTROLS]
    rows = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, (cases, wrong) in groups.items():
        counts = Counter(case.verdict(rule) for case in cases)
        statuses = (Status.CONFIRMED, Status.CONTRADICTED, Status.UNDECIDED, Status.UNCONVERGED)
        shares = [f"{counts[one] / max(1, len(cases)):.0%}" for one in statuses]
        found = rates(cases, wrong, rule)
        causes = exact(*found["weak"])
        passed = [exact(*found[control]) for control in CONTROLS]
        rows.append(f"| {name} ({len(cases)}) | {' | '.join([*shares, exact(*found['right']), causes, *passed])} |")
    return rows


def coverage_table(cases: Sequence[Case]) -> list[str]:
    """How often the interval holds the effect that fresh subsets give, and how wide it is."""
    rows = ["| model | effects | inside the 90 % interval | median width (nats) |", "| --- | --- | --- | --- |"]
    for model in dict.fromkeys(case.sample.model for case in cases):
        inside, widths = [], []
        for case in (one for one in cases if one.sample.model == model):
            low, high = (end[0].numpy() for end in (case.effects.low, case.effects.high) if end is not None)
            truth, error = case.sample.true_effect
            width = (high - low) / 2
            wider = np.hypot(width, stats.norm.ppf(0.95) * error)  # the fresh fit has an error of its own
            inside += (np.abs(truth - (low + high) / 2) <= wider).tolist()
            widths += (2 * width).tolist()
        rows.append(f"| {model} | {len(inside)} | {np.mean(inside):.1%} | {np.median(widths):.2f} |")
    return rows


def lds_of(sample: Sample) -> dict[str, list[float | None]]:
    """LDS on the held-out halves: of the estimate with and without the prior after each of `FORWARDS`, and of others.

    The ceiling is that of the additive scores fitted to the held-out halves themselves; `fair` is fitted to all others.
    """
    tested, f = sample.fresh[1].astype(float), np.array(sample.tested)
    prior = np.array([sum(sample.row[start:end]) for start, end in sample.units])
    x = np.concatenate([sample.masks, sample.fresh[0]]).astype(float)
    y = np.array([*sample.f_masked, *sample.more])

    def lds(weights: np.ndarray) -> float | None:
        return spearman(tested @ weights, f)

    def fit(rows: int, mean: np.ndarray) -> np.ndarray:
        """The estimate after so many random halves, and the whole prompt."""
        kept = np.vstack([x[:rows], np.ones((1, x.shape[1]))])
        return ridge_with_prior(kept, np.append(y[:rows], sample.f), mean).mean

    found: dict[str, list[float | None]] = {}
    for name, mean in (("with the prior", prior), ("without", np.zeros_like(prior))):
        counts = [rows for rows in FORWARDS if rows <= len(y)]
        found[name] = [lds(fit(rows, mean)) for rows in counts]
    found |= {"path": [lds(prior)], "single removals": [lds(np.array(sample.drop))]}
    every, known = np.concatenate([x, sample.fresh[2]]), np.array([*y, *sample.free])
    found |= {"fair": [lds(least_squares(every, known)[0])], "ceiling": [lds(least_squares(tested, f)[0])]}
    return found


def lds_table(samples: Sequence[Sample]) -> list[str]:
    """Mean LDS, suite by suite: what additive scores can reach, what the estimate reaches, and its share of that."""
    heads = ["tokens", "n", "words", "ceiling", "fitted to all other subsets", "deletion path", "single removals"]
    heads += [f"{n}" for n in FORWARDS] + [f"{n}, no prior" for n in FORWARDS] + [f"{DEFAULT}: share of the ceiling"]
    rows = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if len(sample.tested) >= LEAST_TESTED and len(sample.more) + len(sample.kept) >= FORWARDS[-2]:
            which = "first" if sample.target == 0 else "later"
            groups.setdefault(f"{sample.model}, {sample.suite}, {which}", []).append(sample)
    for name, mine in groups.items():
        found = [lds_of(one) for one in mine]

        def mean(of: str, at: int = 0, found: list[dict[str, list[float | None]]] = found) -> float:
            values = [one[of][at] for one in found if len(one[of]) > at]
            return float(np.mean([x for x in values if x is not None] or [np.nan]))

        words = [len(one.units) for one in mine]
        figures = [mean(of) for of in ("ceiling", "fair", "path", "single removals")]
        figures += [mean(of, at) for of in ("with the prior", "without") for at in range(len(FORWARDS))]
        shown = " | ".join("" if np.isnan(x) else f"{x:.2f}" for x in figures)
        share = mean("with the prior", FORWARDS.index(DEFAULT)) / mean("ceiling")
        rows.append(f"| {name} | {len(mine)} | {min(words)} to {max(words)} | {shown} | {share:.0%} |")
    return rows


def _thresholds(rule: Rule) -> str:
    return f"{rule.least_effect} nats, share {rule.effect_share}, chance {rule.most_chance}"


Halves = dict[str, tuple[list[Case], list[Case]]]
"""By half: the samples' own contributions, and wrong ones."""


def halves_of(samples: Sequence[Sample]) -> Halves:
    """Every second question of a suite is of the half that thresholds are fitted on."""
    halves = {"fit": [one for one in samples if one.number % 2 == 0]}
    halves["check"] = [one for one in samples if one.number % 2]
    return {half: ([case_of(one, one.row) for one in mine], list(wrong_cases(mine))) for half, mine in halves.items()}


def verdict_tables(halves: Halves) -> list[str]:
    """The thresholds on the fitted half, what the rule gives, and whether the intervals hold."""
    grid = [
        replace(RULE, least_effect=effect, effect_share=share, most_chance=chance)
        for effect, share, chance in product(EFFECTS, SHARES, CHANCES)
    ]
    best = fitted(*halves["fit"], grid)
    groups = halves | {"both": ([*halves["fit"][0], *halves["check"][0]], [*halves["fit"][1], *halves["check"][1]])}
    everything = groups["both"]
    for model in dict.fromkeys(case.sample.model for case in everything[0]):
        for half, later in product(("check", "both"), (False, True)):
            mine, others = (
                [case for case in found if case.sample.model == model and (case.sample.target > 0) == later]
                for found in groups[half]
            )
            if mine:
                groups[f"{half}, {model}, {'later' if later else 'first'} tokens"] = mine, others
    chosen = "none keeps the error rates" if best is None else _thresholds(best)
    return [
        "The fitted half:",
        *("", *grid_table(*halves["fit"], grid), "", f"Fitted: {chosen}.", ""),
        *(f"Rule {RULE.version}: {_thresholds(RULE)}.", "", *rule_table(groups, RULE), ""),
        *coverage_table(everything[0]),
    ]


def tables(samples: Sequence[Sample]) -> list[str]:
    """Everything that is printed."""
    return [*verdict_tables(halves_of(samples)), "", *lds_table(samples)]
