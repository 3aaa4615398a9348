"""The planner's estimate beside the measured peak, on the embedded model: `make memory` prints the table.

Every row runs in a process of its own: the model is loaded, two tokens are explained so that all code is there, the
high-water mark of the resident memory is set back, some targets are integrated with as many nodes as go through at
once, and the growth is read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROWS: list[dict[str, object]] = [
    {"tokens": 60, "chunk_tokens": 1024},
    {"tokens": 60, "chunk_tokens": 512},
    {"tokens": 60, "chunk_tokens": 1024, "checkpoint": True},
    {"tokens": 500, "chunk_tokens": 1024},
    {"tokens": 500, "chunk_tokens": 500, "checkpoint": True},
    {"tokens": 250, "chunk_tokens": 1024, "dtype": "bfloat16"},
]
TARGETS = 2
"""A peak is reached in the first backward pass; more targets take longer and show no more."""


def measure(*, tokens: int, chunk_tokens: int, checkpoint: bool = False, dtype: str = "float32") -> dict[str, int]:
    from llmxai import Compute, layer_integrated_gradients, load
    from llmxai.generation import encode_prompt, given
    from llmxai.models.planner import Shape, score_maps_of, working_bytes
    from llmxai.types import Generation

    loaded = load("smollm2", dtype=dtype)
    prompt = "The capital of France is Paris. " * 100
    ids = loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"][: tokens - TARGETS]
    answer = " Paris."
    generation = given(loaded, encode_prompt(loaded, loaded.tokenizer.decode(ids)), response=answer)
    nodes = max(1, chunk_tokens // len(generation.ids))
    compute = Compute(chunk_tokens=chunk_tokens, checkpoint=checkpoint)

    def work(answered: Generation, n_steps: int) -> None:
        layer_integrated_gradients(loaded, answered, features="all", n_steps=n_steps, compute=compute)

    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    for p in loaded.model.parameters():  # read every page of the weights, which are mapped from the file
        p.sum()
    work(given(loaded, encode_prompt(loaded, "Hello there"), response=" you"), 1)  # code that is loaded on first use
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work(generation, nodes)
    estimate = working_bytes(
        Shape.of(loaded.model.config),
        tokens=len(generation.ids),
        targets=generation.n_targets,
        itemsize=loaded.dtype.itemsize,
        chunk_tokens=chunk_tokens,
        checkpoint=checkpoint,
        score_maps=score_maps_of(loaded.model),
    )
    return {
        "seq": len(generation.ids),
        "targets": generation.n_targets,
        "weights": weights,
        "estimate": estimate,
        "measured": status("VmHWM") - before,
    }


def status(field: str) -> int:
    """Bytes, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> int:
    print("dtype     tokens targets at once  checkpoint   planned measured  ratio")
    outside = 0
    for row in ROWS:
        command = [sys.executable, __file__, json.dumps(row)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratio = found["estimate"] / found["measured"]
        outside += not 0.7 <= ratio <= 1.3
        print(
            f"{row.get('dtype', 'float32')!s:9}{found['seq']:>7}{found['targets']:>8}{row['chunk_tokens']!s:>8}  "
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
