"""The units that are removed from a prompt, and F of targets without them: one batched forward serves all targets.

Units are tokens, words, sentences, or longer runs of them.

Sequences of equal length go through the model together, so no padding or attention mask is needed and every token has
the position that the model would give it. Tokens before the first unit are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from llmxai.errors import NonFiniteError, OptionError
from llmxai.methods.features import CONTENT, baseline_embedding
from llmxai.methods.targets import Target, TargetRows
from llmxai.models import LoadedModel, embed, forward_logits, frozen_eval, prefix_cache
from llmxai.models.forward import shortened
from llmxai.models.memory import ChunkSize, forward_tokens, in_chunks
from llmxai.names import Progress, Unit, quiet
from llmxai.settings import OPERATORS, UNITS, require_known
from llmxai.text import sentences
from llmxai.types import Generation

MOST_UNITS = 64
"""`auto` merges more pieces than this, since each costs a forward pass."""
FEWEST_SENTENCES = 16
"""With fewer sentences than this, `auto` uses runs of words: so few sentences are too coarse."""


def content_words(generation: Generation) -> list[Unit]:
    """The words of the prompt and the answer that people or the model wrote."""
    return [word for word in generation.words if generation.roles[word[0]] in CONTENT]


def prompt_units(generation: Generation, *, units: str = "auto") -> tuple[tuple[Unit, ...], str]:
    """Half-open token ranges of the prompt's content, and the name of what they are.

    Template tokens, BOS and the answer belong to no unit, and no unit crosses a change of role. A raw prompt that is a
    single unit gives none: nothing would be left to answer from.
    """
    require_known("removal units", units, UNITS)
    tokens = [i for i in range(generation.prompt_len) if generation.roles[i] in CONTENT]
    content = frozenset(tokens)
    words = [word for word in generation.words if word[1] <= generation.prompt_len and word[0] in content]
    if units == "token":
        chosen, kind = [(i, i + 1) for i in tokens], "token"
    elif units == "word":
        chosen, kind = words, "word"
    elif units == "sentence":
        chosen, kind = sentences(generation.texts, generation.roles, words), "sentence"
    else:
        chosen, kind = _not_too_many(generation, words)
    everything = sum(end - start for start, end in chosen) == generation.prompt_len
    return (() if everything and len(chosen) == 1 else tuple(chosen)), kind


def _not_too_many(generation: Generation, words: Sequence[Unit]) -> tuple[list[Unit], str]:
    if len(words) <= MOST_UNITS:
        return list(words), "word"
    found = sentences(generation.texts, generation.roles, words)
    if FEWEST_SENTENCES <= len(found) <= MOST_UNITS:
        return found, "sentence"
    if len(found) > MOST_UNITS:
        return _runs(found, MOST_UNITS), "run of sentences"
    return _runs(words, MOST_UNITS), "run of words"


def _runs(pieces: Sequence[Unit], most: int) -> list[Unit]:
    """Neighbouring pieces merged into about `most` runs with about the same number of pieces."""
    each = -(-len(pieces) // most)
    found: list[Unit] = []
    size = each
    for start, end in pieces:
        if size < each and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
            size += 1
        else:
            found.append((start, end))
            size = 1
    return found


def half_subsets(n_units: int, n: int, *, seed: int) -> Bool[Tensor, "mask unit"]:
    """`n` different subsets that keep `n_units // 2` of the units each; all such subsets if there are at most `n`.

    All have the same size, as in Park et al. 2023 (https://arxiv.org/abs/2303.14186, definition 3). With varying
    sizes, any scores that are all positive would predict F from the size alone wherever every removal lowers F. No
    subset is empty or full.

    They come in pairs: a random half, and the other half (of an odd number of units, without one that is drawn). What
    two units do together, beyond what each does, is equal in both and cancels in the weights of a linear fit (paired
    sampling: Covert & Lee 2021, https://arxiv.org/abs/2012.01536, section 4.2).
    """
    size = n_units // 2
    if size == 0:
        return torch.zeros(0, n_units, dtype=torch.bool)
    if comb(n_units, size) <= n:
        chosen = [list(one) for one in combinations(range(n_units), size)]
    else:
        rng = np.random.default_rng(seed)
        found: dict[tuple[int, ...], None] = {}
        while len(found) < n:
            order = rng.permutation(n_units).tolist()
            pair = tuple(sorted(order[:size])), tuple(sorted(order[size : 2 * size]))
            found |= dict.fromkeys(pair)
        chosen = [list(one) for one in found][:n]
    kept = torch.zeros(len(chosen), n_units, dtype=torch.bool)
    return kept.scatter_(1, torch.tensor(chosen), value=True)


def planned_size(loaded: LoadedModel, generation: Generation, targets: Sequence[Target]) -> ChunkSize:
    """How much of a generation goes through the model at once without gradients, by the memory that is free."""
    rows = sum(len(target.positions) for target in targets)
    return ChunkSize(forward_tokens(loaded.model, tokens=len(generation.ids), targets=rows))


def hidden_sets(generation: Generation) -> tuple[tuple[Unit, ...], ...]:
    """What is hidden from the tokens behind it: each earlier word of the answer, and each word with all its mentions.

    The answer's last word has nothing behind it. Longer answers are cut into sentences, as prompts are. Mentions are
    words with the same letters and digits, whatever their case, in the prompt's content or the answer.
    """
    words = content_words(generation)
    mentions: dict[str, list[Unit]] = {}
    for start, end in words:
        text = "".join(c for c in "".join(generation.texts[start:end]).casefold() if c.isalnum())
        if text:
            mentions.setdefault(text, []).append((start, end))
    repeated = [tuple(places) for places in mentions.values() if len(places) > 1]
    repeated.sort(key=len, reverse=True)
    return (*((unit,) for unit in answer_units(generation)), *repeated[:MOST_UNITS])


def answer_units(generation: Generation) -> tuple[Unit, ...]:
    """The words of the answer that have something behind them; of a longer answer its sentences, or runs of them."""
    first, n = generation.prompt_len, len(generation.ids)
    own = [word for word in content_words(generation) if word[0] >= first and word[1] < n]
    return tuple(_not_too_many(generation, own)[0] if len(own) > MOST_UNITS else own)


def unit_sums(
    values: Float[Tensor, "target seq"], units: tuple[tuple[int, int], ...]
) -> Float[np.ndarray, "target unit"]:
    """The sum of the scores of each unit's tokens."""
    wide = values.double().numpy()
    sums = [wide[:, start:end].sum(axis=1) for start, end in units]
    return np.stack(sums, axis=1) if sums else np.zeros((len(wide), 0))


def over_tokens(
    values: Float[Tensor, "target unit"], units: Sequence[Unit], n: int
) -> tuple[Float[Tensor, "target seq"], Bool[Tensor, "target seq"]]:
    """Every unit's value split equally over its tokens, of `n`, and which tokens have one; undone by `unit_sums`."""
    split = torch.zeros(len(values), n, dtype=torch.float64)
    owned = torch.zeros(split.shape, dtype=torch.bool)
    for (start, end), column in zip(units, values.T, strict=True):
        split[:, start:end] = column[:, None] / (end - start)
        owned[:, start:end] = True
    return split, owned


def f_of_masks(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    units: Sequence[Unit],
    kept: Bool[Tensor, "mask unit"],
    *,
    operator: str,
    baseline: str,
    size: ChunkSize,
    progress: Progress = quiet,
) -> Float[Tensor, "target mask"]:
    """F (nats, or logits) of every target under every mask, float64 on the CPU.

    The units must not overlap, and none may end after the first predicting position.
    """
    with frozen_eval(loaded.model):
        parts = MaskedSequence.of(loaded, generation, targets, units, operator=operator, baseline=baseline)
        return parts.f(kept, size=size, progress=progress)


@dataclass(frozen=True)
class MaskedSequence:
    """The sequence from `first` on, from which units can be removed; `prefix` holds the tokens before it.

    Create and use it inside `frozen_eval(model)`.
    """

    loaded: LoadedModel
    rows: TargetRows
    first: int
    prefix: DynamicCache | None
    real: Float[Tensor, "live hidden"]
    ids: Tensor
    """[live]: deleted tokens take theirs along; where only the embedding is replaced, the id stays."""
    baseline: str
    substitute: Float[Tensor, "*seq hidden"] | None
    """What replaces removed tokens; None if they are deleted."""
    owner: Tensor
    """[live]: the unit of each token, or -1."""
    source: int
    """For an encoder-decoder: how many of the tokens go into the encoder."""

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        generation: Generation,
        targets: Sequence[Target],
        units: Sequence[Unit],
        *,
        operator: str,
        baseline: str,
        cache: DynamicCache | None = None,
    ) -> MaskedSequence:
        """`cache`: keys and values of more of the sequence than the tokens before the units, if already known."""
        rows = TargetRows.of(targets)
        source = generation.source_len
        ids = generation.ids[: max(rows.positions) + 1]
        x = embed(loaded.model, ids, source=source)
        # one token before the units is recomputed every time, so that no sequence is empty
        first = max(0, min((start for start, _ in units), default=generation.prompt_len) - 1)
        prefix = shortened(cache, first) if cache is not None and first else None
        if prefix is None:
            prefix = prefix_cache(loaded.model, x[None, :first].to(loaded.dtype), ids[:first])
        first = first if prefix is not None else 0
        owner = torch.full((len(x),), -1)
        for unit, (start, end) in enumerate(units):
            owner[start:end] = unit
        substitute = None
        if operator != "delete":
            neutral = "mean" if operator == "mean" else baseline
            substitute = baseline_embedding(loaded, neutral, seq=len(x), source=source).to(x)
        return cls(
            loaded=loaded,
            rows=rows,
            first=first,
            prefix=prefix,
            real=x[first:],
            ids=torch.tensor(ids[first:]),
            baseline=baseline,
            substitute=substitute,
            owner=owner[first:],
            source=source,
        )

    def f(
        self,
        kept: Bool[Tensor, "mask unit"],
        *,
        size: ChunkSize,
        progress: Progress = quiet,
    ) -> Float[Tensor, "target mask"]:
        """F of every target under every mask."""
        read, width = self.rows.values, len(self.rows.targets)
        return self.of_masks(kept, read, width=width, size=size, progress=progress).T.contiguous()

    @torch.no_grad()
    def of_masks(
        self,
        kept: Bool[Tensor, "mask unit"],
        read: Callable[[Tensor], Tensor],
        *,
        width: int,
        size: ChunkSize,
        progress: Progress = quiet,
    ) -> Float[Tensor, "mask figure"]:
        """The `width` figures that `read` takes from the logits [mask, row, vocab] of every mask, float64 on the CPU.

        Masks that leave the same number of tokens run together.
        """
        present = self.present(kept)
        lengths = present.sum(dim=1)
        found = torch.empty(len(kept), width, dtype=torch.float64)
        done = 0
        for length in sorted(set(lengths.tolist())):
            alike = (lengths == length).nonzero()[:, 0]

            def part(chosen: slice, alike: Tensor = alike, length: int = length, done: int = done) -> Tensor:
                masks = alike[chosen]
                values = self.read(*self.embedded(present[masks], kept[masks], length), read)
                progress(done + chosen.stop, len(kept))
                return values

            found[alike] = in_chunks(part, size=size, each=length, items=len(alike))
            done += len(alike)
        return found

    def stays(self, kept: Bool[Tensor, "mask unit"]) -> Bool[Tensor, "mask live"]:
        """Which tokens the masks leave in place."""
        always = torch.ones(len(kept), 1, dtype=torch.bool)
        return torch.cat([kept, always], dim=1)[:, self.owner]  # the column of owner -1 is the last one

    def present(self, kept: Bool[Tensor, "mask unit"]) -> Bool[Tensor, "mask live"]:
        """Which positions of the sequence are occupied, by a real token or a replacement.

        If deletion would leave nothing to predict from (a raw prompt without BOS, or a whole source), one neutral token
        remains.
        """
        if self.substitute is not None:
            return torch.ones(len(kept), len(self.owner), dtype=torch.bool)
        stays = self.stays(kept)
        before = self.source or min(self.rows.positions) - self.first + 1
        stays[:, 0] |= ~stays[:, :before].any(dim=1)
        return stays

    def embedded(
        self, present: Bool[Tensor, "chosen live"], kept: Bool[Tensor, "chosen unit"], length: int
    ) -> tuple[Float[Tensor, "chosen length hidden"], Int[Tensor, "chosen length"]]:
        """The embeddings and ids of the sequence under masks that leave `length` tokens each."""
        where = present.nonzero()[:, 1].reshape(len(present), length).to(self.real.device)
        ids = self.ids[where.cpu()]
        removed = ~self.stays(kept).to(self.real.device).gather(1, where)
        if not removed.any():
            return self.real[where], ids
        neutral = self.substitute
        if neutral is None:  # deletion left nothing else
            neutral = baseline_embedding(self.loaded, self.baseline, seq=length).to(self.real)
        return torch.where(removed[..., None], neutral, self.real[where]), ids

    @torch.no_grad()
    def values(
        self, x: Float[Tensor, "chosen length hidden"], ids: Int[Tensor, "... length"]
    ) -> Float[Tensor, "chosen target"]:
        """F with `x` from `first` on; if it is shorter than the original, tokens before the targets were deleted."""
        return self.read(x, ids, self.rows.values)

    def read(
        self,
        x: Float[Tensor, "chosen length hidden"],
        ids: Int[Tensor, "... length"],
        read: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "chosen figure"]:
        """The figures that `read` takes from the logits, float64 on the CPU."""
        gone = len(self.owner) - x.shape[1]
        logits = forward_logits(
            self.loaded.model,
            x.to(self.loaded.dtype),
            ids=ids,
            positions=[position - self.first - gone for position in self.rows.positions],
            prefix=self.prefix,
            source=max(0, self.source - gone),  # units are in the source, if there is one
        )
        values = read(logits).double().cpu()
        require_finite(self.loaded, values)
        return values


def require_finite(loaded: LoadedModel, values: Tensor) -> None:
    """Raise NonFiniteError if a removal gave NaN or infinity."""
    if not torch.isfinite(values).all():
        raise NonFiniteError(
            f"{loaded.name}: NaN or infinity with parts of the prompt removed, computed in {loaded.dtype}. Load the "
            f"model with --dtype float32 or bfloat16, or use --no-removal."
        )


@dataclass
class SetFunction:
    """F (nats or logits) of `target` for any set of kept features; every distinct set is computed once.

    `delete` takes tokens out, `baseline` puts the neutral token's embedding in their place, `mean` the mean embedding
    of the vocabulary. Features are at or before the target's first predicting position, so deletion shifts all of its
    positions equally. If nothing would be left before the target, the neutral token is put there.
    """

    loaded: LoadedModel
    generation: Generation
    target: Target
    features: tuple[int, ...]
    operator: str = "delete"
    forwards: int = 0
    """Sequences that went through the model."""
    known: dict[bytes, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_known("removal operator", self.operator, OPERATORS)
        if self.generation.source_len and self.operator == "delete":
            raise OptionError(
                f"{self.loaded.name}: this method cannot delete tokens from both sides of an encoder-decoder. Choose "
                f"the operator baseline or mean."
            )
        if not self.features or self.features[-1] > min(self.target.positions):
            raise OptionError(
                f"{len(self.features)} features, the last at {self.features[-1:]}: expected at least one, none after "
                f"the first predicting position {min(self.target.positions)}."
            )
        with frozen_eval(self.loaded.model):
            self.parts = MaskedSequence.of(
                self.loaded,
                self.generation,
                [self.target],
                [(place, place + 1) for place in self.features],
                operator=self.operator,
                baseline="space",
            )

    @cached_property
    def size(self) -> ChunkSize:
        """How much goes through the model at once."""
        return planned_size(self.loaded, self.generation, [self.target])

    def values(self, kept: Bool[Tensor, "mask feature"]) -> Float[Tensor, " mask"]:
        """F with only the `kept` features, float64."""
        keys = [row.numpy().tobytes() for row in kept.cpu()]
        missing = {key: row for key, row in zip(keys, kept.cpu(), strict=True) if key not in self.known}
        if missing:
            with frozen_eval(self.loaded.model):
                f = self.parts.f(torch.stack(list(missing.values())), size=self.size)
            self.known.update(zip(missing, f[0].tolist(), strict=True))
            self.forwards += len(missing)
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float64)

    def full(self) -> float:
        """F with every feature in place."""
        return float(self.values(torch.ones(1, len(self.features), dtype=torch.bool))[0])

    @property
    def real(self) -> Float[Tensor, "live hidden"]:
        """The embeddings that are recomputed each time, from position `first` on."""
        return self.parts.real

    @property
    def first(self) -> int:
        return self.parts.first

    def compute(self, x: Float[Tensor, "input live hidden"]) -> Float[Tensor, " input"]:
        """F with `x` in place of `real`."""
        self.forwards += len(x)
        with frozen_eval(self.loaded.model):
            return self.parts.values(x, self.parts.ids)[:, 0]


def removal_forward(removal: SetFunction) -> Callable[[Float[Tensor, "batch feature"]], Float[Tensor, " batch"]]:
    """F of vectors that are 1 where a feature is kept and 0 where it is removed, for Captum."""
    return lambda z: removal.values(z > 0.5)
