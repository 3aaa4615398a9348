"""How fast a device is, and how many operations a model needs: what predictions of time are made of."""

from __future__ import annotations

import time
from contextlib import nullcontext
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


def path_seconds(
    model: PreTrainedModel,
    method: str,
    *,
    tokens: int,
    targets: int,
    points: int,
    forwards: int,
    backwards: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """About how long a path method takes: F at `points`, and that many passes forwards and backwards at its nodes.

    From the operations of the layers and the output head, and the measured rate of products: as gradients are computed
    (TF32 where that is allowed), and in full float32 for F. `model` may be without weights.
    """
    shape, layers = Shape.of(model.config), layer_operations(model, tokens=tokens)
    if method == "deletion_path":
        layers += (ATTENDED - 1) * (layers - 2 * layer_weights(model) * tokens)
    head = 2 * shape.hidden * shape.vocabulary * targets
    exact, gradients = points * (layers + head), forwards * (layers + head) + backwards * layers
    return exact / _reached(device, dtype, exactly=True) + gradients / _reached(device, dtype)


def _reached(device: torch.device, dtype: torch.dtype, *, exactly: bool = False) -> float:
    """Operations per second of a model."""
    with exact_products() if exactly else nullcontext():
        return EFFICIENCY.get(device.type, EFFICIENCY["cuda"]) * product_rate(device, dtype)


def predicted_seconds(
    model: PreTrainedModel, *, tokens: int, targets: int, device: torch.device, dtype: torch.dtype
) -> float:
    """About how long an explanation with default settings takes, answer not included; `model` may lack weights."""
    shape, layers = Shape.of(model.config), layer_operations(model, tokens=tokens)
    of_paths = sum(
        path_seconds(
            model,
            name,
            tokens=tokens,
            targets=targets,
            points=GRIDS[name],
            forwards=nodes * min(targets, SHARED),
            backwards=nodes * targets,
            device=device,
            dtype=dtype,
        )
        for name, nodes in NODES.items()
    )
    head = 2 * shape.hidden * shape.vocabulary * targets
    others = (2 + targets) * layers + min(MASKS + targets, MASKS + tokens) * (layers + head)  # rollout, removal
    return of_paths + others / _reached(device, dtype)


def in_words(seconds: float) -> str:
    """A duration to one or two digits: `about 40 seconds`, `about 3 minutes`, `about 2.5 hours`."""
    unit, size = next((u for u in (("hour", 3600.0), ("minute", 60.0)) if seconds >= 1.5 * u[1]), ("second", 1.0))
    number = seconds / size
    said = f"{number:.0f}" if number >= 10 or unit == "second" else f"{number:.1f}".removesuffix(".0")
    return f"about {said} {unit}{'' if said == '1' else 's'}"
