"""The tables of calibrate.py, from its samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from llmxai.crosscheck import RULE, Rule, sources_verdict
from llmxai.crosscheck.verdict import candidates
from llmxai.methods import estimated
from llmxai.names import Status, Unit
from llmxai.types import Certificate, Effects, Generation, Role, Scores

FORWARDS = (8, 16, 32, 64, 128)
"""Random halves that an estimate is fitted on."""
LEAST_CAUSE = 0.25
"""Nats by which F falls on average without a true cause."""
CERTAIN = float(stats.norm.ppf(0.995))
SHUFFLES = 20
"""Of each question's contributions."""
CONTROLS = ("shuffled", "another token", "random weights")
EFFECTS, SHARES, CHANCES = (0.25, 0.5, 1.0), (0.2, 0.3, 0.5), (0.05, 0.075, 0.1, 1.0)
"""Thresholds that are tried."""
PRECISION, FALSE = 0.95, 0.05
"""A confirmed first source is a true cause at least this often; of wrong contributions, at most that many pass."""


@dataclass(frozen=True)
class Sample:
    """One question's first token: what the verdict sees, and what it is checked against."""

    model: str
    question: str
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
    planted: tuple[bool, ...]
    """Which units hold the known source."""
    kept: tuple[tuple[int, ...], ...]
    f_masked: tuple[float, ...]
    drop: tuple[float, ...]
    hidden: tuple[tuple[Unit, ...], ...]
    hidden_drop: tuple[float, ...]
    true_effect: tuple[float, ...]
    """Of each unit, by least squares on fresh subsets; its standard error below."""
    true_error: tuple[float, ...]
    true_hidden: tuple[float, ...]
    """Fall of F (nats) with a neutral token in place of each hidden set."""
    lds: dict[str, tuple[float | None, ...]]
    """On held-out halves: with and without the prior, for each of `FORWARDS`; of the deletion path alone."""


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
    generation: Generation
    path: Scores
    effects: Effects

    def verdict(self, rule: Rule) -> Status:
        return sources_verdict(self.generation, self.path, self.effects, 0, rule=rule)[0]

    def first_is_weak(self) -> bool:
        """Whether the first source has less than half of the largest effect, by fresh removals."""
        found, sample = candidates(self.path, self.effects, 0), self.sample

        def fresh(tokens: tuple[Unit, ...]) -> float:
            if len(tokens) > 1:
                return sample.true_hidden[sample.hidden.index(tokens)]
            return sample.true_effect[sample.units.index(tokens[0])]

        return fresh(found[0].tokens) < 0.5 * max(fresh(one.tokens) for one in found)

    def first_is_a_cause(self) -> bool:
        """Whether fresh removals show that the target depends on the first source."""
        sample, tokens = self.sample, candidates(self.path, self.effects, 0)[0].tokens
        if len(tokens) > 1 and sample.true_hidden[sample.hidden.index(tokens)] >= LEAST_CAUSE:
            return True
        return any(is_cause(sample, sample.units.index(one)) for one in tokens if one in sample.units)


def is_cause(sample: Sample, unit: int) -> bool:
    effect, error = sample.true_effect[unit], sample.true_error[unit]
    return sample.planted[unit] or (effect >= LEAST_CAUSE and effect > CERTAIN * error)


