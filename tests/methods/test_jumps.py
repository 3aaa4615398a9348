"""F that jumps between neighbouring inputs, as in 8 bits: its floor is measured, and nothing is halved without end."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import answered, make_loaded
from torch import Tensor, nn

from llmxai import Settings, explain, load_explanation
from llmxai.methods.gradients.adaptive import SCOUTS, Integral, integrate_adaptively, plan_panels, scout_grid
from llmxai.methods.gradients.integrated_gradients import allowed_error
from llmxai.methods.gradients.path_gradients import Node, PathFunction, Sums
from llmxai.models.precision import rounds_activations
from llmxai.names import quiet
from llmxai.settings import Compute, Tolerance

BEND = 0.35
"""Where the made-up F rises."""


def rise(alpha: float) -> float:
    """From 0 to about 6 nats, most of it within a tenth of the path."""
    return 3 * math.tanh((alpha - BEND) / 0.08) + 3


def slope(alpha: float) -> float:
    return 3 / 0.08 / math.cosh((alpha - BEND) / 0.08) ** 2


def hashed(alpha: float, seed: int) -> float:
    """A standard normal number that depends on every bit of `alpha`."""
    return float(np.random.default_rng([seed, *struct.pack("d", alpha)]).standard_normal())


class Jumping(PathFunction):
    """F of one token; it and its gradient jump by `jump` times a number that differs from point to point."""

    def __init__(self, jump: float, targets: int = 8) -> None:
        object.__setattr__(self, "jump", jump)
        object.__setattr__(self, "rows", SimpleNamespace(targets=range(targets)))

    def values(self, alphas: Sequence[float]) -> Tensor:
        rows = [[rise(a) + self.jump * hashed(a, t) for t in self.rows.targets] for a in alphas]
        return torch.tensor(rows, dtype=torch.float64)

    def sums(self, nodes: Sequence[Node], progress: Callable[[int], None] = lambda _done: None) -> Sums:
        progress(sum(len(node.targets) for node in nodes))
        found: dict[tuple[int, int], Tensor] = {}
        for node in nodes:
            for t in node.targets:
                part = node.weight * slope(node.alpha) * (1 + self.jump * hashed(node.alpha, 100 + t))
                found[node.panel, t] = found.get((node.panel, t), torch.zeros(1, dtype=torch.float64)) + part
        return found


def integrated(function: Jumping, *, jumps: bool, max_nodes: int = 512) -> Integral:
    allowed = partial(allowed_error, Tolerance())
    return integrate_adaptively(function, function, allowed=allowed, max_nodes=max_nodes, progress=quiet, jumps=jumps)


@pytest.mark.parametrize("jump", [0.05, 0.1, 0.3])
def test_the_floor_is_measured_and_ends_the_halving(jump: float) -> None:
    """Without the floor, every target uses all the nodes that it may."""
    smooth = integrated(Jumping(0.0), jumps=False)
    blind = integrated(Jumping(jump), jumps=False)
    found = integrated(Jumping(jump), jumps=True)
    assert found.floor is not None
    assert smooth.floor is blind.floor is None
    assert min(blind.nodes) > 400
    assert sum(found.nodes) <= 4 * sum(smooth.nodes) < sum(blind.nodes) / 10
    assert (found.floor / jump - 1).abs().max() < 0.25
    whole = rise(1) - rise(0)
    assert (found.values.sum(dim=1) - whole).abs().max() < found.local_error.max() + 2 * jump
    assert (found.values.sum(dim=1) - (found.f_input - found.f_baseline)).abs().max() <= found.local_error.max() + 1e-9
    assert (found.f_input - rise(1)).abs().max() < jump  # the mean of 16 values


def test_without_jumps_means_over_neighbours_change_little() -> None:
    plain, means = (integrated(Jumping(0.0), jumps=jumps) for jumps in (False, True))
    assert means.floor is not None
    assert means.floor.max() < 1e-3
    assert means.nodes == plain.nodes
    assert (means.values - plain.values).abs().max() < 1e-9


def test_panels_are_planned_for_the_smooth_part_of_f() -> None:
    grid, rng = scout_grid(SCOUTS), np.random.default_rng(0)
    smooth = np.array([rise(a) for a in grid])
    noisy = smooth + 0.2 * rng.standard_normal(len(grid))
    want = plan_panels(smooth, tolerance=0.06, max_panels=64)
    assert len(plan_panels(noisy, tolerance=0.06, max_panels=64)) > 3 * len(want)
    assert len(plan_panels(noisy, tolerance=0.06, max_panels=64, floor=0.2)) <= 2 * len(want)


class Linear8bitLt(nn.Linear):
    """By its name a layer of LLM.int8."""


def test_which_models_jump() -> None:
    """16 bits and LLM.int8 do, float32 does not, and neither do 16-bit weights that are computed with in float32."""
    plain, low = make_loaded("llama"), make_loaded("llama", dtype=torch.bfloat16)
    assert not rounds_activations(plain)
    assert rounds_activations(low)
    plain.model.model.layers[0].mlp.up_proj = Linear8bitLt(2, 2)
    assert rounds_activations(plain)


def test_a_model_that_computes_in_16_bits_says_how_far_it_jumps(tmp_path: Path) -> None:
    """The floor is stored, read back, shown in the page and named where nothing can be ranked."""
    loaded = make_loaded("llama", dtype=torch.bfloat16, initializer_range=0.1)
    generation = answered(loaded)
    stored = explain(loaded, generation, settings=Settings(compute=Compute(precision="stored")))
    certificate = stored.gradients.certificate
    assert certificate is not None
    assert certificate.floor is not None
    assert (certificate.floor > 1e-4).all()
    gap = stored.gradients.values.sum(dim=1) - (certificate.f_input - certificate.f_baseline)
    assert torch.allclose(gap, certificate.gap)
    assert (certificate.gap.abs() <= certificate.local_error + 1e-9).all()
    folder = stored.save(tmp_path / "stored")
    back = load_explanation(folder)
    assert back == stored
    assert back.gradients.certificate is not None
    assert torch.equal(torch.as_tensor(back.gradients.certificate.floor), certificate.floor)
    shown = re.findall(r'"floor": ?([0-9.e-]+|null)', back.to_html())
    assert shown
    assert "null" not in shown
    exact = explain(loaded, generation)
    assert exact.gradients.certificate is not None
    assert exact.gradients.certificate.floor is None
    unconverged = [check.reason for check in stored.checks if check.status == "unconverged"]
    assert all("jumps by about" in reason for reason in unconverged)
