"""How F runs along the path, and what each quadrature rule would spend on it. Prints the tables of docs/convergence.md.

Panel errors need F only (a panel's integral of dF/da is F(hi) - F(lo)), so rules are compared on densely sampled curves
without computing one gradient. The curves are kept in runs/convergence; the plot goes to docs/convergence.svg.

Usage: python benchmarks/convergence.py [--prompts 8] [--default-only]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from llmxai import Decoding, load
from llmxai.generation import encode_messages, generate
from llmxai.methods import token_targets
from llmxai.methods.gradients.adaptive import gauss_legendre
from llmxai.methods.gradients.path_gradients import make_path, path_function
from llmxai.models.forward import frozen_eval
from llmxai.models.memory import ChunkSize
from llmxai.settings import CHUNK_TOKENS, Tolerance

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs" / "convergence"
GRID = np.linspace(0, 1, 1025)
BUDGET = 128
OTHER_PATHS = (("content", "eos"), ("content", "zero"), ("content", "mean"), ("prompt", "space"), ("all", "space"))
"""Other features and baselines, on the first prompt only."""
TOLERANCE = Tolerance()


def curves(name: str, prompts: Sequence[dict[str, Any]], *, features: str, baseline: str) -> dict[str, np.ndarray]:
    """F on GRID for every prompt, [grid, target] each; a prompt that is done stays done."""
    folder = RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    missing = [prompt for prompt in prompts if not (folder / f"{prompt['name']}.npy").exists()]
    if missing:
        loaded = load("smollm2")
    for prompt in missing:
        tokens = encode_messages(loaded, prompt["messages"])
        generation = generate(loaded, tokens, decoding=Decoding(max_new_tokens=prompt["max_new_tokens"]))
        with frozen_eval(loaded.model):
            line = make_path(loaded, generation, features=features, baseline=baseline)
            function = path_function(loaded, line, token_targets(generation), size=ChunkSize(CHUNK_TOKENS))
            values = function.values(GRID.tolist()).numpy()
        np.save(folder / f"{prompt['name']}.npy", values)
        print(f"{name}: {prompt['name']}", flush=True)
    return {prompt["name"]: np.load(folder / f"{prompt['name']}.npy") for prompt in prompts}


class Curve:
    """One target's F as a spline, and the error of a rule on a panel of it."""

    def __init__(self, values: np.ndarray) -> None:
        self.f = CubicSpline(GRID, values)
        self.slope = self.f.derivative()
        self.allowed = max(TOLERANCE.relative * abs(values[-1] - values[0]), TOLERANCE.absolute)

    def error(self, lo: float, hi: float, order: int) -> float:
        nodes, weights = (np.array(x) for x in gauss_legendre(order))
        rule = (hi - lo) * np.dot(weights, self.slope(lo + (hi - lo) * nodes))
        return float(abs(rule - (self.f(hi) - self.f(lo))))

    def scouted(self, points: int) -> Curve:
        """The same curve known on `points` points only."""
        grid = np.linspace(0, 1, points)
        copy = object.__new__(Curve)
        copy.f = CubicSpline(grid, self.f(grid))
        copy.slope = copy.f.derivative()
        copy.allowed = self.allowed
        return copy


