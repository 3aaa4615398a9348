"""How fast a device is, and how many operations a model needs: what predictions of time are made of."""

from __future__ import annotations

import time
from functools import cache

import torch
from transformers import PreTrainedModel

from llmxai.models.adapters import layer_stacks
from llmxai.models.memory import Shape

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
    matrices = [p for stack in layer_stacks(model) for p in stack.parameters() if p.dim() > 1]
    return round(sum(p.numel() * (share if p.dim() > 2 else 1) for p in matrices))


def layer_operations(model: PreTrainedModel, *, tokens: int) -> int:
    """Operations of one pass through the layers, forward or backward to the inputs, with causal attention."""
    shape = Shape.of(model.config)
    return 2 * layer_weights(model) * tokens + 2 * shape.depth * shape.heads * shape.head_dim * tokens**2
