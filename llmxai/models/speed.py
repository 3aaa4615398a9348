"""How fast a device is, and what a model needs: what predictions of time are made of.

A pass takes the operations of its matrices and attention over the rate of large products, and the bytes that go through
memory between them, and for the weights, over the rate at which the device reads and writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from llmxai.errors import UnsupportedModelError
from llmxai.models.adapters import layer_stacks
from llmxai.models.memory import Shape, free_memory, kept_per_token, useful_tokens
from llmxai.models.precision import exact_products, products_allowed

SIDE = {"cuda": 8192, "cpu": 768}
"""Side of the square matrices whose product is timed."""
NUMBERS = {"cuda": 2**28, "cpu": 2**23}
"""Length of the vectors whose product, number by number, is timed."""
REPEATS = 5
WIDENED = 2
"""Bytes of a stored weight that is widened."""
MEMORY_SHARE = 0.25
"""Share of a device's free memory that a measurement takes at most."""
TRAFFIC = {"cuda": 12.5, "cpu": 28.0}
"""Bytes that a layer reads and writes in a pass, for each byte that it keeps for the backward pass: normalisations,
activations, rotations and residuals come one after the other. Fitted to benchmarks/GPU.md (an H100, bfloat16 and TF32,
1B and 8B parameters) and, on a CPU, where such operations are slower than memory, to benchmarks/RESULTS.md."""


@cache
def _rate(device: torch.device, dtype: torch.dtype, precision: str) -> float:
    del precision  # the global setting of float32 products, which the key must hold
    most = math.isqrt(_most_numbers(device, dtype) // 3)  # two factors and their product
    side, source = min(SIDE.get(device.type, 2048), most), torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=source) for _ in range(2))
    return 2 * side**3 / _fastest(device, lambda: a @ b)


@cache
def streaming_rate(device: torch.device) -> float:
    """Bytes per second that an operation number by number reads and writes, measured once per device."""
    most = _most_numbers(device, torch.float32) // 2
    a = torch.ones(min(NUMBERS.get(device.type, 2**23), most), device=device)
    b = torch.ones_like(a)
    return 2 * a.nbytes / _fastest(device, lambda: torch.mul(a, a, out=b))


