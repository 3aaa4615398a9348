"""Gauss-Legendre rules and the panels that [0, 1] is cut into."""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def gauss_legendre(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes in (0, 1), rising, and weights that sum to 1; exact for polynomials of degree 2n - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return tuple((nodes + 1) / 2), tuple(weights / 2)


def on_panel(lo: float, hi: float, n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The n-node rule moved to [lo, hi]."""
    nodes, weights = gauss_legendre(n)
    width = hi - lo
    return tuple(lo + width * x for x in nodes), tuple(width * w for w in weights)
