"""Gauss-Legendre panels on [0, 1], placed where F bends and halved until the errors fit each target's tolerance.

The integral of dF/da over a panel [lo, hi] is F(hi) - F(lo). So F on a grid (forward passes, shared by all targets)
predicts the error of a rule on any panel, and F at a panel's ends gives the actual error afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline, UnivariateSpline
from torch import Tensor

from llmxai.errors import NonFiniteError
from llmxai.methods.gradients.path_gradients import Node, PathFunction
from llmxai.names import Progress
from llmxai.settings import LEAST_NODES

ORDER = LEAST_NODES
"""Nodes per panel."""
SCOUTS = 64
"""Intervals of the grid on which F is evaluated first; the narrowest planned panel is 1 / SCOUTS.

For a path along which F bends sharply; otherwise fewer are enough."""


NEIGHBOURS = 16
"""Points whose mean is F at the end of a panel, for a model whose F jumps ..."""
APART = 2.0**-16
"""... and the distance between them; at this distance, jumps are already independent (docs/convergence.md)."""


@cache
def gauss_legendre(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes in (0, 1), rising, and weights that sum to 1; exact for polynomials of degree 2n - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return tuple((nodes + 1) / 2), tuple(weights / 2)


@dataclass(frozen=True, order=True)
class Panel:
    """The interval [lo, hi] of the path."""

    lo: float
    hi: float

    @property
    def halves(self) -> tuple[Panel, Panel]:
        middle = (self.lo + self.hi) / 2
        return Panel(self.lo, middle), Panel(middle, self.hi)

    def rule(self, n: int = ORDER) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Nodes in the panel and weights that sum to its width."""
        nodes, weights = gauss_legendre(n)
        width = self.hi - self.lo
        return tuple(self.lo + width * x for x in nodes), tuple(width * w for w in weights)


def scout_grid(scouts: int = SCOUTS) -> tuple[float, ...]:
    """The grid on which F is evaluated first: binary fractions, so panel ends match exactly."""
    return tuple(k / scouts for k in range(scouts + 1))


def plan_panels(
    scouted: Float[np.ndarray, " grid"], *, tolerance: float, max_panels: int, floor: float = 0.0
) -> tuple[Panel, ...]:
    """Halve [0, 1] until the predicted errors of the panels sum to `tolerance`, the worst panel first.

    `scouted` is F on a `scout_grid`. The predicted error is that of the rule on the derivative of its cubic spline; if
    F jumps by about `floor` (nats), of the smoothest spline that is as far from F.
    """
    scouts = len(scouted) - 1
    grid = scout_grid(scouts)
    spline = UnivariateSpline(grid, scouted, s=len(grid) * floor**2) if floor else CubicSpline(grid, scouted)
    slope = spline.derivative()

    def foreseen(panel: Panel) -> float:
        nodes, weights = panel.rule()
        return float(abs(np.dot(weights, slope(nodes)) - (spline(panel.hi) - spline(panel.lo))))

    done: list[Panel] = []
    errors = {Panel(0.0, 1.0): foreseen(Panel(0.0, 1.0))}
    while errors and sum(errors.values()) > tolerance and len(done) + len(errors) < max_panels:
        worst = max(errors, key=lambda panel: (errors[panel], -panel.lo))
        del errors[worst]
        if (worst.hi - worst.lo) * scouts <= 1:
            done.append(worst)
            continue
        errors |= {half: foreseen(half) for half in worst.halves}
    return tuple(sorted([*done, *errors]))


@dataclass(frozen=True)
class Integral:
    """The integral along the path for some targets, with the cost and the error of each."""

    values: Float[Tensor, "target seq"]
    f_input: Float[Tensor, " target"]
    f_baseline: Float[Tensor, " target"]
    local_error: Float[Tensor, " target"]
    """Sum over the panels of |sum of the values on the panel - (F(hi) - F(lo))|, nats."""
    nodes: tuple[int, ...]
    repeated: int
    """Panels that were recomputed in the model's dtype."""
    floor: Float[Tensor, " target"] | None
    """By how much F jumps between neighbouring points (nats, standard deviation); None if it does not."""


