"""How fast a device is, and how many operations a model needs: what predictions of time are made of."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from llmxai.errors import UnsupportedModelError
from llmxai.models.adapters import layer_stacks
from llmxai.models.memory import Shape
from llmxai.models.precision import exact_products

SIDE = {"cuda": 8192, "cpu": 768}
"""Side of the square matrices whose product is timed."""
REPEATS = 5


@cache
def _rate(device: torch.device, dtype: torch.dtype, precision: str) -> float:
    del precision  # the global setting of float32 products, which the key must hold
    side, source = SIDE.get(device.type, 2048), torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=source) for _ in range(2))
    fastest = float("inf")
    for _ in range(REPEATS):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, measured once per device, dtype and precision of float32."""
    return _rate(device, dtype, torch.get_float32_matmul_precision())


def wait(device: torch.device) -> None:
    """Until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def layer_weights(model: PreTrainedModel) -> int:
    """Weights of the matrices in all layers that a token meets; of experts, those that it goes to."""
    text = model.config.get_text_config()
    chosen, all_experts = (getattr(text, name, None) for name in ("num_experts_per_tok", "num_local_experts"))
    all_experts = all_experts or getattr(text, "num_experts", None)
    share = chosen / all_experts if chosen and all_experts else 1.0
    try:
        layers: list[nn.Module] = [*layer_stacks(model)]
    except UnsupportedModelError:  # they cannot be identified: as if everything were in them
        layers = [model]
    matrices = [p for part in layers for p in part.parameters() if p.dim() > 1]
    return round(sum(p.numel() * (share if p.dim() > 2 else 1) for p in matrices))


def layer_operations(model: PreTrainedModel, *, tokens: int) -> int:
    """Operations of one pass through the layers, forward or backward to the inputs, with causal attention."""
    shape = Shape.of(model.config)
    return 2 * layer_weights(model) * tokens + 2 * shape.depth * shape.heads * shape.head_dim * tokens**2


NODES = {"layer_integrated_gradients": 49, "deletion_path": 20}
"""Nodes that a target takes on average: 39 targets of reports/gallery."""
GRIDS = {"layer_integrated_gradients": 80, "deletion_path": 16}
"""Points at which F is computed, for all targets together: the grid, and ends of panels between its points."""
SHARED = 3
"""Forward passes at nodes, in units of those of one target: targets share most of their nodes."""
MASKS = 96
"""Forward passes of the whole text that removals take at most: 64 units, and 64 halves of the text."""
ATTENDED = 4
"""Attention along the deletion path, compared with causal attention: every key, and each query's own once more."""
EFFICIENCY = {"cpu": 0.7, "cuda": 0.3}
"""Share of the rate of large products that a model reaches, by device (docs/scale.md, benchmarks/GPU.md)."""


def predicted_seconds(
    model: PreTrainedModel, *, tokens: int, targets: int, device: torch.device, dtype: torch.dtype
) -> float:
    """About how long an explanation with default settings takes, answer not included.

    From the operations of the layers and the output head, and the measured rate of products: as gradients are computed
    (TF32 where that is allowed), and in full float32 for F. `model` may be without weights.
    """
    shape = Shape.of(model.config)
    layers = layer_operations(model, tokens=tokens)
    more = (ATTENDED - 1) * (layers - 2 * layer_weights(model) * tokens)
    head = 2 * shape.hidden * shape.vocabulary * targets
    exact = gradients = 0.0
    for name, nodes in NODES.items():
        one = layers + (more if name == "deletion_path" else 0) + head
        exact += GRIDS[name] * one
        gradients += nodes * (min(targets, SHARED) * one + targets * (one - head))
    gradients += (2 + targets) * layers + min(MASKS + targets, MASKS + tokens) * (layers + head)  # rollout, removal
    share = EFFICIENCY.get(device.type, EFFICIENCY["cuda"])
    with exact_products():
        slow = product_rate(device, dtype)
    return (exact / slow + gradients / product_rate(device, dtype)) / share


def in_words(seconds: float) -> str:
    """A duration to one or two digits: `about 40 seconds`, `about 3 minutes`, `about 2.5 hours`."""
    unit, size = next((u for u in (("hour", 3600.0), ("minute", 60.0)) if seconds >= 1.5 * u[1]), ("second", 1.0))
    number = seconds / size
    said = f"{number:.0f}" if number >= 10 or unit == "second" else f"{number:.1f}".removesuffix(".0")
    return f"about {said} {unit}{'' if said == '1' else 's'}"
