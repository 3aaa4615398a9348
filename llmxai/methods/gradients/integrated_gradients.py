"""Layer-integrated gradients on the token embeddings, each target with its certificate.

A_i = <input_i - baseline_i, integral over a in [0, 1] of dF/dx_i at x(a)>   (Sundararajan, Taly & Yan 2017, eq. 1,
applied to the embedding layer). Completeness: the sum of A_i over the moving tokens is F(input) - F(baseline).

F on a grid shows where it bends along the path, and nodes go there. Every panel's integral of dF/da is then compared
with F(hi) - F(lo), its exact value, and panels are halved until a target's errors sum to its tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.methods.gradients.adaptive import ORDER, SCOUTS, Integral, integrate_adaptively, integrate_fixed
from llmxai.methods.gradients.path_gradients import Path, make_path, path_function
from llmxai.methods.registry import method
from llmxai.methods.targets import Target, kinds, targets_of
from llmxai.models import LoadedModel, checkpointed, frozen_eval, in_dtype
from llmxai.models.forward import is_out_of_memory
from llmxai.models.loading import torch_dtype
from llmxai.models.memory import ChunkSize, plan_for
from llmxai.models.precision import computing_in, rounds_activations, rounds_products
from llmxai.names import Progress, quiet
from llmxai.settings import CHUNK_TOKENS, Compute, DeletionPath, IntegratedGradients, Tolerance
from llmxai.types import Certificate, Generation, Scores

SHARED = 4
"""Cost of a group of targets besides its backward passes (grid, forward passes), in units of one target."""
USUAL_NODES = 40
"""Nodes that a target usually takes (benchmarks/RESULTS.md)."""


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
    `baseline_embedding`. Panels are halved until the absolute panel errors of a target sum to at most its `tolerance`
    (which bounds the gap without cancellation), or the next one would exceed `max_nodes`. With `n_steps`, that many
    Gauss-Legendre nodes on [0, 1] are used instead, and the gap is the error. `compute`: see `Compute`. `f_input`: F of
    the targets for the real input, if already known.

    >>> layer_integrated_gradients(loaded, generation).certificate.gap  # [target], nats

    Raises OptionError for an invalid option, and NonFiniteError if the model gives NaN on the path.
    """
    spec = IntegratedGradients(tolerance=tolerance, max_nodes=max_nodes, n_steps=n_steps)  # raises OptionError
    targets = targets_of(generation, targets)
    path = make_path(loaded, generation, features=features, baseline=baseline)
    found = integrate(loaded, path, targets, spec, compute=compute, f_input=f_input, progress=progress)
    settings = {
        "features": features,
        "baseline": baseline if isinstance(baseline, str) else "tensor",
        **found.settings,
    }
    return certified("layer_integrated_gradients", found, settings)


@dataclass(frozen=True)
class Integrated:
    """The result of `integrate`, and its settings."""

    whole: Integral
    path: Path
    targets: tuple[Target, ...]
    spec: IntegratedGradients | DeletionPath
    settings: Mapping[str, object]
    """The settings that every path method reports."""


def integrate(
    loaded: LoadedModel,
    path: Path,
    targets: Sequence[Target],
    spec: IntegratedGradients | DeletionPath,
    *,
    compute: Compute,
    f_input: Float[Tensor, " target"] | None,
    progress: Progress,
    scouts: int = SCOUTS,
) -> Integrated:
    """The integral of every token's part of dF/da along `path`, for groups of targets.

    If memory runs out with one node at a time, and the caller does not say whether to checkpoint, it is done again with
    checkpointing. Raises NonFiniteError if the model gives NaN on the path.
    """
    fast = for_gradients(loaded, compute)  # a copy of the weights takes memory, so it comes before the plan
    work = partial(_integrated, loaded, fast, path, targets, spec, f_input=f_input, progress=progress, scouts=scouts)
    plan = planned(fast, path, targets, compute)
    try:
        return work(compute=plan)
    except (MemoryError, RuntimeError) as error:
        if plan.checkpoint or compute.checkpoint is not None or not is_out_of_memory(error):
            raise
    plan = planned(fast, path, targets, replace(compute, checkpoint=True))  # outside: the error holds the old graph
    return work(compute=plan)


def _integrated(
    loaded: LoadedModel,
    fast: LoadedModel,
    path: Path,
    targets: Sequence[Target],
    spec: IntegratedGradients | DeletionPath,
    *,
    compute: Compute,
    f_input: Float[Tensor, " target"] | None,
    progress: Progress,
    scouts: int,
) -> Integrated:
    """The same as planned; `fast` is the model for gradients."""
    size = ChunkSize(compute.chunk_tokens or CHUNK_TOKENS)
    jumps = rounds_activations(loaded)
    groups = position_groups(targets, first=int(path.moving.nonzero()[0]))
    parts: list[Integral] = []
    with _ready(loaded, fast, path, compute):
        for number, group in enumerate(groups):
            chosen = [targets[t] for t in group]
            cached = not compute.checkpoint
            pairs = 0 if compute.checkpoint else len(group) * (spec.n_steps or USUAL_NODES)
            function = partial(path_function, path=path, targets=chosen, size=size, cached=cached, nodes=spec.n_steps)
            slow = function(loaded, pairs=pairs if fast is loaded else 0)
            quick = slow if fast is loaded else function(fast, pairs=pairs)
            if quick is slow and rounds_products(loaded):
                slow = replace(quick, exact=True, padding=None)
            watched = _overall(progress, parts, later=sum(len(g) for g in groups[number + 1 :]), own=len(group))
            known = None if f_input is None else f_input[group]
            if spec.n_steps is not None:
                part = integrate_fixed(slow, quick, n_steps=spec.n_steps, f_input=known, progress=watched, jumps=jumps)
            else:
                part = integrate_adaptively(
                    slow,
                    quick,
                    allowed=partial(allowed_error, spec.tolerance),
                    max_nodes=spec.max_nodes,
                    f_input=known,
                    progress=watched,
                    scouts=scouts,
                    jumps=jumps,
                )
            parts.append(part)
    whole = _joined(parts, groups)
    dtype = str(loaded.dtype).removeprefix("torch.")
    settings = {
        "target": kinds(targets),
        "held": held_positions(path),
        "tolerance": {"relative": spec.tolerance.relative, "absolute": spec.tolerance.absolute},
        "max_nodes": spec.max_nodes,
        "n_steps": spec.n_steps,
        "rule": f"Gauss-Legendre, {spec.n_steps or ORDER} nodes a panel",
        "dtype": dtype,
        "gradient_dtype": compute.gradient_dtype or dtype,
        "panels_computed_again_in_dtype": whole.repeated,
        "chunk_tokens": size.tokens,
        "chunk_halvings": size.halvings,
        "checkpoint": bool(compute.checkpoint),
    }
    return Integrated(whole=whole, path=path, targets=tuple(targets), spec=spec, settings=settings)