def case_of(sample: Sample, row: Sequence[float], control: str = "") -> Case:
    """The rule's input with `row` as contributions, which are the prior of the estimate, too."""
    n, number = len(sample.texts), len(sample.units)
    kept = torch.zeros(len(sample.kept), number, dtype=torch.bool)
    for mask, chosen in enumerate(sample.kept):
        kept[mask, list(chosen)] = True
    f, zero = torch.tensor([sample.f], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    features = torch.zeros(1, n, dtype=torch.bool)
    features[0, list(sample.features)] = True
    error = torch.tensor([sample.local_error], dtype=torch.float64)
    certificate = Certificate(f, zero, zero, error, zero, (0,), (sample.converged or bool(control),))
    path = Scores("deletion_path", torch.tensor([row], dtype=torch.float64), features, True, {}, certificate)
    effects = Effects(
        operator="delete",
        units=sample.units,
        kept=kept,
        f_full=f,
        f_masked=torch.tensor([sample.f_masked], dtype=torch.float64),
        f_without=f[:, None] - torch.tensor([sample.drop], dtype=torch.float64),
        settings={},
        hidden=sample.hidden,
        f_hidden=f[:, None] - torch.tensor([sample.hidden_drop], dtype=torch.float64),
    )
    generation = Generation(
        ids=tuple(range(n)),
        prompt_len=sample.prompt_len,
        roles=(*(Role.USER,) * sample.prompt_len, *(Role.GENERATED,) * (n - sample.prompt_len)),
        texts=sample.texts,
        words=(),
        logprobs=None,
        stop="given",
        request={},
    )
    return Case(sample, control, generation, path, estimated(effects, path))


def wrong_cases(samples: Sequence[Sample]) -> Iterator[Case]:
    """The same samples with contributions that cannot be right."""
    rng = np.random.default_rng(0)
    for number, sample in enumerate(samples):
        places, own = np.array(sample.features), np.array(sample.row)
        for _ in range(SHUFFLES):
            row = own.copy()
            row[places] = own[rng.permutation(places)]
            yield case_of(sample, row.tolist(), "shuffled")
        other = next((one for one in [*samples[number + 1 :], *samples[:number]] if one.model == sample.model), sample)
        there = np.array(other.row)[list(other.features)]
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
    decided = sum(verdict in (Status.CONFIRMED, Status.CONTRADICTED) for verdict in verdicts)
    found = {
        "decided": (decided, len(cases)),
        "right": (sum(case.first_is_a_cause() for case in confirmed), len(confirmed)),
    }
    for control in CONTROLS:
        mine = [case.verdict(rule) == Status.CONFIRMED for case in wrong if case.control == control]
        found[control] = (sum(mine), len(mine))
    return found


def fitted(cases: Sequence[Case], wrong: Sequence[Case], grid: Sequence[Rule]) -> Rule | None:
    """The rule that decides the most of those that keep the error rates; of equals, that of the largest effect."""

    def share(counts: tuple[int, int]) -> float:
        return counts[0] / max(1, counts[1])

    good = []
    for rule in grid:
        found = rates(cases, wrong, rule)
        if share(found["right"]) >= PRECISION and all(share(found[control]) <= FALSE for control in CONTROLS):
            good.append((share(found["decided"]), rule))
    return max(good, key=lambda one: (one[0], one[1].least_effect))[1] if good else None


def grid_table(cases: Sequence[Case], wrong: Sequence[Case], grid: Sequence[Rule]) -> list[str]:
    rows = [
        f"| least effect | share | chance | decided | first source is a cause, of confirmed | {' | '.join(CONTROLS)} |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(CONTROLS),
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
        denied = [case for case in cases if case.verdict(rule) == Status.CONTRADICTED]
        causes = exact(sum(case.first_is_weak() for case in denied), len(denied))
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
            truth, error = np.array(case.sample.true_effect), np.array(case.sample.true_error)
            width = (high - low) / 2
            wider = np.hypot(width, stats.norm.ppf(0.95) * error)  # the fresh fit has an error of its own
            inside += (np.abs(truth - (low + high) / 2) <= wider).tolist()
            widths += (2 * width).tolist()
        rows.append(f"| {model} | {len(inside)} | {np.mean(inside):.1%} | {np.median(widths):.2f} |")
    return rows


def lds_table(samples: Sequence[Sample]) -> list[str]:
    rows = [
        f"| model | estimate | {' | '.join(f'{n} forwards' for n in FORWARDS)} |",
        "| --- | --- |" + " --- |" * len(FORWARDS),
    ]
    for model in dict.fromkeys(sample.model for sample in samples):
        mine = [sample.lds for sample in samples if sample.model == model]
        for name in ("with the prior", "without"):
            table = np.array([[np.nan if x is None else x for x in one[name]] for one in mine])
            rows.append(f"| {model} | {name} | {' | '.join(f'{x:.2f}' for x in np.nanmean(table, axis=0))} |")
        alone = np.nanmean([np.nan if (x := one["deletion path alone"][0]) is None else x for one in mine])
        rows.append(f"| {model} | deletion path, unfitted | {alone:.2f} |" + " |" * (len(FORWARDS) - 1))
    return rows


def _thresholds(rule: Rule) -> str:
    return f"{rule.least_effect} nats, share {rule.effect_share}, chance {rule.most_chance}"


def tables(samples: Sequence[Sample]) -> list[str]:
    """Everything that is printed. Every second question of a model is of the half that thresholds are fitted on."""
    numbers: Counter[str] = Counter()
    halves: dict[str, list[Sample]] = {"fit": [], "check": []}
    for sample in samples:
        halves["check" if numbers[sample.model] % 2 else "fit"].append(sample)
        numbers[sample.model] += 1
    cases = {half: [case_of(one, one.row) for one in mine] for half, mine in halves.items()}
    wrong = {half: list(wrong_cases(mine)) for half, mine in halves.items()}
    grid = [
        replace(RULE, least_effect=effect, effect_share=share, most_chance=chance)
        for effect, share, chance in product(EFFECTS, SHARES, CHANCES)
    ]
    best = fitted(cases["fit"], wrong["fit"], grid)
    groups = {half: (cases[half], wrong[half]) for half in halves}
    for model in numbers:
        mine, others = (
            [case for case in found if case.sample.model == model] for found in (cases["check"], wrong["check"])
        )
        groups[f"check, {model}"] = mine, others
    chosen = "none keeps the error rates" if best is None else _thresholds(best)
    return [
        "The fitted half:",
        *("", *grid_table(cases["fit"], wrong["fit"], grid), "", f"Fitted: {chosen}.", ""),
        *(f"Rule {RULE.version}: {_thresholds(RULE)}.", "", *rule_table(groups, RULE), ""),
        *coverage_table([*cases["fit"], *cases["check"]]),
        "",
        *lds_table(samples),
    ]
