"""Layer-integrated gradients on the token embeddings, each target with its certificate.

A_i = <input_i - baseline_i, integral over a in [0, 1] of dF/dx_i at x(a)>   (Sundararajan, Taly & Yan 2017, eq. 1,
applied to the embedding layer). Completeness: the sum of A_i over the moving tokens is F(input) - F(baseline).

F on a grid tells where along the path it bends, so that nodes go there; every panel's integral of dF/da is then
compared with F(hi) - F(lo), its exact value, and panels are halved until a target's errors sum to its tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods._path import Path, make_path
from llmxai.methods._quadrature import ORDER, Panel, plan_panels, scout_grid
from llmxai.methods._registry import method
from llmxai.methods._targets import Target, token_targets
from llmxai.methods._vjp import Node, PathFunction, path_function
from llmxai.models import LoadedModel
from llmxai.models.seams import undisturbed
from llmxai.types import Attribution, Generation

CHUNK_TOKENS = 1024

Progress = Callable[[int, int], None]
"""Called with (targets that are done, targets)."""


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
    chunk_tokens: int = CHUNK_TOKENS,
    progress: Progress = lambda _done, _all: None,
) -> Attribution:
    """Signed contribution (nats) of every token to every target, with its convergence gap.

    `targets`: by default the log-prob of every generated token. `features` and `baseline`: see `moving_tokens` and
    `baseline_embedding`. Panels are halved until the absolute panel errors of a target sum to no more than its
    `tolerance` (so the gap is within it without errors cancelling), or the next one would pass `max_nodes`; with
    `n_steps`, that many Gauss-Legendre nodes on [0, 1] instead, and the gap is the error.
    `chunk_tokens` bounds the memory and changes the numbers by rounding only.

    Raises OptionError for a bad option, NonFiniteError where the model gives NaN on the path.
    """
    if max_nodes < ORDER or (n_steps is not None and n_steps < 1) or chunk_tokens < 1:
        raise OptionError(
            f"max_nodes is {max_nodes}, n_steps {n_steps} and chunk_tokens {chunk_tokens}; expected max_nodes of at "
            f"least {ORDER} and the others of at least 1."
        )
    targets = tuple(targets) if targets is not None else token_targets(generation)
    path = make_path(loaded, generation, features=features, baseline=baseline)
    with undisturbed(loaded.model):
        function = path_function(loaded, path, targets, chunk_tokens=chunk_tokens)
        result = _fixed(function, n_steps) if n_steps else _adaptive(function, tolerance, max_nodes, progress)
    return _attribution(
        result,
        path,
        targets,
        tolerance,
        settings={
            "target": targets[0].kind,
            "features": features,
            "held": held_positions(path),
            "baseline": baseline if isinstance(baseline, str) else "tensor",
            "tolerance": {"relative": tolerance.relative, "absolute": tolerance.absolute},
            "max_nodes": max_nodes,
            "n_steps": n_steps,
            "rule": f"Gauss-Legendre, {n_steps or ORDER} nodes a panel",
            "dtype": str(loaded.dtype).removeprefix("torch."),
        },
    )


def held_positions(path: Path) -> list[int]:
    """Indices of the tokens that stay real along the path."""
    return [i for i, moves in enumerate(path.moving.tolist()) if not moves]


@dataclass(frozen=True)
class _Piece:
    """One target integrated over one panel."""

    values: Float[Tensor, " seq"]
    error: float
    """Sum of the values minus F(hi) - F(lo): exact, for the F of the precision used."""


@dataclass
class _State:
    """What is known so far; `pieces[t]` covers [0, 1] for every target t between two rounds."""

    function: PathFunction
    f: dict[float, Float[Tensor, " target"]]
    pieces: list[dict[Panel, _Piece]]
    nodes: list[int] = field(default_factory=list)

    def integrate(self, work: Mapping[Panel, Sequence[int]]) -> None:
        """Integrate each panel for the targets that want it."""
        missing = sorted({edge for panel in work for edge in (panel.lo, panel.hi)} - self.f.keys())
        if missing:
            self.f.update(zip(missing, self.function.values(missing), strict=True))
        nodes, weights = [], []
        sums: dict[tuple[int, Panel], Tensor] = {}
        for panel, users in work.items():
            for alpha, weight in zip(*panel.rule(), strict=True):
                nodes.append(Node(alpha=alpha, targets=tuple(users)))
                weights.append((panel, weight))
        for k, t, slope in self.function.slopes(nodes):
            panel, weight = weights[k]
            sums[t, panel] = sums.get((t, panel), 0) + weight * slope
        for (t, panel), values in sums.items():
            change = float(self.f[panel.hi][t] - self.f[panel.lo][t])
            self.pieces[t][panel] = _Piece(values=values, error=float(values.sum()) - change)
            self.nodes[t] += ORDER


@dataclass(frozen=True)
class _Integral:
    values: Float[Tensor, "target seq"]
    f_input: Float[Tensor, " target"]
    f_baseline: Float[Tensor, " target"]
    local_error: Float[Tensor, " target"]
    nodes: tuple[int, ...]


def _adaptive(function: PathFunction, tolerance: Tolerance, max_nodes: int, progress: Progress) -> _Integral:
    n = len(function.rows.targets)
    scouted = function.values(scout_grid())
    f = dict(zip(scout_grid(), scouted, strict=True))
    allowed = tolerance.of(f[1.0] - f[0.0]).tolist()
    state = _State(function=function, f=f, pieces=[{} for _ in range(n)], nodes=[0] * n)
    work: dict[Panel, list[int]] = {}
    for t in range(n):
        for panel in plan_panels(scouted[:, t].numpy(), tolerance=allowed[t] / 2, max_panels=max_nodes // ORDER):
            work.setdefault(panel, []).append(t)
    while work:
        state.integrate(work)
        work = {}
        for t in range(n):
            for panel in _failing(state.pieces[t], allowed[t])[: (max_nodes - state.nodes[t]) // (2 * ORDER)]:
                del state.pieces[t][panel]
                for half in panel.halves:
                    work.setdefault(half, []).append(t)
        progress(n - len({t for users in work.values() for t in users}), n)
    return _Integral(
        values=torch.stack([torch.stack([p.values for p in own.values()]).sum(dim=0) for own in state.pieces]),
        f_input=f[1.0],
        f_baseline=f[0.0],
        local_error=torch.tensor([_total_error(own) for own in state.pieces], dtype=torch.float64),
        nodes=tuple(state.nodes),
    )


def _total_error(pieces: Mapping[Panel, _Piece]) -> float:
    return sum(abs(piece.error) for piece in pieces.values())


def _failing(pieces: Mapping[Panel, _Piece], allowed: float) -> list[Panel]:
    """The panels to halve, worst first, until what is left of the errors is within half the tolerance."""
    left = _total_error(pieces)
    if left <= allowed:
        return []
    chosen = []
    for panel in sorted(pieces, key=lambda panel: (-abs(pieces[panel].error), panel.lo)):
        if left <= allowed / 2:
            break
        left -= abs(pieces[panel].error)
        chosen.append(panel)
    return chosen


def _fixed(function: PathFunction, n_steps: int) -> _Integral:
    n = len(function.rows.targets)
    ends = function.values((0.0, 1.0))
    alphas, weights = Panel(0.0, 1.0).rule(n_steps)
    values = torch.zeros(n, len(function.path.moving), dtype=torch.float64)
    for k, t, slope in function.slopes([Node(alpha=alpha, targets=tuple(range(n))) for alpha in alphas]):
        values[t] += weights[k] * slope
    gap = values.sum(dim=1) - (ends[1] - ends[0])
    return _Integral(values=values, f_input=ends[1], f_baseline=ends[0], local_error=gap.abs(), nodes=(n_steps,) * n)


def _attribution(
    result: _Integral,
    path: Path,
    targets: Sequence[Target],
    tolerance: Tolerance,
    *,
    settings: Mapping[str, object],
) -> Attribution:
    net = result.f_input - result.f_baseline
    allowed = tolerance.of(net)
    return Attribution(
        method="layer_integrated_gradients",
        values=result.values,
        features=path.features(targets).cpu(),
        f_input=result.f_input,
        f_baseline=result.f_baseline,
        gap=result.values.sum(dim=1) - net,
        local_error=result.local_error,
        tolerance=allowed,
        nodes=result.nodes,
        converged=tuple((result.local_error <= allowed).tolist()),
        settings=settings,
    )