@dataclass(frozen=True)
class _Piece:
    """One target integrated over one panel."""

    values: Float[Tensor, " seq"]
    error: float
    """Sum of the values minus F(hi) - F(lo), with F in the model's dtype."""
    exact: bool
    """Whether the gradients were in the model's dtype."""
    noise: float
    """Errors up to this are noise of F (nats)."""


@dataclass
class _State:
    """The results so far; between two rounds, `pieces[t]` covers [0, 1] for every target t."""

    exact: PathFunction
    """Everything in the model's dtype."""
    fast: PathFunction
    """Gradients in the requested dtype; the same object if that is the model's dtype."""
    progress: Progress
    jumps: bool = False
    """Whether F jumps between neighbouring points; then `f` has the mean over `NEIGHBOURS` of them."""
    f: dict[float, Float[Tensor, " target"]] = field(default_factory=dict)
    spread: dict[float, Float[Tensor, " target"]] = field(default_factory=dict)
    """The standard deviation over the neighbours."""
    pieces: list[dict[Panel, _Piece]] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    repeated: int = 0

    def __post_init__(self) -> None:
        self.pieces = [{} for _ in self.exact.rows.targets]
        self.nodes = [0] * len(self.pieces)

    def know(self, f_input: Float[Tensor, " target"] | None) -> _State:
        """Take F of the real input if it was already computed."""
        if f_input is not None and not self.jumps:
            self.f[1.0] = f_input.double()
        return self

    def look_up(self, alphas: Iterable[float]) -> None:
        """Fill in `f` at every a."""
        missing = sorted(set(alphas) - self.f.keys())
        if not missing:
            return
        if not self.jumps:
            self.f.update(zip(missing, self.exact.values(missing), strict=True))
            return
        towards = [APART if alpha < 0.5 else -APART for alpha in missing]
        points = [alpha + k * step for alpha, step in zip(missing, towards, strict=True) for k in range(NEIGHBOURS)]
        found = self.exact.values(points).reshape(len(missing), NEIGHBOURS, -1)
        self.f.update(zip(missing, found.mean(dim=1), strict=True))
        self.spread.update(zip(missing, found.std(dim=1), strict=True))

    def floor(self) -> Float[Tensor, " target"] | None:
        """The root mean square of the spreads so far."""
        return torch.stack(list(self.spread.values())).square().mean(dim=0).sqrt() if self.jumps else None

    def noise(self, panel: Panel, t: int) -> float:
        """The largest error of target `t` on the panel that is not worth halving it for: the jumps of F at its ends.

        The gradients at its nodes jump as F does, so a panel's error does not go below them.
        """
        if not self.jumps:
            return 0.0
        return math.hypot(*(float(self.spread[edge][t]) for edge in (panel.lo, panel.hi)))

    def integrate(self, work: Mapping[Panel, Sequence[int]], *, order: int = ORDER, exact: bool = False) -> None:
        """Integrate each panel for the targets that need it."""
        self.look_up(edge for panel in work for edge in (panel.lo, panel.hi))
        function = self.exact if exact else self.fast
        panels = list(work)
        nodes = [
            Node(alpha=alpha, targets=tuple(work[panel]), weight=weight, panel=number)
            for number, panel in enumerate(panels)
            for alpha, weight in zip(*panel.rule(order), strict=True)
        ]
        before = sum(self.nodes)
        wanted = before + sum(len(node.targets) for node in nodes)
        try:
            sums = function.sums(nodes, lambda done: self.progress(before + done, wanted))
        except NonFiniteError:
            if function is self.exact:
                raise
            self.repeated += len(work)
            self.integrate(work, order=order, exact=True)
            return
        for (number, t), values in sums.items():
            panel = panels[number]
            change = float(self.f[panel.hi][t] - self.f[panel.lo][t])
            self.pieces[t][panel] = _Piece(
                values=values,
                error=float(values.sum()) - change,
                exact=function is self.exact,
                noise=self.noise(panel, t),
            )
            self.nodes[t] += order

    def integral(self) -> Integral:
        """The sum of the pieces."""
        return Integral(
            values=torch.stack([torch.stack([p.values for p in own.values()]).sum(dim=0) for own in self.pieces]),
            f_input=self.f[1.0],
            f_baseline=self.f[0.0],
            local_error=torch.tensor([_total_error(own) for own in self.pieces], dtype=torch.float64),
            nodes=tuple(self.nodes),
            repeated=self.repeated,
            floor=self.floor(),
        )


