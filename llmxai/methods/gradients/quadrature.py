"""Gauss-Legendre panels on [0, 1], and where to put them when F itself is known.

The integral of dF/da over a panel [lo, hi] is F(hi) - F(lo). So F on a grid (forward passes, shared by all targets)
says beforehand how far a rule would miss on any panel, and F at a panel's ends says afterwards how far it did miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from llmxai.settings import LEAST_NODES

ORDER = LEAST_NODES
"""Nodes per panel."""
SCOUTS = 64
"""Intervals of the grid on which F is scouted; also the narrowest panel that scouting can ask for is 1 / SCOUTS."""


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


def scout_grid() -> tuple[float, ...]:
    """Where F is scouted: binary fractions, so that panel ends are found again exactly."""
    return tuple(k / SCOUTS for k in range(SCOUTS + 1))


def plan_panels(scouted: Float[np.ndarray, " grid"], *, tolerance: float, max_panels: int) -> tuple[Panel, ...]:
    """Halve [0, 1] until the errors foreseen on the panels sum to `tolerance`, the worst panel first.

    `scouted` is F on `scout_grid()`. The foreseen error is that of the rule on the derivative of its cubic spline.
    """
    spline = CubicSpline(scout_grid(), scouted)
    slope = spline.derivative()

    def foreseen(panel: Panel) -> float:
        nodes, weights = panel.rule()
        return float(abs(np.dot(weights, slope(nodes)) - (spline(panel.hi) - spline(panel.lo))))

    done: list[Panel] = []
    errors = {Panel(0.0, 1.0): foreseen(Panel(0.0, 1.0))}
    while errors and sum(errors.values()) > tolerance and len(done) + len(errors) < max_panels:
        worst = max(errors, key=lambda panel: (errors[panel], -panel.lo))
        del errors[worst]
        if (worst.hi - worst.lo) * SCOUTS <= 1:
            done.append(worst)
            continue
        errors |= {half: foreseen(half) for half in worst.halves}
    return tuple(sorted([*done, *errors]))
