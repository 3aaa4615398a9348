"""Measured effects: F of every target with units of the prompt removed, one by one and in random subsets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.methods.perturbation.removal import f_of_masks
from llmxai.methods.perturbation.units import prompt_units
from llmxai.methods.registry import method
from llmxai.methods.targets import Target, kinds, seen_by, targets_of
from llmxai.models import LoadedModel
from llmxai.models.memory import ChunkSize
from llmxai.names import Progress, quiet
from llmxai.settings import Removal
from llmxai.types import Effects, Generation, Scores


def measure_effects(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    removal: Removal = Removal(),
    f_input: Float[Tensor, " target"] | None = None,
    progress: Progress = quiet,
) -> Effects:
    """F (nats) of all targets with units of the prompt removed, one by one and in random subsets.

    Template tokens, BOS and the answer are never removed. `f_input`: F with nothing removed, if already known. One
    forward pass per mask serves all targets.

    >>> measure_effects(loaded, generation, removal=Removal(units="sentence")).drop  # [target, unit], nats

    Raises NonFiniteError if the model gives NaN.
    """
    units, kind = prompt_units(generation, units=removal.units)
    kept = half_subsets(len(units), removal.subsets, seed=removal.seed)
    alone = ~torch.eye(len(units), dtype=torch.bool)
    whole = torch.ones(int(f_input is None), len(units), dtype=torch.bool)
    size = ChunkSize(removal.chunk_tokens)
    f = f_of_masks(
        loaded,
        generation,
        targets_of(generation, targets),
        units,
        torch.cat([whole, alone, kept]),
        operator=removal.operator,
        baseline=removal.baseline,
        size=size,
        progress=progress,
    )
    known = len(whole)
    return Effects(
        operator=removal.operator,
        units=units,
        kept=kept,
        f_full=f[:, 0] if f_input is None else f_input.double(),
        f_without=f[:, known : known + len(units)],
        f_masked=f[:, known + len(units) :],
        settings={
            "kind": kind,
            "kept_share": 0.5,
            "seed": removal.seed,
            "baseline": removal.baseline if removal.operator == "baseline" else None,
            "chunk_tokens": size.tokens,
            "chunk_halvings": size.halvings,
        },
    )


def half_subsets(n_units: int, n: int, *, seed: int) -> Bool[Tensor, "mask unit"]:
    """`n` different subsets that keep `n_units // 2` of the units each; all such subsets if there are at most `n`.

    All have the same size, as in Park et al. 2023 (https://arxiv.org/abs/2303.14186, definition 3). With varying
    sizes, any scores that are all positive would predict F from the size alone wherever every removal lowers F. No
    subset is empty or full.
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


@method("leave_one_out", needs={"forward"}, source="Li, Monroe & Jurafsky 2016, https://arxiv.org/abs/1612.08220")
def leave_one_out(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    units: str = Removal.units,
    operator: str = Removal.operator,
    baseline: str = Removal.baseline,
    f_input: Float[Tensor, " target"] | None = None,
    progress: Progress = quiet,
) -> Scores:
    """Drop of every target's log-prob (nats) when a unit of the prompt is removed, split equally over its tokens.

    F(prompt) - F(prompt without the unit): erasure of Li, Monroe & Jurafsky 2016, eq. 1, in nats and not divided by F.
    It is a measurement, not an estimate, but on a prompt that was never given. The values of a unit's tokens sum to
    its effect. `f_input`: F with nothing removed, if already known. One forward pass per unit serves all targets.

    Raises OptionError for an unknown option and NonFiniteError if the model gives NaN.
    """
    targets = targets_of(generation, targets)
    removal = Removal(units=units, operator=operator, baseline=baseline, subsets=0)
    effects = measure_effects(loaded, generation, targets=targets, removal=removal, f_input=f_input, progress=progress)
    values = torch.zeros(len(targets), len(generation.ids), dtype=torch.float64)
    features = torch.zeros(values.shape, dtype=torch.bool)
    for unit, (start, end) in enumerate(effects.units):
        values[:, start:end] = effects.drop[:, unit, None] / (end - start)
        features[:, start:end] = True
    return Scores(
        method="leave_one_out",
        values=values,
        features=features & seen_by(targets, len(generation.ids)),
        signed=True,
        settings={"target": kinds(targets), "operator": operator, "units": effects.settings["kind"]},
    )
