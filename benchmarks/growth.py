"""Time and memory against tokens, targets and parameters, measured and predicted. Writes RESULTS.md.

    python benchmarks/growth.py [--sizes smollm2/512x1 1B/512x1 ...] [--samples growth.jsonl]

A size is MODEL/TOKENSxTARGETS, with xNODES for another number of nodes than 4; 1B and 8B are Llamas with random
weights, 8B stored in bfloat16. Each is explained in a process of its own by integrated gradients and by the deletion
path, computed in float32 with one thread.
Seconds are those of the process, which other work on the machine changes little. Predicted are the passes' products and
memory traffic over their measured rates, and the planner's memory, as `llmxai models check` makes both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu import random_answer, random_llama
from machine import apart, kept, surroundings, write_section
from memory import peak

from llmxai import LoadedModel, load
from llmxai.methods import METHODS
from llmxai.methods.gradients.deletion_path import presence_path
from llmxai.models.memory import Shape, saved_by, working_bytes
from llmxai.models.precision import in_precision
from llmxai.models.speed import path_seconds, product_rate, streaming_rate

HERE = Path(__file__).parent
SIZES = (
    *("smollm2/128x1", "smollm2/128x16x2", "smollm2/128x64x1", "smollm2/512x1", "smollm2/512x16x1"),
    *("smollm2/512x256x1", "smollm2/2048x1x2", "smollm2/2048x16x1", "smollm2/8192x1x1", "smollm2/16384x1x1"),
    *("1B/128x1x2", "1B/512x1x2", "8B/128x1x1"),
)
STORED = {"8B": torch.bfloat16}
NODES = 4
TITLES = {"layer_integrated_gradients": "integrated gradients", "deletion_path": "deletion path"}
GIB = 2**30


def measure(size: str, name: str) -> dict[str, Any]:
    """Seconds and bytes of one method, and what was predicted."""
    torch.set_num_threads(1)
    model, _, numbers = size.partition("/")
    tokens, targets, nodes = [*map(int, numbers.split("x")), NODES][:3]
    if model == "smollm2":
        loaded = load(model, dtype="float32")
    else:
        loaded = random_llama(STORED.get(model, torch.float32), model, full=True)
    with in_precision(loaded, "float32") as wide:
        return _of_loaded(wide, name, tokens=tokens, targets=targets, nodes=nodes)


def _of_loaded(loaded: LoadedModel, name: str, *, tokens: int, targets: int, nodes: int) -> dict[str, Any]:
    """The same of a loaded model."""
    cpu = torch.device("cpu")
    method = METHODS[name].function
    method(loaded, random_answer(8, 1), n_steps=1)  # code that is loaded on first use
    answer = random_answer(tokens - targets, targets)
    with peak(mapped=False) as grown:
        start = time.process_time()
        scores = method(loaded, answer, n_steps=nodes)
        seconds = time.process_time() - start
    of_path = presence_path(loaded, answer, features="content").saved if name == "deletion_path" else saved_by
    memory = working_bytes(
        Shape.of(loaded.model.config),
        tokens=tokens,
        targets=targets,
        itemsize=4,
        chunk_tokens=min(int(str(scores.settings["chunk_tokens"])), nodes * tokens),
        checkpoint=bool(scores.settings["checkpoint"]),
        saved=of_path(loaded.model),
        heap=True,
        rollout=False,
    )
    predicted = path_seconds(
        loaded.model,
        name,
        tokens=tokens,
        targets=targets,
        points=2,
        forwards=nodes,
        backwards=nodes * targets,
        together=min(nodes, max(1, int(str(scores.settings["chunk_tokens"])) // tokens)),
        device=cpu,
        dtype=torch.float32,
        checkpoint=bool(scores.settings["checkpoint"]),
        widened=loaded.computing is not None,
    )
    return {
        **{"nodes": nodes, "seconds": seconds, "predicted": predicted, "bytes": grown(), "planned": memory},
        **{"rate": product_rate(cpu, torch.float32), "streaming": streaming_rate(cpu)},
        "checkpoint": bool(scores.settings["checkpoint"]),
    }


def measured(size: str, name: str) -> dict[str, Any]:
    print(size, name, file=sys.stderr, flush=True)
    return apart(__file__, "--one", size, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--samples", type=Path, help="file of single measurements, which a later call reuses")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print("RESULT " + json.dumps(measure(*asked.one)))
        return
    lines = [
        f"{surroundings()}, one thread, float32, torch {torch.__version__}, transformers {version('transformers')}; "
        f"every token moves; one run each, seconds of the process.\n",
        "| model | tokens | targets | nodes | method | seconds | predicted / measured | GiB beside the weights | "
        "predicted / measured |",
        "|" + " --- |" * 9,
    ]
    worst = {"predicted": 0.0, "planned": 0.0}
    for size in asked.sizes:
        model, tokens, targets = size.replace("/", "x").split("x")[:3]
        for name, title in TITLES.items():
            one = kept(asked.samples, f"{size} {name}", lambda size=size, name=name: measured(size, name))
            time_ratio, memory_ratio = one["predicted"] / one["seconds"], one["planned"] / one["bytes"]
            worst["predicted"] = max(worst["predicted"], abs(time_ratio - 1))
            worst["planned"] = max(worst["planned"], abs(memory_ratio - 1))
            checkpointed = ", checkpointed" if one["checkpoint"] else ""
            lines.append(
                f"| {model} | {tokens} | {targets} | {one['nodes']} | {title}{checkpointed} | {one['seconds']:.1f} | "
                f"{time_ratio:.2f} | {one['bytes'] / GIB:.2f} | {memory_ratio:.2f} |"
            )
    lines += [
        "",
        f"The prediction of time is off by at most {worst['predicted']:.0%} of what was measured, that of memory by at "
        f"most {worst['planned']:.0%}.",
    ]
    write_section(
        HERE / "RESULTS.md",
        "Growth: time and memory",
        lines,
        introduction="# Results\n\nWritten by `make bench` and `make bench-growth`.\n",
    )


if __name__ == "__main__":
    main()
