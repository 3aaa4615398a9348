"""Layer-integrated gradients on the token embeddings, each target with its certificate.

A_i = <input_i - baseline_i, integral over a in [0, 1] of dF/dx_i at x(a)>   (Sundararajan, Taly & Yan 2017, eq. 1,
applied to the embedding layer). Completeness: the sum of A_i over the moving tokens is F(input) - F(baseline).

F on a grid tells where along the path it bends, so that nodes go there; every panel's integral of dF/da is then
compared with F(hi) - F(lo), its exact value, and panels are halved until a target's errors sum to its tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.methods.gradients.adaptive import ORDER, Integral, integrate_adaptively, integrate_fixed
from llmxai.methods.gradients.path_gradients import Path, make_path, path_function
from llmxai.methods.registry import method
from llmxai.methods.targets import Target, kinds, targets_of
from llmxai.models import LoadedModel, checkpointed, frozen_eval, in_dtype
from llmxai.models.loading import torch_dtype
from llmxai.models.memory import ChunkSize
from llmxai.names import Progress, quiet
from llmxai.settings import CHUNK_TOKENS, Compute, IntegratedGradients, Tolerance
from llmxai.types import Certificate, Generation, Scores

SHARED = 4
"""What a group of targets costs beside its backward passes (scouting, forward passes), in targets."""


@method(
    "layer_integrated_gradients",
    needs={"gradients"},
    source="Sundararajan, Taly & Yan 2017, https://arxiv.org/abs/1703.01365",
)
def layer_integrated_gradients(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    baseline: str | Tensor = IntegratedGradients.baseline,
    tolerance: Tolerance = IntegratedGradients.tolerance,
    max_nodes: int = IntegratedGradients.max_nodes,
    n_steps: int | None = IntegratedGradients.n_steps,
    compute: Compute = Compute(),
    f_input: Float[Tensor, " target"] | None = None,
    progress: Progress = quiet,
) -> Scores:
    """Signed contribution (nats) of every token to every target, with its convergence gap.

    `targets`: by default the log-prob of every generated token. `features` and `baseline`: see `moving_tokens` and
    `baseline_embedding`. Panels are halved until the absolute panel errors of a target sum to no more than its
    `tolerance` (so the gap is within it without errors cancelling), or the next one would pass `max_nodes`; with
    `n_steps`, that many Gauss-Legendre nodes on [0, 1] instead, and the gap is the error. `compute`: see `Compute`.
    `f_input`: F of the targets for the real input, where it is known.

    Raises OptionError for a bad option, NonFiniteError where the model gives NaN on the path.
    """
    IntegratedGradients(tolerance=tolerance, max_nodes=max_nodes, n_steps=n_steps)  # raises OptionError
    targets = targets_of(generation, targets)
    path = make_path(loaded, generation, features=features, baseline=baseline)
    size = ChunkSize(compute.chunk_tokens or CHUNK_TOKENS)
    checkpoint = bool(compute.checkpoint)
    groups = position_groups(targets, first=int(path.moving.nonzero()[0]))
    parts: list[Integral] = []
    with _ready(loaded, compute) as (exact, fast):
        for number, group in enumerate(groups):
            chosen = [targets[t] for t in group]
            slow = path_function(exact, path, chosen, size=size, cached=not checkpoint)
            quick = slow
            if fast is not exact:
                quick = path_function(fast, path, chosen, size=size, cached=not checkpoint)
            watched = _overall(progress, parts, later=sum(len(g) for g in groups[number + 1 :]), own=len(group))
            known = None if f_input is None else f_input[group]
            if n_steps is None:
                part = integrate_adaptively(
                    slow,
                    quick,
                    allowed=partial(allowed_error, tolerance),
                    max_nodes=max_nodes,
                    f_input=known,
                    progress=watched,
                )
            else:
                part = integrate_fixed(slow, quick, n_steps=n_steps, f_input=known, progress=watched)
            parts.append(part)
    whole = _joined(parts, groups)
    settings = {
        "target": kinds(targets),
        "features": features,
        "held": held_positions(path),
        "baseline": baseline if isinstance(baseline, str) else "tensor",
        "tolerance": {"relative": tolerance.relative, "absolute": tolerance.absolute},
        "max_nodes": max_nodes,
        "n_steps": n_steps,
        "rule": f"Gauss-Legendre, {n_steps or ORDER} nodes a panel",
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "gradient_dtype": compute.gradient_dtype or str(loaded.dtype).removeprefix("torch."),
        "panels_computed_again_in_dtype": whole.repeated,
        "chunk_tokens": size.tokens,
        "chunk_halvings": size.halvings,
        "checkpoint": checkpoint,
    }
    return _scores(whole, path, targets, tolerance, settings)


def held_positions(path: Path) -> list[int]:
    """Indices of the tokens that stay real along the path."""
    return [i for i, moves in enumerate(path.moving.tolist()) if not moves]


def position_groups(targets: Sequence[Target], *, first: int) -> list[list[int]]:
    """Indices of the targets in groups that go through the model together, early positions first.

    A group is computed up to its last predicting position, so that the early tokens of a long answer are not carried
    through all that comes after them. Groups of about equal size, as many as make sum of length x (targets + SHARED)
    least; `first` is the first token that is computed at every node.
    """
    order = sorted(range(len(targets)), key=lambda t: (targets[t].last, t))
    lengths = np.array([targets[t].last + 1 - first for t in order])

    def split(k: int) -> list[np.ndarray]:
        return np.array_split(np.arange(len(order)), k)

    def cost(k: int) -> int:
        return sum(int(lengths[part[-1]]) * (len(part) + SHARED) for part in split(k))

    return [[order[i] for i in part] for part in split(min(range(1, len(order) + 1), key=cost))]


@contextmanager
def _ready(loaded: LoadedModel, compute: Compute) -> Iterator[tuple[LoadedModel, LoadedModel]]:
    """The model for F and the one for gradients, both fit to be differentiated; the caller's is left as it was."""
    wanted = loaded.dtype if compute.gradient_dtype is None else torch_dtype(compute.gradient_dtype)
    fast = loaded if wanted == loaded.dtype else in_dtype(loaded, wanted)
    guard = checkpointed if compute.checkpoint else nullcontext
    with frozen_eval(loaded.model), guard(loaded.model), guard(fast.model) if fast is not loaded else nullcontext():
        yield loaded, fast


