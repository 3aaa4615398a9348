"""Layer-integrated gradients on the token embeddings, each target with its certificate.

A_i = <input_i - baseline_i, integral over a in [0, 1] of dF/dx_i at x(a)>   (Sundararajan, Taly & Yan 2017, eq. 1,
applied to the embedding layer). Completeness: the sum of A_i over the moving tokens is F(input) - F(baseline).

The integral over a panel [lo, hi] of dF/da is F(hi) - F(lo) exactly, and F needs forward passes only. So every panel
knows its own quadrature error; panels are halved where that error is too large, for the targets that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods._path import Path, make_path
from llmxai.methods._quadrature import on_panel
from llmxai.methods._registry import method
from llmxai.methods._targets import Target, TargetRows, token_targets
from llmxai.methods._vjp import PathFunction
from llmxai.models import LoadedModel
from llmxai.models.seams import undisturbed
from llmxai.types import Attribution, Generation

ORDER = 4
"""Gauss-Legendre nodes a panel."""
FIRST_PANELS = 4
CHUNK_TOKENS = 2048

Progress = Callable[[int, int], None]
"""Called with (targets that are done, targets)."""


@dataclass(frozen=True)
class Tolerance:
    """The gap that counts as converged: max(relative x |F(input) - F(baseline)|, absolute nats)."""

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
class _Panel:
    lo: float
    hi: float

    def halves(self) -> tuple[_Panel, _Panel]:
        middle = (self.lo + self.hi) / 2
        return _Panel(self.lo, middle), _Panel(middle, self.hi)


@dataclass(frozen=True)
class _Piece:
    """One target on one panel."""

    values: Float[Tensor, " seq"]
    error: float
    """Sum of the values minus F(hi) - F(lo)."""


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
    progress: Progress | None = None,
) -> Attribution:
    """Signed contribution (nats) of every token to every target, integrated along a path, with its gap.

    `targets`: by default the log-prob of every generated token. `features` and `baseline`: see
    `moving_tokens` and `baseline_embedding`. Adaptive panels until each target's gap is within `tolerance` or its next
    refinement would pass `max_nodes`; with `n_steps`, that many Gauss-Legendre nodes on [0, 1] instead.

    Raises OptionError for a bad option, NonFiniteError where the model gives NaN on the path.
    """
    if max_nodes < ORDER * FIRST_PANELS or (n_steps is not None and n_steps < 1):
        raise OptionError(
            f"max_nodes is {max_nodes} and n_steps {n_steps}; expected max_nodes of at least "
            f"{ORDER * FIRST_PANELS} and n_steps of at least 1."
        )
    targets = tuple(targets) if targets is not None else token_targets(generation)
    path = make_path(loaded, generation, features=features, baseline=baseline)
    function = PathFunction(loaded=loaded, path=path, rows=TargetRows.of(targets), chunk_tokens=chunk_tokens)
    with undisturbed(loaded.model):
        if n_steps is not None:
            result = _fixed(function, n_steps)
        else:
            result = _adaptive(function, tolerance, max_nodes, progress or (lambda _done, _all: None))
    settings = {
        "target": targets[0].kind,
        "features": features,
        "held": held_positions(path),
        "baseline": baseline if isinstance(baseline, str) else "tensor",
        "tolerance": {"relative": tolerance.relative, "absolute": tolerance.absolute},
        "max_nodes": max_nodes,
        "n_steps": n_steps,
        "rule": f"Gauss-Legendre, {n_steps or ORDER} nodes a panel",
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }
    return _attribution(result, function, tolerance, settings)


def held_positions(path: Path) -> list[int]:
    """Indices of the tokens that stay real along the path."""
    return [i for i, moves in enumerate(path.moving.tolist()) if not moves]


@dataclass(frozen=True)
class _Integral:
    values: Float[Tensor, "target seq"]
    f_input: Float[Tensor, " target"]
    f_baseline: Float[Tensor, " target"]
    nodes: tuple[int, ...]


def _attribution(
    result: _Integral, function: PathFunction, tolerance: Tolerance, settings: Mapping[str, object]
) -> Attribution:
    net = result.f_input - result.f_baseline
    gap, allowed = result.values.sum(dim=1) - net, tolerance.of(net)
    return Attribution(
        method="layer_integrated_gradients",
        values=result.values,
        features=function.path.features(function.rows.targets).cpu(),
        f_input=result.f_input,
        f_baseline=result.f_baseline,
        gap=gap,
        tolerance=allowed,
        nodes=result.nodes,
        converged=tuple((gap.abs() <= allowed).tolist()),
        settings=settings,
    )


def _fixed(function: PathFunction, n_steps: int) -> _Integral:
    n = len(function.rows.targets)
    ends = function.values((0.0, 1.0))
    nodes, weights = on_panel(0.0, 1.0, n_steps)
    values = torch.zeros(n, len(function.path.moving), dtype=torch.float64)
    for k, slope in function.slopes(nodes, range(n)):
        values += weights[k] * slope
    return _Integral(values=values, f_input=ends[1], f_baseline=ends[0], nodes=(n_steps,) * n)


def _adaptive(function: PathFunction, tolerance: Tolerance, max_nodes: int, progress: Progress) -> _Integral:
    n = len(function.rows.targets)
    edges = [k / FIRST_PANELS for k in range(FIRST_PANELS + 1)]
    f = dict(zip(edges, function.values(edges), strict=True))
    allowed = tolerance.of(f[1.0] - f[0.0])
    pieces: list[dict[_Panel, _Piece]] = [{} for _ in range(n)]
    nodes = [0] * n
    panels = [_Panel(lo, hi) for lo, hi in pairwise(edges)]
    work = dict.fromkeys(panels, tuple(range(n)))
    while work:
        _integrate(function, work, f, pieces)
        for users in work.values():
            for t in users:
                nodes[t] += ORDER
        work = {}
        open_targets = 0
        for t in range(n):
            failing = _failing(pieces[t], float(allowed[t]))
            failing = failing[: (max_nodes - nodes[t]) // (2 * ORDER)]
            open_targets += bool(failing)
            for panel in failing:
                del pieces[t][panel]
                for half in panel.halves():
                    work[half] = (*work.get(half, ()), t)
        progress(n - open_targets, n)
    values = torch.stack([torch.stack([p.values for p in own.values()]).sum(dim=0) for own in pieces])
    return _Integral(values=values, f_input=f[1.0], f_baseline=f[0.0], nodes=tuple(nodes))


def _integrate(
    function: PathFunction,
    work: Mapping[_Panel, tuple[int, ...]],
    f: dict[float, Float[Tensor, " target"]],
    pieces: Sequence[dict[_Panel, _Piece]],
) -> None:
    """Integrate each panel for the targets that want it; fills in `f` at panel edges and `pieces`."""
    missing = sorted({edge for panel in work for edge in (panel.lo, panel.hi)} - f.keys())
    if missing:
        f.update(zip(missing, function.values(missing), strict=True))
    for panel, users in work.items():
        alphas, weights = on_panel(panel.lo, panel.hi, ORDER)
        values = torch.zeros(len(users), len(function.path.moving), dtype=torch.float64)
        for k, slope in function.slopes(alphas, users):
            values += weights[k] * slope
        errors = values.sum(dim=1) - (f[panel.hi] - f[panel.lo])[list(users)]
        for row, t in enumerate(users):
            pieces[t][panel] = _Piece(values=values[row], error=float(errors[row]))


def _failing(pieces: Mapping[_Panel, _Piece], allowed: float) -> list[_Panel]:
    """The panels to halve: the worst ones, until what is left of the errors is within half the tolerance."""
    if abs(sum(piece.error for piece in pieces.values())) <= allowed:
        return []
    worst_first = sorted(pieces, key=lambda panel: (-abs(pieces[panel].error), panel.lo))
    left = sum(abs(piece.error) for piece in pieces.values())
    chosen = []
    for panel in worst_first:
        if left <= allowed / 2:
            break
        left -= abs(pieces[panel].error)
        chosen.append(panel)
    return chosen
