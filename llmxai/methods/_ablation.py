"""The prompt taken apart: F of every generated token with units left out one by one and in random subsets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool

from llmxai.errors import OptionError
from llmxai.methods._removal import CHUNK_TOKENS, Progress, f_of_masks, require_operator
from llmxai.methods._targets import token_targets
from llmxai.methods._units import prompt_units, require_units
from llmxai.methods._vjp import ChunkSize
from llmxai.models import LoadedModel
from llmxai.types import Ablations, Generation


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
        require_operator(self.operator)
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
        token_targets(generation),
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


def half_subsets(n_units: int, n: int, *, seed: int) -> Bool[torch.Tensor, "mask unit"]:
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