def _overall(progress: Progress, before: Sequence[Integral], *, own: int, later: int) -> Progress:
    """Progress over all groups: those that come later are foreseen at what this one wants so far."""
    done_before = sum(sum(part.nodes) for part in before)

    def tell(done: int, wanted: int) -> None:
        progress(done_before + done, done_before + wanted + round(wanted / own) * later)

    return tell


def _joined(parts: Sequence[Integral], groups: Sequence[Sequence[int]]) -> Integral:
    """All groups as one, the targets in their own order again."""
    order = [t for group in groups for t in group]
    back = torch.tensor(order).argsort()
    nodes = [n for part in parts for n in part.nodes]
    return Integral(
        values=torch.cat([part.values for part in parts])[back],
        f_input=torch.cat([part.f_input for part in parts])[back],
        f_baseline=torch.cat([part.f_baseline for part in parts])[back],
        local_error=torch.cat([part.local_error for part in parts])[back],
        nodes=tuple(nodes[i] for i in back.tolist()),
        repeated=sum(part.repeated for part in parts),
    )


def allowed_error(tolerance: Tolerance, net: Float[Tensor, " target"]) -> Float[Tensor, " target"]:
    """The error (nats) with which a change of F by `net` counts as converged."""
    return (tolerance.relative * net.abs()).clamp(min=tolerance.absolute)


def _scores(
    whole: Integral,
    path: Path,
    targets: Sequence[Target],
    tolerance: Tolerance,
    settings: dict[str, object],
) -> Scores:
    net = whole.f_input - whole.f_baseline
    allowed = allowed_error(tolerance, net)
    return Scores(
        method="layer_integrated_gradients",
        values=whole.values,
        features=path.features(targets).cpu(),
        signed=True,
        settings=settings,
        certificate=Certificate(
            f_input=whole.f_input,
            f_baseline=whole.f_baseline,
            gap=whole.values.sum(dim=1) - net,
            local_error=whole.local_error,
            tolerance=allowed,
            nodes=whole.nodes,
            converged=tuple((whole.local_error <= allowed).tolist()),
        ),
    )
