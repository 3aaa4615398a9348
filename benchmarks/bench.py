"""Integrated gradients side by side with Captum and Inseq: one run, the embedded model, medians. Writes RESULTS.md.

Every measurement is a process of its own (benchmarks/worker.py), one after the other, so that peak memory is its own.
Every part takes the place of its earlier section in the file.

Usage: python benchmarks/bench.py [--repeats 3] [--parts same_work certificates]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import apart, surroundings, write_section

HERE = Path(__file__).parent
PROMPTS = json.loads((HERE / "prompts.json").read_text())
USUAL: dict[str, Any] = {"features": "prompt", "baseline": "id:0", "n_steps": 50}


def measure(name: str, **options: Any) -> dict[str, Any]:
    print(f"{name} {options}", file=sys.stderr, flush=True)
    result = work(name, **options)
    result["median"] = median(result["seconds"])
    print(f"  {result['median']:.1f} s, peak {result['peak_gib']:.2f} GiB", file=sys.stderr, flush=True)
    return result


def operations(name: str, *, n_steps: int, **options: Any) -> float:
    """Floating-point operations of the matrix products: counted for 2 and 3 nodes, and linear in them."""
    two, three = (float(work(name, count=True, n_steps=n, **options)["flops"]) for n in (2, 3))
    return two + (n_steps - 2) * (three - two)


def work(name: str, **options: Any) -> dict[str, Any]:
    return apart(HERE / "worker.py", name, json.dumps(options))


def cosine(a: list[list[float]], b: list[list[float]]) -> np.ndarray:
    x, y = np.array(a), np.array(b)
    n = min(x.shape[1], y.shape[1])
    x, y = x[:, :n], y[:, :n]
    return np.asarray((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))


def worst_difference(a: list[list[float]], b: list[list[float]]) -> float:
    x, y = np.array(a), np.array(b)
    n = min(x.shape[1], y.shape[1])
    x, y = x[:, :n], y[:, :n]
    return float((np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1)).max())


def nats(values: list[float]) -> str:
    return ", ".join(f"{value:.2g}" for value in values)


def same_work(repeats: int) -> list[str]:
    ceilings = {dtype: measure("matmul", dtype=dtype, repeats=3)["gflops"] for dtype in ("float32", "bfloat16")}
    captum = measure("captum", n_steps=50, repeats=repeats)
    inseq = measure("inseq", n_steps=50, repeats=repeats)
    full = measure("llmxai", **USUAL, repeats=repeats)
    default = measure("llmxai", n_steps=50, repeats=repeats)
    certified = measure("llmxai", repeats=repeats)
    exact = measure("llmxai", tolerance={"relative": 0.001, "absolute": 0.001}, max_nodes=1000)
    usual_300 = measure("llmxai", **(USUAL | {"n_steps": 300}))

    def line(what: str, result: dict[str, Any], note: str) -> str:
        c, i = captum["median"] / result["median"], inseq["median"] / result["median"]
        return f"| {what} | {result['median']:.1f} | {c:.2f}x | {i:.2f}x | {result['peak_gib']:.2f} | {note} |"

    lines = [
        f"Matrix products of the model's shape: {ceilings['float32']:.0f} GFLOP/s in fp32, {ceilings['bfloat16']:.0f} "
        f"in bf16.\n",
        "| work | seconds | against Captum | against Inseq | peak GiB | |",
        "| --- | --- | --- | --- | --- | --- |",
        line(f"Captum {version('captum')}, fp32, 50 nodes", captum, "baseline id 0, all prompt tokens move"),
        line(f"Inseq {version('inseq')}, fp32, 50 nodes", inseq, "its default baseline and target"),
        line(
            "llmxai, fp32, the same 50 nodes",
            full,
            f"largest relative difference from Captum {worst_difference(captum['values'], full['values']):.1e}",
        ),
        line("llmxai, fp32, default path, 50 nodes", default, "content tokens move from a space"),
        line(
            "llmxai, fp32, default path, to the certificate",
            certified,
            f"nodes {certified['nodes']}; {sum(certified['converged'])} of 8 converged; "
            f"least cosine {float(cosine(certified['values'], exact['values']).min()):.4f}",
        ),
    ]
    if ceilings["bfloat16"] > ceilings["float32"]:
        lines += mixed_precision(repeats, line, full, exact)
    else:
        lines += ["", "No bf16 rows: on this processor bf16 matrix products are slower than fp32 ones (above)."]
    return [
        *lines,
        "",
        f"Gaps in nats under Captum's convention: {nats(full['gaps'])} with 50 nodes, {nats(usual_300['gaps'])} with "
        f"300 nodes ({usual_300['median']:.0f} s), where the nets are {nats(full['nets'])}.",
        "",
        *arithmetic(captum, full, ceilings["float32"]),
    ]


def mixed_precision(
    repeats: int, line: Callable[[str, dict[str, Any], str], str], full: dict[str, Any], exact: dict[str, Any]
) -> list[str]:
    usual = measure("llmxai", **USUAL, gradient_dtype="bfloat16", repeats=repeats)
    compiled = measure("llmxai", **USUAL, gradient_dtype="bfloat16", compiling=True, repeats=repeats)
    fixed = measure("llmxai", n_steps=50, gradient_dtype="bfloat16", repeats=repeats)
    certified = measure("llmxai", gradient_dtype="bfloat16", repeats=repeats)
    return [
        line(
            "llmxai, bf16 gradients, the same 50 nodes",
            usual,
            f"ill-conditioned: up to {worst_difference(full['values'], usual['values']):.0%} from fp32",
        ),
        line(
            "llmxai, bf16 gradients, the same 50 nodes, layers compiled before",
            compiled,
            f"up to {worst_difference(full['values'], compiled['values']):.0%} from fp32",
        ),
        line(
            "llmxai, bf16 gradients, default path, 50 nodes",
            fixed,
            f"least cosine to converged fp32 {float(cosine(fixed['values'], exact['values']).min()):.4f}",
        ),
        line(
            "llmxai, bf16 gradients, default path, to the certificate",
            certified,
            f"{sum(certified['converged'])} of 8 converged, {certified['again']} panels again in fp32; least cosine "
            f"{float(cosine(certified['values'], exact['values']).min()):.4f}",
        ),
    ]


def arithmetic(captum: dict[str, Any], full: dict[str, Any], ceiling: float) -> list[str]:
    """How much of the ratio is fewer operations, and how near the machine's ceiling each one runs."""
    theirs, ours = operations("captum", n_steps=50), operations("llmxai", **USUAL)
    rates = [flops / result["median"] / 1e9 for flops, result in ((theirs, captum), (ours, full))]
    return [
        f"Matrix products of the same 50 nodes: {theirs / 1e12:.2f} TFLOP in Captum, {ours / 1e12:.2f} in llmxai, "
        f"{theirs / ours:.2f} times fewer. Captum ran at {rates[0]:.0f} GFLOP/s, llmxai at {rates[1]:.0f}, "
        f"{rates[1] / ceiling:.0%} of the measured ceiling.",
        "",
    ]


def certificates(repeats: int) -> list[str]:
    lines = [
        "| prompt | seconds | gradient nodes a target | largest error / tolerance | converged |",
        "| --- | --- | --- | --- | --- |",
    ]
    nodes: list[int] = []
    converged: list[bool] = []
    for number, prompt in enumerate(PROMPTS):
        result = measure("llmxai", prompt=number, repeats=repeats)
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


PARTS: dict[str, tuple[str, Callable[[int], list[str]]]] = {
    "same_work": ("One prompt, 8 targets (`capital`: 38 prompt tokens)", same_work),
    "certificates": ("To the certificate, fp32, default path", certificates),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args()
    often = f"{asked.repeats} repeats after a warm-up, medians" if asked.repeats > 1 else "one run each, no warm-up"
    for title, part in (PARTS[name] for name in asked.parts):
        head = f"{surroundings()}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
        head += f"{version('transformers')}; {often}.\n"
        write_section(
            HERE / "RESULTS.md",
            title,
            [head, *part(asked.repeats)],
            introduction="# Results\n\nWritten by `make bench` and `make bench-growth`.\n",
        )


if __name__ == "__main__":
    main()
