"""Integrated gradients side by side with Captum and Inseq: one run, the embedded model, medians. Writes RESULTS.md.

Every measurement is a process of its own (benchmarks/worker.py), one after the other, so that peak memory is its own.

Usage: python benchmarks/bench.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
PROMPTS = json.loads((HERE / "prompts.json").read_text())
USUAL = {"features": "prompt", "baseline": "id:0", "n_steps": 50}


def measure(name: str, **options: Any) -> dict[str, Any]:
    print(f"{name} {options}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, HERE / "worker.py", name, json.dumps(options)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{name} {options} failed:\n{done.stderr[-2000:]}")
    result = json.loads(lines[-1].removeprefix("RESULT "))
    result["median"] = median(result["seconds"])
    print(f"  {result['median']:.1f} s, peak {result['peak_gib']:.2f} GiB", file=sys.stderr, flush=True)
    return result


def cosine(a: list[list[float]], b: list[list[float]]) -> np.ndarray:
    x, y = np.array(a), np.array(b)
    n = min(x.shape[1], y.shape[1])
    x, y = x[:, :n], y[:, :n]
    return (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def worst_difference(a: list[list[float]], b: list[list[float]]) -> float:
    x, y = np.array(a), np.array(b)
    n = min(x.shape[1], y.shape[1])
    x, y = x[:, :n], y[:, :n]
    return float((np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1)).max())


def nats(values: list[float]) -> str:
    return ", ".join(f"{value:.2g}" for value in values)


def same_work(repeats: int) -> list[str]:
    captum = measure("captum", n_steps=50, repeats=repeats)
    inseq = measure("inseq", n_steps=50, repeats=repeats)
    full = measure("llmxai", **USUAL, repeats=repeats)
    mixed_usual = measure("llmxai", **USUAL, gradient_dtype="bfloat16", repeats=repeats)
    default = measure("llmxai", n_steps=50, repeats=repeats)
    mixed = measure("llmxai", n_steps=50, gradient_dtype="bfloat16", repeats=repeats)
    certified = measure("llmxai", repeats=repeats)
    certified_mixed = measure("llmxai", gradient_dtype="bfloat16", repeats=repeats)
    exact = measure("llmxai", tolerance={"relative": 0.001, "absolute": 0.001}, max_nodes=1000)
    usual_300 = measure("llmxai", **(USUAL | {"n_steps": 300}))

    def line(what: str, result: dict[str, Any], note: str) -> str:
        c, i = captum["median"] / result["median"], inseq["median"] / result["median"]
        return f"| {what} | {result['median']:.1f} | {c:.2f}x | {i:.2f}x | {result['peak_gib']:.2f} | {note} |"

    bf16 = float(cosine(mixed["values"], exact["values"]).min())
    bf16_c = float(cosine(certified_mixed["values"], exact["values"]).min())
    fp32_c = float(cosine(certified["values"], exact["values"]).min())
    return [
        "## One prompt, 8 targets (`capital`: 38 prompt tokens)\n",
        "| work | seconds | against Captum | against Inseq | peak GiB | |",
        "| --- | --- | --- | --- | --- | --- |",
        line(f"Captum {version('captum')}, fp32, 50 nodes", captum, "baseline id 0, all prompt tokens move"),
        line(f"Inseq {version('inseq')}, fp32, 50 nodes", inseq, "its default baseline and target"),
        line(
            "llmxai, fp32, the same 50 nodes",
            full,
            f"largest relative difference from Captum {worst_difference(captum['values'], full['values']):.1e}",
        ),
        line(
            "llmxai, bf16 gradients, the same 50 nodes",
            mixed_usual,
            f"ill-conditioned: up to {worst_difference(full['values'], mixed_usual['values']):.0%} from fp32",
        ),
        line("llmxai, fp32, default path, 50 nodes", default, "content tokens move from a space"),
        line("llmxai, bf16 gradients, default path, 50 nodes", mixed, f"least cosine to converged fp32 {bf16:.4f}"),
        line(
            "llmxai, fp32, default path, to the certificate",
            certified,
            f"nodes {certified['nodes']}; {sum(certified['converged'])} of 8 converged; least cosine {fp32_c:.4f}",
        ),
        line(
            "llmxai, bf16 gradients, default path, to the certificate",
            certified_mixed,
            f"{sum(certified_mixed['converged'])} of 8 converged, {certified_mixed['again']} panels again in fp32; "
            f"least cosine {bf16_c:.4f}",
        ),
        "",
        f"Gaps in nats under Captum's convention: {nats(full['gaps'])} with 50 nodes, {nats(usual_300['gaps'])} with "
        f"300 nodes ({usual_300['median']:.0f} s), where the nets are {nats(full['nets'])}.",
        "",
    ]


def certificates() -> list[str]:
    lines = [
        "## To the certificate, fp32, default path\n",
        "| prompt | seconds | gradient nodes a target | largest error / tolerance | converged |",
        "| --- | --- | --- | --- | --- |",
    ]
    nodes: list[int] = []
    converged: list[bool] = []
    for number, prompt in enumerate(PROMPTS):
        result = measure("llmxai", prompt=number)
        nodes += result["nodes"]
        converged += result["converged"]
        worst = max(e / t for e, t in zip(result["local_errors"], result["tolerances"], strict=True))
        lines.append(
            f"| {prompt['name']} | {result['median']:.1f} | {', '.join(map(str, result['nodes']))} | {worst:.2f} | "
            f"{sum(result['converged'])} of {len(result['nodes'])} |"
        )
    return [
        *lines,
        "",
        f"Median {median(nodes):.0f} nodes a target, most {max(nodes)}; {np.mean(converged):.1%} of {len(nodes)} "
        f"targets within tolerance in at most 128 nodes.",
        "",
    ]


def growing() -> list[str]:
    lines = [
        "## Growth, fp32, every token moves, no cached prefix\n",
        "| prompt tokens | targets | milliseconds a (target x node) | GiB beside the weights and libraries |",
        "| --- | --- | --- | --- |",
    ]
    for tokens in (64, 256, 1024):
        for targets in (8, 32):
            result = measure("growth", tokens=tokens, targets=targets)
            each = 1000 * result["median"] / (2 * targets)
            extra = result["peak_gib"] - result["before_gib"]
            lines.append(f"| {tokens} | {targets} | {each:.0f} | {extra:.2f} |")
    return [*lines, ""]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    ceilings = [measure("matmul", dtype=dtype, repeats=3)["gflops"] for dtype in ("float32", "bfloat16")]
    text = [
        "# Results\n",
        f"`make bench`, {repeats} repeats after a warm-up, medians. {processor()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')}. "
        f"Matrix products of the model's shape: {ceilings[0]:.0f} GFLOP/s in fp32, {ceilings[1]:.0f} in bf16.\n",
        *same_work(repeats),
        *certificates(),
        *growing(),
    ]
    (HERE / "RESULTS.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
