"""What was removed from a prompt, from whole documents and turns down to words, and the effects that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.names import Unit


@dataclass(frozen=True)
class Piece:
    """A node of the tree of units: a document, turn or other part of the prompt, or a paragraph, sentence or word."""

    kind: str
    """That of the part (`document`, `turn`, ...) for a root; else `paragraph`, `sentence`, `word`, or a run of them."""
    tokens: Unit
    part: int
    """The number of the part that it belongs to, in `Generation.parts`; -1 for content of no part, or of several."""
    inner: tuple[Piece, ...] = ()
    """Of a run: what was joined."""


@dataclass(frozen=True, eq=False)
class ContextEffects:
    """What the documents, turns and their pieces do to the answer as a whole, and to each of its tokens.

    F is here the log-prob (nats) of the whole answer: the sum over its tokens.
    """

    how: str
    """`delete`, `baseline` or `mean`, as in `Effects.operator`; or `hide`: the pieces' keys and values are hidden from
    the tokens behind the context, and all keys and values are those with the piece in place."""
    pieces: tuple[Piece, ...]
    """All that were removed alone, roots first."""
    roots: int
    """How many of the pieces are roots: documents, turns, tools (or runs of them, if there are too many)."""
    f_full: float
    f_without: Float[Tensor, " piece"]
    """F with the piece alone removed, by `how`."""
    f_deleted: Float[Tensor, " piece"]
    """With `hide`: F with the piece deleted and all that follows computed again; NaN where that was not done."""
    f_masked: Float[Tensor, " mask"]
    """F of each random subset of `Effects.kept`."""
    divergence: Float[Tensor, "token root"]
    """Kullback-Leibler divergence (nats) of the next-token distribution with everything from that without a root."""
    divergence_all: Float[Tensor, " token"]
    """The same without the whole context: all documents, else every turn and tool but the last turn."""
    context: tuple[int, ...]
    """The roots that make up the context."""
    forwards: int
    """Forward passes in all, those of the random subsets among them."""
    recomputed: int
    """Tokens that went through the model in them."""
    rest: tuple[int, ...] = ()
    """The pieces that were not split although they could be."""
    f_rest: float | None = None
    """F with all of `rest` removed together; None if there is at most one."""
    effect: Float[Tensor, " root"] | None = None
    """How much F falls without a root of the context, on average over random halves of its other roots: its Banzhaf
    value, by a ridge regression. Of other roots, the fall without it alone."""
    low: Float[Tensor, " root"] | None = None
    """Lower end of the 90 % interval of `effect`."""
    high: Float[Tensor, " root"] | None = None

    def __repr__(self) -> str:
        return f"ContextEffects({self.how}, {self.roots} roots, {len(self.pieces)} pieces, {self.forwards} forwards)"

    @property
    def drop(self) -> Float[Tensor, " piece"]:
        """How much F falls (nats) without the piece alone: by deletion where that was done, else by `how`."""
        return self.f_full - torch.where(self.f_deleted.isnan(), self.f_without, self.f_deleted)

    @property
    def estimates(self) -> tuple[Float[Tensor, " root"], Float[Tensor, " root"], Float[Tensor, " root"]]:
        """`effect`, `low` and `high` of the roots; all three are their `drop` where there is none."""
        if self.effect is None or self.low is None or self.high is None:
            return (self.drop[: self.roots],) * 3
        return self.effect, self.low, self.high

    @property
    def bound(self) -> float | None:
        """The largest |drop| (nats) of a piece of `rest`: what any part of it does, unless it counters another."""
        return float(self.drop[list(self.rest)].abs().max()) if self.rest else None


@dataclass(frozen=True, eq=False)
class Effects:
    """What removing parts of the prompt, and of the answer's earlier words, does to every target.

    Parts of the prompt are taken out (or replaced: see `operator`), one by one and in random halves. Earlier words of
    the answer, and words together with all their mentions, are hidden from the tokens behind them.
    A unit is a half-open token range (a token, word or sentence).
    """

    operator: str
    """`delete` (the tokens are taken out), `baseline` (neutral token's embedding), `mean` (mean embedding), or `hide`
    (of a long prompt: see `ContextEffects.how`)."""
    units: tuple[Unit, ...]
    """Of the prompt."""
    kept: Bool[Tensor, "mask unit"]
    """Which units are kept in each random subset."""
    f_full: Float[Tensor, " target"]
    f_masked: Float[Tensor, "target mask"]
    """F (nats) of each random subset."""
    f_without: Float[Tensor, "target unit"]
    """F (nats) with one unit left out alone."""
    settings: Mapping[str, Any]
    hidden: tuple[tuple[Unit, ...], ...] = ()
    """Sets of ranges that are hidden together: one word of the answer, or a word with all its mentions."""
    f_hidden: Float[Tensor, "target hidden"] | None = None
    """F with each set hidden from what follows; NaN for a target before it, or inside one of its words."""
    effect: Float[Tensor, "target unit"] | None = None
    """Mean drop of F (nats) over random halves of the other units when the unit is removed: its Banzhaf value, by a
    ridge regression on the subsets."""
    low: Float[Tensor, "target unit"] | None = None
    """Lower end of the 90 % interval of `effect`."""
    high: Float[Tensor, "target unit"] | None = None
    ceiling: tuple[float | None, ...] = ()
    """Share of the variance of F over the subsets that any sum of single effects explains; low: units act together."""
    pair: tuple[tuple[int, int] | None, ...] = ()
    """The two units that most clearly act together: the subsets show more than the sum of their single effects."""
    answer_drop: Float[Tensor, " unit"] | None = None
    """How much the log-prob of the whole answer falls (nats) without a unit alone; None in older explanations."""
    context: ContextEffects | None = None
    """The documents and turns as wholes; None where the prompt is one turn and short."""

    def __repr__(self) -> str:
        sizes = f"{len(self.units)} units, {len(self.kept)} random subsets, {len(self.f_full)} targets"
        largest = float(self.drop.max()) if self.drop.numel() else 0.0
        return f"Effects({self.operator}, {sizes}, largest drop {largest:.3g} nats)"

    def of_first(self, n: int) -> Effects:
        """Those on the first `n` targets."""
        ends = {"effect": self.effect, "low": self.low, "high": self.high, "f_hidden": self.f_hidden}
        first: dict[str, Any] = {name: None if part is None else part[:n] for name, part in ends.items()}
        first |= {name: getattr(self, name)[:n] for name in ("f_full", "f_masked", "f_without", "ceiling", "pair")}
        return replace(self, **first)

    @property
    def drop(self) -> Float[Tensor, "target unit"]:
        """Leave-one-out: how much F falls (nats) when the unit alone is removed."""
        return self.f_full[:, None] - self.f_without

    @property
    def subsets(self) -> tuple[Bool[Tensor, "row unit"], Float[Tensor, "target row"]]:
        """The random halves and, last, the whole prompt, which units each keeps, and F (nats) of it.

        Halves of equal size show how units differ; the whole prompt shows how large they are together.
        """
        whole = torch.ones(1, len(self.units), dtype=torch.bool)
        return torch.cat([self.kept, whole]), torch.cat([self.f_masked, self.f_full[:, None]], dim=1)

    @property
    def estimates(
        self,
    ) -> tuple[Float[Tensor, "target unit"], Float[Tensor, "target unit"], Float[Tensor, "target unit"]]:
        """`effect`, `low` and `high`; all three are `drop` where there are no random subsets."""
        if self.effect is None or self.low is None or self.high is None:
            return self.drop, self.drop, self.drop
        return self.effect, self.low, self.high

    @property
    def hidden_drop(self) -> Float[Tensor, "target hidden"]:
        """How much F falls (nats) when a set is hidden; NaN where it is not defined."""
        if self.f_hidden is None:
            return torch.zeros(len(self.f_full), 0, dtype=torch.float64)
        return self.f_full[:, None] - self.f_hidden