def _most_numbers(device: torch.device, dtype: torch.dtype) -> int:
    """How many numbers a measurement may hold, so that it ends no explanation on a nearly full device."""
    return max(2**16, int(MEMORY_SHARE * free_memory(device)) // dtype.itemsize)


def _fastest(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of the fastest of some repetitions."""
    fastest = float("inf")
    for _ in range(REPEATS):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, measured once per device, dtype and precision of float32."""
    return _rate(device, dtype, products_allowed())


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


NODES = {"layer_integrated_gradients": 46, "deletion_path": 22}
"""Nodes that a target takes on average: 80 targets of reports/gallery."""
GRIDS = {"layer_integrated_gradients": 80, "deletion_path": 16}
"""Points at which F is computed, for all targets together: the grid, and ends of panels between its points."""
SHARED = 3
"""Forward passes at nodes, in units of those of one target: targets share most of their nodes."""
MASKS = 96
"""Forward passes of the whole text that removals take at most: 64 units, and 64 halves of the text."""
ATTENTION = {"cpu": {"plain": 1.6, "deletion_path": 2.5}, "cuda": {"plain": 1.0, "deletion_path": 4.0}}
"""Time of attention in that of its causal operations at the rate of large products. On a CPU fitted to long rows of
benchmarks/RESULTS.md; on a GPU the deletion path's is counted: every key, and each query's own once more."""


def traffic_seconds(model: PreTrainedModel, *, tokens: int, device: torch.device, dtype: torch.dtype) -> float:
    """Of a pass through the layers: what it takes in addition to its products."""
    shape = Shape.of(model.config)
    kept = shape.depth * tokens * kept_per_token(shape, itemsize=dtype.itemsize)
    return TRAFFIC.get(device.type, TRAFFIC["cuda"]) * kept / streaming_rate(device)


def weights_seconds(
    model: PreTrainedModel, *, calls: float, device: torch.device, dtype: torch.dtype, widened: bool = False
) -> float:
    """Of calls of the model: what it takes to read the weights of all layers, however many tokens there are.

    `widened`: they are stored in 16 bits and written and read once more in `dtype` (`precision.computing`).
    """
    each = WIDENED + 2 * dtype.itemsize if widened else dtype.itemsize
    return calls * layer_weights(model) * each / streaming_rate(device)


def grouped(tokens: int, targets: int) -> float:
    """Length that a node has on average, if the last `targets` tokens are explained in groups.

    Groups of early targets are computed up to their last token only, and every group has forward passes of its own.
    """

    def mean(groups: int) -> float:
        length = tokens - targets * (groups - 1) / (2 * groups)
        return length * (targets + groups * SHARED) / (targets + SHARED)

    return min(mean(groups) for groups in range(1, targets + 1))


def _products(model: PreTrainedModel, method: str, *, tokens: int, device: torch.device) -> float:
    """Operations of a pass, with attention weighted by its time."""
    matrices = 2 * layer_weights(model) * tokens
    weights = ATTENTION.get(device.type, ATTENTION["cuda"])
    attention = layer_operations(model, tokens=tokens) - matrices
    return matrices + weights.get(method, weights["plain"]) * attention


def path_seconds(
    model: PreTrainedModel,
    method: str,
    *,
    tokens: int,
    targets: int,
    points: int,
    forwards: int,
    backwards: int,
    together: int,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint: bool = False,
    widened: bool = False,
) -> float:
    """About how long a path method takes: F at `points`, and that many passes forwards and backwards at its nodes.

    `together`: how many points or nodes go through the model at once. With `checkpoint`, a pass backwards computes the
    layers forwards once more. Products are computed as gradients are (TF32 where that is allowed), and for F in full
    float32. `widened` as in `weights_seconds`. `model` may be without weights.
    """
    length = round(grouped(tokens, targets))
    shape, layers = Shape.of(model.config), _products(model, method, tokens=length, device=device)
    head = 2 * shape.hidden * shape.vocabulary * targets
    with exact_products():
        exact = points * (layers + head) / product_rate(device, dtype)
    backwards *= 2 if checkpoint else 1
    gradients = (forwards * (layers + head) + backwards * layers) / product_rate(device, dtype)
    passes = points + forwards + backwards
    traffic = passes * traffic_seconds(model, tokens=length, device=device, dtype=dtype)
    calls = 1 + passes / together  # one for the tokens that do not move
    weights = weights_seconds(model, calls=calls, device=device, dtype=dtype, widened=widened)
    return exact + gradients + traffic + weights


def predicted_seconds(
    model: PreTrainedModel,
    *,
    tokens: int,
    targets: int,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint: bool = False,
    widened: bool = False,
) -> float:
    """About how long an explanation with default settings takes, answer not included; `model` may lack weights.

    `checkpoint` and `widened` as in `path_seconds`.
    """
    shape, layers = Shape.of(model.config), _products(model, "plain", tokens=tokens, device=device)
    together = max(1, useful_tokens(model.config, device=device, itemsize=dtype.itemsize) // tokens)
    of_paths = sum(
        path_seconds(
            model,
            name,
            tokens=tokens,
            targets=targets,
            points=GRIDS[name],
            forwards=nodes * min(targets, SHARED),
            backwards=nodes * targets,
            together=together,
            device=device,
            dtype=dtype,
            checkpoint=checkpoint,
            widened=widened,
        )
        for name, nodes in NODES.items()
    )
    rollout, removal = 2 + targets, min(MASKS + targets, MASKS + tokens)
    head = 2 * shape.hidden * shape.vocabulary * targets
    products = (rollout * layers + removal * (layers + head)) / product_rate(device, dtype)
    traffic = (rollout + removal) * traffic_seconds(model, tokens=tokens, device=device, dtype=dtype)
    calls = rollout + removal / together
    weights = weights_seconds(model, calls=calls, device=device, dtype=dtype, widened=widened)
    return of_paths + products + traffic + weights


def in_words(seconds: float) -> str:
    """A duration to one or two digits: `about 40 seconds`, `about 3 minutes`, `about 2.5 hours`."""
    unit, size = next((u for u in (("hour", 3600.0), ("minute", 60.0)) if seconds >= 1.5 * u[1]), ("second", 1.0))
    number = seconds / size
    said = f"{number:.0f}" if number >= 10 or unit == "second" else f"{number:.1f}".removesuffix(".0")
    return f"about {said} {unit}{'' if said == '1' else 's'}"
