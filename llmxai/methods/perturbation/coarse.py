"""Removal from coarse to fine: whole documents and turns first, then the pieces of those that matter.

Every piece is removed alone; pieces without which F falls are split, the one with the largest effect first, until
the budget of forward passes is spent. What is left is a partition of the prompt into documents, sentences and words,
and random halves of it give effects with intervals, as for any other units. As in hierarchical leave-one-out (AttriBoT,
Liu et al. 2024, https://arxiv.org/abs/2411.15102), a source inside a document without effect is not found; how large it
can be is stated (`ContextEffects.bound`).

Deletion computes all tokens behind the first removed one again. If that takes too long, pieces are hidden instead from
the tokens that read the context (the last turn and the answer), as AttriBoT does with its cached keys and values: one
pass over these few tokens measures one piece, and many pieces share a pass: copies of these tokens, one for each piece,
follow the same keys and values, and none sees another. Other documents may have read the hidden piece, so what comes
first is then deleted, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from llmxai.errors import UnsupportedModelError
from llmxai.methods.gradients.deletion_path import plain_causal, presence_path
from llmxai.methods.perturbation.removal import MaskedSequence, half_subsets, require_finite
from llmxai.methods.perturbation.tree import context_of, in_runs, pieces_of, question_of, roots_of, sentences_in
from llmxai.methods.targets import Target, TargetRows, span_target
from llmxai.models import LoadedModel, adapter_of, embed, frozen_eval, prefix_cache
from llmxai.models.embedding import input_device, kept_positions
from llmxai.models.forward import cache_argument, repeated, run
from llmxai.models.memory import ChunkSize, in_chunks
from llmxai.names import Progress, Unit, quiet
from llmxai.settings import Removal
from llmxai.stats import ridge_with_prior
from llmxai.types import ContextEffects, Generation, Piece

LEAST_EFFECT = 0.5
"""Nats by which F falls at least without a piece that is split (as in the verdict's rule)."""
EFFECT_SHARE = 0.3
"""Share of the largest fall that it reaches, too."""
LONGEST_READER = 256
"""Tokens of the prompt's end, at most, from which pieces are hidden; they are computed in every pass."""
CONFIDENCE = 0.9
"""Of the intervals of effects."""
DELETED_ROOTS, DELETED_PIECES = 2, 4
"""Roots and smaller pieces, at most, that are deleted where the others are hidden."""
PACKED = 1024
"""Tokens in one pass over copies of the reader, about."""

Sets = Sequence[Sequence[Unit]]


@dataclass
class Meter:
    """F of the targets and of the whole answer, and the divergence of every answer token, with sets of ranges removed.

    Create and use it inside `frozen_eval(model)`.
    """

    loaded: LoadedModel
    generation: Generation
    targets: tuple[Target, ...]
    removal: Removal
    size: ChunkSize
    hides_from: int | None = None
    """The first token that pieces are hidden from; None: they are removed by the operator of `removal`."""
    progress: Progress = quiet
    forwards: int = 0
    recomputed: int = 0
    against: Tensor | None = field(default=None, repr=False)
    """[token, vocab]: log-probs with everything in place."""

    @property
    def all_targets(self) -> tuple[Target, ...]:
        """The targets and, last, the whole answer."""
        return (*self.targets, span_target(self.generation))

    @cached_property
    def rows(self) -> TargetRows:
        return TargetRows.of(self.all_targets)

    @property
    def how(self) -> str:
        return self.removal.operator if self.hides_from is None else "hide"

    def full(self) -> Float[Tensor, " target"]:
        """F of the targets and, last, of the answer with nothing removed; the reference of the divergences."""
        kept: list[Tensor] = []

        def read(logits: Float[Tensor, "node row vocab"]) -> Float[Tensor, "node target"]:
            kept.append(self._answer_logprobs(logits)[0])
            return self.rows.values(logits)

        found = self._measured([()], read, len(self.all_targets))[0]
        self.against = kept[-1]
        return found

    def without(self, sets: Sets) -> Float[Tensor, "set figure"]:
        """Of every set: F of the targets, F of the answer, and the divergence (nats) of each answer token."""
        assert self.against is not None
        against = self.against

        def read(logits: Float[Tensor, "node row vocab"]) -> Float[Tensor, "node figure"]:
            changed = self._answer_logprobs(logits)
            divergence = (against.exp() * (against - changed)).nan_to_num(0.0).sum(dim=-1)  # 0 log 0 = 0
            return torch.cat([self.rows.values(logits), divergence], dim=1)

        return self._measured(sets, read, len(self.all_targets) + self.generation.n_targets)

    def deleted(self, one: Sequence[Unit]) -> float:
        """F of the answer with one set deleted and everything behind its first token computed again."""
        read = self.rows.values
        parts = MaskedSequence.of(
            self.loaded,
            self.generation,
            self.all_targets,
            list(one),
            operator="delete",
            baseline=self.removal.baseline,
            cache=self._cache,
        )
        self._count(1, len(parts.owner))
        kept = torch.zeros(1, len(one), dtype=torch.bool)
        return float(parts.of_masks(kept, read, width=len(self.all_targets), size=self.size)[0, -1])

    def _answer_logprobs(self, logits: Float[Tensor, "node row vocab"]) -> Float[Tensor, "node token vocab"]:
        wide = logits[:, -self.generation.n_targets :]
        return torch.log_softmax(wide if wide.dtype == torch.float64 else wide.float(), dim=-1)

    def _count(self, passes: int, tokens: int) -> None:
        self.forwards += passes
        self.recomputed += tokens
        self.progress(min(self.forwards, self.removal.budget), self.removal.budget)

    def _measured(self, sets: Sets, read: Callable[[Tensor], Tensor], width: int) -> Float[Tensor, "set figure"]:
        return self._masked(sets, read, width) if self.hides_from is None else self._hidden(sets, read)

    def _masked(self, sets: Sets, read: Callable[[Tensor], Tensor], width: int) -> Float[Tensor, "set figure"]:
        units = disjoint(sets)
        kept = torch.tensor([[not _holds(one, unit) for unit in units] for one in sets]).reshape(len(sets), len(units))
        parts = MaskedSequence.of(
            self.loaded,
            self.generation,
            self.all_targets,
            units,
            operator=self.removal.operator,
            baseline=self.removal.baseline,
        )
        self._count(len(sets), int(parts.present(kept.bool()).sum()))
        return parts.of_masks(kept.bool(), read, width=width, size=self.size)

    @property
    def prefix(self) -> DynamicCache | None:
        """Keys and values of everything in front of the tokens that pieces are hidden from, if they are."""
        return None if self.hides_from is None else self._cache

    @cached_property
    def _cache(self) -> DynamicCache | None:
        """Keys and values of everything in front of the reader."""
        assert self.hides_from is not None
        ids = self.generation.ids[: self.hides_from]
        x = embed(self.loaded.model, ids)[None].to(self.loaded.dtype)
        self.recomputed += len(ids)
        return prefix_cache(self.loaded.model, x, ids)

    def _hidden(self, sets: Sets, read: Callable[[Tensor], Tensor]) -> Float[Tensor, "set figure"]:
        assert self.hides_from is not None
        if self._cache is not None and packs(self.loaded.model):
            return self._packed(sets, read, self._cache)
        prefix, path = self._cache, presence_path(self.loaded, self.generation, features="all")
        seen = max(self.rows.positions) + 1
        live = slice(self.hides_from, seen)

        def figures(chosen: slice) -> Tensor:
            presence = torch.zeros(chosen.stop - chosen.start, seen, dtype=path.input.dtype, device=path.input.device)
            for row, one in zip(presence, sets[chosen], strict=True):
                for start, end in one:
                    row[start:end] = -torch.inf
            self._count(len(presence), len(presence) * (seen - live.start))
            logits = path.logits(self.loaded, presence, positions=self.rows.positions, live=live, prefix=prefix)
            values = read(logits).double().cpu()
            require_finite(self.loaded, values)
            return values

        with torch.no_grad(), path.attached(self.loaded.model):
            return in_chunks(figures, size=self.size, each=seen, items=len(sets))

    def _packed(
        self, sets: Sets, read: Callable[[Tensor], Tensor], prefix: DynamicCache
    ) -> Float[Tensor, "set figure"]:
        """The same with one copy of the reader for each set, one behind the other in one sequence."""
        model, start, end = self.loaded.model, prefix.get_seq_length(), max(self.rows.positions) + 1
        n, places = end - start, [position - start for position in self.rows.positions]
        ids = torch.tensor(self.generation.ids[start:end], device=input_device(model))
        numbers = torch.arange(start, end, device=ids.device)

        def figures(chosen: slice) -> Tensor:
            copies = sets[chosen]
            seen = seen_by_copies(copies, start=start, n=n).to(ids.device)
            mask = torch.zeros(seen.shape, dtype=self.loaded.dtype, device=ids.device)
            mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
            keep = [copy * n + place for copy in range(len(copies)) for place in places]
            self._count(len(copies), len(copies) * n)
            output = run(
                model,
                input_ids=ids.repeat(len(copies))[None],
                position_ids=numbers.repeat(len(copies))[None],
                attention_mask=mask[None, None],
                logits_to_keep=kept_positions(model, keep),
                use_cache=True,
                **{cache_argument(model): repeated(prefix, 1)},
            )
            values = read(output.logits[0].unflatten(0, (len(copies), len(places)))).double().cpu()
            require_finite(self.loaded, values)
            return values

        with torch.no_grad():
            each = n * max(1, self.size.tokens // PACKED)
            return in_chunks(figures, size=self.size, each=each, items=len(sets))


def packs(model: PreTrainedModel) -> bool:
    """Whether copies of a sequence's end can go through a model together: causal attention, numbered positions."""
    parameters = inspect.signature(model.forward).parameters
    return plain_causal(model) and {"position_ids", "logits_to_keep"} <= set(parameters)


def seen_by_copies(sets: Sets, *, start: int, n: int) -> Bool[Tensor, "token key"]:
    """What the tokens of the copies see, of the `start` tokens before them and of themselves; one copy for each set.

    A token sees those before it and itself, of its own copy, but neither the prefix's nor its copy's tokens in the set.
    It always sees itself.
    """
    seen = torch.zeros(len(sets), n, start + len(sets) * n, dtype=torch.bool)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    for number, one in enumerate(sets):
        present = torch.ones(start + n, dtype=torch.bool)
        for first, last in one:
            present[first:last] = False
        own = start + number * n
        seen[number, :, :start] = present[:start]
        seen[number, :, own : own + n] = causal & (present[start:] | torch.eye(n, dtype=torch.bool))
    return seen.flatten(0, 1)


def disjoint(sets: Sets) -> list[Unit]:
    """The ranges of all sets, cut where one of them begins or ends."""
    cuts = sorted({place for one in sets for unit in one for place in unit})
    return [piece for piece in pairwise(cuts) if any(_holds(one, piece) for one in sets)]


def _holds(one: Sequence[Unit], piece: Unit) -> bool:
    return any(start <= piece[0] and piece[1] <= end for start, end in one)


def reader_of(generation: Generation, roots: Sequence[Piece]) -> int:
    """Where the reader of the context begins: with the turn that asks, or the end of the prompt if that is long."""
    last = roots[-1]
    for piece in (roots[question_of(generation, roots)], last, *pieces_of(generation, last)[-1:]):
        if generation.prompt_len - piece.tokens[0] <= LONGEST_READER:
            return piece.tokens[0]
    return min(last.tokens[1], generation.prompt_len - 1)


def tree_of(generation: Generation) -> tuple[Piece, ...]:
    """The roots; if there is only one, the pieces of it."""
    roots = roots_of(generation)
    return pieces_of(generation, roots[0]) if len(roots) == 1 else roots


def meter_of(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    removal: Removal,
    roots: Sequence[Piece],
    *,
    size: ChunkSize,
    passes: int,
    progress: Progress = quiet,
) -> Meter:
    """By deletion, unless `passes` of them would compute more tokens again than `removal.recomputed` allows."""
    meter = Meter(loaded, generation, tuple(targets), removal, size, progress=progress)
    behind = max(meter.rows.positions) + 1 - roots[0].tokens[0]
    if removal.operator != "delete" or passes * behind / 2 <= removal.recomputed:
        return meter
    if generation.source_len or not adapter_of(loaded.model).keeps_prefix(loaded.model):
        return meter
    try:
        presence_path(loaded, generation, features="all")
    except UnsupportedModelError:
        return meter
    meter.hides_from = reader_of(generation, roots)
    return meter


@dataclass(frozen=True)
class TakenApart:
    """Pieces that were removed alone, and the partition that they leave."""

    roots: tuple[Piece, ...]
    figures: dict[Piece, Tensor]
    """What `Meter.without` says of each piece, roots first."""
    units: tuple[Piece, ...]
    """The partition, in the order of the tokens."""


def take_apart(
    generation: Generation, roots: Sequence[Piece], meter: Meter, full: Float[Tensor, " target"], *, left: int
) -> TakenApart:
    """Remove pieces from coarse to fine, in at most `left` forward passes."""
    roots = in_runs(roots, max(2, left // 2))
    units = list(roots)
    figures = dict(zip(roots, meter.without([(root.tokens,) for root in roots]), strict=True))
    left -= len(roots)
    asks = roots[question_of(generation, roots)].tokens[0]
    first = True
    while left >= 2:
        opening: dict[Piece, tuple[Piece, ...]] = {}
        for piece in _that_matter(units, figures, full, asks=asks, at_least_one=first):
            inner = in_runs(pieces_of(generation, piece), left) if left >= 2 else ()
            if len(inner) >= 2:
                opening[piece] = inner
                left -= len(inner)
        if not opening:
            break
        new = [piece for inner in opening.values() for piece in inner]
        figures |= dict(zip(new, meter.without([(piece.tokens,) for piece in new]), strict=True))
        units = [finer for piece in units for finer in opening.get(piece, (piece,))]
        first = False
    return TakenApart(tuple(roots), figures, tuple(sorted(units, key=lambda piece: piece.tokens)))


def _that_matter(
    units: Sequence[Piece],
    figures: dict[Piece, Tensor],
    full: Float[Tensor, " target"],
    *,
    asks: int,
    at_least_one: bool,
) -> list[Piece]:
    """The pieces without which a target or the answer falls much, by the fall of the answer, largest first.

    Much compared with what comes before the question, which begins at the token `asks`; its own pieces come last.
    """
    falls = full - torch.stack([figures[piece][: len(full)] for piece in units])
    before = torch.tensor([piece.tokens[0] < asks for piece in units])
    largest = (falls[before] if before.any() else falls).max(dim=0).values
    matters = (falls >= (EFFECT_SHARE * largest).clamp(min=LEAST_EFFECT)).any(dim=1)
    order = falls[:, -1].argsort(descending=True, stable=True).tolist()
    order.sort(key=lambda i: not before[i])
    return [units[i] for i in order if matters[i]] or [units[i] for i in order[: int(at_least_one)]]


def context_effects(
    generation: Generation,
    meter: Meter,
    found: TakenApart,
    full: Float[Tensor, " target"],
    masked: Float[Tensor, " mask"],
) -> ContextEffects:
    """What the pieces do to the answer; measures what is missing: without the context, without the rest, deletions.

    `masked`: F of the answer in the random subsets.
    """
    pieces, roots = tuple(found.figures), found.roots
    figures, targets = torch.stack(list(found.figures.values())), len(full)
    rest = tuple(i for i, piece in enumerate(pieces) if piece in found.units and pieces_of(generation, piece))
    context = context_of(generation, roots)
    together = [[pieces[i].tokens for i in several] for several in (rest, context) if len(several) > 1]
    joint = iter(meter.without(together)) if together else iter(())
    f_rest = float(next(joint)[targets - 1]) if len(rest) > 1 else None
    if len(context) > 1:
        divergence_all = next(joint)[targets:]
    else:
        divergence_all = figures[context[0], targets:] if context else torch.zeros(generation.n_targets).double()
    effect, low, high = _root_effects(meter, roots, context, full[-1] - figures[: len(roots), targets - 1], full[-1])
    f_without, f_deleted = figures[:, targets - 1], torch.full((len(pieces),), torch.nan, dtype=torch.float64)
    if meter.hides_from is not None:
        for i in _to_delete(meter, pieces, len(roots), float(full[-1]) - f_without):
            f_deleted[i] = meter.deleted([pieces[i].tokens])
    return ContextEffects(
        how=meter.how,
        pieces=pieces,
        roots=len(roots),
        f_full=float(full[-1]),
        f_without=f_without,
        f_deleted=f_deleted,
        f_masked=masked,
        divergence=figures[: len(roots), targets:].T.contiguous(),
        divergence_all=divergence_all,
        context=context,
        forwards=meter.forwards,
        recomputed=meter.recomputed,
        rest=rest,
        f_rest=f_rest,
        effect=effect,
        low=low,
        high=high,
    )


def root_subsets(removal: Removal) -> int:
    """Random halves of the roots of the context that are measured, at most."""
    return min(removal.subsets, removal.budget // 6)


def _root_effects(
    meter: Meter,
    roots: Sequence[Piece],
    context: Sequence[int],
    alone: Float[Tensor, " root"],
    f_full: Float[Tensor, ""],
) -> tuple[Float[Tensor, " root"], ...]:
    """The effect of every root on the answer with the ends of its interval; of one outside the context, its fall alone.

    A ridge regression of F on which roots of the context are there: all, all but one, and random halves of them.
    """
    kept = half_subsets(len(context), root_subsets(meter.removal), seed=meter.removal.seed)
    if len(context) < 2 or not len(kept):
        return alone, alone, alone
    sets = [[roots[i].tokens for i, stays in zip(context, row, strict=True) if not stays] for row in kept.tolist()]
    f = meter.without(sets)[:, len(meter.targets)]
    single = ~torch.eye(len(context), dtype=torch.bool)
    x = torch.cat([torch.ones(1, len(context), dtype=torch.bool), single, kept]).double().numpy()
    y = torch.cat([f_full[None], f_full - alone[list(context)], f]).numpy()
    fit = ridge_with_prior(x, y, np.zeros(len(context)))
    found = []
    for values in (fit.mean, *fit.interval(CONFIDENCE)):
        side = alone.clone()
        side[list(context)] = torch.from_numpy(values)
        found.append(side)
    return tuple(found)


def _to_delete(meter: Meter, pieces: Sequence[Piece], roots: int, fall: Float[Tensor, " piece"]) -> list[int]:
    """The pieces to delete, by their fall when hidden, as many as fit: the first, and others that matter.

    Sentences and larger pieces, then roots that hold none of these.
    """
    assert meter.hides_from is not None
    end, left = max(meter.rows.positions) + 1, meter.removal.recomputed
    order = [i for i in fall.argsort(descending=True, stable=True).tolist() if pieces[i].tokens[0] < meter.hides_from]
    enough = max(LEAST_EFFECT, EFFECT_SHARE * max((float(fall[i]) for i in order), default=0.0))
    inner = [i for i in order if i >= roots and not pieces[i].kind.endswith(("word", "words"))][:DELETED_PIECES]
    wanted = inner[:1] + [i for i in inner[1:] if fall[i] >= enough]
    others = [i for i in order if i < roots and not any(_holds([pieces[i].tokens], pieces[k].tokens) for k in wanted)]
    wanted += [i for i in others[:DELETED_ROOTS] if fall[i] >= enough or not wanted]
    chosen = []
    for i in wanted:
        if (cost := end - pieces[i].tokens[0]) <= left:
            chosen.append(i)
            left -= cost
    return chosen


def measured_context(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    removal: Removal,
    *,
    size: ChunkSize,
    units: Sequence[Unit],
    masked: Float[Tensor, " mask"],
) -> ContextEffects | None:
    """Documents and turns as wholes and, within the budget, their sentences that are none of `units`; None of one turn.

    `units`: what was removed already. `masked`: F of the answer in random halves of them.
    """
    roots = roots_of(generation)
    if len(roots) < 2:
        return None
    roots = in_runs(roots, removal.budget)
    known, left = set(units), removal.budget - len(roots) - root_subsets(removal) - 2  # everything, and no context
    inner = [piece for root in roots for piece in sentences_in(generation, root) if piece.tokens not in known]
    pieces = (*roots, *inner[: max(0, left)])
    with frozen_eval(loaded.model):
        meter = meter_of(loaded, generation, targets, removal, roots, size=size, passes=len(pieces))
        full = meter.full()
        figures = dict(zip(pieces, meter.without([(piece.tokens,) for piece in pieces]), strict=True))
        return context_effects(generation, meter, TakenApart(roots, figures, ()), full, masked)
