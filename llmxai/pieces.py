"""The pieces of a prompt, from whole documents and turns down to words, and what they do to the answer as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
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
    """The pieces that were not taken apart although they could be."""
    f_rest: float | None = None
    """F with all of `rest` removed together; None if there is at most one."""
    effect: Float[Tensor, " root"] | None = None
    """The sum of the estimated effects (nats, `Effects.effect`, on the whole answer) of a root's units."""
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
        """`effect`, `low` and `high` of the roots; all three are their `drop` without random subsets."""
        if self.effect is None or self.low is None or self.high is None:
            return (self.drop[: self.roots],) * 3
        return self.effect, self.low, self.high

    @property
    def bound(self) -> float | None:
        """The largest |drop| (nats) of a piece of `rest`: what any part of it does, unless it counters another."""
        return float(self.drop[list(self.rest)].abs().max()) if self.rest else None