def integrate_fixed(
    exact: PathFunction,
    fast: PathFunction,
    *,
    n_steps: int,
    progress: Progress,
    f_input: Float[Tensor, " target"] | None = None,
    jumps: bool = False,
) -> Integral:
    """One Gauss-Legendre rule of `n_steps` nodes on [0, 1] for every target."""
    state = _State(exact=exact, fast=fast, progress=progress, jumps=jumps).know(f_input)
    state.integrate({Panel(0.0, 1.0): range(len(state.pieces))}, order=n_steps)
    return state.integral()


def integrate_adaptively(
    exact: PathFunction,
    fast: PathFunction,
    *,
    allowed: Callable[[Float[Tensor, " target"]], Float[Tensor, " target"]],
    max_nodes: int,
    progress: Progress,
    f_input: Float[Tensor, " target"] | None = None,
    scouts: int = SCOUTS,
    jumps: bool = False,
) -> Integral:
    """Evaluate F on a grid, plan panels, integrate, halve failing panels; `allowed` maps net change to tolerance.

    If F `jumps` between neighbouring points, its values at the ends of the panels are means over neighbours, and panels
    whose error is within their noise are not halved.
    """
    state = _State(exact=exact, fast=fast, progress=progress, jumps=jumps).know(f_input)
    grid = scout_grid(scouts)
    if jumps:
        state.look_up((0.0, 1.0))
        scouted = exact.values(grid)
    else:
        state.look_up(grid)
        scouted = torch.stack([state.f[a] for a in grid])  # [grid, target]
    limits = allowed(state.f[1.0] - state.f[0.0]).tolist()
    floors = [0.0] * len(limits) if (floor := state.floor()) is None else floor.tolist()
    work: dict[Panel, list[int]] = {}
    for t, limit in enumerate(limits):
        plan = plan_panels(scouted[:, t].numpy(), tolerance=limit / 2, max_panels=max_nodes // ORDER, floor=floors[t])
        for panel in plan:
            work.setdefault(panel, []).append(t)
    again: dict[Panel, list[int]] = {}
    while work or again:
        if work:
            state.integrate(work)
        if again:
            state.integrate(again, exact=True)
        work, again = _next_round(state, limits, max_nodes)
    return state.integral()


def _next_round(
    state: _State, limits: Sequence[float], max_nodes: int
) -> tuple[dict[Panel, list[int]], dict[Panel, list[int]]]:
    """Remove the failing panels from the pieces: halves to integrate, and panels to redo in the model's dtype."""
    work: dict[Panel, list[int]] = {}
    again: dict[Panel, list[int]] = {}
    for t, limit in enumerate(limits):
        left = max_nodes - state.nodes[t]
        for panel in _failing(state.pieces[t], limit):
            wanted = panel.halves if state.pieces[t][panel].exact else (panel,)
            left -= len(wanted) * ORDER
            if left < 0:
                break
            if not state.pieces[t].pop(panel).exact:
                again.setdefault(panel, []).append(t)
                state.repeated += 1
                continue
            for half in wanted:
                work.setdefault(half, []).append(t)
    return work, again


def _total_error(pieces: Mapping[Panel, _Piece]) -> float:
    return sum(abs(piece.error) for piece in pieces.values())


def _failing(pieces: Mapping[Panel, _Piece], allowed: float) -> list[Panel]:
    """The panels to halve, worst first, until the remaining errors are within half the tolerance, or are noise."""
    left = _total_error(pieces)
    if left <= allowed:
        return []
    chosen = []
    for panel in sorted(pieces, key=lambda panel: (-abs(pieces[panel].error), panel.lo)):
        if left <= allowed / 2:
            break
        left -= abs(pieces[panel].error)
        if abs(pieces[panel].error) > pieces[panel].noise:
            chosen.append(panel)
    return chosen
