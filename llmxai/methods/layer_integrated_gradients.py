"""Layer-integrated gradients on the token embeddings, each target with its certificate.

A_i = <input_i - baseline_i, integral over a in [0, 1] of dF/dx_i at x(a)>   (Sundararajan, Taly & Yan 2017, eq. 1,
applied to the embedding layer). Completeness: the sum of A_i over the moving tokens is F(input) - F(baseline).

F on a grid tells where along the path it bends, so that nodes go there; every panel's integral of dF/da is then
compared with F(hi) - F(lo), its exact value, and panels are halved until a target's errors sum to its tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import NonFiniteError, OptionError
from llmxai.methods._path import Path, make_path
from llmxai.methods._quadrature import ORDER, Panel, plan_panels, scout_grid
from llmxai.methods._registry import method
from llmxai.methods._targets import Target, token_targets
from llmxai.methods._vjp import ChunkSize, Node, PathFunction, path_function
from llmxai.models import LoadedModel, in_dtype
from llmxai.models.seams import undisturbed
from llmxai.types import Attribution, Generation

CHUNK_TOKENS = 1024

Progress = Callable[[int, int], None]
"""Called with (gradients that are done, gradients that are wanted so far), one a target and node."""


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
    gradient_dtype: torch.dtype | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    progress: Progress = lambda _done, _all: None,
) -> Attribution:
    """Signed contribution (nats) of every token to every target, with its convergence gap.

    `targets`: by default the log-prob of every generated token. `features` and `baseline`: see `moving_tokens` and
    `baseline_embedding`. Panels are halved until the absolute panel errors of a target sum to no more than its
    `tolerance` (so the gap is within it without errors cancelling), or the next one would pass `max_nodes`; with
    `n_steps`, that many Gauss-Legendre nodes on [0, 1] instead, and the gap is the error.

    `gradient_dtype` (say torch.bfloat16) computes gradients on a copy of the weights in that dtype while F stays in the
    model's own, so that the certificate covers the rounding too: a panel that fails is computed again in the model's
    dtype before it is halved. `chunk_tokens` bounds the memory and changes the numbers by rounding only; it is halved
    where memory runs out.

    Raises OptionError for a bad option, NonFiniteError where the model gives NaN on the path.
    """
    if max_nodes < ORDER or (n_steps is not None and n_steps < 1) or chunk_tokens < 1:
        raise OptionError(
            f"max_nodes is {max_nodes}, n_steps {n_steps} and chunk_tokens {chunk_tokens}; expected max_nodes of at "
            f"least {ORDER} and the others of at least 1."
        )
    targets = tuple(targets) if targets is not None else token_targets(generation)
    path = make_path(loaded, generation, features=features, baseline=baseline)
    size = ChunkSize(chunk_tokens)
    with undisturbed(loaded.model):
        exact = path_function(loaded, path, targets, size=size)
        fast = exact
        if gradient_dtype is not None and gradient_dtype != loaded.dtype:
            fast = path_function(in_dtype(loaded, gradient_dtype), path, targets, size=size)
        state = _State(exact=exact, fast=fast, progress=progress)
        if n_steps is None:
            _adaptive(state, tolerance, max_nodes)
        else:
            _fixed(state, n_steps)
    return _attribution(
        state,
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
            "gradient_dtype": str(gradient_dtype or loaded.dtype).removeprefix("torch."),
            "panels_computed_again_in_dtype": state.repeated,
            "chunk_tokens": size.tokens,
            "chunk_halvings": size.halvings,
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
    """Sum of the values minus F(hi) - F(lo), with F in the model's dtype."""
    exact: bool
    """Whether the gradients were in the model's dtype."""