def refine(curve: Curve, panels: dict[tuple[float, float], float], order: int) -> tuple[int, bool]:
    """Halve failing panels until the absolute errors sum to the tolerance: nodes spent, and whether they did."""
    spent = order * len(panels)
    while sum(panels.values()) > curve.allowed:
        left = sum(panels.values())
        failing = []
        for panel in sorted(panels, key=lambda p: -panels[p]):
            if left <= curve.allowed / 2:
                break
            left -= panels[panel]
            failing.append(panel)
        failing = failing[: (BUDGET - spent) // (2 * order)]
        if not failing:
            return spent, False
        for lo, hi in failing:
            del panels[lo, hi]
            middle = (lo + hi) / 2
            panels |= {half: curve.error(*half, order) for half in ((lo, middle), (middle, hi))}
            spent += 2 * order
    return spent, True


def uniform(curve: Curve, order: int, panels: int) -> tuple[int, bool]:
    """Start from equal panels."""
    edges = np.linspace(0, 1, panels + 1)
    return refine(curve, {pair: curve.error(*pair, order) for pair in pairwise(edges)}, order)


def planned(curve: Curve, order: int, points: int, share: float) -> tuple[int, bool]:
    """Start from panels that F on a coarse grid asks for."""
    seen = curve.scouted(points)
    foreseen = {(0.0, 1.0): seen.error(0.0, 1.0, order)}
    done: dict[tuple[float, float], float] = {}
    while foreseen and sum(foreseen.values()) > curve.allowed * share:
        lo, hi = max(foreseen, key=foreseen.__getitem__)
        del foreseen[lo, hi]
        if (hi - lo) * (points - 1) <= 1 or order * (len(done) + len(foreseen) + 2) > BUDGET:
            done[lo, hi] = 0.0
            continue
        middle = (lo + hi) / 2
        foreseen |= {half: seen.error(*half, order) for half in ((lo, middle), (middle, hi))}
    return refine(curve, {pair: curve.error(*pair, order) for pair in [*done, *foreseen]}, order)


@cache
def clenshaw_curtis(n: int) -> tuple[np.ndarray, np.ndarray]:
    """n points on [0, 1], the ends among them, nested for n = 3, 5, 9, 17; weights by their moments."""
    x = np.cos(np.pi * np.arange(n - 1, -1, -1) / (n - 1))
    moments = [0.0 if k % 2 else 2 / (1 - k * k) for k in range(n)]
    return (x + 1) / 2, np.linalg.solve(np.polynomial.chebyshev.chebvander(x, n - 1).T, moments) / 2


@cache
def kronrod(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss's 7 points on [0, 1], or Kronrod's 15 that hold them (QUADPACK's table; weights by their moments)."""
    half = [0.0, 0.2077849550078985, 0.4058451513773972, 0.5860872354676911]
    half += [0.7415311855993945, 0.8648644233597691, 0.9491079123427585, 0.9914553711208126]
    x = np.array(sorted({*half, *(-value for value in half)}))
    x = x if n == 15 else x[1::2]
    moments = [0.0 if k % 2 else 2 / (1 - k * k) for k in range(len(x))]
    return (x + 1) / 2, np.linalg.solve(np.polynomial.chebyshev.chebvander(x, len(x) - 1).T, moments) / 2


def nested(
    curve: Curve, rule: Callable[[int], tuple[np.ndarray, np.ndarray]], orders: tuple[int, ...], panels: int
) -> tuple[int, bool]:
    """Raise the order of a failing panel, keeping its nodes, before it is halved; every distinct node counts once."""
    used: set[float] = set()

    def integrate(lo: float, hi: float, k: int) -> float:
        nodes, weights = rule(orders[k])
        points = lo + (hi - lo) * nodes
        used.update(np.round(points, 12).tolist())
        return float(abs((hi - lo) * np.dot(weights, curve.slope(points)) - (curve.f(hi) - curve.f(lo))))

    known = {(lo, hi, 0): integrate(lo, hi, 0) for lo, hi in pairwise(np.linspace(0, 1, panels + 1).tolist())}
    while sum(known.values()) > curve.allowed:
        if len(used) >= BUDGET:
            return len(used), False
        lo, hi, k = max(known, key=known.__getitem__)
        del known[lo, hi, k]
        if k + 1 < len(orders):
            known[lo, hi, k + 1] = integrate(lo, hi, k + 1)
            continue
        middle = (lo + hi) / 2
        known |= {(a, b, 0): integrate(a, b, 0) for a, b in ((lo, middle), (middle, hi))}
    return len(used), len(used) <= BUDGET


def bent(curve: Curve, bend: Callable[[np.ndarray], np.ndarray]) -> Curve:
    """The same path at another speed: F(bend(u)) as a function of u."""
    return Curve(curve.f(bend(GRID)))


BENDS = {
    "a = u^2 (slow at the baseline)": lambda u: u**2,
    "a = 1 - (1 - u)^2 (slow at the input)": lambda u: 1 - (1 - u) ** 2,
    "a = u^2 (3 - 2 u) (slow at both ends)": lambda u: u**2 * (3 - 2 * u),
}


def row(name: str, results: list[tuple[int, bool]]) -> str:
    nodes = [spent for spent, _ in results]
    met = np.mean([ok for _, ok in results])
    return f"| {name} | {np.median(nodes):.0f} | {np.percentile(nodes, 90):.0f} | {max(nodes)} | {met:.0%} |"


def plain(curve: Curve, n: int) -> tuple[int, bool]:
    """One rule on [0, 1]: the usual setting."""
    return n, curve.error(0.0, 1.0, n) <= curve.allowed


def tables(all_curves: Sequence[Curve]) -> None:
    print(f"{len(all_curves)} targets\n")
    print("| rule | median nodes | 90th percentile | most | within tolerance |\n| --- | --- | --- | --- | --- |")
    for n in (8, 20, 50, 64, 128, 300):
        print(row(f"one Gauss-Legendre rule, {n} nodes", [plain(c, n) for c in all_curves]))
    for order in (2, 3, 4, 5, 6, 8):
        for panels in (1, 2, 4, 8):
            name = f"{panels} equal panels of {order}, then halving"
            print(row(name, [uniform(c, order, panels) for c in all_curves]))
    for points in (33, 65, 129):
        for order in (2, 3, 4, 5):
            for share in (0.5, 1.0):
                name = f"planned on {points} points, panels of {order}, foreseen error {share:g} of the tolerance"
                print(row(name, [planned(c, order, points, share) for c in all_curves]))
    for orders in ((3,), (3, 5), (3, 5, 9), (5, 9, 17)):
        for panels in (2, 4, 8):
            name = f"{panels} equal panels, Clenshaw-Curtis {orders} nested, then halving"
            print(row(name, [nested(c, clenshaw_curtis, orders, panels) for c in all_curves]))
    for panels in (1, 2, 4):
        name = f"{panels} equal panels, Gauss 7 then Kronrod 15, then halving"
        print(row(name, [nested(c, kronrod, (7, 15), panels) for c in all_curves]))
    for name, bend in BENDS.items():
        print(row(f"{name}, one rule of 50 nodes", [plain(bent(c, bend), 50) for c in all_curves]))
        print(row(f"{name}, planned on 65 points", [planned(bent(c, bend), 4, 65, 0.5) for c in all_curves]))


def plot(default: dict[str, np.ndarray], usual: dict[str, np.ndarray]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "llmxai"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    titles = (
        "content and generated tokens move from a space",
        "every prompt token moves from id 0 (Captum's convention)",
    )
    for axis, found, title in zip(axes, (default, usual), titles, strict=True):
        for t in range(found["capital"].shape[1]):
            axis.plot(GRID, found["capital"][:, t], linewidth=0.9)
        axis.set(title=title, xlabel="a")
        axis.title.set_size(9)
    axes[0].set_ylabel("F(a): log-prob, nats")
    figure.savefig(HERE.parent / "docs" / "convergence.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8, help="how many of benchmarks/prompts.json")
    parser.add_argument("--default-only", action="store_true", help="the tables of the default path, no plot")
    options = parser.parse_args()
    prompts = json.loads((HERE / "prompts.json").read_text())[: options.prompts]
    default = curves("default", prompts, features="content", baseline="space")
    print("\nDefault features and baseline:", end=" ")
    tables([Curve(values[:, t]) for values in default.values() for t in range(values.shape[1])])
    if not options.default_only:
        other_paths(default, prompts[:1])


def other_paths(default: dict[str, np.ndarray], prompts: Sequence[dict[str, Any]]) -> None:
    """Captum's convention, other features and baselines on the first prompt, and the plot."""
    usual = curves("captum", prompts, features="prompt", baseline="id:0")
    print("\nCaptum's convention, first prompt:", end=" ")
    tables([Curve(values[:, t]) for values in usual.values() for t in range(values.shape[1])])
    for features, baseline in OTHER_PATHS:
        found = curves(f"{features}-{baseline}", prompts, features=features, baseline=baseline)
        print(f"\n{features}, {baseline}, first prompt:", end=" ")
        found_curves = [Curve(values[:, t]) for values in found.values() for t in range(values.shape[1])]
        print(f"{len(found_curves)} targets\n")
        for label, results in (
            ("one rule of 50 nodes", [plain(c, 50) for c in found_curves]),
            ("planned on 65 points", [planned(c, 4, 65, 0.5) for c in found_curves]),
        ):
            print(row(label, results))
    for name, f in (("default", default["capital"]), ("Captum's convention", usual["capital"])):
        variation = np.abs(np.diff(f, axis=0)).sum(axis=0)
        print(f"\ntotal variation of F, first prompt, {name}: {np.round(variation, 1).tolist()}")
        print(f"net change: {np.round(f[-1] - f[0], 1).tolist()}")
    plot(default, usual)


if __name__ == "__main__":
    main()
