"""F of every target with units of the prompt removed: one batched forward serves all targets.

Sequences of equal length go through the model together, so that no padding and no attention mask is needed and every
position is the one that the model would give. What stands before the first unit is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache

from llmxai.errors import NonFiniteError, OptionError
from llmxai.methods._path import baseline_embedding
from llmxai.methods._targets import TargetRows, token_targets
from llmxai.methods._units import Unit, prompt_units, require_units
from llmxai.methods._vjp import ChunkSize, within_memory
from llmxai.models import LoadedModel, embed, forward_logits, prefix_cache
from llmxai.models.seams import undisturbed
from llmxai.types import Ablations, Generation

OPERATORS = ("delete", "baseline", "mean")
CHUNK_TOKENS = 1024

Progress = Callable[[int, int], None]
"""Called with (masks that are done, masks)."""


@dataclass(frozen=True)
class Ablation:
    """How the prompt is taken apart.

    `units`: token, word, sentence, or auto (words; larger pieces where there are over `MOST_UNITS`). `operator`:
    `delete` takes the tokens out and closes the gap; `baseline` puts the embedding of a neutral token in their place
    (`baseline`, named as in `layer_integrated_gradients`), `mean` the mean embedding. `subsets`: random subsets,
    each of which keeps half of the units.
    """

    units: str = "auto"
    operator: str = "delete"
    subsets: int = 64
    baseline: str = "space"
    seed: int = 0
    chunk_tokens: int = CHUNK_TOKENS

    def __post_init__(self) -> None:
        require_units(self.units)
        if self.operator not in OPERATORS:
            raise OptionError(f"ablation operator {self.operator!r} is unknown. Known: {', '.join(OPERATORS)}.")
        if self.subsets < 0 or self.chunk_tokens < 1:
            raise OptionError(
                f"subsets is {self.subsets} and chunk_tokens {self.chunk_tokens}; expected at least 0 and 1."
            )


def ablate(
    loaded: LoadedModel,
    generation: Generation,
    *,
    ablation: Ablation = Ablation(),
    progress: Progress = lambda _done, _all: None,
) -> Ablations:
    """Log-probs (nats) of all generated tokens with units of the prompt left out, one by one and in random subsets.

    Template tokens, BOS and the answer are never removed.

    Raises OptionError for an option that does not exist and NonFiniteError where the model gives NaN.
    """
    units, kind = prompt_units(generation, units=ablation.units)
    kept = half_subsets(len(units), ablation.subsets, seed=ablation.seed)
    alone = ~torch.eye(len(units), dtype=torch.bool)
    whole = torch.ones(1, len(units), dtype=torch.bool)
    size = ChunkSize(ablation.chunk_tokens)
    f = f_of_masks(
        loaded,
        generation,
        units,
        torch.cat([whole, alone, kept]),
        operator=ablation.operator,
        baseline=ablation.baseline,
        size=size,
        progress=progress,
    )
    return Ablations(
        operator=ablation.operator,
        units=units,
        kept=kept,
        f_full=f[:, 0],
        f_without=f[:, 1 : 1 + len(units)],
        f_masked=f[:, 1 + len(units) :],
        settings={
            "kind": kind,
            "kept_share": 0.5,
            "seed": ablation.seed,
            "baseline": ablation.baseline if ablation.operator == "baseline" else None,
            "chunk_tokens": size.tokens,
            "chunk_halvings": size.halvings,
        },
    )


def half_subsets(n_units: int, n: int, *, seed: int) -> Bool[Tensor, "mask unit"]:
    """`n` different subsets that keep `n_units // 2` of the units each; all of them where there are no more than `n`.

    Of one size, as in Park et al. 2023 (https://arxiv.org/abs/2303.14186, definition 3): were the sizes to vary, any
    scores that are all positive would foretell F from the size alone wherever removing anything lowers it. None of
    the subsets is empty or full.
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
            found[tuple(sorted(rng.choice(n_units, size, replace=False).tolist()))] = None
        chosen = [list(one) for one in found]
    kept = torch.zeros(len(chosen), n_units, dtype=torch.bool)
    return kept.scatter_(1, torch.tensor(chosen), value=True)


def f_of_masks(
    loaded: LoadedModel,
    generation: Generation,
    units: Sequence[Unit],
    kept: Bool[Tensor, "mask unit"],
    *,
    operator: str,
    baseline: str,
    size: ChunkSize,
    progress: Progress = lambda _done, _all: None,
) -> Float[Tensor, "target mask"]:
    """F (nats) of every generated token under every mask, float64 on the CPU. The units must not overlap."""
    with undisturbed(loaded.model), torch.no_grad():
        prompt = _Prompt.of(loaded, generation, units, operator=operator, baseline=baseline)
        present = prompt.present(kept)
        lengths = present.sum(dim=1)
        found = torch.empty(len(kept), generation.n_targets, dtype=torch.float64)
        done = 0
        for length in sorted(set(lengths.tolist())):
            waiting = (lengths == length).nonzero()[:, 0]
            while len(waiting):
                chosen = waiting[: max(1, size.tokens // length)]
                part = within_memory(
                    lambda chosen=chosen, length=length: prompt.values(present[chosen], kept[chosen], length),  # type: ignore[misc]
                    size=size,
                    each=length,
                    items=len(chosen),
                )
                if part is not None:
                    found[chosen] = part
                    waiting = waiting[len(chosen) :]
                    done += len(chosen)
                    progress(done, len(kept))
    return found.T.contiguous()


@dataclass(frozen=True)
class _Prompt:
    """The sequence from `first` on, ready to be taken apart; what stands before it is in `prefix`."""

    loaded: LoadedModel
    rows: TargetRows
    first: int
    prefix: DynamicCache | None
    real: Float[Tensor, "live hidden"]
    substitute: Float[Tensor, " hidden"] | None
    """What stands in for a removed token; None where removed tokens are taken out."""
    owner: Tensor
    """[live]: the unit of each token, or -1."""
    source: int
    """Of an encoder-decoder: how many of the tokens go into the encoder."""

    @classmethod
    def of(
        cls, loaded: LoadedModel, generation: Generation, units: Sequence[Unit], *, operator: str, baseline: str
    ) -> _Prompt:
        rows = TargetRows.of(token_targets(generation))
        x = embed(loaded.model, generation.ids[: max(rows.positions) + 1])
        # one token that always stays is computed every time, so that no sequence is ever empty
        first = max(0, min((start for start, _ in units), default=generation.prompt_len) - 1)
        prefix = prefix_cache(loaded.model, x[None, :first].to(loaded.dtype))
        first = first if prefix is not None else 0
        owner = torch.full((len(x),), -1)
        for unit, (start, end) in enumerate(units):
            owner[start:end] = unit
        substitute = None
        if operator != "delete":
            name = "mean" if operator == "mean" else baseline
            substitute = baseline_embedding(loaded, name, seq=len(x)).to(x)
        return cls(
            loaded=loaded,
            rows=rows,
            first=first,
            prefix=prefix,
            real=x[first:],
            substitute=substitute,
            owner=owner[first:],
            source=generation.source_len,
        )

    def stays(self, kept: Bool[Tensor, "mask unit"]) -> Bool[Tensor, "mask live"]:
        """Which tokens no mask has removed."""
        always = torch.ones(len(kept), 1, dtype=torch.bool)
        return torch.cat([kept, always], dim=1)[:, self.owner]  # the column of owner -1 is the last one

    def present(self, kept: Bool[Tensor, "mask unit"]) -> Bool[Tensor, "mask live"]:
        """Which tokens stand in the sequence, real or not."""
        return self.stays(kept) if self.substitute is None else torch.ones(len(kept), len(self.owner), dtype=torch.bool)

    def values(
        self, present: Bool[Tensor, "chosen live"], kept: Bool[Tensor, "chosen unit"], length: int
    ) -> Float[Tensor, "chosen target"]:
        """F for masks that leave `length` tokens each."""
        where = present.nonzero()[:, 1].reshape(len(present), length)
        x = self.real[where.to(self.real.device)]  # [chosen, length, hidden]
        if self.substitute is not None:
            removed = ~self.stays(kept).to(x.device)
            x = torch.where(removed[..., None], self.substitute, x)
        gone = len(self.owner) - length
        positions = [position - self.first - gone for position in self.rows.positions]
        logits = forward_logits(
            self.loaded.model,
            x.to(self.loaded.dtype),
            positions=positions,
            prefix=self.prefix,
            source=max(0, self.source - gone),  # units stand in the source, where there is one
        )
        values = self.rows.values(logits).double().cpu()
        if not torch.isfinite(values).all():
            raise NonFiniteError(
                f"{self.loaded.name}: NaN or infinity with parts of the prompt removed, computed in "
                f"{self.loaded.dtype}. Load the model with --dtype float32 or bfloat16, or use --no-referee."
            )
        return values
