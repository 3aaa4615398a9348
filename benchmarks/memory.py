"""The planner's estimate and the measured peak, on the embedded model: `make memory` prints the table.

Every row runs in a process of its own: the model is loaded, two tokens are explained so that all code is there, then
some targets are integrated with as many nodes as go through at once. What counts is the growth of the anonymous memory
(every tensor that is made), and of what is mapped of the weight files where layers are read from disk. The resident
memory would say less: the kernel takes pages of mapped files (weights, libraries) away when they are idle, and they
come back while gradients are computed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROWS: list[dict[str, object]] = [
    {"tokens": 60, "chunk_tokens": 1024},
    {"tokens": 60, "chunk_tokens": 512},
    {"tokens": 60, "chunk_tokens": 1024, "checkpoint": True},
    {"tokens": 60, "chunk_tokens": 2048, "checkpoint": True},
    {"tokens": 500, "chunk_tokens": 1024},
    {"tokens": 500, "chunk_tokens": 500, "checkpoint": True},
    {"tokens": 60, "chunk_tokens": 512, "targets": 24},
    {"tokens": 60, "chunk_tokens": 512, "checkpoint": True, "targets": 24},
    {"tokens": 60, "chunk_tokens": 256, "dtype": "bfloat16"},
    {"tokens": 60, "chunk_tokens": 512, "quantize": "4bit"},
    {"tokens": 60, "chunk_tokens": 512, "checkpoint": True, "disk": True},
    {"tokens": 60, "chunk_tokens": 64, "checkpoint": True, "disk": True},
]
NO_DISK = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY = 0.002
"""Seconds between two looks at the memory."""


def measure(
    *,
    tokens: int,
    chunk_tokens: int,
    checkpoint: bool = False,
    dtype: str = "float32",
    targets: int = 2,
    quantize: str | None = None,
    disk: bool = False,
) -> dict[str, int]:
    from llmxai import Compute, attention_rollout, layer_integrated_gradients, load
    from llmxai.generation import encode_prompt, force_response
    from llmxai.models.memory import plan_for, working_of
    from llmxai.types import Generation

    loaded = load("smollm2", dtype=dtype, quantize=quantize, device_map=on_disk() if disk else None)
    ids = loaded.tokenizer("The capital of France is Paris. " * 100, add_special_tokens=False)["input_ids"]
    text = loaded.tokenizer.decode(ids[: tokens - targets])
    answer = loaded.tokenizer.decode(ids[tokens - targets : tokens])
    generation = force_response(loaded, encode_prompt(loaded, text), response=answer)
    nodes = max(1, chunk_tokens // len(generation.ids))
    compute = Compute(chunk_tokens=chunk_tokens, checkpoint=checkpoint)

    def work(answered: Generation, n_steps: int) -> None:
        layer_integrated_gradients(loaded, answered, features="all", n_steps=n_steps, compute=compute)
        attention_rollout(loaded, answered)  # the plan is for whichever takes more

    for parameter in loaded.model.parameters():  # out of the mapped file, so that all that is mapped comes from disk
        if parameter.device.type != "meta":
            parameter.data = parameter.data.clone()
    work(
        force_response(loaded, encode_prompt(loaded, "Hello there"), response=" you"), 1
    )  # code that is loaded on first use
    with peak(mapped=disk) as grown:
        work(generation, nodes)
    plan = plan_for(loaded.model, tokens=len(generation.ids), targets=generation.n_targets)
    working = working_of(
        loaded.model,
        tokens=len(generation.ids),
        targets=generation.n_targets,
        chunk_tokens=chunk_tokens,
        checkpoint=checkpoint,
    )
    return {
        "seq": len(generation.ids),
        "targets": generation.n_targets,
        "estimate": plan.weights + working,
        "measured": grown(),
    }


def on_disk() -> dict[str, str]:
    """Every layer offloaded: read from its file when it is computed, and forgotten afterwards."""
    return {**dict.fromkeys(NO_DISK, "cpu"), **{f"model.layers.{i}": "disk" for i in range(30)}}


@contextmanager
def peak(*, mapped: bool) -> Iterator[Callable[[], int]]:
    """Bytes by which the process grows inside at most."""
    before, most, done = held(mapped=mapped), [0], threading.Event()

    def watch() -> None:
        while not done.wait(EVERY):
            most[0] = max(most[0], held(mapped=mapped) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: most[0]
    finally:
        done.set()
        watcher.join()


def held(*, mapped: bool) -> int:
    """Bytes of anonymous memory and, with `mapped`, of weight files that are mapped."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * PAGE + (sum(weights_mapped()) if mapped else 0)


def weights_mapped() -> Iterator[int]:
    counts = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            counts = line.endswith(".safetensors")
        elif counts and line.startswith("Rss:"):
            yield 1024 * int(line.split()[1])


def main() -> int:
    print("dtype     weights  tokens targets at once  checkpoint   planned measured  ratio")
    outside = 0
    for row in ROWS:
        command = [sys.executable, __file__, json.dumps(row)]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratio = found["estimate"] / found["measured"]
        outside += not 0.7 <= ratio <= 1.3
        print(
            f"{row.get('quantize', row.get('dtype', 'float32'))!s:10}{'on disk' if row.get('disk') else 'memory':8}"
            f"{found['seq']:>7}{found['targets']:>8}{row['chunk_tokens']!s:>8}  "
            f"{'yes' if row.get('checkpoint') else 'no':11}{found['estimate'] / 2**20:>5.0f} MiB"
            f"{found['measured'] / 2**20:>5.0f} MiB{ratio:>7.2f}",
            flush=True,
        )
    print(f"{outside} of {len(ROWS)} outside 30 %")
    return int(outside > 0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(**json.loads(sys.argv[1]))))
    else:
        sys.exit(main())