@dataclass
class _State:
    """What is known so far; `pieces[t]` covers [0, 1] for every target t between two rounds."""

    exact: PathFunction
    """Everything in the model's dtype."""
    fast: PathFunction
    """Gradients in the dtype that was asked for; the same object where that is the model's."""
    progress: Progress
    f: dict[float, Float[Tensor, " target"]] = field(default_factory=dict)
    pieces: list[dict[Panel, _Piece]] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    repeated: int = 0

    def __post_init__(self) -> None:
        self.pieces = [{} for _ in self.exact.rows.targets]
        self.nodes = [0] * len(self.pieces)

    def look_up(self, alphas: Iterable[float]) -> None:
        """Fill in `f` at every a."""
        missing = sorted(set(alphas) - self.f.keys())
        if missing:
            self.f.update(zip(missing, self.exact.values(missing), strict=True))

    def integrate(self, work: Mapping[Panel, Sequence[int]], *, order: int = ORDER, exact: bool = False) -> None:
        """Integrate each panel for the targets that want it."""
        self.look_up(edge for panel in work for edge in (panel.lo, panel.hi))
        function = self.exact if exact else self.fast
        nodes = [
            Node(alpha=alpha, targets=tuple(users)) for panel, users in work.items() for alpha in panel.rule(order)[0]
        ]
        places = [(panel, weight) for panel in work for weight in panel.rule(order)[1]]
        sums: dict[tuple[int, Panel], Tensor] = {}
        done, wanted = sum(self.nodes), sum(self.nodes) + sum(len(node.targets) for node in nodes)
        try:
            for k, t, slope in function.slopes(nodes):
                done += 1
                self.progress(done, wanted)
                panel, weight = places[k]
                sums[t, panel] = sums.get((t, panel), 0) + weight * slope
        except NonFiniteError:
            if function is self.exact:
                raise
            self.repeated += len(work)
            self.integrate(work, order=order, exact=True)
            return
        for (t, panel), values in sums.items():
            change = float(self.f[panel.hi][t] - self.f[panel.lo][t])
            self.pieces[t][panel] = _Piece(
                values=values, error=float(values.sum()) - change, exact=function is self.exact
            )
            self.nodes[t] += order


def _adaptive(state: _State, tolerance: Tolerance, max_nodes: int) -> None:
    n = len(state.pieces)
    state.look_up(scout_grid())
    scouted = torch.stack([state.f[a] for a in scout_grid()])  # [grid, target]
    allowed = tolerance.of(state.f[1.0] - state.f[0.0]).tolist()
    work: dict[Panel, list[int]] = {}
    for t in range(n):
        for panel in plan_panels(scouted[:, t].numpy(), tolerance=allowed[t] / 2, max_panels=max_nodes // ORDER):
            work.setdefault(panel, []).append(t)
    again: dict[Panel, list[int]] = {}
    while work or again:
        if work:
            state.integrate(work)
        if again:
            state.integrate(again, exact=True)
        work, again = {}, {}
        for t in range(n):
            left = max_nodes - state.nodes[t]
            for panel in _failing(state.pieces[t], allowed[t]):
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


def _fixed(state: _State, n_steps: int) -> None:
    state.integrate({Panel(0.0, 1.0): range(len(state.pieces))}, order=n_steps)


def _attribution(state: _State, tolerance: Tolerance, *, settings: Mapping[str, object]) -> Attribution:
    function = state.exact
    net = state.f[1.0] - state.f[0.0]
    allowed = tolerance.of(net)
    values = torch.stack([torch.stack([p.values for p in own.values()]).sum(dim=0) for own in state.pieces])
    local_error = torch.tensor([_total_error(own) for own in state.pieces], dtype=torch.float64)
    return Attribution(
        method="layer_integrated_gradients",
        values=values,
        features=function.path.features(function.rows.targets).cpu(),
        f_input=state.f[1.0],
        f_baseline=state.f[0.0],
        gap=values.sum(dim=1) - net,
        local_error=local_error,
        tolerance=allowed,
        nodes=tuple(state.nodes),
        converged=tuple((local_error <= allowed).tolist()),
        settings=settings,
    )
