"""Tracing through the answer: from the shares of the answer's own words back to what the user gave.

The answer's earlier words take credit for what they only repeat. Each of them has contributions of its own, so its
share can be handed on until it reaches the prompt (CAGE, Walker & Ewetz 2025, https://arxiv.org/abs/2512.15663):

    total = direct + (shares of the answer's units) x total .

All rows are contributions per unit (a word, a sentence, or a longer run), without the negative ones, as shares of 1.
A unit depends only on earlier ones, so the sum over all paths is one triangular solve. Of a row, what goes neither to a
unit of the prompt nor to one of the answer (template, or no positive contribution at all) is not handed on: `rest`.

A unit whose own contributions were not computed hands on those of a passage that holds it, as far as they come before
the unit (`Trace.rows`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.names import Unit
from llmxai.types import Effects


def unit_shares(values: Float[Tensor, "row seq"], units: Sequence[Unit]) -> Float[Tensor, "row unit"]:
    """The positive part of each unit's summed contributions, as a share of that of all units and of the other tokens.

    A row without any positive sum is 0. float64.
    """
    owner = torch.full((values.shape[1],), len(units))
    for number, (start, end) in enumerate(units):
        owner[start:end] = number
    sums = torch.zeros(len(values), len(units) + 1, dtype=torch.float64).index_add_(1, owner, values.double())
    positive = sums.clamp(min=0)
    total = positive.sum(dim=1, keepdim=True)
    return torch.where(total > 0, positive / total.where(total > 0, 1.0), 0.0)[:, :-1]


def falls(effects: Effects, units: Sequence[Unit]) -> Float[Tensor, "target unit"]:
    """Fall of F (nats) without each unit of the prompt, or with one of the answer hidden; NaN where not measured."""
    hidden = {ranges[0]: number for number, ranges in enumerate(effects.hidden) if len(ranges) == 1}
    removed = dict(zip(effects.units, effects.estimates[0].T, strict=True))
    removed |= {unit: effects.hidden_drop[:, number] for unit, number in hidden.items()}
    found = torch.full((len(effects.f_full), len(units)), torch.nan, dtype=torch.float64)
    for number, unit in enumerate(units):
        if unit in removed:
            found[:, number] = removed[unit]
    return found


@dataclass(frozen=True)
class Step:
    """One step of a path: from a unit to the next unit of the path, or to the target."""

    unit: int
    tokens: Unit
    share: float
    """Of all that the next one's contributions give."""
    effect: float | None
    """Fall (nats) of the log-prob of the next one without this unit; None where it was not measured."""


@dataclass(frozen=True)
class TracedSource:
    """A unit of the prompt and its shares of a target."""

    unit: int
    tokens: Unit
    share: float
    """Through all paths."""
    direct: float
    """Of the target's own contributions."""
    path: tuple[Step, ...]
    """The path that carries the most, from the unit to the step before the target."""


@dataclass(frozen=True, eq=False)
class Trace:
    """Direct and traced shares of every target, in units of the prompt and of the answer.

    Identity: a row of `total` and its part of `rest` sum to 1.
    """

    method: str
    """The method whose contributions are followed."""
    units: tuple[Unit, ...]
    """Half-open token ranges: those of the prompt, then those of the answer, in order."""
    n_sources: int
    """How many of `units` are the prompt's."""
    direct: Float[Tensor, "target unit"]
    """Shares of the target's own contributions."""
    steps: Float[Tensor, "answer unit"]
    """The same for every unit of the answer, of what comes before it; 0 for a unit that no target can see."""
    effects: Float[Tensor, "answer unit"]
    """The check of each step: the fall (nats) of the log-prob of a unit of the answer when an earlier unit is removed,
    or hidden if it is the answer's; NaN where nothing was measured."""
    rows: tuple[Unit | None, ...] = ()
    """Whose contributions each unit of the answer hands on: its own range or, if those were not computed, that of a
    passage that holds it; None if it hands nothing on. Empty: each its own."""

    def __repr__(self) -> str:
        sizes = f"{self.n_sources} units of the prompt, {len(self.steps)} of the answer, {len(self.direct)} targets"
        return f"Trace({self.method}, {sizes})"

    @property
    def total(self) -> Float[Tensor, "target source"]:
        """Traced shares of the prompt's units."""
        return self.followed(self.direct)

    @property
    def carried(self) -> Float[Tensor, "target answer"]:
        """The share of every target that passes through each unit of the answer."""
        n = self.n_sources
        within = torch.eye(len(self.steps), dtype=torch.float64) - self.steps[:, n:]
        found: Tensor = torch.linalg.solve_triangular(within, self.direct[:, n:], upper=False, left=False)
        return found

    @property
    def shared(self) -> tuple[int, ...]:
        """The units of the answer that hand on the contributions of a longer passage."""
        n = self.n_sources
        return tuple(n + i for i, row in enumerate(self.rows) if row is not None and row != self.units[n + i])

    @property
    def rest(self) -> Float[Tensor, " target"]:
        """The share that reaches no unit of the prompt."""
        return (1 - self.total.sum(dim=1)).clamp(min=0)

    def followed(self, direct: Float[Tensor, "row unit"]) -> Float[Tensor, "row source"]:
        """Direct shares with those of the answer's units handed on to the prompt's."""
        n = self.n_sources
        within = torch.eye(len(self.steps), dtype=torch.float64) - self.steps[:, n:]
        reached: Tensor = torch.linalg.solve_triangular(within, self.steps[:, :n], upper=False)
        return direct[:, :n] + direct[:, n:] @ reached

    def path(self, direct: Float[Tensor, " unit"], source: int) -> tuple[int, ...]:
        """The units on the path from `source` to a target with these direct shares that carries the most, in order.

        A path carries the product of the shares of its steps; the target itself is not listed.
        """
        n, rows = self.n_sources, self.steps.tolist()
        carried, following = direct.tolist(), [-1] * len(self.units)
        for unit in reversed(range(n, len(self.units))):  # all that a unit gives to later ones is settled before it
            for earlier, share in enumerate(rows[unit - n]):
                if carried[unit] * share > carried[earlier]:
                    carried[earlier], following[earlier] = carried[unit] * share, unit
        found = [source]
        while following[found[-1]] >= 0:
            found.append(following[found[-1]])
        return tuple(found)

    def sources(self, direct: Float[Tensor, " unit"], effects: Float[Tensor, " unit"]) -> list[TracedSource]:
        """Every unit of the prompt with a traced share, largest first.

        `direct`: the shares of the target's own contributions; `effects`: what removing each unit does to the target,
        NaN where it was not measured.
        """
        shares = self.followed(direct[None])[0].tolist()
        order = sorted((unit for unit, share in enumerate(shares) if share > 0), key=lambda unit: -shares[unit])
        return [
            TracedSource(unit, self.units[unit], shares[unit], float(direct[unit]), self._steps(direct, effects, unit))
            for unit in order
        ]

    def _steps(self, direct: Float[Tensor, " unit"], effects: Float[Tensor, " unit"], source: int) -> tuple[Step, ...]:
        path = self.path(direct, source)
        found = []
        for unit, following in zip(path, (*path[1:], None), strict=True):
            row = None if following is None else following - self.n_sources
            share, effect = (direct, effects) if row is None else (self.steps[row], self.effects[row])
            fall = float(effect[unit])
            found.append(Step(unit, self.units[unit], float(share[unit]), None if math.isnan(fall) else fall))
        return tuple(found)
