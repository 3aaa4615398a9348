"""Layer-integrated gradients on the token embeddings, each target with its certificate.

A_i = <input_i - baseline_i, integral over a in [0, 1] of dF/dx_i at x(a)>   (Sundararajan, Taly & Yan 2017, eq. 1,
applied to the embedding layer). Completeness: the sum of A_i over the moving tokens is F(input) - F(baseline).

F on a grid tells where along the path it bends, so that nodes go there; every panel's integral of dF/da is then
compared with F(hi) - F(lo), its exact value, and panels are halved until a target's errors sum to its tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods.gradients.adaptive import Integral, Progress, integrate_adaptively, integrate_fixed
from llmxai.methods.gradients.path_gradients import Path, make_path, path_function
from llmxai.methods.gradients.quadrature import ORDER
from llmxai.methods.registry import method
from llmxai.methods.targets import Target, kinds, token_targets
from llmxai.models import LoadedModel, checkpointed, in_dtype
from llmxai.models.forward import frozen_eval
from llmxai.models.memory import ChunkSize
from llmxai.types import Attribution, Generation

SHARED = 4
"""What a group of targets costs beside its backward passes (scouting, forward passes), in targets."""


@dataclass(frozen=True)
class Tolerance:
    """The error that counts as converged: max(relative x |F(input) - F(baseline)|, absolute nats)."""

    relative: float = 0.02
    absolute: float = 0.02

    def __post_init__(self) -> None:
        if not (self.relative >= 0 and self.absolute >= 0 and self.relative + self.absolute > 0):
            raise OptionError(
                f"tolerance: relative {self.relative}, absolute {self.absolute}; expected one above 0, none below."
            )

    def of(self, net: Float[Tensor, " target"]) -> Float[Tensor, " target"]:
        return (self.relative * net.abs()).clamp(min=self.absolute)


@dataclass(frozen=True)
class Compute:
    """How gradients are computed. It decides time and memory, and changes the numbers by rounding only.

    `gradient_dtype` (say torch.bfloat16) computes gradients on a copy of the weights in that dtype while F stays in the
    model's own, so that the certificate covers the rounding too: a panel that fails is computed again in the model's
    dtype before it is halved. `chunk_tokens` is how many tokens (nodes x live ones) go through the model at once; it is
    halved where memory runs out. With `checkpoint`, no layer keeps its activations: the backward pass computes them
    again, one layer at a time, for about half as much work more.
    """

    gradient_dtype: torch.dtype | None = None
    chunk_tokens: int = 1024
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise OptionError(f"chunk_tokens is {self.chunk_tokens}; expected at least 1.")


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
    baseline: str | Tensor = "space",
    tolerance: Tolerance = Tolerance(),
    max_nodes: int = 128,
    n_steps: int | None = None,
    compute: Compute = Compute(),
    progress: Progress = lambda _done, _all: None,
) -> Attribution:
    """Signed contribution (nats) of every token to every target, with its convergence gap.

    `targets`: by default the log-prob of every generated token. `features` and `baseline`: see `moving_tokens` and
    `baseline_embedding`. Panels are halved until the absolute panel errors of a target sum to no more than its
    `tolerance` (so the gap is within it without errors cancelling), or the next one would pass `max_nodes`; with
    `n_steps`, that many Gauss-Legendre nodes on [0, 1] instead, and the gap is the error. `compute`: see `Compute`.

    Raises OptionError for a bad option, NonFiniteError where the model gives NaN on the path.
    """
    if max_nodes < ORDER or (n_steps is not None and n_steps < 1):
        raise OptionError(
            f"max_nodes is {max_nodes} and n_steps {n_steps}; expected max_nodes of at least {ORDER} and n_steps of "
            f"at least 1."
        )
    targets = tuple(targets) if targets is not None else token_targets(generation)
    path = make_path(loaded, generation, features=features, baseline=baseline)
    size = ChunkSize(compute.chunk_tokens)
    groups = position_groups(targets, first=int(path.moving.nonzero()[0]))
    parts: list[Integral] = []
    with _ready(loaded, compute) as (exact, fast):
        for number, group in enumerate(groups):
            chosen = [targets[t] for t in group]
            slow = path_function(exact, path, chosen, size=size, cached=not compute.checkpoint)
            quick = slow
            if fast is not exact:
                quick = path_function(fast, path, chosen, size=size, cached=not compute.checkpoint)
            told = _told(progress, parts, later=sum(len(g) for g in groups[number + 1 :]), own=len(group))
            if n_steps is None:
                part = integrate_adaptively(slow, quick, allowed=tolerance.of, max_nodes=max_nodes, progress=told)
            else:
                part = integrate_fixed(slow, quick, n_steps=n_steps, progress=told)
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
        "gradient_dtype": str(compute.gradient_dtype or loaded.dtype).removeprefix("torch."),
        "panels_computed_again_in_dtype": whole.repeated,
        "chunk_tokens": size.tokens,
        "chunk_halvings": size.halvings,
        "checkpoint": compute.checkpoint,
    }
    return _attribution(whole, path, targets, tolerance, settings)


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
    wanted = compute.gradient_dtype
    fast = loaded if wanted in (None, loaded.dtype) else in_dtype(loaded, wanted)
    guard = checkpointed if compute.checkpoint else nullcontext
    with frozen_eval(loaded.model), guard(loaded.model), guard(fast.model) if fast is not loaded else nullcontext():
        yield loaded, fast


def _told(progress: Progress, before: Sequence[Integral], *, own: int, later: int) -> Progress:
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


def _attribution(
    whole: Integral,
    path: Path,
    targets: Sequence[Target],
    tolerance: Tolerance,
    settings: dict[str, object],
) -> Attribution:
    net = whole.f_input - whole.f_baseline
    allowed = tolerance.of(net)
    return Attribution(
        method="layer_integrated_gradients",
        values=whole.values,
        features=path.features(targets).cpu(),
        f_input=whole.f_input,
        f_baseline=whole.f_baseline,
        gap=whole.values.sum(dim=1) - net,
        local_error=whole.local_error,
        tolerance=allowed,
        nodes=whole.nodes,
        converged=tuple((whole.local_error <= allowed).tolist()),
        settings=settings,
    )
