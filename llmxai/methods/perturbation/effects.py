"""The prompt taken apart: F of every generated token with units left out one by one and in random subsets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool

from llmxai.errors import OptionError
from llmxai.methods.perturbation.removal import CHUNK_TOKENS, Progress, f_of_masks, require_operator
from llmxai.methods.perturbation.units import prompt_units, require_units
from llmxai.methods.registry import method
from llmxai.methods.targets import token_targets
from llmxai.models import LoadedModel
from llmxai.models.memory import ChunkSize
from llmxai.types import Effects, Generation


@dataclass(frozen=True)
class Removal:
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


def measure_effects(
    loaded: LoadedModel,
    generation: Generation,
    *,
    ablation: Removal = Removal(),
    progress: Progress = lambda _done, _all: None,
) -> Effects:
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
    return Effects(
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


@method(
    "leave_one_out",
    needs={"forward"},
    source="Li, Monroe & Jurafsky 2016, https://arxiv.org/abs/1612.08220",
)
def leave_one_out(
    loaded: LoadedModel,
    generation: Generation,
    *,
    ablation: Removal = Removal(),
    progress: Progress = lambda _done, _all: None,
) -> Effects:
    """Fall of every target's log-prob (nats) when a word of the prompt is left out.

    `drop` of the result is [target, unit]. One forward pass a unit serves all targets. Random subsets come along unless
    `ablation` says subsets=0.

    Raises OptionError for an option that does not exist and NonFiniteError where the model gives NaN.
    """
    return measure_effects(loaded, generation, ablation=ablation, progress=progress)
