"""Time against tokens and targets, measured and predicted. Prints a Markdown table.

    python benchmarks/growth.py 64x1 64x8 256x1 256x4 1024x1

Integrated gradients and the deletion path with 4 nodes, rollout and its gradient-weighted variant, on the embedded
model with one thread. Seconds are those of the process, which other work on the machine changes little. The prediction
is the operations of the passes over the measured rate of products, as `llmxai models check` makes it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
sys.path.insert(0, str(HERE))

from gpu import random_answer, row  # noqa: E402

from llmxai import layer_integrated_gradients, load  # noqa: E402
from llmxai.methods import METHODS, deletion_path  # noqa: E402
from llmxai.methods.gradients.deletion_path import fuses  # noqa: E402
from llmxai.models.speed import ATTENDED, EFFICIENCY, layer_operations, layer_weights  # noqa: E402

NODES = 4
SIDE = 768


def seconds(work: Callable[[], object]) -> float:
    """Of the process, not of the clock on the wall."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    loaded = load("smollm2", dtype="float32")
    a = torch.randn(SIDE, SIDE)
    rate = 20 * 2 * SIDE**3 / seconds(lambda: [a @ a for _ in range(20)])
    print(f"torch {torch.__version__}, one thread, products at {rate / 1e9:.0f} GFLOP/s\n")
    row("tokens", "targets", "method", "processor seconds", "predicted", "predicted / measured")
    row(*["---"] * 6)
    for size in sys.argv[1:] or ("64x1", "64x8", "256x1"):
        tokens, targets = map(int, size.split("x"))
        answer = random_answer(tokens - targets, targets)
        one = layer_operations(loaded.model, tokens=tokens)
        attention = one - 2 * layer_weights(loaded.model) * tokens
        passes = 2 + NODES * (1 + targets)  # F at both ends; at every node one forward, and one backward a target
        more = (ATTENDED - 1) * attention if fuses(loaded.model, tokens=tokens) else attention
        works: dict[str, tuple[Callable[..., object], dict[str, int], float]] = {
            "integrated gradients": (layer_integrated_gradients, {"n_steps": NODES}, passes * one),
            "deletion path": (deletion_path, {"n_steps": NODES}, passes * (one + more)),
            "rollout": (METHODS["attention_rollout"].function, {}, 1.5 * one),
            "gradient-weighted": (METHODS["gradient_weighted_rollout"].function, {}, (2 + targets) * one),
        }
        for name, (method, options, operations) in works.items():
            took, expected = (
                seconds(partial(method, loaded, answer, **options)),
                operations / (EFFICIENCY["cpu"] * rate),
            )
            row(tokens, targets, name, took, expected, expected / took)


if __name__ == "__main__":
    main()