def planned(loaded: LoadedModel, path: Path, targets: Sequence[Target], compute: Compute) -> Compute:
    """`compute` with its open fields planned from the free memory of the devices, for the model of the gradients."""
    if compute.chunk_tokens is not None:
        return compute
    plan = plan_for(
        loaded.model,
        tokens=len(path.moving),
        targets=sum(len(target.positions) for target in targets),
        dtype=loaded.dtype,
        saved=path.saved(loaded.model),
        checkpoint=compute.checkpoint,
        computing=loaded.computing,
    )
    return replace(compute, chunk_tokens=plan.chunk_tokens, checkpoint=plan.checkpoint)


def held_positions(path: Path) -> list[int]:
    """Indices of the tokens that are held along the path."""
    return [i for i, moves in enumerate(path.moving.tolist()) if not moves]


def position_groups(targets: Sequence[Target], *, first: int) -> list[list[int]]:
    """Indices of the targets in groups that go through the model together, early positions first.

    A group is computed up to its last predicting position, so the early tokens of a long answer do not pay for the
    later ones. The groups have about equal size, and their number minimises the sum of length x (targets + SHARED);
    `first` is the first token that is computed at every node.
    """
    order = sorted(range(len(targets)), key=lambda t: (targets[t].last, t))
    lengths = np.array([targets[t].last + 1 - first for t in order])

    def split(k: int) -> list[np.ndarray]:
        return np.array_split(np.arange(len(order)), k)

    def cost(k: int) -> int:
        return sum(int(lengths[part[-1]]) * (len(part) + SHARED) for part in split(k))

    return [[order[i] for i in part] for part in split(min(range(1, len(order) + 1), key=cost))]


def for_gradients(loaded: LoadedModel, compute: Compute) -> LoadedModel:
    """The model in the dtype of the gradients: the same object if that is its own."""
    wanted = loaded.dtype if compute.gradient_dtype is None else torch_dtype(compute.gradient_dtype)
    return loaded if wanted == loaded.dtype else in_dtype(loaded, wanted)


@contextmanager
def _ready(loaded: LoadedModel, fast: LoadedModel, path: Path, compute: Compute) -> Iterator[None]:
    """Inside, the model for F and the one for gradients are ready for differentiation; restores the caller's model."""
    models = {id(each.model): each.model for each in (loaded, fast)}.values()
    with ExitStack() as stack:
        if fast is not loaded and fast.model is loaded.model:  # around what is put around its layers below
            stack.enter_context(computing_in(fast))
        for model in models:
            stack.enter_context(frozen_eval(model))
            if compute.checkpoint:
                stack.enter_context(checkpointed(model))
            stack.enter_context(path.attached(model))
        yield


def _overall(progress: Progress, before: Sequence[Integral], *, own: int, later: int) -> Progress:
    """Progress over all groups; later groups are estimated from the current one."""
    done_before = sum(sum(part.nodes) for part in before)

    def tell(done: int, wanted: int) -> None:
        progress(done_before + done, done_before + wanted + round(wanted / own) * later)

    return tell


def _joined(parts: Sequence[Integral], groups: Sequence[Sequence[int]]) -> Integral:
    """All groups joined, with the targets in their original order."""
    order = [t for group in groups for t in group]
    back = torch.tensor(order).argsort()
    nodes = [n for part in parts for n in part.nodes]
    floors = [part.floor for part in parts if part.floor is not None]
    return Integral(
        values=torch.cat([part.values for part in parts])[back],
        f_input=torch.cat([part.f_input for part in parts])[back],
        f_baseline=torch.cat([part.f_baseline for part in parts])[back],
        local_error=torch.cat([part.local_error for part in parts])[back],
        nodes=tuple(nodes[i] for i in back.tolist()),
        repeated=sum(part.repeated for part in parts),
        floor=torch.cat(floors)[back] if floors else None,
    )


def allowed_error(tolerance: Tolerance, net: Float[Tensor, " target"]) -> Float[Tensor, " target"]:
    """The largest error (nats) with which a change of F by `net` counts as converged."""
    return (tolerance.relative * net.abs()).clamp(min=tolerance.absolute)


def certified(method: str, found: Integrated, settings: Mapping[str, object]) -> Scores:
    """The values of a path method with their certificate."""
    whole = found.whole
    net = whole.f_input - whole.f_baseline
    allowed = allowed_error(found.spec.tolerance, net)
    return Scores(
        method=method,
        values=whole.values,
        features=found.path.features(found.targets).cpu(),
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
            floor=whole.floor,
        ),
    )
